"""Child processes in groups of their own, and the means to leave none behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36  # prctl(2)
_KEPT_LOG = 5 * 1024**2


def conceal() -> None:
    """Keep other processes of the same user, though not of root, from this one's environment and memory, and from those
    of what it forks. It costs the core file of a crash, and a debugger needs root."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Child:
    """One foreground program, in a process group of its own, whose output goes to a file.

    The output goes straight to the file rather than through a pipe: a child never blocks on, or dies of, a
    parent that does not read. Without a `log` it goes where this process's own goes.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stdin: bytes = b"",
        stop_signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGQUIT),
    ) -> None:
        self.name = name
        self.log = log
        self.stop_signals = tuple(stop_signals)
        self._command = list(command)
        self._environment = environment
        self._folder = folder
        self._stdin = stdin
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, also the group's id. Only after start()."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; a negative number is the signal that ended it."""
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.alive, f"{self.name} runs already"
        with self.log.open("ab") if self.log else contextlib.nullcontext() as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE if self._stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env=self._environment,
                cwd=self._folder,
                process_group=0,
            )
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(self._stdin)

    def signal(self, number: signal.Signals) -> None:
        """Signal the program itself: it knows best how to end what it started."""
        if self.alive:
            assert self._process is not None
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the whole group at once, also what a dead program left of it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, patience: float = 5.0) -> None:
        """End it by its own signals in turn, `patience` seconds in all, then by force."""
        for number in self.stop_signals:
            self.signal(number)
            if self.wait(patience / len(self.stop_signals)):
                break
        self.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, to show beside an error."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-count:])


def rotate(log: Path) -> None:
    """Put a log that has grown aside, keeping the one before."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _KEPT_LOG:
            log.replace(log.with_name(log.name + ".1"))


def stop_all(children: Sequence[Child], seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
    """End all of them at the same time, each by its own signals in turn, by force after `seconds`.

    `hurried` is asked all the while whether somebody wants the next signal to come now.
    """
    rounds = max((len(child.stop_signals) for child in children), default=0)
    for turn in range(rounds):
        for child in children:
            if turn < len(child.stop_signals):
                child.signal(child.stop_signals[turn])
        # The polite signal gets most of the time; the ones after it only have to be noticed.
        deadline = time.monotonic() + seconds * (0.8 if turn == 0 else 0.2 / (rounds - 1))
        while any(child.alive for child in children) and time.monotonic() < deadline and not hurried():
            time.sleep(0.02)
    for child in children:
        child.kill()


def adopt_orphans() -> None:
    """From now on a descendant whose parent dies becomes our child (on Linux; elsewhere it goes to init)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(known: Collection[int] = ()) -> bool:
    """Kill and collect every child that is not in `known`; whether there was one.

    An adopted process has lost the one that answered for it: the script of a dead worker would go on beside
    the attempt that replaces it.
    """
    mine = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        pids = [int(pid) for pid in mine.read_text().split()]
    except OSError:  # not Linux, or a kernel without the file: nothing was adopted or nothing can be known
        return False
    orphans = [pid for pid in pids if pid not in known]
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return bool(orphans)


def guarded(run: Callable[[int], int]) -> int:
    """The exit code of `run(our process id)`, called in a forked child that this process stands guard over.

    Whichever of the two is killed, the other cleans up: the child stops when its parent is not that process
    any more; this process ends everything the child left. Signals are passed on; the child has a process
    group of its own so that a terminal's Ctrl-C does not reach it twice.
    """
    adopt_orphans()
    sys.stdout.flush()
    guardian = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        return run(guardian)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: _pass_on(pid, received))
    _, status = os.waitpid(pid, 0)
    while end_orphans():
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
