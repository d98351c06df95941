"""What a user's calls change in the rows of an execution."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.definition.scopes import FINALLY, ON_FAILURE
from orchestrator.lifecycle import (
    EXECUTION_LIVE,
    PAUSE_EXECUTION,
    REQUEUE_EXECUTION,
    RESET,
    RESUME_EXECUTION,
    RETRY_EXECUTION,
    STEP_LIVE,
    STEP_TERMINAL,
    StepStatus,
    numbered,
    sql_words,
)
from orchestrator.store import admission
from orchestrator.store.everywhere import first_anywhere
from orchestrator.store.session import run
from orchestrator.store.steps import UPSTREAM

PARENT, WORKFLOW = "parent", "workflow"
"""Whose pause an execution shares that has none of its own (executions.paused_with): it goes on together with them."""


def pause(connection: Connection, execution_id: str) -> bool:
    return bool(_pause(connection, "id = %(id)s::uuid", None, id=execution_id))


def pause_with_parent(connection: Connection, execution_ids: Collection[str]) -> None:
    _pause(connection, "id = ANY(%(ids)s::uuid[])", PARENT, ids=list(execution_ids))


def pause_waiting(connection: Connection, workflow_id: str) -> None:
    """Those of a workflow that wait for a place: they have been accepted, and not been started."""
    waiting = (
        f"SELECT e.id FROM executions e WHERE e.workflow_id = %(id)s::uuid AND {admission.WAITS} "
        "ORDER BY e.id FOR NO KEY UPDATE"
    )
    _pause(connection, f"id IN ({waiting})", WORKFLOW, id=workflow_id)


def _pause(connection: Connection, which: str, paused_with: str | None, **params: Any) -> int:
    return run(
        connection,
        f"UPDATE executions SET {PAUSE_EXECUTION.assignment}, paused_at = clock_timestamp(), "
        f"paused_with = %(paused_with)s WHERE {which} AND {PAUSE_EXECUTION.guard}",
        {"paused_with": paused_with, **params},
    ).rowcount


def keep_paused(connection: Connection, execution_id: str) -> None:
    """Whatever becomes of the pause that it has shared so far."""
    run(connection, "UPDATE executions SET paused_with = NULL WHERE id = %(id)s::uuid", {"id": execution_id})


def lock_children(connection: Connection, execution_ids: Collection[str], *, paused: bool = False) -> list[str]:
    """Hold the live executions that steps of these wait for, or those of them that are `paused` with these. Whoever
    holds several executions takes a parent before its children."""
    rows = run(
        connection,
        "SELECT e.id::text FROM executions e JOIN step_executions s ON s.id = e.parent_step_id "
        f"WHERE s.execution_id = ANY(%(ids)s::uuid[]) AND e.status IN ({sql_words(EXECUTION_LIVE)}) "
        + (f"AND e.{RESUME_EXECUTION.guard} AND e.paused_with = '{PARENT}' " if paused else "")
        + "ORDER BY e.id FOR NO KEY UPDATE OF e",
        {"ids": list(execution_ids)},
    )
    return [id for (id,) in rows]


def resume(connection: Connection, execution_id: str) -> bool:
    """To running if a step of it had begun, else to queued; its deadline moves by the length of the pause, and so do
    those of the steps that rest."""
    sql = (
        "UPDATE step_executions s SET deadline = s.deadline + (clock_timestamp() - e.paused_at) FROM executions e "
        f"WHERE e.id = %(id)s::uuid AND e.{RESUME_EXECUTION.guard} AND s.execution_id = e.id "
        f"AND s.status = '{StepStatus.WAITING}' AND s.deadline IS NOT NULL; "
        "UPDATE executions SET status = CASE WHEN started_at IS NULL THEN "
        f"'{REQUEUE_EXECUTION.target}' ELSE '{RESUME_EXECUTION.target}' END{numbered(RESUME_EXECUTION.target)}, "
        "deadline = deadline + (clock_timestamp() - paused_at), paused_at = NULL, paused_with = NULL "
        f"WHERE id = %(id)s::uuid AND {RESUME_EXECUTION.guard}"
    )
    return run(connection, sql, {"id": execution_id}).rowcount == 1


def resume_waiting(connection: Connection, workflow_id: str) -> None:
    """Those that were paused with their workflow, before any step of them began: they wait for a place again."""
    run(
        connection,
        f"UPDATE executions SET {REQUEUE_EXECUTION.assignment}, paused_at = NULL, paused_with = NULL "
        f"WHERE id IN (SELECT e.id FROM executions e WHERE e.workflow_id = %(id)s::uuid "
        f"AND e.{REQUEUE_EXECUTION.guard} AND e.paused_with = '{WORKFLOW}' ORDER BY e.id FOR NO KEY UPDATE) "
        f"AND {REQUEUE_EXECUTION.guard}",
        {"id": workflow_id},
    )


def is_tried_again(connection: Connection, execution_id: str) -> bool:
    """Whether a retry of it is in force: it has not ended since."""
    row = first_anywhere(
        connection,
        f"SELECT retried_at IS NOT NULL AND status IN ({sql_words(EXECUTION_LIVE)}) FROM executions "
        "WHERE id = %(id)s::uuid",
        {"id": execution_id},
    )
    return row is not None and bool(row[0])


def is_step_tried_again(connection: Connection, step_execution_id: str) -> bool:
    """The same of a step, by itself or with all of its execution."""
    row = first_anywhere(
        connection,
        f"SELECT forgiven IS NOT NULL AND status IN ({sql_words(STEP_LIVE)}) FROM step_executions "
        "WHERE id = %(id)s::uuid",
        {"id": step_execution_id},
    )
    return row is not None and bool(row[0])


def revive(connection: Connection, execution_id: str, *, whole: bool) -> tuple[str, ...]:
    """Let an execution begin anew, once it is admitted; the keys of its own limits. One that a step waits for needs no
    place: it waits for that step, which may have to wait itself (admission.meet_child). `whole` if all that failed of
    it is tried again."""
    row = run(
        connection,
        f"UPDATE executions SET {RETRY_EXECUTION.assignment}, finished_at = NULL, outcome = NULL, output = NULL, "
        "error_message = NULL, started_at = NULL, deadline = NULL, paused_at = NULL, paused_with = NULL, "
        "retried_at = CASE WHEN %(whole)s THEN clock_timestamp() END, "
        "admitted_at = NULL, held = parent_step_id IS NOT NULL, paced = false, "
        f"turn = {admission.next_turn('executions.workflow_id', 'executions.priority')} "
        f"WHERE id = %(id)s::uuid AND {RETRY_EXECUTION.guard} RETURNING limit_keys",
        {"id": execution_id, "whole": whole},
    ).one()
    return tuple(row.limit_keys or ())


@dataclass(frozen=True, slots=True)
class ParentStep:
    execution_id: str
    has_ended: bool


def parent_step(connection: Connection, step_execution_id: str) -> ParentStep | None:
    """The step that waits for an execution, or did."""
    row = run(
        connection,
        f"SELECT execution_id::text AS execution_id, status IN ({sql_words(STEP_TERMINAL)}) AS has_ended "
        "FROM step_executions WHERE id = %(id)s::uuid",
        {"id": step_execution_id},
    ).first()
    return None if row is None else ParentStep(row.execution_id, row.has_ended)


def children_left(connection: Connection, execution_id: str, limit: int) -> list[str]:
    """Live executions that steps of this one started which have ended."""
    rows = run(
        connection,
        "SELECT e.id::text FROM executions e JOIN step_executions s ON s.id = e.parent_step_id "
        f"WHERE s.execution_id = %(id)s::uuid AND s.status IN ({sql_words(STEP_TERMINAL)}) "
        "AND e.finished_at IS NULL AND e.outcome IS NULL ORDER BY e.id LIMIT %(limit)s",
        {"id": execution_id, "limit": limit},
    )
    return [id for (id,) in rows]


def children_that_failed(connection: Connection, step_execution_ids: Collection[str]) -> list[str]:
    """The executions that these steps waited for and would find again."""
    rows = run(
        connection,
        "SELECT id::text FROM executions WHERE parent_step_id = ANY(%(ids)s::uuid[]) "
        f"AND {RETRY_EXECUTION.guard} AND idempotency_key IS NOT NULL ORDER BY id",
        {"ids": list(step_execution_ids)},
    )
    return [id for (id,) in rows]


def reset_inside(connection: Connection, execution_id: str, container: str) -> None:
    """Let begin anew what was cancelled in the bodies of a step together with an attempt of it."""
    run(
        connection,
        f"UPDATE step_executions SET {_ANEW} WHERE execution_id = %(id)s::uuid AND status = '{StepStatus.CANCELLED}' "
        "AND (starts_with(path, %(container)s || '.') OR starts_with(path, %(container)s || '['))",
        {"id": execution_id, "container": container},
    )


def let_go(connection: Connection, step_execution_id: str) -> None:
    """Give up the executions that a step waits for, and let it start others: reconcile cancels them."""
    run(
        connection,
        "UPDATE executions SET idempotency_key = NULL WHERE parent_step_id = %(id)s::uuid "
        f"AND status IN ({sql_words(EXECUTION_LIVE)})",
        {"id": step_execution_id},
    )


def forget(connection: Connection, execution_id: str) -> None:
    """Let the step that started this execution start another."""
    run(connection, "UPDATE executions SET idempotency_key = NULL WHERE id = %(id)s::uuid", {"id": execution_id})


_CLOSED = f"""
    WITH RECURSIVE bodies AS (
        SELECT DISTINCT container AS path FROM step_executions
        WHERE execution_id = %(id)s::uuid AND container IS NOT NULL
    ), closed AS (
        SELECT path FROM step_executions JOIN bodies USING (path)
        WHERE execution_id = %(id)s::uuid AND status = '{StepStatus.COMPLETED}'
        UNION
        SELECT within.path FROM closed JOIN step_executions within ON within.container = closed.path
        JOIN bodies ON bodies.path = within.path WHERE within.execution_id = %(id)s::uuid
    )
    SELECT path FROM closed
"""
"""The steps with bodies that completed, and those within: a loop that goes on past the failures of its items has made
its result of them."""


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


# Attempts are counted on, so that log lines and what is left behind tell them apart; the retry policy begins anew.
_ANEW = (
    f"{RESET.assignment}, forgiven = attempt, losses = 0, resumes = false, state = NULL, output = NULL, "
    "error_kind = NULL, error_message = NULL, started_at = NULL, finished_at = NULL, rung_at = NULL"
)


def reset(
    connection: Connection,
    execution_id: str,
    *,
    paths: Collection[str] | None = None,
    tolerated: Collection[str] = (),
) -> list[str]:
    """Let steps begin anew that failed, were cancelled, or were kept from running by a failure: all of them, or those
    of `paths`, and what was cancelled in the bodies of those; not those with an id in `tolerated`, whose failure
    counts as an end, nor what stands in the bodies of a step that completed. The ids of their rows."""
    rows = run(
        connection,
        f"UPDATE step_executions SET {_ANEW} "
        f"WHERE execution_id = %(id)s::uuid AND {RESET.guard} "
        f"AND (status <> '{StepStatus.SKIPPED}' OR error_kind = %(upstream)s) "
        f"AND (status <> '{StepStatus.FAILED}' OR step_id <> ALL(%(tolerated)s)) "
        f"AND (container IS NULL OR container NOT IN ({_CLOSED})) "
        "AND (%(paths)s::text[] IS NULL OR path = ANY(%(paths)s::text[]) "
        f"OR (status = '{StepStatus.CANCELLED}' AND EXISTS (SELECT FROM step_executions c "
        f"WHERE c.execution_id = %(id)s::uuid AND c.path = ANY(%(paths)s::text[]) AND c.{RESET.guard} AND "
        "(starts_with(step_executions.path, c.path || '.') OR starts_with(step_executions.path, c.path || '['))))) "
        "RETURNING id::text",
        {
            "id": execution_id,
            "upstream": UPSTREAM,
            "tolerated": list(tolerated),
            "paths": None if paths is None else list(paths),
        },
    )
    return [id for (id,) in rows]
