"""The definitions that are measured, and what plain Celery does in their place."""

from __future__ import annotations

import random
from typing import Any

Step = dict[str, Any]


def step(id: str, *depends_on: str, type: str = "noop", **config: Any) -> Step:
    return {"id": id, "type": type, "config": config, "depends_on": list(depends_on)}


def single() -> list[Step]:
    return [step("a")]


def chain(length: int, type: str = "noop", **config: Any) -> list[Step]:
    return [step(f"s{n}", *([f"s{n - 1}"] if n else []), type=type, **config) for n in range(length)]


def diamond() -> list[Step]:
    return [step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")]


def fan(width: int) -> list[Step]:
    middle = [f"b{n}" for n in range(width)]
    return [step("a"), *(step(id, "a") for id in middle), step("z", *middle)]


def loop(items: int) -> list[Step]:
    config = {"items": f"{{{{ range({items}) | list }}}}", "steps": [step("one")], "collect": False}
    return [{"id": "each", "type": "loop", "config": config}]


def random_dag(size: int, seed: int, seconds: float) -> list[Step]:
    """Every step waits for up to three of the twenty before it."""
    chance = random.Random(seed)
    steps: list[Step] = []
    for n in range(size):
        candidates = [f"s{m}" for m in range(max(0, n - 20), n)]
        waits_for = chance.sample(candidates, min(len(candidates), chance.randint(0, 3)))
        steps.append(step(f"s{n}", *waits_for, type="nap", seconds=seconds))
    return steps


def critical_path(steps: list[Step]) -> int:
    """The steps on the longest path."""
    depth: dict[str, int] = {}
    for item in steps:
        depth[item["id"]] = 1 + max((depth[dependency] for dependency in item["depends_on"]), default=0)
    return max(depth.values())


def best_makespan(steps: list[Step], slots: int, seconds: float) -> float:
    """A lower bound for any scheduler: no less than the critical path, nor than all the work on all slots."""
    rounds = -(-len(steps) // slots)
    return max(critical_path(steps), rounds) * seconds
