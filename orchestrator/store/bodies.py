"""Steps inside steps: the rows of a body's scopes, and what is left to do in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import STEP_LIVE, WAKE, StepStatus, sql_words
from orchestrator.store.claims import Claim
from orchestrator.store.executions import AWAITS_BODY
from orchestrator.store.routines import Routine
from orchestrator.store.session import EXECUTIONS_FIRST, Call, new_id, run, to_json
from orchestrator.store.step_rows import (
    ENDED_PARAMETERS,
    INSERT_ENDED,
    PLACE,
    PLACED,
    STEP_ROWS,
    EndedRow,
    StepRow,
    ended_parameters,
)
from orchestrator.store.steps import LIVE

_UNFINISHED = f"status IN ({sql_words(STEP_LIVE)})"
"""The predicate of the index ix_step_executions_inner."""


def insert(
    connection: Connection, execution_id: str, rows: Sequence[StepRow], *, held: Claim | None = None
) -> int | None:
    """Insert what is not there yet, in this order; how many that were. None, and nothing, if the claim `held` is held
    no longer."""
    row = run(
        connection,
        f"""
        WITH mine AS (
            SELECT FROM executions WHERE id = %(execution)s::uuid AND (%(held)s::uuid IS NULL OR EXISTS (
                SELECT FROM step_executions WHERE id = %(held)s::uuid AND claim_token = %(token)s::uuid FOR UPDATE))
        ), inserted AS (
            INSERT INTO step_executions (id, execution_id, {PLACE}, rung_at)
            SELECT u.id, %(execution)s::uuid, {PLACED},
                   CASE WHEN u.status = '{StepStatus.QUEUED}' THEN clock_timestamp() END
            FROM mine, {STEP_ROWS}
            ON CONFLICT (execution_id, path) DO NOTHING RETURNING id
        )
        SELECT EXISTS (SELECT FROM mine) AS held, (SELECT count(*) FROM inserted) AS inserted
        """,
        {
            "execution": execution_id,
            "held": held.id if held else None,
            "token": held.token if held else None,
            "ids": [new_id() for _ in rows],
            "rows": to_json(rows),
        },
    ).one()
    return int(row.inserted) if row.held else None


_INSERT_ENDED_ROUTINE = Routine(
    "insert_ended",
    f"""
    DECLARE
    BEGIN
        {EXECUTIONS_FIRST};
        {INSERT_ENDED}
    END
    """,
    ENDED_PARAMETERS,
    {},
)


def insertion_of_ended(execution_id: str, rows: Sequence[EndedRow], worker_id: str) -> Call:
    """Inserts the rows of a body that has ended, together with the record of the step around it. It refuses if one of
    them is there already: an attempt before this one has begun the body in the usual way."""
    return Call(_INSERT_ENDED_ROUTINE, ended_parameters(execution_id, rows, worker_id))


def is_unfinished(connection: Connection, execution_id: str, container: str) -> bool:
    """Whether any step in the bodies of `container` has not ended."""
    unfinished: bool = run(
        connection,
        "SELECT EXISTS (SELECT FROM step_executions WHERE execution_id = %(execution)s::uuid "
        f"AND container = %(container)s AND {_UNFINISHED})",
        {"execution": execution_id, "container": container},
    ).scalar_one()
    return unfinished


_NEXT_SCOPES_ROUTINE = Routine(
    "next_scopes",
    f"""
    WITH few AS (
        SELECT row_number() OVER (ORDER BY id) AS place, scope, status, forgiven FROM step_executions
        WHERE execution_id = %(execution)s AND container = %(container)s AND {_UNFINISHED}
        ORDER BY id LIMIT %(window)s
    ), scopes AS (
        SELECT scope, min(place) AS first, count(*) AS left, bool_or(status <> '{StepStatus.PENDING}') AS at_work
        FROM few GROUP BY scope
    ), live AS MATERIALIZED (
        SELECT scope, container FROM step_executions WHERE execution_id = %(execution)s AND {LIVE}
    )
    SELECT scope, scopes.left = (%(sizes)s ->> CASE WHEN scope LIKE '%]' THEN ''
                                                ELSE substr(scope, length(%(container)s) + 2) END)::int AS untouched
    FROM scopes WHERE NOT at_work ORDER BY first
    LIMIT greatest(0, %(most)s - CASE
        -- What is done again may stand before those at work, as many as there are.
        WHEN EXISTS (SELECT FROM few WHERE forgiven IS NOT NULL)
        THEN (SELECT count(DISTINCT scope) FROM live WHERE container = %(container)s)
        ELSE (SELECT count(*) FROM scopes WHERE at_work)
    END)
    """,
    {"execution": "uuid", "container": "text", "window": "int", "sizes": "jsonb", "most": "int"},
    {"scope": "text", "untouched": "bool"},
)


@dataclass(frozen=True, slots=True)
class NextScope:
    scope: str
    is_untouched: bool


def next_scopes(
    connection: Connection, execution_id: str, container: str, most: int, sizes: Mapping[str, int]
) -> list[NextScope]:
    """The scopes in the bodies of `container` that may begin, or go on, if `most` run at a time. `sizes` are the
    numbers of steps in each of its bodies, by name. They begin in their order: those at work stand first, unless some
    before them were done again. A scope of which some steps have ended and nothing is at work was interrupted, by a
    pause or an end before a retry."""
    rows = run(
        connection,
        _NEXT_SCOPES_ROUTINE.call,
        {
            "execution": execution_id,
            "container": container,
            "window": (most + 2) * max(sizes.values()),
            "sizes": to_json(sizes),
            "most": most,
        },
    )
    return [NextScope(row.scope, row.untouched) for row in rows]


def first_unfinished(connection: Connection, execution_id: str, container: str) -> tuple[str, StepStatus] | None:
    """(path, status) of the step in `container` that comes before all others which have not ended."""
    row = run(
        connection,
        "SELECT path, status FROM step_executions WHERE execution_id = %(execution)s::uuid "
        f"AND container = %(container)s AND {_UNFINISHED} ORDER BY id LIMIT 1",
        {"execution": execution_id, "container": container},
    ).first()
    return None if row is None else (row.path, StepStatus(row.status))


def scope_exists(connection: Connection, execution_id: str, scope: str) -> bool:
    exists: bool = run(
        connection,
        "SELECT EXISTS (SELECT FROM step_executions WHERE execution_id = %(execution)s::uuid AND scope = %(scope)s)",
        {"execution": execution_id, "scope": scope},
    ).scalar_one()
    return exists


@dataclass(frozen=True, slots=True)
class Container:
    """A step that waits for its bodies, and what it said of them when they began."""

    status: StepStatus
    stops_on_failure: bool
    concurrency: int | None
    stopped: bool
    """One failed while others were still being inserted, which are to be cancelled like the rest."""


def container(connection: Connection, execution_id: str, path: str) -> Container:
    row = run(
        connection,
        "SELECT status, state FROM step_executions WHERE execution_id = %(execution)s::uuid AND path = %(path)s",
        {"execution": execution_id, "path": path},
    ).one()
    state = row.state or {}
    return Container(
        StepStatus(row.status),
        bool(state.get("stops_on_failure")),
        state.get("concurrency"),
        bool(state.get("stopped")),
    )


def stop(connection: Connection, execution_id: str, path: str) -> None:
    """Let the worker know that inserts the scopes of `path`, if one is at it; of what it has inserted by now, the rest
    of this transaction sees all."""
    run(
        connection,
        "UPDATE step_executions SET state = state || '{\"stopped\": true}' "
        "WHERE execution_id = %(execution)s::uuid AND path = %(path)s "
        f"AND status = '{StepStatus.RUNNING}' AND jsonb_typeof(state) = 'object'",
        {"execution": execution_id, "path": path},
    )


def note(connection: Connection, held: Claim, state: Any) -> bool:
    """Keep a running step's state; False if the claim is held no longer."""
    sql = (
        "UPDATE step_executions SET state = %(state)s::jsonb WHERE id = %(id)s::uuid AND claim_token = %(token)s::uuid"
    )
    return run(connection, sql, {"id": held.id, "token": held.token, "state": to_json(state)}).rowcount == 1


def wake_if_ended(connection: Connection, execution_id: str, path: str) -> bool:
    """Queue the step that waits for its bodies, if they have ended."""
    sql = (
        f"UPDATE step_executions SET {WAKE.assignment}, awaits = NULL, next_attempt_at = NULL, "
        "rung_at = clock_timestamp() WHERE execution_id = %(execution)s::uuid AND path = %(path)s "
        f"AND awaits = '{AWAITS_BODY}' AND {WAKE.guard} AND NOT EXISTS (SELECT FROM step_executions "
        f"WHERE execution_id = %(execution)s::uuid AND container = %(path)s AND {_UNFINISHED})"
    )
    return run(connection, sql, {"execution": execution_id, "path": path}).rowcount == 1


def waiting_containers(connection: Connection, execution_id: str) -> list[str]:
    rows = run(
        connection,
        "SELECT path FROM step_executions WHERE execution_id = %(execution)s::uuid "
        f"AND status = '{StepStatus.WAITING}' AND awaits = '{AWAITS_BODY}' ORDER BY path",
        {"execution": execution_id},
    )
    return [path for (path,) in rows]


@dataclass(frozen=True, slots=True)
class Inner:
    """A step in a body, as its container's result is made of it."""

    scope: str
    step_id: str
    status: StepStatus
    output: Any
    error_kind: str | None
    error_message: str | None


def ended(
    connection: Connection,
    execution_id: str,
    container: str,
    shown: Collection[str],
    paths: Collection[str] | None = None,
) -> Iterator[Inner]:
    """Every step in the bodies of `container` (or those at `paths`), in the order of its scopes; `shown` are the ids of
    those whose output is wanted."""
    rows = run(
        connection,
        "SELECT scope, step_id, status, error_kind, error_message, "
        "CASE WHEN step_id = ANY(%(shown)s) THEN output END AS output FROM step_executions "
        "WHERE execution_id = %(execution)s::uuid AND container = %(container)s "
        "AND (%(paths)s::text[] IS NULL OR path = ANY(%(paths)s::text[])) ORDER BY id",
        {
            "execution": execution_id,
            "container": container,
            "shown": list(shown),
            "paths": None if paths is None else list(paths),
        },
    )
    for row in rows:
        yield Inner(row.scope, row.step_id, StepStatus(row.status), row.output, row.error_kind, row.error_message)


@dataclass(frozen=True, slots=True)
class Undoable:
    path: str
    iteration: Any


def undoable(connection: Connection, execution_id: str, step_ids: Collection[str]) -> list[Undoable]:
    """The completed steps with one of these ids that nobody undoes, the last to complete first. What was kept from
    another execution is that one's to undo: this one has not done it, as its `attempt` says."""
    rows = run(
        connection,
        f"""
        SELECT s.path, s.iteration FROM step_executions s
        WHERE s.execution_id = %(execution)s::uuid AND s.status = '{StepStatus.COMPLETED}'
          AND s.step_id = ANY(%(steps)s) AND s.attempt > 0
          AND NOT EXISTS (SELECT FROM step_executions u WHERE u.execution_id = s.execution_id
                          AND u.path = 'compensate.' || s.path)
        ORDER BY s.finished_at DESC, s.id DESC
        """,
        {"execution": execution_id, "steps": list(step_ids)},
    )
    return [Undoable(row.path, row.iteration) for row in rows]
