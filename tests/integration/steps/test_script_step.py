"""`script` with real programs, well-behaved and not."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployment import PATIENCE, SOON, wait_until
from marshmallow import ValidationError
from performing import context_of

from orchestrator.config import ExecutorSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from orchestrator.isolation import in_force
from workers.steps import processes
from workers.steps.processes import MARKER, kill_all, mark_of, new_mark
from workers.steps.script import Script

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")


class Bench:
    """Runs scripts and keeps what they logged."""

    def __init__(self, scripts: Path, isolation: str) -> None:
        self.scripts = scripts
        self.isolation = isolation
        self.id = str(uuid.uuid4())
        self.lines: list[tuple[str, str]] = []

    def run(self, attempt: int = 1, deadline: float | None = None, given: Any = None, **options: Any) -> dict[str, Any]:
        limits = {name: options.pop(name) for name in ("max_log", "max_payload", "max_memory") if name in options}
        context = context_of(
            Script(),
            options,
            settings=Settings(
                executor=ExecutorSettings(scripts_dir=str(self.scripts), isolation=self.isolation, **limits)
            ),
            lines=self.lines,
            step_execution_id=self.id,
            attempt=attempt,
            input=given,
            deadline=deadline,
        )
        output = Script().perform(context).output
        assert isinstance(output, dict)
        return output

    def python(self, source: str, **options: Any) -> Any:
        return self.run(source=source, **options)["result"]

    def failure(self, **options: Any) -> StepFailed:
        with pytest.raises(StepFailed) as failed:
            self.run(**options)
        return failed.value

    def left_behind(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER, "").startswith(mark_of(self.id)):
                    found.append(process)
            except psutil.Error:
                pass
        return found


@pytest.fixture(params=["bubblewrap", "limits"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "bubblewrap" and (found := in_force(Settings())).mode != "bubblewrap":
        pytest.skip(found.reason)
    bench = Bench(tmp_path, request.param)
    yield bench
    left = bench.left_behind()
    kill_all(mark_of(bench.id))
    assert not left, "the script left processes behind"
    assert not list(Path(tempfile.gettempdir()).glob(f"orchestrator-{bench.id}-*")), "it left its folder behind"


# What a script is given, and what it gives back


def test_the_input_comes_by_stdin_and_the_last_line_is_the_result(bench: Bench) -> None:
    source = "import json, sys; data = json.load(sys.stdin); print('working'); print(json.dumps(data['n'] * 2))"
    assert bench.run(source=source, given={"n": 21}) == {"result": 42, "exit_code": 0}
    assert bench.lines == [("info", "working"), ("info", "42")]


def test_a_last_line_that_is_not_json_is_a_text(bench: Bench) -> None:
    assert bench.python("print('{\"a\": 1}'); print('all done'); print()") == "all done"


def test_a_script_that_prints_nothing_has_the_result_null(bench: Bench) -> None:
    assert bench.python("import sys; print('x', file=sys.stderr)") is None


def test_the_result_file_wins_over_the_last_line(bench: Bench) -> None:
    source = "import os\nopen(os.environ['ORCHESTRATOR_RESULT'], 'w').write('{\"rows\": [1]}')\nprint('ignored')"
    assert bench.python(source) == {"rows": [1]}


def test_a_result_file_that_is_a_link_is_not_followed(bench: Bench) -> None:
    source = "import os\nos.symlink('/etc/passwd', os.environ['ORCHESTRATOR_RESULT'])\nprint('own')"
    assert bench.python(source) == "own"


@pytest.mark.parametrize(
    "source",
    ["print('x' * 3000)", "import os; open(os.environ['ORCHESTRATOR_RESULT'], 'w').write('x' * 3000)"],
    ids=["printed", "written"],
)
def test_a_result_over_the_limit_fails_for_good(bench: Bench, source: str) -> None:
    failed = bench.failure(source=source, max_payload=2048)
    assert (failed.kind, failed.retryable) == ("output_too_large", False)


def test_a_long_last_line_is_a_whole_result(bench: Bench) -> None:
    assert bench.python("import json; print(json.dumps(list(range(50000))))") == list(range(50000))


def test_files_from_the_scripts_folder_run_by_their_suffix(bench: Bench) -> None:
    (bench.scripts / "sub").mkdir()
    (bench.scripts / "sub" / "hello.sh").write_text('echo "$1 $BASH_VERSION" | cut -c1-7')
    (bench.scripts / "hello.py").write_text("import sys; print(sys.argv[1:])")
    assert bench.run(script="sub/hello.sh", args=["bash"])["result"].startswith("bash ")
    assert bench.run(script="hello.py", args=["a b", 5, True])["result"] == "['a b', '5', 'true']"


@needs_node
def test_javascript_runs_on_node(bench: Bench) -> None:
    (bench.scripts / "double.js").write_text(
        "const n = JSON.parse(require('fs').readFileSync(0)).n; console.log(JSON.stringify({n: n * 2}))"
    )
    assert bench.run(script="double.js", given={"n": 4})["result"] == {"n": 8}
    assert bench.run(source="console.log(process.version)", runtime="node")["result"].startswith("v")


def test_the_environment_is_scrubbed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://secret")
    env = bench.python("import json, os; print(json.dumps(dict(os.environ)))", env={"MINE": 5}, attempt=2)
    assert "ORCHESTRATOR_DATABASE_URL" not in env
    assert env["MINE"] == "5"
    assert env["PATH"] == os.environ["PATH"]
    assert env["HOME"] == env["TMPDIR"]
    named = {name.removeprefix("ORCHESTRATOR_"): value for name, value in env.items() if "ORCHESTRATOR_" in name}
    del named["RESULT"]
    assert named.pop("ATTEMPT_ID").startswith(mark_of(bench.id))
    assert named == {
        "EXECUTION_ID": "execution",
        "STEP_ID": "step",
        "ATTEMPT": "2",
        "IDEMPOTENCY_KEY": "execution:loop[1].step",
    }


def test_the_folder_is_empty_and_removed_afterwards(bench: Bench) -> None:
    source = """
import json, os
before = os.listdir()
os.makedirs("a/b")
os.chmod("a", 0)
print(json.dumps([before, os.getcwd()]))
"""
    before, folder = bench.python(source)
    assert before == []
    assert not Path(folder).exists()


@pytest.mark.parametrize("name", ["../outside.py", "link.py", "folder/x.py", "/etc/hostname"])
def test_a_script_outside_the_folder_is_refused(bench: Bench, tmp_path: Path, name: str) -> None:
    bench.scripts = tmp_path / "scripts"
    bench.scripts.mkdir()
    (tmp_path / "outside.py").write_text("print(1)")
    (tmp_path / "x.py").write_text("print(1)")
    (bench.scripts / "link.py").symlink_to(tmp_path / "outside.py")
    (bench.scripts / "folder").symlink_to(tmp_path)
    failed = bench.failure(script=name)
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "outside" in str(failed)


@pytest.mark.parametrize("name", ["missing.py", ".", "a\0b", "x" * 5000])
def test_a_script_that_is_not_there_is_a_mistake_in_the_config(bench: Bench, name: str) -> None:
    failed = bench.failure(script=name)
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "there is no script" in str(failed)


def test_a_runtime_that_is_not_installed_says_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    failed = bench.failure(source="1", runtime="node")
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "install Node.js" in str(failed)


@pytest.mark.parametrize("options", [{"args": ["a\0b"]}, {"env": {"A=B": "c"}}, {"args": ["x" * 3_000_000]}])
def test_arguments_the_system_does_not_take_are_a_mistake_in_the_config(bench: Bench, options: dict[str, Any]) -> None:
    failed = bench.failure(source="1", **options)
    assert (failed.kind, failed.retryable) == ("config", False)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "script"),
        ({"script": "a", "source": "b"}, "source"),
        ({"source": "b", "runtime": "perl"}, "runtime"),
        ({"source": "b", "timeout": "soon"}, "timeout"),
        ({"source": "b", "env": {"A": ["x"]}}, "env"),
    ],
)
def test_a_config_with_a_mistake_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Script.Config().load(config)
    assert set(refused.value.messages_dict) == {field}


def test_templates_in_source_are_left_to_the_program() -> None:
    assert Script.raw_fields == {"source"}


# Failures


def test_an_exit_code_fails_with_the_last_line_of_stderr(bench: Bench) -> None:
    failed = bench.failure(
        source="import sys; print('{\"a\": 1}'); sys.stderr.write('first\\nno such row\\n'); sys.exit(3)"
    )
    assert (failed.kind, failed.retryable) == ("script", True)
    assert str(failed) == "the script ended with exit code 3: no such row"
    assert failed.output == {"result": {"a": 1}, "exit_code": 3}
    assert ("warning", "no such row") in bench.lines


def test_a_signal_is_named(bench: Bench) -> None:
    failed = bench.failure(source="kill -SEGV $$", runtime="bash")
    assert str(failed) == "the script was ended by SIGSEGV"
    assert failed.output == {"result": None, "exit_code": -signal.SIGSEGV}


def test_python_that_wants_too_much_memory_fails_with_kind_memory(bench: Bench) -> None:
    failed = bench.failure(source="x = bytearray(1 << 30)", max_memory=300 * 1024**2)
    assert (failed.kind, failed.retryable) == ("memory", True)
    assert "executor.max_memory" in str(failed)


@needs_node
def test_node_that_wants_too_much_memory_fails_with_kind_memory(bench: Bench) -> None:
    source = "const all = []; for (;;) all.push(new Array(100000).fill(1.5))"
    assert bench.failure(source=source, runtime="node", max_memory=32 * 1024**2).kind == "memory"


# Output


def test_lines_are_logged_as_they_appear(bench: Bench, tmp_path: Path) -> None:
    go = tmp_path / "go"
    source = f"import os, time\nprint('ready')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('went')"
    thread = threading.Thread(target=bench.run, kwargs={"source": source})
    thread.start()
    wait_until(lambda: ("info", "ready") in bench.lines)
    assert thread.is_alive()
    go.touch()
    thread.join()
    assert bench.lines[-1] == ("info", "went")


def test_what_is_not_text_is_replaced(bench: Bench) -> None:
    assert bench.python("import sys; sys.stdout.buffer.write(b'a\\xff\\x00b\\n')") == "a\ufffd\ufffdb"
    assert bench.lines == [("info", "a\ufffd\ufffdb")]


@pytest.mark.parametrize("piece", ["'y\\n' * 32768", "'y' * 65536"], ids=["many lines", "one line without an end"])
def test_a_flood_of_100_mb_is_drained_within_bounds(bench: Bench, piece: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = f"""
import os, sys
piece = ({piece}).encode()
for _ in range(100 * 1024**2 // len(piece)): sys.stdout.buffer.write(piece)
open(os.environ['ORCHESTRATOR_RESULT'], 'w').write('"end"')
"""
    assert bench.python(source, max_log=100_000) == "end"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
    assert sum(len(line) for _, line in bench.lines[:-1]) <= 100_000
    level, line = bench.lines[-1]
    assert level == "warning"
    assert "the rest is dropped" in line
    assert max(len(line) for _, line in bench.lines) <= 8192


def test_the_last_line_of_a_flood_is_still_the_result(bench: Bench) -> None:
    assert bench.python("print('y\\n' * 100000); print('{\"n\": 1}')", max_log=1000) == {"n": 1}


# Time, and what is left behind


def test_a_script_that_takes_too_long_is_ended_with_its_children(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE", PATIENCE)
    started = time.monotonic()
    failed = bench.failure(source="echo before; sleep 60 & sleep 60 & sleep 60", runtime="bash", timeout="2s")
    assert isinstance(failed, StepTimeout)
    assert time.monotonic() - started < SOON, "it waited for SIGKILL though SIGTERM was enough"
    assert failed.output == {"result": "before", "exit_code": None}
    assert not bench.left_behind()


def test_a_script_may_clean_up_when_it_is_asked_to_end(bench: Bench) -> None:
    source = "trap 'echo cleaned up; exit 0' TERM; sleep 60 & wait"
    assert isinstance(bench.failure(source=source, runtime="bash", timeout=2), StepTimeout)
    assert ("info", "cleaned up") in bench.lines


def test_a_script_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    started = time.monotonic()
    source = "trap '' TERM; while :; do sleep 1; done"
    assert isinstance(bench.failure(source=source, runtime="bash", timeout=2), StepTimeout)
    assert 3.9 < time.monotonic() - started < SOON


def test_the_steps_deadline_bounds_the_script_too(bench: Bench) -> None:
    failed = bench.failure(source="sleep 60", runtime="bash", timeout="1h", deadline=time.monotonic() + 0.3)
    assert isinstance(failed, StepTimeout)


def test_a_daemon_that_called_setsid_does_not_outlive_a_timeout(bench: Bench) -> None:
    source = "setsid sh -c 'trap \"\" TERM; sleep 60' & setsid sleep 60 & sleep 60"
    assert isinstance(bench.failure(source=source, runtime="bash", timeout=0.3), StepTimeout)
    assert not bench.left_behind()


def test_a_daemon_that_hides_its_environment_is_found_by_its_parent(bench: Bench) -> None:
    seconds = f"60.{uuid.uuid4().int}"
    source = f"env -i /bin/sh -c 'echo up; exec setsid sleep {seconds}' & wait"
    assert isinstance(bench.failure(source=source, runtime="bash", timeout=2), StepTimeout)
    assert ("info", "up") in bench.lines
    wait_until(lambda: not any(seconds in (it.info["cmdline"] or ()) for it in psutil.process_iter(["cmdline"])))


def test_a_daemon_does_not_outlive_a_script_that_ended_well_nor_delay_it(bench: Bench) -> None:
    started = time.monotonic()
    output = bench.run(source="setsid sleep 60 & sleep 60 & echo done", runtime="bash")
    assert output == {"result": "done", "exit_code": 0}
    assert time.monotonic() - started < SOON
    assert not bench.left_behind()


def test_children_that_keep_forking_are_all_ended(bench: Bench) -> None:
    source = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        for _ in range(200):
            if os.fork() == 0: time.sleep(60)
            time.sleep(0.02)
        time.sleep(60)
print("forked")
time.sleep(0.1)
"""
    assert bench.python(source) == "forked"
    assert not bench.left_behind()


def test_a_later_attempt_ends_what_a_killed_worker_left(bench: Bench) -> None:
    environment = {"PATH": os.environ["PATH"], MARKER: new_mark(bench.id)}
    orphan = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
    folder = Path(tempfile.mkdtemp(prefix=f"orchestrator-{bench.id}-"))
    try:
        bench.python("print(1)", attempt=2)
        assert orphan.wait(SOON) == -signal.SIGKILL
        assert not folder.exists()
    finally:
        orphan.kill()


def test_another_steps_processes_are_left_alone(bench: Bench) -> None:
    environment = {"PATH": os.environ["PATH"], MARKER: new_mark(f"{bench.id}0")}
    other = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        bench.python("print(1)", attempt=2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_end_of_a_performance_leaves_the_next_one_alone(bench: Bench) -> None:
    """As when a worker that was taken for dead wakes up while its step runs again, or when a step that was cancelled
    is retried at once: then both are the first attempt."""
    environment = {"PATH": os.environ["PATH"], MARKER: new_mark(bench.id)}
    following = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        bench.python("print(1)", attempt=1)
        assert following.poll() is None
    finally:
        following.kill()
        following.wait()


def test_a_running_script_can_be_ended_from_another_thread(bench: Bench) -> None:
    failures: list[StepFailed] = []
    thread = threading.Thread(target=lambda: failures.append(bench.failure(source="echo up; sleep 60", runtime="bash")))
    thread.start()
    wait_until(lambda: ("info", "up") in bench.lines)
    kill_all(mark_of(bench.id))
    thread.join(SOON)
    assert [str(failed) for failed in failures] == ["the script was ended by SIGKILL"]


def test_an_interrupted_worker_takes_the_script_with_it(bench: Bench) -> None:
    class Interrupting(list[tuple[str, str]]):
        def append(self, line: tuple[str, str]) -> None:
            raise KeyboardInterrupt

    bench.lines = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        bench.run(source="echo up; setsid sleep 60 & sleep 60", runtime="bash")
    assert not bench.left_behind()
