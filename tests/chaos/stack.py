"""The processes of a deployment as an operator has them, each of which can be killed, frozen and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import redis
import requests
import sqlalchemy as sa
from deployment import KEY, Deployment, own_port, wait_until

from orchestrator.config import environment_of
from orchestrator.embedded import wait_ready
from orchestrator.processes import Child
from workers.app import PRIORITY_STEPS, QUEUES, app

_TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kind:
    """A worker as its command line makes it."""

    queues: str
    pool: str
    concurrency: int


WORKERS = {
    "cpu-1": Kind("control,cpu", "prefork", 2),
    "cpu-2": Kind("control,cpu", "prefork", 2),
    "io-1": Kind("io", "threads", 10),
    "io-2": Kind("io", "threads", 10),
}
BEATS = ("beat-1", "beat-2")
_SEPARATOR = app.conf.broker_transport_options["sep"]
_LISTS = [f"{queue}{_SEPARATOR}{step}" if step else queue for queue in QUEUES for step in PRIORITY_STEPS]
"""The keys of the broker's lists, one for each queue and priority."""


class Stack:
    """Two workers of each kind, two clocks, the API, over the servers of a deployment.

    A process has a name that stays, and is another `Child` after each start. Its group dies with it.
    """

    def __init__(self, deployment: Deployment, port: int, patience: float) -> None:
        self.deployment = deployment
        self.patience = patience
        self.settings = replace(deployment.settings, port=port)
        self.running: dict[str, Child] = {}
        self.leaving: list[Child] = []
        """Processes that were asked to stop, and whose place has been taken."""
        self.nodes: dict[str, str] = {}
        """What the workers are called at present: anew with each start."""
        self._numbers = count(1)

    def start(self, *names: str) -> None:
        """Start the processes of these names (default: all), and wait until they are there."""
        names = names or (*WORKERS, *BEATS, "api")
        for name in names:
            self.start_process(name)
        for name in WORKERS.keys() & names:
            wait_until(lambda name=name: self.is_there(name), what=name)
        if "api" in names:
            wait_until(self.api_answers, what="the API")

    def stop(self) -> None:
        for child in (*self.running.values(), *self.leaving):
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGCONT)
            child.kill()

    def start_process(self, name: str) -> None:
        if name in self.running:
            self.running[name].kill()  # what is left of its group
        path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        child = Child(
            name,
            self._command(name),
            log=self._log_of(name),
            environment=os.environ | environment_of(self.settings) | {"PYTHONPATH": path},
            folder=self.deployment.folder,
        )
        child.start()
        self.running[name] = child

    def _command(self, name: str) -> list[str]:
        python = [sys.executable, "-m"]
        if name == "api":
            server = ["gunicorn", "api:create_app()", "--bind", f"127.0.0.1:{self.settings.port}"]
            return [*python, *server, "--worker-class", "gthread", "--threads", "8", "--graceful-timeout", "5"]
        if name in BEATS:
            return [*python, "celery", "-A", "beat", "beat", "-S", "redbeat.RedBeatScheduler", "--pidfile="]
        kind = WORKERS[name]
        self.nodes[name] = f"{name}.{next(self._numbers)}"
        node = f"{self.nodes[name]}@%h"
        worker = ["celery", "-A", "workers", "worker", "-n", node, "-Q", kind.queues, "-P", kind.pool]
        return [*python, *worker, "-c", str(kind.concurrency), "--without-gossip", "--without-mingle", "-l", "INFO"]

    def within(self, seconds: float, condition: Callable[[], object], what: str) -> None:
        """On a machine that has nothing else to do; one that has gets `patience` times as many."""
        wait_until(condition, seconds * self.patience, what)

    # --- what it is asked ------------------------------------------------------------------------------------

    def sql(self, statement: str, **params: Any) -> list[Any] | None:
        """The rows; None while the database is away."""
        try:
            return self.deployment.sql(statement, **params)
        except sa.exc.OperationalError:
            self.deployment.store.close()
            return None

    def leases_of(self, child: Child) -> list[str]:
        """The ids under which the processes of a worker claim steps."""
        rows = self.sql(
            "SELECT id::text FROM worker_processes WHERE pid = ANY(%(pids)s)", pids=[one.pid for one in family(child)]
        )
        return [id for (id,) in rows or ()]

    def is_ready(self, name: str) -> bool:
        """Whether the worker has come to take messages."""
        return f"{self.nodes[name]}@{socket.gethostname()} ready." in self._log_of(name).read_text(errors="replace")

    def is_there(self, name: str) -> bool:
        """Whether it has, and keeps a lease."""
        leases = self.is_ready(name) and self.sql(
            "SELECT FROM worker_processes WHERE split_part(node, '@', 1) = %(node)s "
            "AND seen_at > clock_timestamp() - %(lease)s * interval '1 second'",
            node=self.nodes[name],
            lease=self.settings.scheduler.lease,
        )
        return bool(leases)

    def _log_of(self, name: str) -> Path:
        return self.deployment.folder / f"{name}.log"

    def performer_of(self, execution_id: str) -> str | None:
        """The name of a worker that performs a step of the execution."""
        rows = self.sql(
            "SELECT w.pid FROM step_executions s JOIN worker_processes w ON w.id = s.worker_id "
            "WHERE s.execution_id = %(id)s::uuid AND s.status = 'running'",
            id=execution_id,
        )
        pids = {pid for (pid,) in rows or ()}
        return next((name for name, child in self.running.items() if pids & {one.pid for one in family(child)}), None)

    def api_answers(self) -> bool:
        try:
            return bool(self.request("GET", "/health", timeout=2).ok)
        except requests.RequestException:
            return False

    def request(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {KEY}", **more.pop("headers", {})}
        url = f"http://127.0.0.1:{self.settings.port}{path}"
        return requests.request(method, url, headers=headers, **{"timeout": 10, **more})

    def messages(self) -> int:
        """Those that wait at the broker; not those that somebody took and has not acknowledged."""
        with self._valkey_client() as client:
            return sum(client.llen(key) for key in _LISTS)

    # --- what is done to it ----------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL to the process and what it has started."""
        self.running[name].kill()

    def kill_one(self, name: str, choose: Callable[[list[psutil.Process]], psutil.Process]) -> None:
        """SIGKILL to one process of the group, as the kernel does when memory is short."""
        with suppress(psutil.NoSuchProcess):
            choose(family(self.running[name])).kill()

    def freeze(self, name: str) -> None:
        os.killpg(self.running[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.running[name].pid, signal.SIGCONT)

    def roll(self, name: str) -> Child:
        """Start a successor and ask the process to stop, as a deploy does; the one that is leaving."""
        child = self.running.pop(name)
        self.start_process(name)
        child.signal(signal.SIGTERM)
        self.leaving.append(child)
        return child

    def forget(self) -> None:
        """The broker loses its data."""
        with self._valkey_client() as client:
            client.flushall()

    def lose_oldest(self, count: int) -> list[str]:
        """Messages go as with a worker that took them and was killed; the executions they were for."""
        with self._valkey_client() as client:
            taken = [message for key in _LISTS for message in client.rpop(key, count) or ()]
        return [json.loads(b64decode(json.loads(message)["body"]))[0][0] for message in taken]

    def kill_valkey(self) -> None:
        self._valkey.kill()

    def start_valkey(self) -> None:
        self._valkey.start()
        wait_ready(self._valkey)

    def kill_postgres(self) -> None:
        backends = psutil.Process(self._postgres.pid).children(recursive=True)
        self._postgres.kill()
        psutil.wait_procs(backends, 10)

    def start_postgres(self) -> None:
        self._postgres.start()
        wait_ready(self._postgres)
        self.deployment.store.close()

    @property
    def _valkey(self) -> Any:
        assert self.deployment.servers.valkey is not None
        return self.deployment.servers.valkey

    @property
    def _postgres(self) -> Any:
        assert self.deployment.servers.postgres is not None
        return self.deployment.servers.postgres

    def _valkey_client(self) -> Any:
        return redis.Redis.from_url(self.settings.broker.url)


@contextmanager
def stacked(deployment: Deployment, patience: float = 1.0) -> Iterator[Stack]:
    """No process of it runs yet."""
    with own_port() as port:
        stack = Stack(deployment, port, patience)
        try:
            yield stack
        finally:
            stack.stop()


def family(child: Child) -> list[psutil.Process]:
    """The process, first, and what it has started; nothing if it is gone."""
    try:
        process = psutil.Process(child.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
