"""`python -m benchmarks.bench_http`: reads and executes a second through gunicorn, with an API key.

A whole `orchestrator up` whose API has `--web` processes; the requests come over kept connections of one process
beside it, each answered before the next one is sent. What is executed is one no-op step, and its workers perform it on
the same cores meanwhile. `api`, `all` and `client` are the milliseconds of processor time that a request took of
gunicorn, of everything the service has, and of the process that sends: on a busy machine they tell more than rates do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import workloads
from benchmarks.__main__ import Orchestrator, orchestrator_up
from benchmarks.http_load import Load, Request, at_once

READS, EXECUTES = 300, 150
"""A second, at least."""
_HEAD = (
    f"{'requests':<34}{'number':>8}{'a second':>10}{'target':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
    f"{'api':>8}{'all':>8}{'client':>8}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--web", type=int, default=2, help="processes of gunicorn")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--requests", type=int, default=4000, help="of each kind")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    os.environ["WEB_CONCURRENCY"] = str(options.web)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder, orchestrator_up(Path(folder)) as here:
        key = a_key(here)
        workflow_id = here.create("single", workloads.single())
        executions = [here.post_execution(workflow_id) for _ in range(50)]
        here.wait(executions)
        kinds: dict[str, tuple[int, Callable[[int], Request]]] = {
            "an execution": (READS, lambda n: Request(f"/api/v1/executions/{executions[n % len(executions)]}")),
            "a list of 50 executions": (READS, lambda _: Request("/api/v1/executions")),
            "a workflow": (READS, lambda _: Request(f"/api/v1/workflows/{workflow_id}")),
            "execute": (EXECUTES, lambda _: execute(workflow_id)),
            "execute with Idempotency-Key": (EXECUTES, lambda n: execute(workflow_id, str(time.monotonic_ns() + n))),
        }
        print(_HEAD)
        for _ in range(options.rounds):
            for name, (target, request) in kinds.items():
                send = partial(at_once, here.url, key, options.connections, request=request)
                send(10)  # what is slow at first is so for everybody
                before = spent(here)
                load = send(options.requests // options.connections)
                after = spent(here)
                cpu = [1000 * (end - begin) / len(load.latencies) for begin, end in zip(before, after, strict=True)]
                print(row(name, target, load, cpu), flush=True)


def row(name: str, target: int, load: Load, cpu: Sequence[float]) -> str:
    latencies = "".join(f"{load.milliseconds(share):>9.1f}" for share in (0.5, 0.95, 0.99))
    costs = "".join(f"{milliseconds:>8.2f}" for milliseconds in cpu)
    return f"{name:<34}{len(load.latencies):>8}{load.rate:>10.0f}{target:>8}{latencies}{costs}"


def spent(here: Orchestrator) -> tuple[float, float, float]:
    """Seconds of processor time so far: of gunicorn, of all that the service has, and of this process."""
    up = psutil.Process(here.pid)
    family = {process: sum(process.cpu_times()[:2]) for process in (up, *up.children(recursive=True))}
    api = sum(seconds for process, seconds in family.items() if "gunicorn" in " ".join(process.cmdline()))
    return api, sum(family.values()), time.process_time()


def a_key(here: Orchestrator) -> str:
    """An operator's, as a program would have it: the admin key is compared with less."""
    grants: list[dict[str, Any]] = [{"project": "default", "role": "operator"}]
    return str(here.post("/api/v1/keys", {"name": "bench", "rate_limit": 1_000_000, "grants": grants})["key"])


def execute(workflow_id: str, idempotency_key: str | None = None) -> Request:
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    return Request(f"/api/v1/workflows/{workflow_id}/execute", "POST", b"{}", headers)


if __name__ == "__main__":
    main()
