"""Executions: their insertion with all step rows, their ends, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import (
    CANCEL_EXECUTION,
    FAIL_EXECUTION,
    FINISH,
    ExecutionStatus,
    StepStatus,
    Transition,
)
from orchestrator.store.session import new_id, run, to_json


@dataclass(frozen=True, slots=True)
class StepRows:
    """The columns of an execution's step rows that depend on the definition alone."""

    paths: tuple[str, ...]
    types: tuple[str, ...]
    queues: tuple[str, ...]
    statuses: tuple[str, ...]
    timeouts: tuple[float | None, ...]


_INSERT = f"""
WITH created AS (
    INSERT INTO executions (id, workflow_id, version, status, input, priority, trigger_id, idempotency_key, timeout)
    VALUES (%(id)s::uuid, %(workflow)s::uuid, %(version)s, '{ExecutionStatus.QUEUED}', %(input)s::jsonb,
            %(priority)s, %(trigger)s::uuid, %(key)s, %(timeout)s)
    ON CONFLICT (workflow_id, idempotency_key) DO NOTHING
    RETURNING id
), steps AS (
    INSERT INTO step_executions (id, execution_id, path, step_id, type, queue, status, timeout, rung_at)
    SELECT u.id, created.id, u.path, u.path, u.type, u.queue, u.status, u.timeout,
           CASE WHEN u.status = '{StepStatus.QUEUED}' THEN clock_timestamp() END
    FROM created, unnest(%(ids)s::uuid[], %(paths)s::text[], %(types)s::text[], %(queues)s::text[],
                         %(statuses)s::text[], %(timeouts)s::float8[])
                  AS u(id, path, type, queue, status, timeout)
)
SELECT EXISTS (SELECT FROM created) AS created
"""


def insert(
    connection: Connection,
    workflow_id: str,
    version: int,
    input: Any,
    steps: StepRows,
    *,
    priority: int,
    timeout: float | None,
    trigger_id: str | None = None,
    idempotency_key: str | None = None,
) -> str | None:
    """Insert an execution with all its step rows; its id, or None if one with this key is already there."""
    execution_id = new_id()
    created: bool = run(
        connection,
        _INSERT,
        {
            "id": execution_id,
            "workflow": workflow_id,
            "version": version,
            "input": to_json(input),
            "priority": priority,
            "trigger": trigger_id,
            "key": idempotency_key,
            "timeout": timeout,
            "ids": [new_id() for _ in steps.paths],
            "paths": list(steps.paths),
            "types": list(steps.types),
            "queues": list(steps.queues),
            "statuses": list(steps.statuses),
            "timeouts": list(steps.timeouts),
        },
    ).scalar_one()
    return execution_id if created else None


def id_by_idempotency_key(connection: Connection, workflow_id: str, key: str) -> str | None:
    id: str | None = run(
        connection,
        "SELECT id::text FROM executions WHERE workflow_id = %(workflow)s::uuid AND idempotency_key = %(key)s",
        {"workflow": workflow_id, "key": key},
    ).scalar()
    return id


@dataclass(frozen=True, slots=True)
class Locked:
    """An execution whose row this transaction holds, so that no other advance runs beside it."""

    id: str
    workflow_id: str
    version: int
    status: ExecutionStatus
    input: Any
    priority: int
    trigger_id: str | None


def lock(connection: Connection, execution_id: str) -> Locked | None:
    """Hold the execution's row: the one lock by which steps that end at the same time see each other."""
    row = run(
        connection,
        "SELECT id::text AS id, workflow_id::text AS workflow_id, version, status, input, priority, "
        "trigger_id::text AS trigger_id FROM executions WHERE id = %(id)s::uuid FOR NO KEY UPDATE",
        {"id": execution_id},
    ).first()
    if row is None:
        return None
    return Locked(
        row.id, row.workflow_id, row.version, ExecutionStatus(row.status), row.input, row.priority, row.trigger_id
    )


def finish(connection: Connection, execution_id: str, output: Any) -> bool:
    return _end(connection, FINISH, execution_id, "output = %(output)s::jsonb", output=to_json(output))


def finish_with_outputs_of(connection: Connection, execution_id: str, paths: Sequence[str]) -> bool:
    """Finish with `{path: output}` of those of `paths` that completed."""
    gathered = (
        "output = (SELECT coalesce(jsonb_object_agg(path, output), '{}') FROM step_executions "
        "WHERE execution_id = %(id)s::uuid AND path = ANY(%(paths)s) "
        f"AND status = '{StepStatus.COMPLETED}')"
    )
    return _end(connection, FINISH, execution_id, gathered, paths=list(paths))


def fail(connection: Connection, execution_id: str, message: str) -> bool:
    return _end(connection, FAIL_EXECUTION, execution_id, "error_message = %(message)s", message=message)


def cancel(connection: Connection, execution_id: str, message: str) -> bool:
    return _end(connection, CANCEL_EXECUTION, execution_id, "error_message = %(message)s", message=message)


def _end(connection: Connection, transition: Transition, execution_id: str, also: str, **params: Any) -> bool:
    sql = (
        f"UPDATE executions SET {transition.assignment}, {also}, finished_at = clock_timestamp(), "
        "started_at = coalesce(started_at, clock_timestamp()) "
        f"WHERE id = %(id)s::uuid AND {transition.guard}"
    )
    return run(connection, sql, {"id": execution_id, **params}).rowcount == 1


# --- what reconcile finds ------------------------------------------------------------------------------------


def overdue(connection: Connection, limit: int) -> list[str]:
    """Running executions whose deadline is past."""
    rows = run(
        connection,
        f"SELECT id::text FROM executions WHERE status = '{ExecutionStatus.RUNNING}' "
        "AND deadline < clock_timestamp() LIMIT %(limit)s",
        {"limit": limit},
    )
    return [id for (id,) in rows]


def stalled(connection: Connection, limit: int) -> list[str]:
    """Live executions of which nothing is queued, running or waiting: whoever was to advance them died."""
    rows = run(
        connection,
        f"""
        SELECT e.id::text FROM executions e
        WHERE e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
          AND NOT EXISTS (SELECT FROM step_executions s WHERE s.execution_id = e.id
                          AND s.status IN ('queued', 'running', 'waiting'))
        LIMIT %(limit)s
        """,
        {"limit": limit},
    )
    return [id for (id,) in rows]
