"""`python -m benchmarks.bench_backlog`: whether a long backlog is worked off as quickly as a short one.

Executions of one no-op step wait on a queue that nobody serves, until a worker of two processes is started for it; once
a thousand of them, once ten thousand. A rate is that of their ends, from the first to the last. A message too many is
one whose step was claimed already when it came: a backlog that is taken for lost messages has many. The figures go to
standard output as a table.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.__main__ import SLOTS, Orchestrator, orchestrator_up

QUEUE = "backlog"
STEPS = [{"id": "only", "type": "noop", "queue": QUEUE}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burst", type=int, default=1_000)
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--wait", type=float, default=15, help="seconds that all wait before the worker is started")
    parser.add_argument("--max-concurrent", type=int, default=100, help="scheduler.max_concurrent")
    options = parser.parse_args()
    os.environ["ORCHESTRATOR_SCHEDULER_MAX_CONCURRENT"] = str(options.max_concurrent)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder, orchestrator_up(Path(folder)) as here:
        count_calls(here)
        workflow_id = here.create("backlog", STEPS)
        with a_worker():
            here.timed(workflow_id, options.burst, 1)  # what is slow at first is so for everybody
        burst = Drain(here, workflow_id, options.burst, options.wait)
        backlog = Drain(here, workflow_id, options.executions, options.wait)
        report(f"{options.burst:,} executions: a second", burst.rate())
        report("  messages too many: %", burst.too_many)
        report(f"{options.executions:,} executions: a second", backlog.rate())
        tenth = options.executions // 10
        report("  the first tenth of them: a second", backlog.rate(0, tenth))
        report("  the last tenth of them: a second", backlog.rate(-tenth, None))
        report("  messages too many: %", backlog.too_many)


class Drain:
    """`ends`: when each execution ended, in seconds and in that order; `too_many`: messages whose step was claimed
    already, in percent of the executions."""

    def __init__(self, here: Orchestrator, workflow_id: str, count: int, wait: float) -> None:
        ids = [here.start(workflow_id) for _ in range(count)]
        time.sleep(wait)
        claims = claimed(here)
        with a_worker():
            here.wait(ids, 600)
        here.check(ids, 1)
        sql = (
            "SELECT extract(epoch FROM finished_at)::float8 FROM executions WHERE id = ANY(%(ids)s::uuid[]) ORDER BY 1"
        )
        self.ends = [end for (end,) in query(here, sql, ids=ids)]
        self.too_many = 100 * (claimed(here) - claims - count) / count

    def rate(self, first: int | None = None, last: int | None = None) -> float:
        """Ends a second, of the executions from the `first` to the `last` to end."""
        ends = self.ends[first:last]
        return (len(ends) - 1) / (ends[-1] - ends[0])


@contextmanager
def a_worker() -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker", "-n", f"{QUEUE}@%h", "-Q", QUEUE]
    command += ["-P", "prefork", "-c", str(SLOTS), "--without-gossip", "--without-mingle"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def count_calls(here: Orchestrator) -> None:
    """Have PostgreSQL count the calls of our functions."""
    with here.store.single() as connection:
        connection.exec_driver_sql("ALTER SYSTEM SET track_functions = 'pl'")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    here.store.close()


def claimed(here: Orchestrator) -> int:
    """How often a step was asked for so far; a step of these executions is claimed by no other function."""
    time.sleep(2)  # the servers of connections that rest tell of theirs within a second
    sql = "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions WHERE funcname LIKE 'claim_step_%%'"
    return int(query(here, sql)[0][0])


def query(here: Orchestrator, sql: str, **params: Any) -> list[Any]:
    with here.store.single() as connection:
        return list(connection.exec_driver_sql(sql, params or None).all())


def report(name: str, figure: float) -> None:
    print(f"{name:<50} {figure:10,.1f}", flush=True)


if __name__ == "__main__":
    main()
