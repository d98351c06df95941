"""Step executions: what the engine does to those that nobody holds, and what it reads of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import CANCEL_STEP, FOLLOW, QUEUE, SKIP, STEP_LIVE, StepStatus, sql_words
from orchestrator.store.cancellations import CANCEL_ELSEWHERE
from orchestrator.store.claims import CLAIMED, CLAIMED_ROW, TAKE, Claim, claim_of
from orchestrator.store.everywhere import all_anywhere
from orchestrator.store.routines import Routine
from orchestrator.store.session import new_id, run

LIVE = f"status IN ({sql_words({StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.WAITING})})"
"""The predicate of the index ix_step_executions_live."""

UPSTREAM = "upstream"
"""The error_kind of a skipped step that a failure kept from running: what joins it with other branches is not
to run either, whereas a join after a branch not taken is."""


def queue(connection: Connection, execution_id: str, paths: Iterable[str]) -> None:
    """These have become ready and are about to be rung for."""
    _move(connection, f"{QUEUE.assignment}, rung_at = clock_timestamp()", QUEUE.guard, execution_id, paths)


_QUEUE_AND_FOLLOW = f"""
WITH queued AS (
    UPDATE step_executions SET {QUEUE.assignment}, rung_at = clock_timestamp()
    WHERE execution_id = %(execution)s AND path = ANY(%(paths)s) AND {QUEUE.guard}
), claimed AS (
    UPDATE step_executions s SET {FOLLOW.assignment}, {TAKE}
    WHERE s.execution_id = %(execution)s AND s.path = %(path)s AND s.{FOLLOW.guard}
    RETURNING {CLAIMED_ROW}
)
SELECT * FROM claimed
"""
_QUEUE_AND_FOLLOW_ROUTINE = Routine(
    "queue_and_follow",
    _QUEUE_AND_FOLLOW,
    {"execution": "uuid", "paths": "text[]", "path": "text", "worker": "uuid", "token": "uuid"},
    CLAIMED,
)


def queue_and_follow(
    connection: Connection, execution_id: str, paths: Iterable[str], path: str, worker_id: str
) -> Claim | None:
    """`paths` have become ready and are about to be rung for; so has `path`, which this worker takes on."""
    token = new_id()
    row = run(
        connection,
        _QUEUE_AND_FOLLOW_ROUTINE.call,
        {"execution": execution_id, "paths": list(paths), "path": path, "worker": worker_id, "token": token},
    ).first()
    return claim_of(tuple(row), token) if row else None


def skip(
    connection: Connection,
    execution_id: str,
    reasons: Mapping[str, str],
    blocked: Collection[str] = frozenset(),
) -> None:
    """These are not to run; `reasons` says why of each path. `blocked` are those that have a failure upstream."""
    run(
        connection,
        f"UPDATE step_executions s SET {SKIP.assignment}, finished_at = clock_timestamp(), error_message = u.why, "
        "error_kind = CASE WHEN s.path = ANY(%(blocked)s) THEN %(upstream)s END "
        "FROM unnest(%(paths)s::text[], %(whys)s::text[]) AS u(path, why) "
        f"WHERE s.execution_id = %(execution)s::uuid AND s.path = u.path AND s.{SKIP.guard}",
        {
            "execution": execution_id,
            "paths": list(reasons),
            "whys": list(reasons.values()),
            "blocked": list(blocked),
            "upstream": UPSTREAM,
        },
    )


def blocked(connection: Connection, execution_id: str, paths: Iterable[str]) -> frozenset[str]:
    """Those of the skipped `paths` that have a failure upstream."""
    rows = run(
        connection,
        "SELECT path FROM step_executions WHERE execution_id = %(execution)s::uuid AND path = ANY(%(paths)s) "
        "AND error_kind = %(upstream)s",
        {"execution": execution_id, "paths": list(paths), "upstream": UPSTREAM},
    )
    return frozenset(path for (path,) in rows)


def cancel_all(
    connection: Connection, execution_id: str, inside: str | None = None, *, cancellable: Collection[str] = ()
) -> None:
    """Whatever of this execution (or of the bodies `inside` one of its steps) has not ended is cancelled, and who
    holds a claim can no longer record. What steps of the types `cancellable` have begun elsewhere is to be cancelled
    there."""
    which = "execution_id = %(execution)s::uuid" + (
        "" if inside is None else " AND (starts_with(path, %(inside)s || '.') OR starts_with(path, %(inside)s || '['))"
    )
    # A running step may be inserting those in its body. It shows its claim for that, and holds its row meanwhile: the
    # first statement waits for that, so that the second sees them.
    run(
        connection,
        f"SELECT FROM step_executions WHERE {which} AND status = '{StepStatus.RUNNING}' FOR UPDATE; "
        f"WITH cancelled AS (UPDATE step_executions SET {CANCEL_STEP.assignment}, finished_at = clock_timestamp(), "
        "claim_token = NULL, next_attempt_at = NULL, awaits = NULL, deadline = NULL "
        f"WHERE {which} AND {CANCEL_STEP.guard} RETURNING *) "
        f"{CANCEL_ELSEWHERE} FROM cancelled s WHERE s.state IS NOT NULL AND s.type = ANY(%(cancellable)s)",
        {"execution": execution_id, "inside": inside, "cancellable": list(cancellable)},
    )


def _move(connection: Connection, assignment: str, guard: str, execution_id: str, paths: Iterable[str]) -> None:
    sql = (
        f"UPDATE step_executions SET {assignment} "
        f"WHERE execution_id = %(execution)s::uuid AND path = ANY(%(paths)s) AND {guard}"
    )
    run(connection, sql, {"execution": execution_id, "paths": list(paths)})


# --- what the engine reads -----------------------------------------------------------------------------------


def states(connection: Connection, execution_id: str, paths: Iterable[str] | None = None) -> dict[str, StepStatus]:
    """The status of each of `paths`, or of every step of the execution."""
    wanted = None if paths is None else list(paths)
    rows = run(
        connection,
        "SELECT path, status FROM step_executions WHERE execution_id = %(execution)s::uuid"
        + ("" if wanted is None else " AND path = ANY(%(paths)s)"),
        {"execution": execution_id, "paths": wanted},
    )
    return {row.path: StepStatus(row.status) for row in rows}


def outputs(connection: Connection, execution_id: str, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What templates see as `steps.<id>` of each of `paths`, and under `variables` what it mapped its output to."""
    wanted = list(paths)
    if not wanted:
        return {}
    rows = all_anywhere(
        connection,
        "SELECT path, status, output, error_kind, error_message, variables FROM step_executions "
        "WHERE execution_id = %(execution)s::uuid AND path = ANY(%(paths)s)",
        {"execution": execution_id, "paths": wanted},
    )
    return {
        row.path: as_seen_by_templates(row.status, row.output, row.error_kind, row.error_message, row.variables)
        for row in rows
    }


def as_seen_by_templates(
    status: str,
    output: Any,
    error_kind: str | None = None,
    error_message: str | None = None,
    variables: Any = None,
) -> dict[str, Any]:
    seen: dict[str, Any] = {"status": status, "output": {} if output is None else output, "variables": variables or {}}
    if error_kind is not None:
        seen["error"] = {"kind": error_kind, "message": error_message}
    return seen


_UNFINISHED_ROUTINE = Routine(
    "is_unfinished",
    # What is live is looked for first: its index is small, and almost always the answer is there.
    f"""
    SELECT CASE
        WHEN EXISTS (SELECT FROM step_executions WHERE execution_id = %(execution)s AND {LIVE}) THEN true
        ELSE EXISTS (SELECT FROM step_executions WHERE execution_id = %(execution)s
                     AND status IN ({sql_words(STEP_LIVE)}))
    END
    """,
    {"execution": "uuid"},
    {"unfinished": "bool"},
)


def is_unfinished(connection: Connection, execution_id: str) -> bool:
    """Whether any step of the execution has not ended."""
    unfinished: bool = run(connection, _UNFINISHED_ROUTINE.call, {"execution": execution_id}).scalar_one()
    return unfinished


def not_done(connection: Connection, execution_id: str, scope: str) -> list[tuple[str, StepStatus, str]]:
    """(path, status, message) of the steps of a scope that failed or were cancelled, in the order in which that was."""
    rows = run(
        connection,
        "SELECT path, status, coalesce(error_message, '') AS message FROM step_executions "
        "WHERE execution_id = %(execution)s::uuid AND scope = %(scope)s "
        f"AND status IN ('{StepStatus.FAILED}', '{StepStatus.CANCELLED}') ORDER BY finished_at, path",
        {"execution": execution_id, "scope": scope},
    )
    return [(row.path, StepStatus(row.status), row.message) for row in rows]
