"""What the orchestrator is measured against: a plain Celery app with no-op tasks and a result backend."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_BROKER_URL"], backend=os.environ["PLAIN_BROKER_URL"])


@app.task(name="noop")
def noop() -> int:
    return 1


@app.task(name="fibonacci")
def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


@app.task(name="nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)
