"""What a soak has the deployment do: executions of mixed shapes, started over an API that is not always there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import requests
from stack import Stack

RETRIES = {"max_attempts": 3, "initial_delay": "100ms", "jitter": 0}
PATIENCE = 300.0
"""Seconds within which a request is answered, all goes on, and all ends."""
MOST_LIMITED = 2
"""Executions of the limited workflow, and of those with the same key, that run at a time."""
CROWDED = 6
"""Of them, as many want to run."""
ROUNDS_AT_A_TIME = 2
"""Of the limited loop."""


def step(id: str, type: str = "noop", needs: str = "", **config: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "depends_on": needs.split(), "config": config}


@dataclass(frozen=True)
class Shape:
    """A definition, and what may become of its executions."""

    definition: dict[str, Any]
    ends: tuple[str, ...] = ("completed",)
    steps: dict[str, str] = field(default_factory=dict)
    """The statuses of its steps where they are not `completed`."""
    then: str = ""
    """What is asked of each execution after its start: `signals` or `cancel`."""
    weight: int = 4
    at_once: int = 1
    """So many are started one after the other, as many times as its weight says."""


def shapes(marks: Path) -> dict[str, Shape]:
    """By the names of their workflows. Every `mark` appends to the file `marks`."""

    def mark(id: str, needs: str = "", seconds: float = 0.1) -> dict[str, Any]:
        return step(id, "mark", needs, file=str(marks), seconds=seconds)

    return {
        "chain": Shape({"steps": [mark(f"s{n}", f"s{n - 1}" if n else "", 0.2) for n in range(6)]}, weight=6),
        "fan-out": Shape(_fan_out(mark)),
        "diamond": Shape({"steps": [mark("a"), mark("b", "a", 0.3), mark("c", "a", 0.6), mark("d", "b c")]}),
        "over queues": Shape(_over_queues(mark)),
        "bodies": Shape(_bodies(mark)),
        "retries": Shape({"steps": [mark("a"), _trying("b", "a", until_attempt=3), mark("c", "b")]}),
        "waits": Shape({"steps": [mark("a"), step("b", "wait", "a", duration="700ms"), mark("c", "b")]}),
        "children": Shape({"steps": [mark("a"), step("b", "workflow", "a", workflow="chain"), mark("c", "b")]}),
        "signals": Shape({"steps": [step("a", "signal", name="go"), mark("b", "a")]}, then="signals"),
        "limited": Shape(
            {"steps": [mark("a"), mark("z", "a", 1)], "max_concurrent": MOST_LIMITED}, weight=1, at_once=CROWDED
        ),
        "by key": Shape(
            {
                "steps": [mark("a"), mark("z", "a", 1)],
                "concurrency": {"key": "{{ input.key }}", "limit": MOST_LIMITED},
            },
            weight=1,
            at_once=CROWDED,
        ),
        "cancelled": Shape(
            {"steps": [step("a", "wait", duration="1h"), mark("b", "a")], "finally": [mark("tidy")]},
            ends=("cancelled",),
            steps={"a": "cancelled", "b": "cancelled"},
            then="cancel",
        ),
        "failing": Shape(
            _failing(mark), ends=("failed",), steps={"b": "failed", "c": "skipped"}, weight=3
        ),
        "deadly": Shape(
            {"steps": [mark("a"), step("b", "die", "a"), mark("c", "b")]},
            ends=("failed",),
            steps={"b": "failed", "c": "skipped"},
            weight=1,
        ),
    }  # fmt: skip


def _fan_out(mark: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    middle = [mark(f"s{n}", "a") for n in range(8)]
    return {"steps": [step("a", "io_noop"), *middle, mark("z", " ".join(one["id"] for one in middle))]}


def _over_queues(mark: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    io = [step("b", "io_nap", "a", seconds=0.5), step("d", "io_noop", "a")]
    return {"steps": [mark("a"), *io, mark("c", "b"), mark("e", "c d")]}


def _bodies(mark: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A loop of branches that rest, a limited loop, and what runs at the end."""
    branches = {"left": [mark("l")], "right": [step("r", "wait", duration="50ms")]}
    fork = step("fork", "parallel", branches=branches)
    few = [mark("f1"), step("f2", "io_noop", "f1")]
    loops = [step("wide", "loop", items=[1, 2, 3], steps=[fork])]
    loops.append(step("few", "loop", "wide", items=[1, 2, 3, 4, 5], concurrency=ROUNDS_AT_A_TIME, steps=few))
    return {"steps": [*loops, mark("last", "few")], "finally": [mark("tidy")]}


def _trying(id: str, needs: str, **config: Any) -> dict[str, Any]:
    return {**step(id, "fail", needs, **config), "retry_policy": RETRIES}


def _failing(mark: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    undone = {**mark("a"), "compensate": {"type": "mark", "config": mark("")["config"]}}
    steps = [undone, _trying("b", "a"), mark("c", "b")]
    return {"steps": steps, "on_failure": [mark("sorry")], "finally": [mark("tidy")]}


class Load(threading.Thread):
    """Starts `total` executions, evenly over `seconds` or as they are worked off, and asks of them what their shapes
    say.

    Each request is repeated until it has been answered; an execution has its key, by which it is started once.
    """

    def __init__(self, stack: Stack, workflows: dict[str, str], known: dict[str, Shape], total: int, seconds: float):
        super().__init__(name="load", daemon=True)
        self.stack = stack
        self.workflows = workflows
        self.shapes = known
        self.pause = seconds / total
        self.started: dict[str, str] = {}
        """Execution -> the name of its shape."""
        self.is_held = False
        """None is to be started now, as there is enough to do."""
        self.longest_answer = 0.0
        self.error: BaseException | None = None
        self._total = total
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            random, began = Random(self._total), time.monotonic()
            turns = [name for name, shape in self.shapes.items() for _ in range(shape.weight)]
            random.shuffle(turns)
            order = [name for name in turns for _ in range(self.shapes[name].at_once)]
            for number in range(self._total):
                while self.is_held and not self._stopped.wait(0.1):
                    pass
                self._start(number, order[number % len(order)], random.randrange(10))
                self._stopped.wait(began + self.pause * (number + 1) - time.monotonic())
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stopped.set()

    def _start(self, number: int, name: str, priority: int) -> None:
        given = {"input": {"key": f"k{number // (2 * CROWDED) % 2}"}, "priority": priority}
        path = f"/api/v1/workflows/{self.workflows[name]}/execute"
        answer = self._asked(path, json=given, headers={"Idempotency-Key": f"soak-{number}"})
        execution_id = str(answer.json()["id"])
        assert execution_id not in self.started, "one execution answered to two keys"
        self.started[execution_id] = name
        if self.shapes[name].then == "signals":
            self._asked(f"/api/v1/executions/{execution_id}/signals", (202, 409), json={"name": "go"})
        if self.shapes[name].then == "cancel":
            self._asked(f"/api/v1/executions/{execution_id}/cancel", (200, 409))

    def _asked(self, path: str, done: tuple[int, ...] = (200, 202), **more: Any) -> requests.Response:
        """The answer to a POST, however often it has to be sent."""
        began = time.monotonic()
        while True:
            try:
                answer = self.stack.request("POST", path, **more)
            except requests.RequestException:
                answer = None
            if answer is not None and answer.status_code in done:
                self.longest_answer = max(self.longest_answer, time.monotonic() - began)
                return answer
            assert answer is None or answer.status_code >= 500, answer.text
            assert time.monotonic() - began < PATIENCE, f"{path} was not answered: {answer and answer.text}"
            self._stopped.wait(0.1)
