"""What comes to an execution from outside while it runs: signals by name, decisions, the ends of its children."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.lifecycle import WAKE, StepStatus
from orchestrator.store.admission import PRIORITY
from orchestrator.store.claims import HELD, Claim
from orchestrator.store.everywhere import first_anywhere
from orchestrator.store.executions import AWAITS_CHILD
from orchestrator.store.recovery import Ring
from orchestrator.store.routines import Routine
from orchestrator.store.session import Store, new_id, run, to_json

AWAITS_DECISION = "decision"
AWAITS_SIGNAL = "signal:"
"""What `awaits` of a step begins with that waits for a signal; its name follows."""


def insert(connection: Connection, execution_id: str, name: str, payload: Any) -> str:
    id = new_id()
    run(
        connection,
        "INSERT INTO signals (id, execution_id, name, payload) "
        "VALUES (%(id)s::uuid, %(execution)s::uuid, %(name)s, %(payload)s::jsonb)",
        {"id": id, "execution": execution_id, "name": name, "payload": to_json(payload)},
    )
    return id


_TAKE_ROUTINE = Routine(
    "take_signal",
    f"""
    DECLARE
    BEGIN
        PERFORM FROM executions WHERE id = %(execution)s FOR NO KEY UPDATE;
        RETURN QUERY
            UPDATE signals SET taken_by = %(id)s WHERE id = coalesce(
                -- What an attempt took that was lost with its worker is this one's.
                (SELECT s.id FROM signals s
                 WHERE s.execution_id = %(execution)s AND s.name = %(name)s AND s.taken_by = %(id)s
                 ORDER BY s.id DESC LIMIT 1),
                (SELECT s.id FROM signals s
                 WHERE s.execution_id = %(execution)s AND s.name = %(name)s AND s.taken_by IS NULL
                 ORDER BY s.id LIMIT 1)
            ) AND EXISTS (SELECT FROM step_executions WHERE {HELD})
            RETURNING jsonb_build_object('payload', payload, 'sent_at', sent_at);
    END
    """,
    {"execution": "uuid", "name": "text", "id": "uuid", "held_token": "uuid"},
    {"signal": "jsonb"},
)


def take(store: Store, execution_id: str, held: Claim, name: str) -> Any:
    """Give the oldest untaken signal `name` to the step that runs under the claim `held`; None if there is none."""
    rows = store.call(_TAKE_ROUTINE, {"execution": execution_id, "name": name, "id": held.id, "held_token": held.token})
    return rows[0][0] if rows else None


_UNTAKEN_ROUTINE = Routine(
    "untaken_signals",
    """
    SELECT s.id::text, jsonb_build_object('payload', s.payload, 'sent_at', s.sent_at) FROM (
        SELECT id, payload, sent_at, sum(coalesce(pg_column_size(payload), 0)) OVER (
            ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM signals WHERE execution_id = %(execution)s AND name = %(name)s AND taken_by IS NULL
        ORDER BY id LIMIT %(most)s
    ) AS s WHERE coalesce(s.before, 0) < %(bytes)s ORDER BY s.id
    """,
    {"execution": "uuid", "name": "text", "most": "int", "bytes": "bigint"},
    {"id": "text", "signal": "jsonb"},
)


def untaken(store: Store, execution_id: str, name: str, *, most: int, bytes: int) -> list[tuple[str, Any]]:
    """(id, signal) of the oldest of this name that nobody has taken: `most` of them, and as many as it takes for their
    payloads to have so many `bytes` where they are stored."""
    params = {"execution": execution_id, "name": name, "most": most, "bytes": bytes}
    rows = store.call(_UNTAKEN_ROUTINE, params)
    return [(id, signal) for id, signal in rows]


def deliver(connection: Connection, execution_id: str, name: str) -> str | None:
    """Give the oldest untaken signal `name` to a step that waits for it, and queue that; its path, or None if
    there is not both. The caller holds the execution's row."""
    path: str | None = run(
        connection,
        f"""
        WITH signal AS (
            SELECT id, payload, sent_at FROM signals
            WHERE execution_id = %(execution)s::uuid AND name = %(name)s AND taken_by IS NULL ORDER BY id LIMIT 1
        ), waiter AS (
            SELECT id FROM step_executions WHERE execution_id = %(execution)s::uuid
              AND status = '{StepStatus.WAITING}' AND awaits = %(awaits)s ORDER BY id LIMIT 1 FOR UPDATE
        ), taken AS (
            UPDATE signals SET taken_by = waiter.id FROM signal, waiter WHERE signals.id = signal.id
        )
        UPDATE step_executions s SET {WAKE.assignment}, awaits = NULL, next_attempt_at = NULL,
            rung_at = clock_timestamp(),
            state = coalesce(s.state, '{{}}') || jsonb_build_object('signal', jsonb_build_object(
                'payload', signal.payload, 'sent_at', signal.sent_at))
        FROM signal, waiter WHERE s.id = waiter.id AND s.{WAKE.guard} RETURNING s.path
        """,
        {"execution": execution_id, "name": name, "awaits": AWAITS_SIGNAL + name},
    ).scalar()
    return path


def decide(connection: Connection, step_execution_id: str, decision: Any) -> bool:
    """Queue a step that waits for a decision, and let it find that; False if it does not wait for one (any more)."""
    sql = (
        f"UPDATE step_executions s SET {WAKE.assignment}, awaits = NULL, next_attempt_at = NULL, "
        "rung_at = clock_timestamp(), "
        "state = coalesce(s.state, '{}') || jsonb_build_object('decision', %(decision)s::jsonb) "
        f"WHERE id = %(id)s::uuid AND awaits = '{AWAITS_DECISION}' AND {WAKE.guard}"
    )
    return run(connection, sql, {"id": step_execution_id, "decision": to_json(decision)}).rowcount == 1


def was_decided(connection: Connection, step_execution_id: str, decision: Any) -> bool:
    """Whether a step has been given this decision, whenever that was."""
    sql = (
        "SELECT (state -> 'decision') - 'decided_at' = %(decision)s::jsonb - 'decided_at' FROM step_executions "
        "WHERE id = %(id)s::uuid"
    )
    row = first_anywhere(connection, sql, {"id": step_execution_id, "decision": to_json(decision)})
    return row is not None and bool(row[0])


def wake_parent(connection: Connection, parent_step_id: str) -> Ring | None:
    """Queue the step whose child has ended, if it waits for that."""
    row = run(
        connection,
        f"""
        UPDATE step_executions s SET {WAKE.assignment}, awaits = NULL, next_attempt_at = NULL,
            rung_at = clock_timestamp()
        FROM executions e WHERE s.id = %(id)s::uuid AND s.awaits = '{AWAITS_CHILD}' AND s.{WAKE.guard}
          AND e.id = s.execution_id
        RETURNING s.execution_id::text AS execution_id, s.path, s.queue, {PRIORITY} AS priority
        """,
        {"id": parent_step_id},
    ).first()
    return None if row is None else Ring(row.execution_id, row.path, row.queue, row.priority)


@dataclass(frozen=True, slots=True)
class StepAddress:
    execution_id: str
    path: str
    status: StepStatus


def address(connection: Connection, step_execution_id: str) -> StepAddress:
    """Where a step execution belongs. Raises NotFound."""
    sql = "SELECT execution_id::text AS execution_id, path, status FROM step_executions WHERE id = %(id)s::uuid"
    row = first_anywhere(connection, sql, {"id": step_execution_id})
    if row is None:
        raise NotFound("step execution", step_execution_id)
    return StepAddress(row.execution_id, row.path, StepStatus(row.status))
