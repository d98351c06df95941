"""What a step performs in a process's main thread is interrupted when its time is up, or nobody wants its result."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from orchestrator.errors import StepFailed, StepTimeout
from workers.stopping import ended_by

ALARM_GRACE = 0.5
"""Seconds past the deadline before a step is interrupted: a step type that watches the time itself has the
better error message."""


@dataclass(slots=True)
class _Interruptible:
    """A block of the main thread that SIGALRM may interrupt; at its `deadline`, if it has one."""

    deadline: float | None
    unwanted: bool = False

    def watch_time(self) -> None:
        left = 0.0 if self.deadline is None else max(0.001, self.deadline - time.monotonic() + ALARM_GRACE)
        signal.setitimer(signal.ITIMER_REAL, left)

    def end(self) -> None:
        self.unwanted = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


_interruptible: _Interruptible | None = None


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    if _interruptible is None:
        return  # it came late
    if _interruptible.unwanted:
        raise StepFailed("the step is not wanted any more", kind="cancelled", retryable=False)
    raise StepTimeout("the step's time is up")


@contextmanager
def interruptible(deadline: float | None) -> Iterator[None]:
    """Raise StepTimeout in the block once `deadline` has passed, or StepFailed once its result is not wanted.

    Only a process's main thread can be interrupted, as the prefork pool's is; elsewhere the step types bound
    themselves, and reconcile gives the step up by its row's deadline.
    """
    global _interruptible
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    around = _interruptible
    # Asked for each step, changed once a process: changing it costs more than all the rest of this. For a step that is
    # performed in another it has been asked.
    if around is None and signal.getsignal(signal.SIGALRM) is not _interrupt:
        signal.signal(signal.SIGALRM, _interrupt)
    _interruptible = block = _Interruptible(deadline)
    try:
        if deadline is not None:
            block.watch_time()
        with ended_by(block.end):
            yield
    finally:
        _interruptible = around
        if around is None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:  # a step of an execution that is performed in the step which started it
            around.watch_time()
