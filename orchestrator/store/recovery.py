"""What reconcile finds among the steps, and rings for: lost work, lost messages, due timers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXPIRE, HAND_ON, LOSE, WAKE, ExecutionStatus, StepStatus
from orchestrator.store.admission import PRIORITY
from orchestrator.store.claims import ARE_HELD, GRACE, HELD, TIME_IS_UP, Claim, held_params
from orchestrator.store.routines import Routine
from orchestrator.store.session import run


@dataclass(frozen=True, slots=True)
class Orphan:
    """A step that nobody will finish; `lost` if its worker is gone, else its time is up."""

    execution_id: str
    claim: Claim
    lost: bool


_HELD_STEP = {
    "execution_id": "text",
    "id": "text",
    "path": "text",
    "attempt": "int",
    "losses": "int",
    "forgiven": "int",
    "token": "text",
    "state": "jsonb",
}
_HELD_ROW = (
    "s.execution_id::text AS execution_id, s.id::text AS id, s.path, s.attempt, s.losses, "
    "coalesce(s.forgiven, 0) AS forgiven, s.claim_token::text AS token, s.state"
)
# Reconcile asks these several times a second at most, and most of the time finds nothing: planning took ten times as
# long as that.
_ORPHANS = Routine(
    "orphans",
    f"""
    SELECT {_HELD_ROW}, w.id IS NULL AND ({TIME_IS_UP}) IS NOT TRUE AS lost
    FROM step_executions s LEFT JOIN worker_processes w ON w.id = s.worker_id
    WHERE s.status = '{StepStatus.RUNNING}' AND (w.id IS NULL OR s.deadline < clock_timestamp())
    LIMIT %(limit)s
    """,
    {"limit": "int"},
    _HELD_STEP | {"lost": "bool"},
)


def orphans(connection: Connection, limit: int) -> list[Orphan]:
    """Running steps whose worker has no lease any more, or whose deadline is past."""
    return [_orphan(row, lost=row.lost) for row in run(connection, _ORPHANS.call, {"limit": limit})]


def _orphan(row: Any, *, lost: bool) -> Orphan:
    claim = Claim(row.id, row.path, row.attempt, row.losses, row.token, row.state, forgiven=row.forgiven)
    return Orphan(row.execution_id, claim, lost)


_DEADLINE_AGAIN = "CASE WHEN s.state IS NOT NULL THEN s.deadline END"
"""Of a step that another worker takes on: if it begins anew, so does its time; if it goes on where it rested, that goes
on as well."""


def lose(connection: Connection, held: Claim) -> bool:
    """Queue a step again whose worker is gone; it is about to be rung for."""
    return (
        run(
            connection,
            f"UPDATE step_executions s SET {LOSE.assignment}, losses = losses + 1, claim_token = NULL, "
            f"deadline = {_DEADLINE_AGAIN}, rung_at = clock_timestamp() WHERE {HELD} AND {LOSE.guard}",
            {"id": held.id, "held_token": held.token},
        ).rowcount
        == 1
    )


def disown(connection: Connection, execution_id: str, worker_id: str) -> None:
    """Make orphans of the steps of an execution that this worker holds: it lost track of which they are."""
    run(
        connection,
        "UPDATE step_executions SET worker_id = NULL WHERE execution_id = %(execution)s::uuid "
        f"AND worker_id = %(worker)s::uuid AND status = '{StepStatus.RUNNING}'",
        {"execution": execution_id, "worker": worker_id},
    )


@dataclass(frozen=True, slots=True)
class Ring:
    """A queued step for which a message is to be sent."""

    execution_id: str
    path: str
    queue: str
    priority: int


def hand_on(connection: Connection, claims: Collection[Claim]) -> list[Ring]:
    """Queue again what is performed under these claims: it is about to be rung for. Whoever takes it on begins the same
    attempt anew, since that the worker is replaced says nothing of the step."""
    return _rung(
        connection,
        f"""
        UPDATE step_executions s SET {HAND_ON.assignment}, resumes = true, claim_token = NULL,
            deadline = {_DEADLINE_AGAIN}, rung_at = clock_timestamp()
        FROM executions e
        WHERE e.id = s.execution_id AND {ARE_HELD} AND s.{HAND_ON.guard}
        RETURNING s.execution_id::text AS execution_id, s.path, s.queue, {PRIORITY} AS priority
        """,
        held_params(claims),
    )


_GOES_ON = f"o.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')"
"""Of an execution `o`: timers of one that is paused are due, but keep until it is resumed."""


_WAKE_DUE = Routine(
    "wake_due",
    f"""
    UPDATE step_executions s SET {WAKE.assignment}, next_attempt_at = NULL, awaits = NULL,
        rung_at = clock_timestamp()
    FROM executions e
    WHERE e.id = s.execution_id AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
      AND s.id IN (SELECT w.id FROM step_executions w JOIN executions o ON o.id = w.execution_id
                   WHERE w.{WAKE.guard} AND w.next_attempt_at <= clock_timestamp() AND {_GOES_ON}
                   ORDER BY w.next_attempt_at LIMIT %(limit)s FOR UPDATE OF w SKIP LOCKED)
    RETURNING s.execution_id::text AS execution_id, s.path, s.queue, {PRIORITY} AS priority
    """,
    {"limit": "int"},
    {"execution_id": "text", "path": "text", "queue": "text", "priority": "smallint"},
)


def wake_due(connection: Connection, limit: int) -> list[Ring]:
    """Queue the waiting steps whose time has come, and say which they are."""
    return _rung(connection, _WAKE_DUE.call, {"limit": limit})


_EXPIRE = Routine(
    "expire",
    f"""
    UPDATE step_executions s SET {EXPIRE.assignment}, claim_token = gen_random_uuid(), worker_id = NULL,
        next_attempt_at = NULL, awaits = NULL
    WHERE s.id IN (SELECT w.id FROM step_executions w JOIN executions o ON o.id = w.execution_id
                   WHERE w.{EXPIRE.guard} AND w.resumes AND w.{TIME_IS_UP} AND {_GOES_ON}
                   ORDER BY w.deadline LIMIT %(limit)s FOR UPDATE OF w SKIP LOCKED)
    RETURNING {_HELD_ROW}
    """,
    {"limit": "int"},
    _HELD_STEP,
)


def expire(connection: Connection, limit: int) -> list[Orphan]:
    """Take on the waiting steps whose time is up, in the middle of an attempt; the caller fails them. Should it not
    come to that, they are orphans like any other."""
    return [_orphan(row, lost=False) for row in run(connection, _EXPIRE.call, {"limit": limit})]


def queued(connection: Connection, execution_id: str) -> list[Ring]:
    """The steps of an execution that wait for a worker."""
    return _rung(
        connection,
        f"""
        UPDATE step_executions s SET rung_at = clock_timestamp() FROM executions e
        WHERE e.id = s.execution_id AND s.execution_id = %(execution)s::uuid AND s.status = '{StepStatus.QUEUED}'
          AND e.admitted_at IS NOT NULL
        RETURNING s.execution_id::text AS execution_id, s.path, s.queue, {PRIORITY} AS priority
        """,
        {"execution": execution_id},
    )


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A queued step that no worker has claimed, rung for at `rung_at`. `place` is its place among those of its queue
    and priority, from 1 for the one that has waited longest; it changes while the step stays the same one."""

    id: str
    execution_id: str
    path: str
    queue: str
    rung_at: datetime | None
    place: int = field(compare=False)


def unclaimed(connection: Connection, *, older_than: float, limit: int) -> list[Unclaimed]:
    """The steps that a message was sent for `older_than` seconds ago or more and that are still queued: of each queue
    and priority the `limit` that have waited longest, the most urgent priority first."""
    rows = run(
        connection,
        f"""
        SELECT id, execution_id, path, queue, rung_at, place FROM (
            SELECT s.id::text AS id, s.execution_id::text AS execution_id, s.path, s.queue, s.rung_at,
                   {PRIORITY} AS priority,
                   row_number() OVER (PARTITION BY s.queue, {PRIORITY} ORDER BY s.rung_at NULLS FIRST) AS place
            FROM step_executions s JOIN executions e ON e.id = s.execution_id
            WHERE s.status = '{StepStatus.QUEUED}' AND e.admitted_at IS NOT NULL
              AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
              AND (s.rung_at IS NULL OR s.rung_at < clock_timestamp() - %(age)s * interval '1 second')
        ) AS waiting WHERE place <= %(limit)s ORDER BY priority DESC, place
        """,
        {"age": older_than, "limit": limit},
    )
    return [Unclaimed(row.id, row.execution_id, row.path, row.queue, row.rung_at, row.place) for row in rows]


def ring_again(connection: Connection, lost: Sequence[Unclaimed]) -> list[Ring]:
    """Mark those as rung for now that nobody has claimed, or rung for, since they were looked at."""
    return _rung(
        connection,
        f"""
        UPDATE step_executions s SET rung_at = clock_timestamp()
        FROM (SELECT q.id, e.priority FROM unnest(%(ids)s::uuid[], %(rung)s::timestamptz[]) AS lost (id, rung_at)
              JOIN step_executions q ON q.id = lost.id AND q.rung_at IS NOT DISTINCT FROM lost.rung_at
              JOIN executions e ON e.id = q.execution_id
              WHERE q.status = '{StepStatus.QUEUED}' FOR UPDATE OF q SKIP LOCKED) AS rung
        WHERE s.id = rung.id AND s.status = '{StepStatus.QUEUED}'
        RETURNING s.execution_id::text AS execution_id, s.path, s.queue,
                  coalesce(s.priority, rung.priority) AS priority
        """,
        {"ids": [step.id for step in lost], "rung": [step.rung_at for step in lost]},
    )


def _rung(connection: Connection, sql: str, params: dict[str, Any]) -> list[Ring]:
    return [Ring(row.execution_id, row.path, row.queue, row.priority) for row in run(connection, sql, params)]


_NEXT_TIMER = Routine(
    "seconds_to_next_timer",
    f"""
    SELECT extract(epoch FROM min(least(s.next_attempt_at, s.deadline - {GRACE} * interval '1 second'))
                   - clock_timestamp())::float8
    FROM step_executions s JOIN executions o ON o.id = s.execution_id
    WHERE s.status = '{StepStatus.WAITING}' AND (s.next_attempt_at IS NOT NULL OR s.deadline IS NOT NULL)
      AND {_GOES_ON}
    """,
    {},
    {"seconds": "float8"},
)


def seconds_to_next_timer(connection: Connection) -> float | None:
    """Until the earliest waiting step is due, or its time is up; None if none waits for a time."""
    seconds: float | None = run(connection, _NEXT_TIMER.call).scalar()
    return seconds
