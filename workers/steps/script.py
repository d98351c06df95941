"""`script`: a program in Python, JavaScript or bash, from a file or written in the definition."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import orjson
from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.errors import StepFailed, StepTimeout
from orchestrator.isolation import Isolation, enclosure, in_force
from workers.steps import processes
from workers.steps.contract import Done, QueueClass, StepContext, StepType, config_mistake
from workers.steps.fields import Duration, Text, validates_whole
from workers.steps.program_output import LastLine, LogBudget, LogLines, clean

_SUFFIXES = {".py": "python", ".js": "node", ".mjs": "node", ".cjs": "node", ".sh": "bash"}
_SOURCE_NAMES = {"python": "source.py", "node": "source.js", "bash": "source.sh"}
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")
_OUT_OF_MEMORY = re.compile(
    rb"^[\w.]*MemoryError|heap out of memory|[Cc]annot allocate memory|bad_alloc|xrealloc|xmalloc", re.MULTILINE
)
"""What Python, V8, the C library, C++ and bash say when they do not get any more."""


class Script(StepType):
    """The program reads the step's input as JSON from stdin. Its result is what it wrote to the file that
    ORCHESTRATOR_RESULT names, else the last line it printed: JSON, or a text if it is not JSON; null if there
    is neither. What it prints becomes log lines, those of stderr as warnings. Where bubblewrap works, it sees no
    more than `orchestrator.isolation` says, and a network only with `network: true`.

    Output: `result`, `exit_code`. An exit code other than 0 fails the attempt with kind `script` (`memory`,
    when that ran out). It runs in an empty folder that is removed afterwards, with an environment of its own,
    and nothing that it started outlives it.
    """

    type: ClassVar[str] = "script"
    queue: ClassVar[QueueClass] = "cpu"
    raw_fields: ClassVar[frozenset[str]] = frozenset({"source"})

    class Config(Schema):
        script = fields.String(validate=validate.Length(min=1))
        source = fields.String()
        runtime = fields.String(validate=validate.OneOf(sorted(_SOURCE_NAMES)))
        timeout = Duration()
        args = fields.List(Text(), load_default=list)
        env = fields.Dict(keys=fields.String(), values=Text(), load_default=dict)
        network = fields.Boolean(load_default=False)

        @validates_whole
        def _one_program(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
            if {"script", "source"} <= written:
                raise ValidationError("write either `script` or `source`, not both", "source")
            if written.isdisjoint({"script", "source"}):
                raise ValidationError("is missing; name a file, or write the program as `source`", "script")

    def perform(self, context: StepContext) -> Done:
        prefix = f"orchestrator-{context.step_execution_id}-"
        if context.attempt > 1:
            _remove_leftovers(context.step_execution_id, prefix)
        with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
            return _Run(context, Path(folder)).perform()


class _Run:
    """One attempt. `folder` has what belongs to us, and in `work` the program's own folder."""

    def __init__(self, context: StepContext, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._work = folder / "work"
        self._work.mkdir()
        self._result_file = folder / "result"
        limits = context.settings.executor
        budget = LogBudget(limits.max_log, self._say_dropped)
        self._stdout = LogLines(partial(_log, context, "info"), budget)
        self._stderr = LogLines(partial(_log, context, "warning"), budget)
        self._last_line = LastLine(context.settings.output_limit.bytes)

    def perform(self) -> Done:
        program, runtime = self._program()
        seconds = self._seconds()
        exit_code = self._run(_command(runtime, self._context.settings.executor.max_memory), program, seconds)
        self._stdout.end()
        self._stderr.end()
        if exit_code is None:
            raise StepTimeout(f"the script did not end within {seconds:g} s and was ended", output=self._output(None))
        if exit_code != 0:
            raise self._failure(exit_code)
        written = self._written()
        limit = self._context.settings.output_limit
        if len(written) > limit.bytes:
            raise StepFailed(
                f"the script's result is larger than {limit.setting}, {limit.bytes} bytes",
                kind="output_too_large",
                retryable=False,
            )
        return Done({"result": _parsed(written), "exit_code": 0})

    def _program(self) -> tuple[Path, str]:
        """(file, runtime) to run."""
        config = self._context.config
        if "source" in config:
            runtime: str = config.get("runtime", "python")
            file = self._folder / _SOURCE_NAMES[runtime]
            file.write_text(config["source"], encoding="utf-8")
            return file, runtime
        base = self._context.settings.scripts_path.resolve()
        file = base / config["script"]
        try:
            found = file.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            found = None
        if found is None or not found.is_file():
            raise config_mistake(f"there is no script {config['script']!r} in {base} (executor.scripts_dir)")
        if not found.is_relative_to(base):
            raise config_mistake(f"the script {config['script']!r} is outside {base} (executor.scripts_dir)")
        return found, config.get("runtime") or _SUFFIXES.get(file.suffix.lower(), "python")

    def _seconds(self) -> float | None:
        timeout: float | None = self._context.config.get("timeout")
        return self._context.remaining() if timeout is None else self._context.within(timeout)

    def _run(self, runtime: tuple[list[str], int | None], program: Path, seconds: float | None) -> int | None:
        (interpreter, *options), memory = runtime
        around = None
        if self._isolation().mode == "bubblewrap":
            network: bool = self._context.config["network"]
            around = enclosure(self._context.settings, self._folder, interpreter, network=network)
        # A file, not a pipe: a program need not read its input, and is not waited for until it does.
        with tempfile.TemporaryFile(dir=self._folder) as stdin:
            stdin.write(orjson.dumps(self._context.input))
            stdin.seek(0)
            try:
                return processes.run(
                    [interpreter, *options, str(program), *self._context.config["args"]],
                    mark=processes.new_mark(self._context.step_execution_id),
                    environment=self._environment(),
                    folder=self._work,
                    enclosure=around,
                    stdin=stdin,
                    memory=memory,
                    seconds=seconds,
                    on_stdout=self._take_stdout,
                    on_stderr=self._stderr.feed,
                )
            except processes.CannotStart as error:
                raise config_mistake(f"the script cannot be started with these args and env: {error}") from error

    def _isolation(self) -> Isolation:
        settings = self._context.settings
        found = in_force(settings)
        if settings.executor.isolation == "bubblewrap" and found.mode != "bubblewrap":
            raise config_mistake(
                f"executor.isolation asks for bubblewrap, and {found.reason}; install it, let the worker use user "
                "namespaces, or set executor.isolation to auto"
            )
        return found

    def _environment(self) -> dict[str, str]:
        context = self._context
        return {
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "HOME": str(self._work),
            "TMPDIR": str(self._work),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            **context.config["env"],
            "ORCHESTRATOR_RESULT": str(self._result_file),
            "ORCHESTRATOR_EXECUTION_ID": context.execution_id,
            "ORCHESTRATOR_STEP_ID": context.step_id,
            "ORCHESTRATOR_ATTEMPT": str(context.attempt),
            "ORCHESTRATOR_IDEMPOTENCY_KEY": context.idempotency_key,
        }

    def _take_stdout(self, chunk: bytes) -> None:
        self._stdout.feed(chunk)
        self._last_line.feed(chunk)

    def _say_dropped(self) -> None:
        limit = self._context.settings.executor.max_log
        _log(self._context, "warning", f"the log has reached {limit} bytes (executor.max_log); the rest is dropped")

    def _written(self) -> bytes:
        """The result as the program wrote it, cut off one byte past the limit."""
        # What is not a plain file (a link, a pipe) could lead anywhere, or block.
        if self._result_file.is_file() and not self._result_file.is_symlink():
            with self._result_file.open("rb") as file:
                written = file.read(self._context.settings.output_limit.bytes + 1)
            if written.strip():
                return written
        return self._last_line.value()

    def _output(self, exit_code: int | None) -> dict[str, Any]:
        """The output of an attempt that failed; a result that is too large is left out."""
        written = self._written()
        fits = len(written) <= self._context.settings.output_limit.bytes
        return {"result": _parsed(written) if fits else None, "exit_code": exit_code}

    def _failure(self, exit_code: int) -> StepFailed:
        how = f"ended with exit code {exit_code}" if exit_code > 0 else f"was ended by {_signal_name(-exit_code)}"
        said = self._stderr.last_line()
        out_of_memory = _OUT_OF_MEMORY.search(self._stderr.tail) is not None
        limit = self._context.settings.executor.max_memory
        return StepFailed(
            f"the script {how}"
            + (f", out of memory (executor.max_memory, {limit} bytes)" if out_of_memory else "")
            + (f": {said}" if said else ""),
            kind="memory" if out_of_memory else "script",
            output=self._output(exit_code),
        )


def _command(runtime: str, max_memory: int) -> tuple[list[str], int | None]:
    """(how to start a program of `runtime`, its limit of address space in bytes)."""
    if runtime == "python":
        return [sys.executable], max_memory
    found = shutil.which(runtime)
    if found is None:
        raise config_mistake(f"{runtime} is not installed where the worker runs; install {_PACKAGES[runtime]}")
    if runtime == "node":
        # V8 reserves far more addresses than it uses: its heap is limited, not its address space.
        return [found, f"--max-old-space-size={max(1, max_memory // 1024**2)}"], None
    return [found], max_memory


_PACKAGES = {"node": "Node.js (https://nodejs.org)", "bash": "the package bash"}


def _log(context: StepContext, level: Any, line: str) -> None:
    context.log(line, level)


def _parsed(written: bytes) -> Any:
    """JSON; the text, if it is not JSON; None if it is blank."""
    if not written.strip():
        return None
    try:
        return orjson.loads(written)
    except orjson.JSONDecodeError:
        return clean(written.strip())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _remove_leftovers(step_execution_id: str, prefix: str) -> None:
    """End what an earlier attempt left on this machine when its worker was killed."""
    processes.kill_all(processes.mark_of(step_execution_id))
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)
