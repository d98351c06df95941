"""The same no-op, fibonacci and nap as registered steps: ORCHESTRATOR_PLUGINS=benchmarks.bench_steps."""

from __future__ import annotations

import time

from workers.steps import step


@step("noop", queue="cpu")
def noop() -> int:
    return 1


@step("fibonacci", queue="cpu")
def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


@step("nap", queue="cpu")
def nap(seconds: float) -> None:
    time.sleep(seconds)
