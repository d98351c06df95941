"""Step types that only tests need, registered as a third party would: ORCHESTRATOR_PLUGINS=sample_steps."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.errors import StepFailed
from workers.steps import StepContext, step


@step("noop", queue="cpu")
def noop(value: Any = None) -> Any:
    return value


@step("io_noop", queue="io")
def io_noop(value: Any = None) -> Any:
    return value


@step("large", queue="cpu")
def large(size: int, until: int = 1) -> dict[str, Any]:
    """An output of about `size` bytes, with `until` rows."""
    return {"text": "x" * size, "rows": [{"n": n} for n in range(until)]}


@step("fibonacci", queue="cpu")
def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


@step("nap", queue="cpu")
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@step("io_nap", queue="io")
def io_nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@step("fail", queue="cpu")
def fail(context: StepContext, message: str = "asked to fail", until_attempt: int = 1_000_000) -> int:
    """Fail every attempt before number `until_attempt`."""
    if context.attempt < until_attempt:
        raise StepFailed(message, kind="asked")
    return context.attempt


@step("mark", queue="cpu")
def mark(context: StepContext, file: str, seconds: float = 0.0) -> str:
    """Append a line to `file` for this performance of the step, then take `seconds`."""
    line = f"{context.execution_id} {context.path} {context.attempt}\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    time.sleep(seconds)
    return context.path


@step("die", queue="cpu")
def die(context: StepContext, until_attempt: int = 1_000_000) -> int:
    """Kill the process that performs it, at every attempt before number `until_attempt`."""
    if context.attempt < until_attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


@step("gate", queue="cpu")
def gate(file: str) -> bool:
    """Wait until `file` exists."""
    while not Path(file).exists():
        time.sleep(0.01)
    return True


@step("talk", queue="cpu")
def talk(context: StepContext, lines: list[str]) -> None:
    """Write `lines` to the step's log."""
    for line in lines:
        context.log(line)


@step("act_on_signal", queue="cpu")
def act_on_signal(context: StepContext, name: str, file: str) -> None:
    """Append the payload of the signal `name`, which is there, to `file`."""
    signal = context.take_signal(name)
    with Path(file).open("a") as marks:
        marks.write(f"{signal['payload']}\n")
