"""Step types that only tests need, registered as a third party would: ORCHESTRATOR_PLUGINS=sample_steps."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from marshmallow import Schema

from orchestrator.errors import StepFailed
from orchestrator.plugins import StepTypeInfo, hookimpl
from workers.steps import Done, StepContext, StepType, Wait, step
from workers.steps.contract import Scope, Spawn


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


@dataclass
class Note:
    text: str


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it says nothing")


@step("misbehave", queue="cpu")
def misbehave(context: StepContext, what: str, text: str = "") -> Any:
    """Hand back, or raise, what one would not expect of a step."""
    later = datetime.now(UTC) + timedelta(hours=1)
    match what:
        case "an object":
            return {"x": [object()]}
        case "no number":
            return {"x": [None, math.nan]}
        case "itself":
            itself: list[Any] = []
            itself.append(itself)
            return itself
        case "a dataclass":
            return {"note": Note(text), "at": later}
        case "odd log lines":
            context.log(ValueError("half \ud800"))  # type: ignore[arg-type]
            context.log("whole")
            return None
        case "an error":
            raise ValueError(f"no to {text}")
        case "a mute error":
            raise Mute
        case "what ends generators":
            raise GeneratorExit
        case "an odd failure":
            raise StepFailed("half \ud800", kind="k\0", output={"x": object()})
        case "a rest with an object":
            return Wait(later, {"x": object()})
        case "a rest without a zone":
            return Wait(later.replace(tzinfo=None), {})
        case "a rest for no child":
            return Wait(None, {}, awaits="child")
        case "a rest with too much":
            return Wait(later, "x" * 2_000_000)
        case "a body that is not there":
            return Spawn([Scope("x")])
        case "a skip of a stranger":
            return Done({}, skip=frozenset({"nobody"}))


class NoOutcome(StepType):
    type: ClassVar[str] = "no_outcome"
    queue: ClassVar[Any] = "cpu"
    Config = Schema

    def perform(self, context: StepContext) -> Any:
        return {"result": 1}


@hookimpl
def orchestrator_step_types() -> Iterable[StepTypeInfo]:
    return [NoOutcome()]
