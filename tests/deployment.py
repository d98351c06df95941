"""A real deployment for tests: PostgreSQL and Valkey from their wheels, worker processes, the API in process."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import sqlalchemy as sa
from alembic import command
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError

from orchestrator.config import BrokerSettings, DatabaseSettings, Settings, VaultSettings, environment_of
from orchestrator.embedded import Embedded, embedded_servers
from orchestrator.store import Store, archives, claims, execution_views, new_id, partitions, session, workers
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.migrate import alembic_config, migrate
from orchestrator.vault import new_key

T = TypeVar("T")
KEY = "the-tests-own-key"
VAULT_KEY = new_key()
_TESTS = Path(__file__).parent
PATIENCE = 90.0
"""Seconds for what takes one or two on a machine that has nothing else to do."""
SOON = 25.0
"""Seconds: by then it is through, even on a busy machine, if it does not wait for what takes thirty or more."""
TERMINAL = ("completed", "failed", "cancelled")


def wait_until(condition: Callable[[], T], seconds: float = PATIENCE, what: str = "") -> T:
    """The first truthy answer of `condition`; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)


@contextmanager
def own_port() -> Iterator[int]:
    """A port at which nobody listens but whom the test starts there, and that nobody else is given meanwhile."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, so that both may have it
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def kill(processes: Iterable[psutil.Process]) -> None:
    """Those that have not ended meanwhile."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Deployment:
    def __init__(self, folder: Path, servers: Embedded, settings: Settings) -> None:
        self.folder = folder
        self.servers = servers
        self.settings = settings
        self.store = Store(settings.database)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._numbers = count()
        self._client: FlaskClient | None = None

    @property
    def client(self) -> FlaskClient:
        """The API over this deployment's servers. Its headers have the key already, and that a workflow may be changed
        whatever its version is."""
        _point_celery_at(self.settings)
        if self._client is None:
            from api import create_app

            self._client = create_app(self.settings).test_client()
            self._client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
            self._client.environ_base["HTTP_IF_MATCH"] = "*"
        return self._client

    # --- worker processes ------------------------------------------------------------------------------------

    def start_worker(
        self, queues: str = "control,cpu,io", *, pool: str = "prefork", concurrency: int = 2
    ) -> subprocess.Popen[bytes]:
        """A Celery worker as an operator would start it; returns when it has taken its lease."""
        name = f"w{next(self._numbers)}"
        log = (self.folder / f"{name}.log").open("ab")
        command = [
            sys.executable, "-m", "celery", "-A", "workers", "worker", "-n", f"{name}@%h", "-Q", queues,
            "-P", pool, "-c", str(concurrency), "--without-gossip", "--without-mingle", "-l", "INFO",
        ]  # fmt: skip
        environment = os.environ | environment_of(self.settings)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_TESTS), environment.get("PYTHONPATH")]))
        worker = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
        )
        log.close()
        self.workers.append(worker)
        expected = concurrency if pool == "prefork" else 1
        wait_until(lambda: self._leases(name) >= expected or worker.poll() is not None, what="the worker's leases")
        assert worker.poll() is None, (self.folder / f"{name}.log").read_text()
        return worker

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the worker and its children: nobody says goodbye."""
        kill(self._family(worker))
        worker.wait()
        self.workers.remove(worker)

    def children_of(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        return psutil.Process(worker.pid).children(recursive=True)

    def stop(self) -> None:
        """All of it is thrown away: there is nothing for anybody to see to."""
        for worker in list(self.workers):
            self.kill_worker(worker)
        self.store.close()

    def _family(self, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
        try:
            # The worker first: it would start others in the place of its children.
            return [psutil.Process(worker.pid), *self.children_of(worker)]
        except psutil.NoSuchProcess:
            return []

    def stop_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """As a deploy does it."""
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE)
        self.workers.remove(worker)

    def _leases(self, name: str) -> int:
        """The processes of one worker; those of others may be taken away meanwhile."""
        return int(self.sql("SELECT count(*) FROM worker_processes WHERE node LIKE %(node)s", node=f"{name}@%")[0][0])

    # --- workflows and executions ----------------------------------------------------------------------------

    def create(self, definition: dict[str, Any], name: str = "a workflow") -> str:
        """A workflow made through the API; its id."""
        answer = self.client.post("/api/v1/workflows", json={"name": name, "definition": definition})
        assert answer.status_code == 201, answer.text
        return str(answer.json["id"])

    def execute(self, workflow_id: str, input: dict[str, Any] | None = None, **more: Any) -> str:
        """An execution started through the API; its id."""
        answer = self.client.post(f"/api/v1/workflows/{workflow_id}/execute", json={"input": input or {}, **more})
        assert answer.status_code == 202, answer.text
        return str(answer.json["id"])

    def run(self, definition: dict[str, Any], input: dict[str, Any] | None = None, seconds: float = PATIENCE) -> Any:
        """Execute a definition to its end; the execution as the API shows it."""
        return self.ended(self.execute(self.create(definition), input), seconds)

    def ended(self, execution_id: str, seconds: float = PATIENCE) -> Any:
        def has_ended() -> bool:
            ((status,),) = self.sql("SELECT status FROM all_executions WHERE id = %(id)s::uuid", id=execution_id)
            return status in TERMINAL

        wait_until(has_ended, seconds, f"the end of execution {execution_id}")
        return self.execution(execution_id)

    def leased(
        self, *, node: str = "w@test", host: str = "elsewhere", pid: int = 1, born: float = 0, **more: Any
    ) -> str:
        """The id of a worker process that has just kept its lease."""
        id = new_id()
        with self.store.single() as connection:
            workers.register(connection, id, node=node, host=host, pid=pid, born=born, **more)
        return id

    def claim(self, execution_id: str, path: str = "a") -> tuple[Claim, ExecutionFacts] | None:
        """By a worker process of which nobody hears any more."""
        id = self.leased(node="gone@test")
        try:
            return claims.claim(self.store, execution_id, path, id)
        finally:
            with self.store.single() as connection:
                workers.remove(connection, [id])

    def lay_aside(self) -> None:
        """What has ended, as retention does it when it is time."""

        def is_laid_aside() -> bool:
            with suppress(OperationalError), self.store.transaction() as connection:  # somebody is in the way
                if partitions.alone(connection) and archives.make_ready(connection):
                    archives.lay_aside(connection, settles=0)
                    return True
            return False

        wait_until(is_laid_aside)

    def pass_its_time(self, execution_id: str) -> None:
        """As if the `timeout` of the execution were over."""
        self.sql("UPDATE executions SET deadline = clock_timestamp() WHERE id = %(id)s::uuid", id=execution_id)

    @contextmanager
    def older(self, revision: str, rows: str) -> Iterator[Store]:
        """A database of an older release beside its own, with these `rows`, brought to the newest schema."""
        name = f"at_{revision}"
        url = sa.make_url(self.settings.database.url).set(database=name).render_as_string(hide_password=False)
        self.sql(f"CREATE DATABASE {name}")
        store = Store(DatabaseSettings(url=url))
        with store.engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            command.upgrade(alembic_config(connection), revision)
            connection.exec_driver_sql(rows)
        migrate(url)
        yield store
        store.close()

    def execution(self, execution_id: str) -> dict[str, Any]:
        with self.store.single() as connection:
            return execution_views.get(connection, execution_id)

    def statuses(self, execution_id: str) -> dict[str, str]:
        return {step["path"]: step["status"] for step in self.execution(execution_id)["step_executions"]}

    def sql(self, statement: str, **params: Any) -> list[Any]:
        with self.store.single() as connection:
            result = connection.exec_driver_sql(statement, params or None)
            return list(result.all()) if result.returns_rows else []


@contextmanager
def watched(engine: sa.Engine) -> Iterator[list[tuple[str, Any]]]:
    """The statements that this process sends meanwhile, with their parameters: those that go through SQLAlchemy by this
    engine, and those that go past it, by any."""
    sent: list[tuple[str, Any]] = []

    class Watched(session.NamedTupleCursor):  # type: ignore[misc]
        def execute(self, query: Any, vars: Any = None) -> None:
            sent.append((query, vars))
            super().execute(query, vars)

    def watch(*call: Any) -> None:
        sent.append(call[2:4])

    sa.event.listen(engine, "before_cursor_execute", watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "NamedTupleCursor", Watched)
        try:
            yield sent
        finally:
            sa.event.remove(engine, "before_cursor_execute", watch)


def _point_celery_at(settings: Settings) -> None:
    """There is one Celery app in a process; several deployments take turns with it."""
    from workers.app import app, configure

    if app.conf.broker_url != settings.broker.url:
        configure(app, settings)
        app._after_fork()  # drops the connections of the deployment before
        app._backend = app._get_backend()


@cache
def _migrated_cluster() -> Path:
    """A database with all migrations, of which others are copies: to make one takes seconds of a processor."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-cluster-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    servers = Embedded(folder, valkey=False)
    try:
        migrate(servers.start()[0])
    finally:
        servers.stop()
    return folder / "postgres"


@contextmanager
def deployed(
    folder: Path, *, adjusted: Callable[[Settings], Settings] = lambda settings: settings, **scheduler: Any
) -> Iterator[Deployment]:
    """Fresh servers, migrated, and no worker yet. `adjusted` gets the settings, which name the servers, last."""
    (folder / "data").mkdir(mode=0o700, parents=True)
    subprocess.run(["cp", "-a", str(_migrated_cluster()), str(folder / "data")], check=True)
    with embedded_servers(folder / "data") as servers:
        settings = Settings(
            admin_key=KEY,
            data_dir=str(folder / "data"),
            plugins="sample_steps",
            database=DatabaseSettings(url=servers.database_url),
            broker=BrokerSettings(url=servers.broker_url),
            vault=VaultSettings(key=VAULT_KEY),
        )
        scheduling = replace(settings.scheduler, **({"poll_interval": 0.2, "max_concurrent": 100_000} | scheduler))
        # Tests of the engine speak with their scripts through files.
        executing = replace(
            settings.executor,
            scripts_dir=str(folder / "scripts"),
            templates_dir=str(folder / "templates"),
            isolation="limits",
        )
        # In this process a stream is an answer like any other, and so it has an end.
        answering = replace(settings.api, stream_lifetime=0.1)
        settings = adjusted(replace(settings, scheduler=scheduling, executor=executing, api=answering))
        deployment = Deployment(folder, servers, settings)
        try:
            yield deployment
        finally:
            deployment.stop()
