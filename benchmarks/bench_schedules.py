"""`python -m benchmarks.bench_schedules`: what schedules cost while they wait, and how late they are when they are due.

A thousand schedules that are due in the same second, a thousand that only wait, and a few that are due every second, on
a whole `orchestrator up`. The figures go to standard output as a table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks.__main__ import Orchestrator, orchestrator_up
from orchestrator.config import load_settings
from orchestrator.engine import triggers
from orchestrator.plugins import load_trigger_types

NOOP = [{"id": "only", "type": "noop"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20, help="for each look at an idle service")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder, orchestrator_up(Path(folder)) as here:
        workflow_id = here.create("scheduled", NOOP)
        here.post(f"/api/v1/workflows/{workflow_id}/activate", {})
        time.sleep(5)
        report("idle, no schedules: % of a core", 100 * cpu(here.pid, options.seconds))
        add(here, workflow_id, options.schedules, interval="24h", start=at(hours=12))
        time.sleep(10)  # beat has made its entries
        report(f"idle, {options.schedules:,} schedules: % of a core", 100 * cpu(here.pid, options.seconds))
        punctuality(here, workflow_id)
        crowd(here, workflow_id, options.schedules)


def punctuality(here: Orchestrator, workflow_id: str) -> None:
    ids = add(here, workflow_id, 5, interval="1s")
    time.sleep(21)
    drop(here, ids)
    late = sorted(lateness(here, ids))
    report("fires every second by 5 schedules", len(late))
    report("  late, p50: s", statistics.median(late))
    report("  late, p99: s", late[int(len(late) * 0.99) - 1])
    report("  late, most: s", late[-1])


def crowd(here: Orchestrator, workflow_id: str, count: int) -> None:
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=20)
    ids = add(here, workflow_id, count, interval="24h", start=start.isoformat())
    while len(lateness(here, ids)) < count:
        time.sleep(0.5)
    report(f"{count:,} schedules in one second: the last execution is there after: s", max(lateness(here, ids)))
    ended = "SELECT count(finished_at), max(finished_at) FROM executions WHERE trigger_id = ANY(%(ids)s::uuid[])"
    while True:
        done, last = query(here, ended, ids)[0]
        if done == count:
            break
        time.sleep(0.5)
    report("  and the last of them has ended after: s", (last - start).total_seconds())


def add(here: Orchestrator, workflow_id: str, count: int, **config: Any) -> list[str]:
    types = load_trigger_types(load_settings().plugins)
    with here.store.transaction() as connection:
        stamp = time.monotonic_ns()
        return [
            triggers.create(
                connection,
                types,
                workflow_id,
                type="schedule",
                name=f"{stamp} {number}",
                config=config,
                is_enabled=True,
            )
            for number in range(count)
        ]


def drop(here: Orchestrator, ids: list[str]) -> None:
    query(here, "UPDATE triggers SET is_enabled = false WHERE id = ANY(%(ids)s::uuid[]) RETURNING id", ids)


def lateness(here: Orchestrator, ids: list[str]) -> list[float]:
    """Seconds from a slot to its execution."""
    sql = (
        "SELECT extract(epoch FROM e.created_at - f.scheduled_for)::float8 FROM trigger_fires f "
        "JOIN executions e ON e.id = f.execution_id WHERE f.trigger_id = ANY(%(ids)s::uuid[])"
    )
    return [seconds for (seconds,) in query(here, sql, ids)]


def query(here: Orchestrator, sql: str, ids: list[str]) -> list[Any]:
    with here.store.single() as connection:
        return list(connection.exec_driver_sql(sql, {"ids": ids}).all())


def cpu(pid: int, seconds: float) -> float:
    """Of one core, by the service with its servers."""
    before = spent(pid)
    time.sleep(seconds)
    return (spent(pid) - before) / seconds


def spent(pid: int) -> float:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def at(**later: float) -> str:
    return (datetime.now(UTC) + timedelta(**later)).isoformat()


def report(what: str, value: float) -> None:
    print(f"{what:<75} {value:10.3f}", flush=True)


if __name__ == "__main__":
    main()
