"""What a user's calls change in the rows of an execution."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.definition.scopes import FINALLY, ON_FAILURE
from orchestrator.lifecycle import (
    PAUSE_EXECUTION,
    REQUEUE_EXECUTION,
    RESET,
    RESUME_EXECUTION,
    RETRY_EXECUTION,
    StepStatus,
)
from orchestrator.store.session import run
from orchestrator.store.steps import UPSTREAM


def pause(connection: Connection, execution_id: str) -> bool:
    sql = (
        f"UPDATE executions SET {PAUSE_EXECUTION.assignment}, paused_at = clock_timestamp() "
        f"WHERE id = %(id)s::uuid AND {PAUSE_EXECUTION.guard}"
    )
    return run(connection, sql, {"id": execution_id}).rowcount == 1


def resume(connection: Connection, execution_id: str) -> bool:
    """To running if a step of it had begun, else to queued; its deadline moves by the length of the pause."""
    sql = (
        "UPDATE executions SET status = CASE WHEN started_at IS NULL THEN "
        f"'{REQUEUE_EXECUTION.target}' ELSE '{RESUME_EXECUTION.target}' END, "
        "deadline = deadline + (clock_timestamp() - paused_at), paused_at = NULL "
        f"WHERE id = %(id)s::uuid AND {RESUME_EXECUTION.guard}"
    )
    return run(connection, sql, {"id": execution_id}).rowcount == 1


def revive(connection: Connection, execution_id: str) -> None:
    run(
        connection,
        f"UPDATE executions SET {RETRY_EXECUTION.assignment}, finished_at = NULL, outcome = NULL, output = NULL, "
        "error_message = NULL, deadline = clock_timestamp() + timeout * interval '1 second' "
        f"WHERE id = %(id)s::uuid AND {RETRY_EXECUTION.guard}",
        {"id": execution_id},
    )


def was_undone(connection: Connection, execution_id: str) -> bool:
    undone: bool = run(
        connection,
        "SELECT EXISTS (SELECT FROM step_executions WHERE execution_id = %(id)s::uuid "
        "AND starts_with(path, %(prefix)s))",
        {"id": execution_id, "prefix": f"{COMPENSATE}."},
    ).scalar_one()
    return undone


def forget_endings(connection: Connection, execution_id: str) -> None:
    """Remove the steps that ran at the end."""
    run(
        connection,
        "DELETE FROM step_executions WHERE execution_id = %(id)s::uuid "
        "AND (starts_with(path, %(on_failure)s) OR starts_with(path, %(finally)s))",
        {"id": execution_id, "on_failure": f"{ON_FAILURE}.", "finally": f"{FINALLY}."},
    )


def reset(
    connection: Connection,
    execution_id: str,
    *,
    paths: Collection[str] | None = None,
    tolerated: Collection[str] = (),
) -> None:
    """Let steps begin anew that failed, were cancelled, or were kept from running by a failure: all of them, or those
    of `paths`; not those with an id in `tolerated`, whose failure counts as an end."""
    run(
        connection,
        f"UPDATE step_executions SET {RESET.assignment}, attempt = 0, losses = 0, resumes = false, state = NULL, "
        "output = NULL, error_kind = NULL, error_message = NULL, started_at = NULL, finished_at = NULL, rung_at = NULL "
        f"WHERE execution_id = %(id)s::uuid AND {RESET.guard} "
        f"AND (status <> '{StepStatus.SKIPPED}' OR error_kind = %(upstream)s) "
        f"AND (status <> '{StepStatus.FAILED}' OR step_id <> ALL(%(tolerated)s)) "
        "AND (%(paths)s::text[] IS NULL OR path = ANY(%(paths)s::text[]))",
        {
            "id": execution_id,
            "upstream": UPSTREAM,
            "tolerated": list(tolerated),
            "paths": None if paths is None else list(paths),
        },
    )
