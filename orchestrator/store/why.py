"""What says why something does not run: an execution's and a step's rows, and what stands before them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.lifecycle import STEP_TERMINAL, ExecutionStatus, StepStatus, sql_words
from orchestrator.store import admission
from orchestrator.store.everywhere import first_anywhere
from orchestrator.store.executions import AWAITS_BODY
from orchestrator.store.session import run

_BEFORE = "(-e.priority, e.turn, e.id) < (-x.priority, x.turn, x.id)"
"""The order in which those that wait for a place are let in."""


@dataclass(frozen=True, slots=True)
class ExecutionSeen:
    id: str
    workflow_id: str
    version: int
    status: ExecutionStatus
    priority: int
    error_message: str | None
    held: bool
    paced: bool
    created_at: datetime
    admitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    paused_at: datetime | None
    paused_with: str | None
    """`parent` or `workflow`, if it was not paused by itself."""
    parent_id: str | None
    """The execution of the step that waits for it."""
    step_comes_later: bool
    """It was tried again together with that step, which has not come to it yet."""


def execution(connection: Connection, execution_id: str) -> ExecutionSeen:
    """Raises NotFound."""
    row = first_anywhere(
        connection,
        "SELECT e.id::text AS id, e.workflow_id::text AS workflow_id, e.version, e.status, e.priority, "
        "e.error_message, e.held, e.paced, e.created_at, e.admitted_at, e.started_at, e.finished_at, e.paused_at, "
        f"e.paused_with, p.execution_id::text AS parent_id, coalesce({admission.COMES_LATER}, false) "
        "AS step_comes_later "
        "FROM executions e LEFT JOIN step_executions p ON p.id = e.parent_step_id WHERE e.id = %(id)s::uuid",
        {"id": execution_id},
    )
    if row is None:
        raise NotFound("execution", execution_id)
    return ExecutionSeen(**{**row._asdict(), "status": ExecutionStatus(row.status)})


@dataclass(frozen=True, slots=True)
class StepSeen:
    """`node` is that of its worker process, None if that is gone."""

    id: str
    execution_id: str
    path: str
    type: str
    queue: str
    status: StepStatus
    attempt: int
    losses: int
    counted: int
    """Attempts that use up its retry policy."""
    resumes: bool
    state: Any
    container: str | None
    awaits: str | None
    error_kind: str | None
    error_message: str | None
    rung_at: datetime | None
    next_attempt_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    worker_id: str | None
    node: str | None


_STEP = (
    "SELECT s.id::text AS id, s.execution_id::text AS execution_id, s.path, s.type, s.queue, s.status, s.attempt, "
    "s.losses, s.attempt - coalesce(s.forgiven, 0) - s.losses AS counted, s.resumes, s.state, s.container, "
    "s.awaits, s.error_kind, s.error_message, s.rung_at, "
    "s.next_attempt_at, s.started_at, s.finished_at, s.worker_id::text AS worker_id, w.node "
    "FROM step_executions s LEFT JOIN worker_processes w ON w.id = s.worker_id"
)


def step(connection: Connection, step_execution_id: str) -> StepSeen:
    """Raises NotFound."""
    row = first_anywhere(connection, f"{_STEP} WHERE s.id = %(id)s::uuid", {"id": step_execution_id})
    if row is None:
        raise NotFound("step execution", step_execution_id)
    return _step(row)


def live_steps(connection: Connection, execution_id: str, limit: int) -> list[StepSeen]:
    """What runs; then what is queued, the longest first; then what waits, the soonest to end first; and last the
    steps that wait for others of these."""
    rows = run(
        connection,
        f"{_STEP} WHERE s.execution_id = %(id)s::uuid AND s.status IN ('queued', 'running', 'waiting') "
        f"ORDER BY s.status = '{StepStatus.RUNNING}' DESC, s.status = '{StepStatus.QUEUED}' DESC, "
        f"s.awaits IS NOT DISTINCT FROM '{AWAITS_BODY}', s.next_attempt_at, s.rung_at, s.id LIMIT %(limit)s",
        {"id": execution_id, "limit": limit},
    )
    return [_step(row) for row in rows]


def _step(row: Any) -> StepSeen:
    return StepSeen(**{**row._asdict(), "status": StepStatus(row.status)})


# --- places --------------------------------------------------------------------------------------------------


def ahead_in_backlog(connection: Connection, execution_id: str) -> int:
    """Executions that are let in before this one."""
    return _count(
        connection,
        f"SELECT count(*) FROM executions e, executions x WHERE x.id = %(id)s::uuid AND {admission.BACKLOG} "
        f"AND {_BEFORE}",
        execution_id,
    )


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """`limit` executions may run at a time under `key`; `executions` do, and `ahead` are held before this one."""

    key: str
    limit: int
    executions: tuple[str, ...]
    ahead: int

    @property
    def is_reached(self) -> bool:
        return len(self.executions) >= self.limit


def own_limits(connection: Connection, execution_id: str) -> list[OwnLimit]:
    rows = run(
        connection,
        f"""
        SELECT own.key, own.most,
               ARRAY(SELECT e.id::text FROM executions e WHERE {admission.HAS_PLACE} AND e.limit_keys @> ARRAY[own.key]
                     ORDER BY e.id) AS executions,
               (SELECT count(*) FROM executions e WHERE {admission.WAITS} AND e.held
                AND e.limit_keys @> ARRAY[own.key] AND {_BEFORE}) AS ahead
        FROM executions x, unnest(x.limit_keys, x.limits) AS own(key, most) WHERE x.id = %(id)s::uuid
        """,
        {"id": execution_id},
    )
    return [OwnLimit(row.key, row.most, tuple(row.executions), row.ahead) for row in rows]


# --- steps ---------------------------------------------------------------------------------------------------


def ahead_in_queue(connection: Connection, step_execution_id: str) -> int:
    """Steps of the same queue that were rung for before this one, or are more urgent."""
    return _count(
        connection,
        f"""
        SELECT count(*) FROM step_executions o JOIN executions e ON e.id = o.execution_id,
             step_executions s JOIN executions x ON x.id = s.execution_id
        WHERE s.id = %(id)s::uuid AND o.status = '{StepStatus.QUEUED}' AND o.queue = s.queue AND o.id <> s.id
          AND e.admitted_at IS NOT NULL AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
          AND (-coalesce(o.priority, e.priority), o.rung_at, o.id)
            < (-coalesce(s.priority, x.priority), s.rung_at, s.id)
        """,
        step_execution_id,
    )


def scopes(connection: Connection, execution_id: str, container: str) -> tuple[int, int]:
    """(how many scopes of a body have ended, how many there are)."""
    row = run(
        connection,
        "SELECT count(*) FILTER (WHERE ended) AS ended, count(*) AS made FROM ("
        f"SELECT bool_and(status IN ({sql_words(STEP_TERMINAL)})) AS ended FROM step_executions "
        "WHERE execution_id = %(id)s::uuid AND container = %(container)s GROUP BY scope) AS each",
        {"id": execution_id, "container": container},
    ).one()
    return row.ended, row.made


def _count(connection: Connection, sql: str, id: str) -> int:
    counted: int = run(connection, sql, {"id": id}).scalar_one()
    return counted
