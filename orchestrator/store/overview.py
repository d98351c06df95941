"""What operators look at: queues, worker processes and what they do, timers, duties. Nothing here is on a hot path."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.lifecycle import EXECUTION_LIVE, ExecutionStatus, StepStatus, sql_words
from orchestrator.store import admission, execution_views, stats
from orchestrator.store.keyset import Window
from orchestrator.store.session import run

_MOST_STEPS = 1000
"""Running steps that are listed."""

_RUNNABLE = f"e.admitted_at IS NOT NULL AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')"


def now(connection: Connection) -> datetime:
    """The database's clock, by which all times are written."""
    moment: datetime = run(connection, "SELECT clock_timestamp()").scalar_one()
    return moment


@dataclass(frozen=True, slots=True)
class WaitingQueue:
    """A queue with steps that wait in it, of executions that may go on."""

    name: str
    waiting: int
    oldest_seconds: float


def queues(connection: Connection) -> list[WaitingQueue]:
    rows = run(
        connection,
        f"""
        SELECT s.queue, count(*) AS waiting,
               extract(epoch FROM clock_timestamp() - min(coalesce(s.rung_at, e.admitted_at)))::float8 AS oldest
        FROM step_executions s JOIN executions e ON e.id = s.execution_id
        WHERE s.status = '{StepStatus.QUEUED}' AND {_RUNNABLE} GROUP BY s.queue ORDER BY s.queue
        """,
    )
    return [WaitingQueue(row.queue, row.waiting, max(0.0, row.oldest)) for row in rows]


@dataclass(frozen=True, slots=True)
class RunningStep:
    """What a worker process performs at present."""

    execution_id: str
    path: str
    type: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker process that holds a lease. `queues`, `slots` and `script_isolation` are None if it has not said what
    they are."""

    id: str
    node: str
    host: str
    pid: int
    queues: tuple[str, ...] | None
    slots: int | None
    script_isolation: str | None
    seen_seconds: float
    steps: tuple[RunningStep, ...]

    def serves(self, queue: str) -> bool:
        return self.queues is None or queue in self.queues

    @property
    def is_busy(self) -> bool:
        """Whether it performs as much as it can at a time."""
        return len(self.steps) >= (self.slots or 1)


def workers(connection: Connection) -> list[WorkerSeen]:
    """In the order of their nodes, with the steps that they perform, the longest first."""
    performed: dict[str, list[RunningStep]] = {}
    for row in run(
        connection,
        f"""
        SELECT s.worker_id::text AS worker_id, s.execution_id::text AS execution_id, s.path, s.type,
               extract(epoch FROM clock_timestamp() - s.started_at)::float8 AS seconds
        FROM step_executions s JOIN worker_processes w ON w.id = s.worker_id
        WHERE s.status = '{StepStatus.RUNNING}' ORDER BY s.started_at LIMIT {_MOST_STEPS}
        """,
    ):
        performed.setdefault(row.worker_id, []).append(
            RunningStep(row.execution_id, row.path, row.type, max(0.0, row.seconds))
        )
    rows = run(
        connection,
        "SELECT id::text AS id, node, host, pid, queues, slots, script_isolation, "
        "extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen FROM worker_processes ORDER BY node, pid, id",
    )
    return [
        WorkerSeen(
            row.id,
            row.node,
            row.host,
            row.pid,
            None if row.queues is None else tuple(row.queues),
            row.slots,
            row.script_isolation,
            max(0.0, row.seen),
            tuple(performed.get(row.id, ())),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Places:
    """`running` executions have a place, `queued` ones wait for one, and `held` ones for a limit of their own."""

    running: int
    queued: int
    held: int


def places(connection: Connection) -> Places:
    row = run(
        connection,
        f"SELECT ({admission.TAKEN}) AS running, "
        f"(SELECT count(*) FROM executions e WHERE {admission.BACKLOG}) AS queued, "
        f"(SELECT count(*) FROM executions e WHERE {admission.WAITS} AND e.held) AS held",
    ).one()
    return Places(row.running, row.queued, row.held)


@dataclass(frozen=True, slots=True)
class Due:
    """`next` is due next, or is overdue by `late` seconds."""

    next: datetime | None
    late: float


def timers(connection: Connection) -> Due:
    """Steps that wait for a time. A pause stops their clocks, so those of paused executions are not late."""
    return _due(
        connection,
        "SELECT min(s.next_attempt_at) FROM step_executions s JOIN executions e ON e.id = s.execution_id "
        f"WHERE s.status = '{StepStatus.WAITING}' AND s.next_attempt_at IS NOT NULL "
        f"AND e.status <> '{ExecutionStatus.PAUSED}'",
    )


def schedules(connection: Connection) -> Due:
    """Triggers that time fires."""
    return _due(connection, "SELECT min(next_slot) FROM triggers WHERE is_enabled AND next_slot IS NOT NULL")


def _due(connection: Connection, earliest: str) -> Due:
    row = run(
        connection,
        f"SELECT one.due, greatest(0, extract(epoch FROM clock_timestamp() - one.due))::float8 AS late "
        f"FROM ({earliest}) AS one(due)",
    ).one()
    return Due(row.due, row.late or 0.0)


@dataclass(frozen=True, slots=True)
class DutyHolder:
    holder: str | None
    kept_seconds_ago: float | None


def duty(connection: Connection, name: str) -> DutyHolder:
    """Who holds a duty; of one that nobody ever held, nothing."""
    row = run(
        connection,
        "SELECT holder::text AS holder, CASE WHEN isfinite(at) THEN "
        "extract(epoch FROM clock_timestamp() - at)::float8 END AS kept FROM duties WHERE name = %(name)s",
        {"name": name},
    ).first()
    return DutyHolder(None, None) if row is None else DutyHolder(row.holder, row.kept)


def workflow(connection: Connection, workflow_id: str) -> dict[str, Any]:
    """A workflow and what its executions add up to, `last_execution` among them. Raises NotFound."""
    row = run(
        connection,
        f"""
        SELECT w.id::text AS id, w.name, w.status, w.version,
               count(e.id) FILTER (WHERE e.status = '{ExecutionStatus.RUNNING}') AS running,
               count(e.id) FILTER (WHERE e.status = '{ExecutionStatus.QUEUED}') AS queued
        FROM workflows w LEFT JOIN executions e ON e.workflow_id = w.id
             AND e.status IN ({sql_words(EXECUTION_LIVE)})
        WHERE w.id = %(id)s::uuid GROUP BY w.id
        """,
        {"id": workflow_id},
    ).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    newest_first = Window(execution_views.ORDERS["-created_at"], 1)
    newest = execution_views.listing(connection, newest_first, workflow_id=workflow_id)
    added_up = stats.of_workflow(connection, workflow_id)
    return {
        **row._asdict(),
        "execution_count": added_up["execution_count"],
        "success_rate": added_up["success_rate"],
        "last_execution": newest[0] if newest else None,
    }
