"""A program run as a process group of its own, and the end of it and of everything that it started.

A program may leave its process group (`setsid`) and outlive its parent. So each one gets a variable in its
environment that children inherit, and all processes that have it are found in /proc. What escapes is a process
that left the group, emptied its environment and lost its parent before the program's time was up.
"""

from __future__ import annotations

import errno
import functools
import os
import selectors
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO

import psutil

from workers.stopping import ended_by

MARKER = "ORCHESTRATOR_ATTEMPT_ID"
"""The variable that all processes of a performance have in their environment; its value is its `new_mark(...)`."""

_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_LINGER = 0.25
"""Seconds that what a program leaves running may still print, before it is ended."""
_CHUNK = 64 * 1024
_LONGEST_TEXT = 128 * 1024 - 100
"""Bytes of an argument or a variable that Linux takes, but for a few (execve(2), MAX_ARG_STRLEN)."""
_TICK = 0.05
"""Seconds after which an exit is noticed while children of the program hold its pipes open."""

# Limits are set by a shell that becomes the program: a function run between fork and exec could deadlock in a
# process with threads. A core file of a program that ran out of memory helps nobody.
_LIMITED = 'ulimit -c 0 2>/dev/null; ulimit -v "$1" 2>/dev/null; shift; exec "$@"'


class CannotStart(Exception):
    """The system does not take these arguments or this environment."""


def run(
    command: Sequence[str],
    *,
    mark: str,
    environment: Mapping[str, str],
    folder: Path,
    enclosure: Sequence[str] | None = None,
    stdin: IO[bytes],
    memory: int | None,
    seconds: float | None,
    on_stdout: Callable[[bytes], None],
    on_stderr: Callable[[bytes], None],
) -> int | None:
    """The exit code of `command`, negative for a signal; None when its `seconds` were up and it was ended.

    What it prints is handed over in chunks as it appears. `memory` limits the address space, in bytes, of
    each of its processes. `enclosure` has bubblewrap's options, to run it in there. Afterwards nothing that it started
    is left running. Raises CannotStart when an argument or a variable cannot be handed over.
    """
    enclosed = enclosure is not None
    with ExitStack() as handed_over:
        descriptors: list[int] = []
        if enclosure is not None:
            options = handed_over.enter_context(_options_file(enclosure, environment))
            descriptors.append(options.fileno())
            command = [_bubblewrap(), "--args", str(options.fileno()), "--", *command]
            environment = {}
        process = _start(command, {**environment, MARKER: mark}, folder, stdin, memory, descriptors)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr, selectors.DefaultSelector() as pipes:
        for pipe, consumer in ((process.stdout, on_stdout), (process.stderr, on_stderr)):
            os.set_blocking(pipe.fileno(), False)
            pipes.register(pipe, selectors.EVENT_READ, consumer)
        descendants: list[psutil.Process] = []
        try:
            # From the thread of whoever ends it: what is read here then comes to its end by itself.
            with ended_by(partial(kill_all, mark)):
                in_time = _read_until_exit(process, pipes, seconds)
            if in_time:
                _read_until_closed(pipes)
            else:
                # Asked while the program runs: the children of one that has ended are nobody's.
                descendants = _descendants(process)
                _ask_to_end(process, descendants, enclosed)
                _read_until_exit(process, pipes, _GRACE)
        finally:
            _kill(process, [*descendants, *_descendants(process)])
            kill_all(mark)
            process.wait()
        _read_until_closed(pipes)
    if not in_time:
        return None
    # Bubblewrap says in the way of shells that a signal ended the program.
    by_signal = enclosed and 128 < process.returncode <= 128 + signal.NSIG
    return 128 - process.returncode if by_signal else process.returncode


def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    stdin: IO[bytes],
    memory: int | None,
    descriptors: Sequence[int],
) -> subprocess.Popen[bytes]:
    limit = "unlimited" if memory is None else str(memory // 1024)
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _LIMITED, "sh", limit, *command],
            cwd=folder,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=descriptors,
        )
    except ValueError as error:
        raise CannotStart(str(error)) from error
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        raise CannotStart("they are too long") from error


def _options_file(enclosure: Sequence[str], environment: Mapping[str, str]) -> IO[bytes]:
    """Bubblewrap's options, as it reads them from a file. The environment is among them: bubblewrap itself and the
    shell before it run outside, where a variable such as LD_PRELOAD would take the program out, too; and unlike
    an argument, nobody reads it in the list of processes."""
    words = list(enclosure)
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise CannotStart(f"the variable {name!r} is not valid")
        if len(name) + len(value.encode(errors="surrogateescape")) > _LONGEST_TEXT:
            raise CannotStart("they are too long")
        words += ("--setenv", name, value)
    file = os.fdopen(os.memfd_create("options"), "w+b")
    file.write(b"\0".join(os.fsencode(word) for word in words))
    file.seek(0)
    return file


@functools.cache
def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    assert found is not None, "it was found when it was tried"
    return found


def mark_of(step_execution_id: str) -> str:
    """What the marks of all performances of a step begin with."""
    return f"{step_execution_id}/"


def new_mark(step_execution_id: str) -> str:
    """The mark of one performance of a step: whoever ends its own must not end the next one's, which can be the first
    attempt as well: a step that is cancelled and retried counts anew, while the cancelled one is still being ended."""
    return f"{mark_of(step_execution_id)}{uuid.uuid4().hex}"


def kill_all(mark: str, patience: float = 2.0) -> None:
    """SIGKILL every process on this machine with this mark, or any of a step's; callable from any thread or process.

    A process may fork while it is looked for, so this looks again until none is left, for `patience` seconds.
    """
    end = time.monotonic() + patience
    while found := list(_marked(mark)):
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            return
        time.sleep(0.002)


def _marked(mark: str) -> Iterator[int]:
    marker = f"{MARKER}={mark}".encode() + (b"" if mark.endswith("/") else b"\0")
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            # A process that has ended and waits to be reaped has an empty environment.
            if marker in environ.read_bytes():
                yield int(environ.parent.name)


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that can be found by their parents, which is those that hide their environment too."""
    try:
        return psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    except psutil.Error:
        return []


def _ask_to_end(process: subprocess.Popen[bytes], descendants: Sequence[psutil.Process], enclosed: bool) -> None:
    if not enclosed:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        return
    # The end of bubblewrap itself would be that of all in it, at once.
    for descendant in descendants:
        with suppress(psutil.Error):
            descendant.terminate()


def _kill(process: subprocess.Popen[bytes], descendants: Sequence[psutil.Process]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with suppress(psutil.Error):
            descendant.kill()


def _read_until_exit(process: subprocess.Popen[bytes], pipes: selectors.BaseSelector, seconds: float | None) -> bool:
    """Whether the program ended within `seconds`; what it prints is handed over meanwhile."""
    end = None if seconds is None else time.monotonic() + seconds
    while process.poll() is None:
        left = _TICK if end is None else min(_TICK, end - time.monotonic())
        if left <= 0:
            return False
        if pipes.get_map():
            _read(pipes, left)
        else:
            with suppress(subprocess.TimeoutExpired):
                process.wait(left)
    return True


def _read_until_closed(pipes: selectors.BaseSelector) -> None:
    """Hand over the rest. A child that was left behind may hold a pipe open, so this ends after a moment."""
    end = time.monotonic() + _LINGER
    while pipes.get_map() and (left := end - time.monotonic()) > 0:
        _read(pipes, left)


def _read(pipes: selectors.BaseSelector, seconds: float) -> None:
    for key, _ in pipes.select(seconds):
        chunk = os.read(key.fd, _CHUNK)
        if chunk:
            key.data(chunk)
        else:
            pipes.unregister(key.fileobj)
