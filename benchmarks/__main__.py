"""`make bench`: the orchestrator beside plain Celery, in one run, on one machine, with the same broker.

Throughput workloads are started in this process on both sides: apply_async there, here what the API does for a
POST; latency, and one burst, go over HTTP. Each workload runs on the one and then on the other, in turns, round
by round; the figures are medians over the rounds. Only one of the two has anything to do at a time, and both have
a prefork pool of the same size. The orchestrator commits every step to PostgreSQL; plain Celery keeps its results
in the broker.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import step_types, workloads
from orchestrator.config import load_settings
from orchestrator.datafolder import DataFolder, Running
from orchestrator.engine.programs import Programs
from orchestrator.engine.start import start_execution
from orchestrator.plugins import load_catalogue
from orchestrator.store import Store

SLOTS = 2
NAP = 0.02
RESULT = Path("build/bench.json")


@dataclass(frozen=True, slots=True)
class Figure:
    workload: str
    steps_per_s: float | None = None
    plain_steps_per_s: float | None = None
    ratio: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    seconds: float | None = None
    plain_seconds: float | None = None


class Orchestrator:
    """A whole `orchestrator up` on a data folder of its own."""

    def __init__(self, running: Running, key: str) -> None:
        self.url = running.url
        self.pid = running.pid
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {key}"
        settings = load_settings()
        self.store = Store(settings.database)
        self.programs = Programs(load_catalogue(settings.plugins), settings)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._sent("POST", path, body)

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._sent("PUT", path, body, {"If-Match": "*"})

    def _sent(
        self, method: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        answer = self.session.request(method, self.url + path, json=body, headers=headers, timeout=60)
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        return result

    def create(self, name: str, steps: list[workloads.Step]) -> str:
        body = {"name": name, "definition": {"version": "1.0", "steps": steps}}
        return str(self.post("/api/v1/workflows", body)["id"])

    def post_execution(self, workflow_id: str) -> str:
        return str(self.post(f"/api/v1/workflows/{workflow_id}/execute", {})["id"])

    def start(self, workflow_id: str) -> str:
        """Start in this process, as plain Celery's apply_async does; what the API does for each POST."""
        from workers.dispatch import send

        started = start_execution(self.store, self.programs, workflow_id, {})
        send(started.plan)
        return started.execution_id

    def wait(self, execution_ids: list[str], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        sql = "SELECT count(*) FROM executions WHERE id = ANY(%(ids)s::uuid[]) AND finished_at IS NULL"
        with self.store.single() as connection:
            for first in range(0, len(execution_ids), 50):
                while connection.exec_driver_sql(sql, {"ids": execution_ids[first : first + 50]}).scalar():
                    if time.monotonic() > end:
                        raise SystemExit("the executions did not end in time")
                    # A look takes CPU from what is measured, and more for more ids; the other side is told instead.
                    time.sleep(0.01)

    def check(self, execution_ids: list[str], steps: int) -> None:
        """Every execution completed, and every step of it ran once."""
        sql = """
            SELECT count(DISTINCT e.id) FILTER (WHERE e.status = 'completed'), count(*),
                   count(*) FILTER (WHERE s.status = 'completed' AND s.attempt = 1)
            FROM executions e JOIN step_executions s ON s.execution_id = e.id WHERE e.id = ANY(%(ids)s::uuid[])
        """
        with self.store.single() as connection:
            completed, rows, once = connection.exec_driver_sql(sql, {"ids": execution_ids}).one()
        expected = steps * len(execution_ids)
        if (completed, rows, once) != (len(execution_ids), expected, expected):
            raise SystemExit(f"not every step ran once: {completed} completed, {once} of {expected} steps")

    def timed(self, workflow_id: str, count: int, steps: int, *, over_http: bool = False) -> float:
        """Seconds from the first start to the last execution's end."""
        start = self.post_execution if over_http else self.start
        began = time.perf_counter()
        ids = [start(workflow_id) for _ in range(count)]
        self.wait(ids)
        elapsed = time.perf_counter() - began
        self.check(ids, steps)
        return elapsed

    def latency(self, workflow_id: str) -> float:
        """Seconds from before the POST to the end that the execution records."""
        began = time.time()
        execution_id = self.post_execution(workflow_id)
        self.wait([execution_id])
        execution = self.session.get(f"{self.url}/api/v1/executions/{execution_id}", timeout=60).json()
        return datetime.fromisoformat(execution["end_time"]).timestamp() - began

    def wall(self, workflow_id: str) -> float:
        """Seconds that an execution took by its own record."""
        execution_id = self.start(workflow_id)
        self.wait([execution_id])
        return float(self.session.get(f"{self.url}/api/v1/executions/{execution_id}", timeout=60).json()["duration"])


@contextmanager
def orchestrator_up(folder: Path) -> Iterator[Orchestrator]:
    os.environ |= {"ORCHESTRATOR_PLUGINS": "benchmarks.bench_steps", "WORKER_CONCURRENCY": str(SLOTS)}
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    command = [str(Path(sys.executable).with_name("orchestrator")), "up", "--port", "0", "--data-dir", str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ready: "):
                    break
            else:
                raise SystemExit("`orchestrator up` did not become ready")
            data = DataFolder(folder)
            running = data.running()
            assert running is not None
            # What this process imports from here on finds the servers, as the worker of plain Celery does.
            os.environ["ORCHESTRATOR_DATABASE_URL"] = running.database_url
            os.environ["ORCHESTRATOR_BROKER_URL"] = running.broker_url
            os.environ["PLAIN_BROKER_URL"] = running.broker_url.removesuffix("/0") + "/1"
            yield Orchestrator(running, data.admin_key())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def plain_worker() -> Iterator[None]:
    command = [
        sys.executable, "-m", "celery", "-A", "benchmarks.plain", "worker", "-n", "plain@%h", "-P", "prefork",
        "-c", str(SLOTS), "--without-gossip", "--without-mingle", "-l", "ERROR",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            gc.collect()  # results unsubscribe when they are collected: while their broker is still there
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def plain_timed(build: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    results = [build().apply_async() for _ in range(count)]
    for result in results:
        result.get(timeout=120)
    return time.perf_counter() - began


def throughput(
    here: Orchestrator,
    name: str,
    steps: list[workloads.Step],
    build: Callable[[], Any],
    count: int,
    rounds: int,
    *,
    over_http: bool = False,
) -> Figure:
    workflow_id = here.create(name, steps)
    here.timed(workflow_id, 2, len(steps), over_http=over_http)
    plain_timed(build, 2)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(here.timed(workflow_id, count, len(steps), over_http=over_http))
        theirs.append(plain_timed(build, count))
    total = count * len(steps)
    mine, plain = total / statistics.median(ours), total / statistics.median(theirs)
    return Figure(
        name, mine, plain, mine / plain, seconds=statistics.median(ours), plain_seconds=statistics.median(theirs)
    )


def latencies(here: Orchestrator, rounds: int) -> Figure:
    from benchmarks.plain import noop

    workflow_id = here.create("single latency", workloads.single())
    here.latency(workflow_id)
    ours, theirs = [], []
    for _ in range(rounds * 50):
        ours.append(here.latency(workflow_id) * 1000)
        began = time.perf_counter()
        noop.si().apply_async().get(timeout=60)
        theirs.append((time.perf_counter() - began) * 1000)
    p50, plain = statistics.median(ours), statistics.median(theirs)
    return Figure(
        "single latency",
        ratio=p50 / plain,
        p50_ms=p50,
        p95_ms=statistics.quantiles(ours, n=20)[-1],
        seconds=p50 / 1000,
        plain_seconds=plain / 1000,
    )


def loops(here: Orchestrator, items: int, rounds: int) -> Figure:
    """A loop of no-ops beside a chord of as many: items a second."""
    from celery import chord

    from benchmarks.plain import noop

    def build() -> Any:
        return chord([noop.si() for _ in range(items)], noop.si())

    workflow_id = here.create(f"loop{items}", workloads.loop(items))
    few, ten = here.create("loop100", workloads.loop(100)), here.create("loop10000", workloads.loop(10_000))
    here.timed(workflow_id, 1, items + 1)
    plain_timed(build, 1)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(here.timed(workflow_id, 1, items + 1))
        theirs.append(plain_timed(build, 1))
    mine, plain = statistics.median(ours), statistics.median(theirs)
    # As many items on both sides, in turns: a shared machine tires of what takes longer.
    pairs = [(here.timed(few, 100, 101) / 10_000, here.timed(ten, 1, 10_001) / 10_000) for _ in range(rounds)]
    short, long = (statistics.median(one) * 1000 for one in zip(*pairs, strict=True))
    growth = statistics.median(at_10_000 / at_100 for at_100, at_10_000 in pairs)
    print(f"loop: {short:.2f} ms an item at 100, {long:.2f} ms at 10,000 ({growth:.2f}x)")
    return Figure(f"loop{items}", items / mine, items / plain, plain / mine, seconds=mine, plain_seconds=plain)


def w40(here: Orchestrator, rounds: int) -> Figure:
    from celery import chain

    from benchmarks.plain import fibonacci

    workflow_id = here.create("W40", workloads.chain(40, "fibonacci", n=10))
    here.wall(workflow_id)
    ours = [here.wall(workflow_id) for _ in range(rounds * 3)]
    theirs = [plain_timed(lambda: chain(fibonacci.si(10) for _ in range(40)), 1) for _ in range(rounds * 3)]
    mine, plain = statistics.median(ours), statistics.median(theirs)
    return Figure("W40", 40 / mine, 40 / plain, plain / mine, seconds=mine, plain_seconds=plain)


def random_dags(here: Orchestrator, rounds: int) -> Figure:
    """`ratio` is the makespan over the best possible for this many slots; the smaller the better."""
    ratios, walls = [], []
    for seed in range(rounds):
        steps = workloads.random_dag(200, seed, NAP)
        workflow_id = here.create(f"random DAG {seed}", steps)
        here.wall(workflow_id)  # as everywhere, the first one warms up
        wall = here.wall(workflow_id)
        walls.append(wall)
        ratios.append(wall / workloads.best_makespan(steps, SLOTS, NAP))
    wall = statistics.median(walls)
    return Figure("random DAGs, makespan / best", 200 / wall, ratio=statistics.median(ratios), seconds=wall)


def idle(here: Orchestrator, seconds: float = 10) -> dict[str, float]:
    """What all processes together take while nothing is to be done: proportional memory, and CPU."""
    up = psutil.Process(here.pid)
    family = [up, *up.children(recursive=True)]
    time.sleep(2)
    before = {process.pid: sum(process.cpu_times()[:2]) for process in family}
    time.sleep(seconds)
    busy = sum(sum(process.cpu_times()[:2]) - before[process.pid] for process in family)
    memory = sum(process.memory_full_info().pss for process in family)
    return {"processes": len(family), "memory_mb": memory / 1024**2, "cpu_percent": 100 * busy / seconds}


def table(figures: list[Figure]) -> str:
    head = f"{'workload':<30}{'steps/s':>10}{'plain':>10}{'ratio':>8}{'p50 ms':>9}{'p95 ms':>9}{'s':>9}{'plain s':>9}"
    lines = [head, "-" * len(head)]
    for figure in figures:
        cells = [
            (figure.steps_per_s, 10, 0), (figure.plain_steps_per_s, 10, 0), (figure.ratio, 8, 2),
            (figure.p50_ms, 9, 1), (figure.p95_ms, 9, 1), (figure.seconds, 9, 3), (figure.plain_seconds, 9, 3),
        ]  # fmt: skip
        row = "".join(f"{'-' if value is None else f'{value:.{digits}f}':>{width}}" for value, width, digits in cells)
        lines.append(f"{figure.workload:<30}{row}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds whose median counts")
    parser.add_argument("--only", help="only the workloads whose name has this text in it")
    options = parser.parse_args()
    rounds: int = options.rounds
    types: list[step_types.TypeFigure] = []
    with_types = options.only is None or options.only in "types"
    sides: Any = step_types.other_sides if with_types else nullcontext
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder, sides(Path(folder)):
        began = time.perf_counter()
        with orchestrator_up(Path(folder) / "data") as here:
            ready = time.perf_counter() - began
            resting = idle(here)
            with plain_worker():
                figures = measure(here, rounds, options.only)
            if with_types:
                types = step_types.measure(here, rounds)
    if figures:
        print(table(figures))
    if types:
        print(step_types.table(types))
    print(
        f"ready after {ready:.1f} s; idle: {resting['processes']:.0f} processes, {resting['memory_mb']:.0f} MB "
        f"(proportional), {resting['cpu_percent']:.1f} % of a core"
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps([*map(asdict, figures), *map(asdict, types)], indent=2) + "\n")


def measure(here: Orchestrator, rounds: int, only: str | None) -> list[Figure]:
    from celery import chain, chord

    from benchmarks.plain import noop

    def fork(width: int) -> Any:
        return chain(noop.si(), chord([noop.si() for _ in range(width)], noop.si()))

    measurements: dict[str, Callable[[], Figure]] = {
        "single latency": lambda: latencies(here, rounds),
        "single": lambda: throughput(here, "single burst", workloads.single(), noop.si, 1000, rounds),
        "HTTP": lambda: throughput(
            here, "single burst over HTTP", workloads.single(), noop.si, 1000, rounds, over_http=True
        ),
        "chain10": lambda: throughput(
            here, "chain10", workloads.chain(10), lambda: chain(noop.si() for _ in range(10)), 200, rounds
        ),
        "diamond": lambda: throughput(here, "diamond", workloads.diamond(), lambda: fork(2), 200, rounds),
        "fan100": lambda: throughput(here, "fan100", workloads.fan(100), lambda: fork(100), 10, rounds),
        "loop1000": lambda: loops(here, 1000, rounds),
        "W40": lambda: w40(here, rounds),
        "random DAGs": lambda: random_dags(here, rounds),
    }
    figures = []
    for name, measurement in measurements.items():
        if only is None or only in name:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            figures.append(measurement())
    return figures


if __name__ == "__main__":
    main()
