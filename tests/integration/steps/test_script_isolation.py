"""What a script finds when it goes looking for what is not its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployment import Deployment, wait_until
from performing import context_of

from orchestrator import isolation
from orchestrator.config import ArtifactSettings, ExecutorSettings, Settings, VaultSettings
from orchestrator.errors import StepFailed
from orchestrator.isolation import in_force
from workers.process import WorkerProcess
from workers.steps.processes import MARKER, mark_of
from workers.steps.script import Script

SECRET = "s3cr3t-of-the-service"


@pytest.fixture
def enclosed() -> None:
    found = in_force(Settings())
    if found.mode != "bubblewrap":
        pytest.skip(found.reason)


class Service:
    """The surroundings of a worker: settings, a data folder, a socket, another process, and a script of another
    execution, each with the secret in it."""

    def __init__(self, base: Path) -> None:
        self.scripts = base / "scripts"
        self.data = base / "data"
        self.scripts.mkdir()
        self.data.mkdir()
        self.config = base / "config.yaml"
        self.id = str(uuid.uuid4())
        self.more: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        for file in (self.config, self.data / "admin.key"):
            file.write_text(SECRET)

    def run(self, source: str, *arguments: Any, runtime: str = "python", mode: str = "bubblewrap", **more: Any) -> Any:
        executor = ExecutorSettings(scripts_dir=str(self.scripts), isolation=mode, **self.more)
        settings = Settings(executor=executor, **{"data_dir": str(self.data), **self.settings})
        config = {"source": source, "runtime": runtime, "args": [str(one) for one in arguments], **more}
        context = context_of(Script(), config, settings=settings, step_execution_id=self.id)
        return Script().perform(context).output["result"]  # type: ignore[call-overload, index]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(service.config))
    return service


READ = """
import json, os, sys
seen = {}
for path in sys.argv[1:]:
    try:
        seen[path] = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read().decode(errors="replace")
    except OSError as error:
        seen[path] = type(error).__name__
print(json.dumps(list(seen.values())))
"""

ENVIRONMENTS = """
import glob, json
found = {}
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        found[path] = open(path, "rb").read().decode(errors="replace")
    except OSError:
        found[path] = ""
print(json.dumps(list(found.values())))
"""

CONNECT = """
import socket, sys
family, where = sys.argv[1:]
target = ("127.0.0.1", int(where)) if family == "tcp" else where.replace("@", chr(0))
try:
    socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX).connect(target)
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def neighbour() -> Iterator[psutil.Process]:
    """A process of the service with the secret in its environment."""
    child = subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(120)"],
        env={"SETTING": SECRET},
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()
    child.stdout.close()


def test_no_environment_of_another_process_can_be_read(
    enclosed: None, service: Service, neighbour: psutil.Process
) -> None:
    assert neighbour.environ()["SETTING"] == SECRET
    environments = service.run(ENVIRONMENTS)
    assert not any(SECRET in environment for environment in environments)
    assert any(MARKER in environment for environment in environments), "it sees its own"


def test_no_other_process_is_seen_or_reached(enclosed: None, service: Service, neighbour: psutil.Process) -> None:
    look = """
import os, json, sys
def reached(pid):
    try:
        return os.kill(pid, 0) or os.readlink(f"/proc/{pid}/cwd")
    except OSError as error:
        return type(error).__name__
print(json.dumps([[int(name) for name in os.listdir("/proc") if name.isdigit()], reached(int(sys.argv[1]))]))
"""
    seen, reached = service.run(look, neighbour.pid)
    assert reached == "ProcessLookupError"
    assert len(seen) == 2, "bubblewrap, as the namespace's first process, and the script"


def test_settings_data_and_other_folders_are_not_there(enclosed: None, service: Service) -> None:
    with tempfile.TemporaryDirectory(prefix="orchestrator-another-") as another:
        (Path(another) / "result").write_text(SECRET)
        paths = [service.config, service.data / "admin.key", Path(another) / "result", "/etc/shadow", __file__]
        assert service.run(READ, *paths) == ["FileNotFoundError"] * len(paths)


def test_temporary_folders_hold_nothing_of_others(enclosed: None, service: Service) -> None:
    with tempfile.TemporaryDirectory(prefix="orchestrator-another-") as another:
        for listing in service.run(READ, tempfile.gettempdir(), "/tmp", "/var/tmp"):
            assert Path(another).name not in listing


@dataclass(frozen=True)
class Ours:
    """Everything of the service that no script is to read, in one folder."""

    folders: list[str]
    files: list[str]
    settings: dict[str, Any]


def ours(within: Path, monkeypatch: pytest.MonkeyPatch) -> Ours:
    folders = [within / name for name in ("data", "secrets", "artifacts")]
    files = [within / name for name in ("config.yaml", "vault-key")]
    for folder in folders:
        folder.mkdir(parents=True)
    for file in (*files, *(folder / "one" for folder in folders)):
        file.write_text(SECRET)
    data, secrets, artifacts, config, key = map(str, (*folders, *files))
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", config)
    settings = {
        "data_dir": data,
        "vault": VaultSettings(key_file=key, folder=secrets),
        "artifacts": ArtifactSettings(url=artifacts),
    }
    return Ours([data, secrets, artifacts], [config, key], settings)


def test_our_own_things_within_the_scripts_folder_are_hidden(
    enclosed: None, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ours(service.scripts, monkeypatch)
    service.settings = own.settings
    (service.scripts / "table.csv").write_text("1,2")
    seen = service.run(READ, *own.folders, *own.files, service.scripts / "table.csv")
    assert seen == [[], [], [], "PermissionError", "PermissionError", "1,2"]


def test_our_own_things_within_a_folder_of_the_system_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ours(tmp_path / "usr" / "local", monkeypatch)
    monkeypatch.setattr(isolation, "_SYSTEM", (str(tmp_path / "usr"),))
    folder = tmp_path / "run"
    folder.mkdir()
    options = isolation.enclosure(Settings(**own.settings), folder, sys.executable, network=False)
    given = " ".join(options)
    assert all(f"--tmpfs {folder}" in given for folder in own.folders)
    assert all(f"--ro-bind {os.devnull} {file}" in given for file in own.files)


def test_what_is_named_in_the_settings_is_read_but_not_written(enclosed: None, service: Service) -> None:
    shared = service.data.parent / "shared"
    shared.mkdir()
    (shared / "table.csv").write_text("1,2")
    assert service.run(READ, shared) == ["FileNotFoundError"]
    service.more["script_paths"] = (str(shared),)
    assert service.run(READ, shared / "table.csv") == ["1,2"]
    assert service.run(WRITE, shared / "new") == ["OSError"]


WRITE = """
import json, os, sys
def written(path):
    try:
        return open(path, "w").write("x")
    except OSError as error:
        return type(error).__name__
print(json.dumps([written(path) for path in sys.argv[1:]]))
"""


def test_the_system_and_the_scripts_are_read_only(enclosed: None, service: Service) -> None:
    (service.scripts / "job.py").write_text("")
    paths = [service.scripts / "job.py", service.scripts / "new", "/usr/new", Path(sys.prefix) / "new"]
    assert all(str(what).endswith("Error") for what in service.run(WRITE, *paths))
    assert sorted(os.listdir(service.scripts)) == ["job.py"]


def test_its_temporary_files_are_its_own_and_gone_afterwards(enclosed: None, service: Service) -> None:
    name = f"/tmp/orchestrator-{service.id}-{uuid.uuid4().hex}"
    assert service.run(WRITE, name, "here") == [1, 1]
    assert not Path(name).exists()
    assert service.run(READ, name) == ["FileNotFoundError"]


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where somebody listens: a port of loopback, a socket with a path, one with an abstract name."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as path,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        name = f"orchestrator-{uuid.uuid4().hex}"
        path.bind(str(tmp_path / "data" / "s"))
        abstract.bind(f"\0{name}")
        path.listen()
        abstract.listen()
        yield {"tcp": str(tcp.getsockname()[1]), "path": str(tmp_path / "data" / "s"), "abstract": f"@{name}"}


def test_there_is_no_network_unless_it_is_asked_for(
    enclosed: None, service: Service, listeners: dict[str, str]
) -> None:
    assert service.run(CONNECT, "tcp", listeners["tcp"]) == "ConnectionRefusedError"
    assert service.run(CONNECT, "unix", listeners["abstract"]) == "ConnectionRefusedError"
    assert service.run(CONNECT, "tcp", listeners["tcp"], network=True) == "connected"


@pytest.mark.parametrize("network", [False, True])
def test_no_socket_of_the_service_is_there(
    enclosed: None, service: Service, listeners: dict[str, str], network: bool
) -> None:
    assert service.run(CONNECT, "unix", listeners["path"], network=network) == "FileNotFoundError"


def test_it_has_no_powers_even_of_root(enclosed: None, service: Service) -> None:
    status = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')])"
    assert set(service.run(status.replace("'", '"').replace("print(", "import json; print(json.dumps(") + ")")) == {
        "0" * 16
    }


def test_its_environment_is_not_that_of_what_starts_it_nor_among_its_arguments(
    enclosed: None, service: Service
) -> None:
    def starter() -> psutil.Process | None:
        for process in psutil.process_iter():
            try:
                mine = process.environ().get(MARKER, "").startswith(mark_of(service.id))
                if mine and process.name() == "bwrap":
                    return process
            except psutil.Error:
                pass
        return None

    def run() -> None:
        with suppress(StepFailed):
            service.run("import time; time.sleep(60)", env={"SETTING": SECRET})

    thread = threading.Thread(target=run)
    thread.start()
    process = wait_until(starter)
    try:
        assert SECRET not in json.dumps([process.environ(), process.cmdline()])
    finally:
        process.kill()
        thread.join()


# --- where there is no bubblewrap -----------------------------------------------------------------------------


@pytest.fixture
def path_of_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where bwrap is looked for; what is put there is tried anew."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")
    isolation._probed.cache_clear()
    yield folder / "bwrap"
    isolation._probed.cache_clear()


def refusing(file: Path) -> None:
    """A bubblewrap that is not let make namespaces, as its 0.8.0 says so."""
    file.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    file.chmod(0o755)


def test_without_bubblewrap_scripts_run_within_limits_and_the_reason_is_known(
    service: Service, path_of_bwrap: Path
) -> None:
    found = in_force(Settings())
    assert (found.mode, found.reason.partition(" (")[0]) == ("limits", "bubblewrap is not installed")
    assert service.run("print(1)", mode="auto") == 1


def test_where_bubblewrap_is_not_let_do_its_work_scripts_run_within_limits(
    service: Service, path_of_bwrap: Path
) -> None:
    refusing(path_of_bwrap)
    found = in_force(Settings())
    assert found.mode == "limits"
    assert found.reason.endswith("exit code 1: bwrap: No permissions to create new namespace")
    assert service.run("print(1)", mode="auto") == 1


def test_where_bubblewrap_is_demanded_no_script_runs_without_it(service: Service, path_of_bwrap: Path) -> None:
    refusing(path_of_bwrap)
    with pytest.raises(StepFailed, match=r"executor\.isolation asks for bubblewrap") as failed:
        service.run("print(1)", mode="bubblewrap")
    assert (failed.value.kind, failed.value.retryable) == ("config", False)
    assert "No permissions to create new namespace" in str(failed.value)


def test_within_limits_a_script_is_not_handed_the_services_environment(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ADMIN_KEY", SECRET)
    source = "import json, os; print(json.dumps(dict(os.environ)))"
    environment = service.run(source, mode="limits")
    assert SECRET not in json.dumps(environment)
    assert "ORCHESTRATOR_CONFIG" not in environment


def test_within_limits_no_descriptor_of_the_worker_is_inherited(service: Service, listeners: dict[str, str]) -> None:
    source = "import json, os; print(json.dumps([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2, 3, 4, 5) " + (
        "if os.path.lexists(f'/proc/self/fd/{n}')]))"
    )
    open_ones = service.run(source, mode="limits")
    assert not any(what.startswith("socket:") for what in open_ones)


def test_within_limits_the_environment_of_a_concealed_process_cannot_be_read(
    service: Service, request: pytest.FixtureRequest
) -> None:
    if os.geteuid() == 0:  # from whom nothing can be concealed
        passes_for_an_ordinary_user(request.node.nodeid)
        return
    conceal = "from orchestrator.processes import conceal; conceal(); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", conceal], env={"SETTING": SECRET}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        files = [f"/proc/{process.pid}/{name}" for name in ("environ", "mem", "cwd")]
        found = service.run(READ, *files, mode="limits")
        process.communicate(b"\n")
    assert found == ["PermissionError"] * len(files)


def passes_for_an_ordinary_user(test: str) -> None:
    """In a user namespace, where the virtual environment is still ours to read, and there are no powers."""
    found = in_force(Settings())
    if found.mode != "bubblewrap":
        pytest.skip(f"root cannot become somebody else: {found.reason}")
    somebody = ["--unshare-user", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--dev-bind", "/", "/"]
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", test]
    own = {name: value for name, value in os.environ.items() if name != "ORCHESTRATOR_CONFIG"}
    done = subprocess.run(["bwrap", *somebody, "--", *again], env=own, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_health_and_the_scheduler_show_what_scripts_run_in_at_each_worker(servers: Deployment) -> None:
    """Wherever the API itself stands."""
    before = servers.client.get("/health").json["script_isolation"]
    settings = [
        replace(servers.settings, executor=replace(servers.settings.executor, isolation=mode))
        for mode in ("auto", "limits")
    ]
    processes = [WorkerProcess(one, f"{one.executor.isolation}@here") for one in settings]
    try:
        after = servers.client.get("/health").json["script_isolation"]
        expected = Counter(in_force(one).mode for one in settings)
        assert {mode: after[mode] - before.get(mode, 0) for mode in expected} == expected
        shown = {row["node"]: row for row in servers.client.get("/api/v1/scheduler/status").json["workers"]}
        for one in settings:
            assert shown[f"{one.executor.isolation}@here"]["script_isolation"] == in_force(one).mode
    finally:
        for process in processes:
            process.close()


def test_a_worker_says_how_scripts_are_isolated_and_conceals_itself(deployment: Deployment) -> None:
    said = f"scripts are isolated {in_force(deployment.settings)}"
    wait_until(lambda: said in (deployment.folder / "w0.log").read_text(), what=said)
    if os.geteuid() != 0:
        for process in (psutil.Process(deployment.workers[0].pid), *deployment.children_of(deployment.workers[0])):
            with pytest.raises(psutil.AccessDenied):
                process.environ()
