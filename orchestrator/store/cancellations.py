"""What steps have begun elsewhere and nobody wants any more: it is to be cancelled there.

A row is written with the end of the attempt that began it, and lives until a worker has seen to it or has given up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import StepStatus, sql_words
from orchestrator.store.session import run, to_json

MAX_TRIES = 6
FIRST_PAUSE = 5.0
"""Seconds between the first two tries; each further pause is twice as long."""
_RUNG_FOR = 10.0
"""Seconds that a message has at least until it is taken for lost; as long again as the row is old, so that a queue
which nobody serves does not fill."""
_KEPT = 24 * 3600.0

CANCEL_ELSEWHERE = """
INSERT INTO cancellations (execution_id, step_execution_id, path, queue, attempt, state, iteration)
SELECT s.execution_id, s.id, s.path, s.queue, s.attempt, s.state, s.iteration
"""
"""From rows `s` of step_executions."""


@dataclass(frozen=True, slots=True)
class Due:
    """A cancellation for which a message is to be sent."""

    id: str
    queue: str


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a worker is to cancel: what the attempt `attempt` of a step left as its `state` when it last rested."""

    id: str
    execution_id: str
    step_execution_id: str
    path: str
    attempt: int
    state: Any
    loop: Any
    tries: int
    """This one included."""


def insert(connection: Connection, step_execution_id: str, state: Any, *, if_given_up: bool = False) -> None:
    """`if_given_up`: only if the step was cancelled or failed, so that no other attempt counts on what this began."""
    run(
        connection,
        "INSERT INTO cancellations (execution_id, step_execution_id, path, queue, attempt, state, iteration) "
        "SELECT execution_id, id, path, queue, attempt, %(state)s::jsonb, iteration FROM all_step_executions "
        "WHERE id = %(id)s::uuid AND (NOT %(if_given_up)s "
        f"OR status IN ({sql_words({StepStatus.CANCELLED, StepStatus.FAILED})}))",
        {"id": step_execution_id, "state": to_json(state), "if_given_up": if_given_up},
    )


def due(connection: Connection, limit: int) -> list[Due]:
    """Those whose time has come, marked as rung for."""
    rows = run(
        connection,
        f"""
        UPDATE cancellations SET next_try_at = clock_timestamp()
            + greatest({_RUNG_FOR} * interval '1 second', clock_timestamp() - created_at)
        WHERE id IN (SELECT id FROM cancellations WHERE next_try_at <= clock_timestamp()
                     ORDER BY next_try_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
        RETURNING id::text AS id, queue
        """,
        {"limit": limit},
    )
    return [Due(row.id, row.queue) for row in rows]


def take(connection: Connection, id: str) -> Cancellation | None:
    """One more try; None if it has been seen to. Another is due after a pause, whatever becomes of this one."""
    row = run(
        connection,
        "UPDATE cancellations SET tries = tries + 1, "
        f"next_try_at = clock_timestamp() + {FIRST_PAUSE} * 2 ^ tries * interval '1 second' WHERE id = %(id)s::uuid "
        "RETURNING id::text AS id, execution_id::text AS execution_id, "
        "step_execution_id::text AS step_execution_id, path, attempt, state, iteration AS loop, tries",
        {"id": id},
    ).first()
    return None if row is None else Cancellation(**row._asdict())


def remove(connection: Connection, id: str) -> None:
    """It has been cancelled, or nobody can."""
    run(connection, "DELETE FROM cancellations WHERE id = %(id)s::uuid", {"id": id})


def purge(connection: Connection, limit: int) -> None:
    """Remove those for which there was no worker in a day."""
    run(
        connection,
        f"DELETE FROM cancellations WHERE id IN (SELECT id FROM cancellations "
        f"WHERE created_at < clock_timestamp() - {_KEPT} * interval '1 second' LIMIT %(limit)s)",
        {"limit": limit},
    )
