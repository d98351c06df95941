"""`python -m benchmarks.bench_scale`: what lists, details, statistics and chains cost with a million executions.

Two times `orchestrator up`: one of them has `--executions` executions of fifty workflows behind it (see history.py; to
make them takes minutes and 5 GB for a million), the other one nothing. The first is asked over HTTP for all that its
lists offer, one request after the other, on the first page and on the ten-thousandth; chain10 is measured on both in
turns. The figures go to standard output as a table: milliseconds beside what is aimed at, and `!` where that is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from api.resources.paging import cursor_of
from benchmarks import history, workloads
from benchmarks.__main__ import Orchestrator, orchestrator_up
from benchmarks.http_load import Connection, Request, one_by_one

WORKFLOWS = 50
LIST, DETAIL, STATISTICS, HEALTH = 50, 50, 100, 20
"""Milliseconds that the 95th percentile may be."""
SLOWER = 0.1
"""The part of its throughput on an empty database that chain10 may lose."""
CHAINS = 200
_DEEP = 10_000 * 50
_ASKED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="of chain10, on each side")
    parser.add_argument("--folder", type=Path, help="where the databases are made (default: where temporary files are)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="orchestrator-bench-", dir=options.folder) as folder,
        empty_side(Path(folder) / "empty") as empty,
        orchestrator_up(Path(folder) / "full") as here,
    ):
        past = fifty_workflows(here)
        history.fill(here.store, past, options.executions)
        ask(here, past)
        chains(here, empty, options.rounds)


def fifty_workflows(here: Orchestrator) -> history.Past:
    ids = [here.create(f"workflow {number}", workloads.chain(history.STEPS)) for number in range(WORKFLOWS)]
    often = {"name": "often", "type": "schedule", "config": {"cron": "0 0 1 1 *"}}
    trigger = here.post(f"/api/v1/workflows/{ids[0]}/triggers", often)["id"]
    return history.Past(ids, [step["id"] for step in workloads.chain(history.STEPS)], trigger)


# --- over HTTP -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A path and a query, which `asker` asks; of a list in each of its `orders`, on the first page and on that which
    begins after `deep`, an id or what else the list is in the order of."""

    name: str
    path: str
    most: float
    query: Mapping[str, str] = field(default_factory=dict)
    orders: Sequence[str] = ()
    deep: str | int | None = None
    asker: str = "everything"

    def requests(self) -> Iterator[tuple[str, Request]]:
        if not self.orders:
            yield self.name, self._request({})
        for order in self.orders:
            yield f"{self.name}, by {order}", self._request({"sort": order})
            if self.deep is not None:
                yield (
                    f"{self.name}, by {order}, far on",
                    self._request({"sort": order, "cursor": cursor_of(order, (self.deep,))}),
                )

    def _request(self, more: Mapping[str, str]) -> Request:
        query = urlencode({**self.query, **more})
        return Request(f"{self.path}?{query}" if query else self.path)


def ask(here: Orchestrator, past: history.Past) -> None:
    """Print what each question takes, at the 50th and the 95th percentile."""
    keys = {"everything": str(here.session.headers["Authorization"]).removeprefix("Bearer "), **projects(here, past)}
    connections = {name: Connection(here.url, key) for name, key in keys.items()}
    print(f"{'asked for':<64}{'p50 ms':>9}{'p95 ms':>9}{'target':>9}")
    for question in questions(here, past):
        for name, request in question.requests():
            connection = connections[question.asker]
            one_by_one(connection, [request] * 2)  # what is slow at first is so for everybody
            load = one_by_one(connection, [request] * _ASKED)
            report(name, load.milliseconds(0.5), load.milliseconds(0.95), question.most)


def projects(here: Orchestrator, past: history.Past) -> dict[str, str]:
    """Keys that see a project: of the two least busy workflows, of one that never ran, of the three busiest, of all
    others."""
    keys = {}
    for name, project, ids in (
        ("little", "little", past.workflow_ids[-3:-1]),
        ("nothing", "nothing", past.workflow_ids[-1:]),
        ("much", "much", past.workflow_ids[:3]),
        ("the others", "default", ()),
    ):
        if ids:
            here.post("/api/v1/projects", {"name": project})
        for id in ids:
            here.put(f"/api/v1/workflows/{id}", {"project": project})
        grants = [{"project": project, "role": "viewer"}]
        keys[name] = str(here.post("/api/v1/keys", {"name": name, "rate_limit": 0, "grants": grants})["key"])
    return keys


def questions(here: Orchestrator, past: history.Past) -> Iterator[Question]:
    busiest, rare, never = past.workflow_ids[0], past.workflow_ids[-2], past.workflow_ids[-1]
    deep, moment = one(
        here, "SELECT id::text, created_at FROM all_executions ORDER BY id DESC OFFSET least(%(n)s, "
        "(SELECT count(*) / 2 FROM all_executions)) LIMIT 1", n=_DEEP,
    )  # fmt: skip
    original, many_lines = one(
        here,
        "SELECT (SELECT rerun_of::text FROM all_executions WHERE rerun_of IS NOT NULL LIMIT 1), "
        "(SELECT execution_id::text FROM step_logs GROUP BY 1 ORDER BY count(*) DESC LIMIT 1)",
    )
    hour = {"created_after": moment.isoformat(), "created_before": (moment + timedelta(hours=1)).isoformat()}
    executions = partial(
        Question, path="/api/v1/executions", most=LIST, orders=("-created_at", "created_at"), deep=deep
    )
    yield executions("executions")
    for status in ("queued", "running", "paused", "completed", "failed", "cancelled"):
        yield executions(f"executions, {status}", query={"status": status})
    for name, workflow_id in (("the busiest", busiest), ("a rare", rare), ("a new", never)):
        yield executions(f"executions of {name} workflow", query={"workflow_id": workflow_id})
        for status in ("running", "failed", "cancelled"):
            query = {"workflow_id": workflow_id, "status": status}
            yield executions(f"executions of {name} workflow, {status}", query=query)
    yield executions("executions again", query={"rerun_of": original})
    yield executions("executions of an hour", query=hour)
    yield executions("executions of an hour, failed", query={**hour, "status": "failed"})
    yield executions("executions of an hour of a rare workflow", query={**hour, "workflow_id": rare})
    for asker in ("little", "nothing", "much"):
        seen = partial(executions, asker=asker)
        yield seen(f"executions, who sees {asker}")
        yield seen(f"executions, failed, who sees {asker}", query={"status": "failed"})
        yield seen(f"executions, running, who sees {asker}", query={"status": "running"})
        yield seen(f"executions of an hour, who sees {asker}", query=hour)

    audit = partial(Question, path="/api/v1/audit", most=LIST, orders=("-at", "at"), deep=deep)
    request_id, object_id = one(here, "SELECT request_id, object_id FROM audit_log ORDER BY id OFFSET 1000 LIMIT 1")
    yield audit("audit log")
    for name, value in {
        "actor_id": "somebody 4", "action": "key.create", "object_kind": "key", "object_id": object_id,
        "request_id": request_id, "denied": "true", "project": "default", "since": moment.isoformat(),
        "until": moment.isoformat(),
    }.items():  # fmt: skip
        yield audit(f"audit log, {name}", query={name: value})

    in_the_middle = one(
        here, "SELECT seq FROM step_logs WHERE execution_id = %(id)s::uuid ORDER BY seq OFFSET 50000 LIMIT 1",
        id=many_lines,
    )[0]  # fmt: skip
    logs = partial(
        Question, path=f"/api/v1/executions/{many_lines}/logs", most=LIST, orders=("at", "-at"), deep=in_the_middle
    )
    yield logs("100,000 log lines", query={"limit": "50"})
    yield logs("100,000 log lines, of another step", query={"limit": "50", "step_id": past.step_ids[-1]})
    yield Question(
        "fires", f"/api/v1/triggers/{past.trigger_id}/fires", LIST, orders=("-created_at", "created_at"), deep=deep
    )
    yield Question("triggers", f"/api/v1/workflows/{busiest}/triggers", LIST)
    for order in ("name", "-name", "created_at", "updated_at"):
        yield Question(f"workflows, by {order}", "/api/v1/workflows", LIST, {"sort": order})
    yield Question("workflows by a word", "/api/v1/workflows", LIST, {"q": "workflow 4"})

    yield Question("an execution", f"/api/v1/executions/{deep}", DETAIL)
    yield Question("a workflow", f"/api/v1/workflows/{busiest}", DETAIL)
    yield Question("a workflow's status", f"/api/v1/workflows/{busiest}/status", DETAIL)
    for window in ("1h", "24h", "7d", "30d", "90d"):
        yield Question(f"statistics, {window}", "/api/v1/stats", STATISTICS, {"window": window})
        yield Question(
            f"statistics of a workflow, {window}", f"/api/v1/workflows/{busiest}/stats", STATISTICS, {"window": window}
        )
        for asker in ("much", "the others"):
            yield Question(
                f"statistics, {window}, who sees {asker}", "/api/v1/stats", STATISTICS, {"window": window}, asker=asker
            )
    yield Question("metrics", "/metrics", STATISTICS)
    yield Question("health", "/health", HEALTH)


def one(here: Orchestrator, sql: str, **params: Any) -> Any:
    with here.store.single() as connection:
        return connection.exec_driver_sql(sql, params or None).one()


def report(name: str, p50: float, p95: float, most: float) -> None:
    print(f"{name:<64}{p50:>9.1f}{p95:>9.1f}{most:>9.0f}{'' if p95 <= most else ' !'}", flush=True)


# --- chain10 ---------------------------------------------------------------------------------------------------


def chains(here: Orchestrator, empty: Pipe, rounds: int) -> None:
    """In turns, so that what else the machine does slows both."""
    steps = workloads.chain(10)
    workflow_id = here.create("chain10", steps)
    here.timed(workflow_id, 20, len(steps))
    full_rates, empty_rates = [], []
    for _ in range(rounds):
        empty.send("chain10")
        empty_rates.append(empty.recv())
        full_rates.append(CHAINS * len(steps) / here.timed(workflow_id, CHAINS, len(steps)))
    ratios = [full / empty for full, empty in zip(full_rates, empty_rates, strict=True)]
    for name, rates in (("an empty database", empty_rates), ("a full one", full_rates)):
        print(f"{f'chain10 on {name}: steps a second':<64}{statistics.median(rates):>9.0f}")
    ratio = statistics.median(ratios)
    print(f"{'  ratio':<64}{ratio:>9.2f}{'':>9}{1 - SLOWER:>9.2f}{'' if ratio >= 1 - SLOWER else ' !'}")


@contextmanager
def empty_side(folder: Path) -> Iterator[Pipe]:
    """An orchestrator that has done nothing yet, of a process of its own: what sends messages knows one broker."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve_chains, args=(folder, theirs))
    process.start()
    try:
        ours.recv()
        yield ours
    finally:
        ours.send(None)
        process.join(60)


def _serve_chains(folder: Path, pipe: Pipe) -> None:
    steps = workloads.chain(10)
    with orchestrator_up(folder) as here:
        workflow_id = here.create("chain10", steps)
        here.timed(workflow_id, 20, len(steps))
        pipe.send("ready")
        while pipe.recv() is not None:
            pipe.send(CHAINS * len(steps) / here.timed(workflow_id, CHAINS, len(steps)))


if __name__ == "__main__":
    main()
