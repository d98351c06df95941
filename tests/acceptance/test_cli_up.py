"""`orchestrator up` from outside: what it prints, what it restarts, what it leaves behind.

The Procfile's processes are stand-ins, so that starting takes a second and one of them can misbehave; the
servers, the migration and the supervisor are the real ones. test_cli_run.py has the real processes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from deployment import PATIENCE, SOON, wait_until

WEB = """
import http.server, os
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'{"status": "healthy", "pid": %d}' % os.getpid())
    def log_message(self, *arguments): print("asked", flush=True)
http.server.ThreadingHTTPServer((os.environ["ORCHESTRATOR_HOST"], int(os.environ["ORCHESTRATOR_PORT"])), Health
).serve_forever()
"""
# Deaf to every polite signal, with a child in a session of its own, as a script that daemonizes has.
STUBBORN = """
import signal, subprocess, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT): signal.signal(number, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"], start_new_session=True)
while True: time.sleep(600)
"""


PATIENT = """
import orchestrator.supervisor
orchestrator.supervisor._SERVICES_STOP_WITHIN = 60.0
"""


class Up:
    """A running `orchestrator up`, with the lines it has printed."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.output = folder.with_name(f"{folder.name}.out")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", "up", "--data-dir", str(folder), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
                cwd=folder.parent,
            )
        self.family: list[psutil.Process] = []

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_ready(self) -> str:
        """The URL of the line `ready: URL`."""

        def line() -> re.Match[str] | None:
            assert self.process.poll() is None, self.said
            return re.search(r"^ready: (\S+)$", self.said, re.MULTILINE)

        url = wait_until(line, what="the ready line").group(1)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return url

    def child(self, word: str) -> psutil.Process:
        """The oldest process of the family with `word` in its command line."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # a backend of PostgreSQL, say, that was there a moment ago
                if child.ppid() != self.process.pid and word in " ".join(child.cmdline()):
                    return child
        raise LookupError(word)

    def left(self) -> list[psutil.Process]:
        return [process for process in self.family if lives(process)]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


Starter = Callable[..., Up]


@pytest.fixture(scope="module")
def procfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand ins")
    for name, text in (("web", WEB), ("stubborn", STUBBORN)):
        (folder / f"{name}.py").write_text(text)
    lines = [f"{name}: python {shlex.quote(str(folder / f'{name}.py'))}" for name in ("web", "stubborn")]
    (folder / "Procfile").write_text("# stand-ins\n" + "\n".join(lines) + "\nworker: sleep 600\n")
    return folder / "Procfile"


@pytest.fixture(scope="module")
def shared_up(procfile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One for the tests that leave it running."""
    environment = {"ORCHESTRATOR_PROCFILE": str(procfile)}
    up = Up(tmp_path_factory.mktemp("up") / "data föld er", "--port", "0", environment=environment)
    up.wait_ready()
    yield up
    up.end()


@pytest.fixture
def start(procfile: Path, tmp_path: Path) -> Iterator[Starter]:
    started: list[Up] = []

    def starter(*arguments: str, **environment: str) -> Up:
        environment = {"ORCHESTRATOR_PROCFILE": str(procfile)} | environment
        started.append(Up(tmp_path / f"d{len(started)}", *arguments, environment=environment))
        return started[-1]

    yield starter
    for up in started:
        up.end()


def health(url: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            found: dict[str, object] = json.load(answer)
            return found
    except OSError:
        return {}


def test_the_ready_line_names_where_health_answers(shared_up: Up) -> None:
    assert health(shared_up.wait_ready())["status"] == "healthy"


def test_the_key_is_generated_once_and_private(shared_up: Up) -> None:
    for name in ("admin-key", "up.json"):
        assert stat.S_IMODE((shared_up.folder / name).stat().st_mode) == 0o600
    assert len((shared_up.folder / "admin-key").read_text().strip()) >= 32


def test_large_outputs_are_kept_in_the_data_folder(shared_up: Up) -> None:
    assert shared_up.child("sleep 600").environ()["ORCHESTRATOR_ARTIFACTS_URL"] == str(shared_up.folder / "artifacts")


def test_a_second_up_on_the_folder_says_who_has_it_and_exits_2(shared_up: Up) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "up", "--port", "0", "--data-dir", str(shared_up.folder)],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    holder = json.loads((shared_up.folder / "up.json").read_text())
    assert f"process {holder['pid']} at {holder['url']}" in second.stderr
    assert health(shared_up.wait_ready())


@pytest.mark.parametrize("name", ["web.py", "valkey-server", "bin/postgres -D", "sleep 600"])
def test_a_child_that_dies_is_restarted(shared_up: Up, name: str) -> None:
    victim = shared_up.child(name)
    victim.kill()
    victim.wait(PATIENCE)

    def successor() -> bool:
        try:
            return shared_up.child(name).pid != victim.pid
        except LookupError:
            return False

    wait_until(successor, what=f"{name} starts again")
    wait_until(lambda: health(shared_up.wait_ready()), what="health")


def test_what_a_dead_child_left_running_is_ended(shared_up: Up) -> None:
    victim = shared_up.child("stubborn.py")
    (daemon,) = wait_until(victim.children, what="its daemon")
    victim.kill()
    wait_until(lambda: not lives(daemon), what="the daemon's end")


def test_logs_are_kept_by_process(shared_up: Up) -> None:
    assert health(shared_up.wait_ready())
    wait_until(lambda: "asked" in (shared_up.folder / "logs" / "web.log").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_no_process_soon(start: Starter, number: signal.Signals) -> None:
    up = start("--port", "0")
    up.wait_ready()
    assert len(up.left()) >= 8
    began = time.monotonic()
    up.process.send_signal(number)
    assert up.process.wait(PATIENCE) == 0
    assert time.monotonic() - began < SOON
    assert up.left() == []
    assert not (up.folder / "up.json").exists()


def test_a_second_signal_hurries_the_stop(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PATIENT)
    up = start("--port", "0", PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    up.wait_ready()
    began = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    while up.process.poll() is None:
        time.sleep(0.2)
        up.process.send_signal(signal.SIGINT)
    assert time.monotonic() - began < SOON
    assert up.left() == []


@pytest.mark.parametrize("whom", ["the command", "the supervisor"])
def test_sigkill_leaves_no_process_either(start: Starter, whom: str) -> None:
    up = start("--port", "0")
    up.wait_ready()
    supervisor = json.loads((up.folder / "up.json").read_text())["pid"]
    os.kill(up.process.pid if whom == "the command" else supervisor, signal.SIGKILL)
    up.process.wait(PATIENCE)
    wait_until(lambda: not up.left(), what="the end of all")
    # And the folder is free again.
    again = Up(up.folder, "--port", "0", environment={"ORCHESTRATOR_PROCFILE": os.devnull})
    wait_until(lambda: (up.folder / "logs" / "migrate.log").read_text().startswith("the database"))
    again.end()


def test_a_busy_port_that_was_asked_for_is_an_error_that_names_it(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        up = start("--port", str(port))
        assert up.process.wait(PATIENCE) == 2
    assert f"port {port}" in up.said
    assert "--port" in up.said


def test_a_busy_default_port_is_replaced(start: Starter) -> None:
    try:
        other = socket.create_server(("127.0.0.1", 8084))
    except OSError:  # somebody else has it, which is as good
        other = socket.socket()
    with other:
        up = start()
        url = up.wait_ready()
    assert not url.endswith(":8084")
    assert "port 8084 is in use" in up.said


def test_it_does_not_listen_beyond_loopback_without_tls_unless_told_to(start: Starter) -> None:
    refused = start("--port", "0", "--host", "0.0.0.0")
    assert refused.process.wait(PATIENCE) == 2
    assert "refusing to listen on 0.0.0.0" in refused.said
    assert "--behind-tls" in refused.said
    assert "Traceback" not in refused.said
    up = start("--port", "0", "--host", "0.0.0.0", "--insecure")
    assert up.wait_ready().startswith("http://127.0.0.1:")


def test_it_ends_when_stdin_does(procfile: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "up", "--until-eof", "--port", "0", "--data-dir"]
    up = subprocess.Popen(
        [*command, str(tmp_path / "d")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"ORCHESTRATOR_PROCFILE": str(procfile)},
    )
    assert up.stdout
    assert up.stdin
    assert up.stdout.readline().startswith(b"ready: ")
    up.stdin.close()
    assert up.wait(PATIENCE) == 0
    up.stdout.close()


def test_settings_that_are_not_valid_are_all_listed(start: Starter) -> None:
    up = start(ORCHESTRATOR_EXECUTOR_TIMEOUT="soon", ORCHESTRATOR_SCHEDULER_WORKERS="0")
    assert up.process.wait(PATIENCE) == 2
    assert "ORCHESTRATOR_EXECUTOR_TIMEOUT" in up.said
    assert "ORCHESTRATOR_SCHEDULER_WORKERS" in up.said
    assert "Traceback" not in up.said


def test_a_database_that_does_not_answer_is_named_without_its_password(start: Starter, procfile: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "migrate"],
        env=os.environ | {"ORCHESTRATOR_DATABASE_URL": "postgresql+psycopg2://u:secret@127.0.0.1:1/d"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    assert "ORCHESTRATOR_DATABASE_URL" in done.stderr
