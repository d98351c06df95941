"""Records: what a worker writes of a step that it holds, and in the same statement of what follows from that."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import (
    CLAIM,
    COMPLETE,
    DECLINE,
    FAIL,
    FINISH,
    FOLLOW,
    QUEUE,
    REST,
    STEP_TERMINAL,
    ExecutionStatus,
    StepStatus,
    numbered,
    sql_words,
)
from orchestrator.store.admission import ASKED, Freed
from orchestrator.store.claims import CLAIMED, CLAIMED_ROW, FEW, HELD, TAKE, UNRUNG, Claim, claim_of
from orchestrator.store.executions import Locked, locked_row
from orchestrator.store.rates import AWAITS_RATE
from orchestrator.store.routines import Routine
from orchestrator.store.session import EXECUTIONS_FIRST, REFUSE, Call, Store, new_id, run, to_json
from orchestrator.store.steps import LIVE


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished attempt writes."""

    input: Any = None
    output: Any = None
    error_kind: str | None = None
    error_message: str | None = None
    variables: Any = None
    besides: tuple[Call, ...] = ()
    """What is done before that, in the same transaction; Refused, and nothing is, if one of these refuses, or if the
    claim is held no longer."""
    signals: tuple[str, ...] = ()
    """The ids of those that the step has taken; Refused, and nothing is written, if somebody else has one of them."""


EMPTY = Result()

# What one attempt left behind is written over by the next.
_LEAVE = """
    input = %(input)s::jsonb, output = %(output)s::jsonb, error_kind = %(error_kind)s,
    error_message = %(error_message)s, variables = %(variables)s::jsonb, claim_token = NULL
"""
_RECORD = f"{_LEAVE}, deadline = NULL"

# After the statement that records the step; FOUND says whether that counted. What is taken with a record is in the
# step's output from then on, and nobody comes back for it: it goes, which costs less than writing it again.
_SETTLE = f"""
        IF NOT FOUND THEN
            IF %(has_besides)s THEN
                {REFUSE};
            END IF;
        ELSIF %(signals)s IS NOT NULL THEN
            FOREACH taken IN ARRAY %(signals)s LOOP
                DELETE FROM signals WHERE signals.id = taken AND signals.taken_by IS NULL;
                IF NOT FOUND THEN
                    {REFUSE};
                END IF;
            END LOOP;
        END IF;
"""

# It holds the one row when it comes to the other, and must not wait for that: whoever cancels all of an execution takes
# them in an order of their own.
_COMPLETE_AND_FOLLOW = f"""
WITH recorded AS (
    UPDATE step_executions SET {COMPLETE.assignment}, {_RECORD}, finished_at = clock_timestamp()
    WHERE {HELD} AND {COMPLETE.guard} RETURNING id
), claimed AS (
    UPDATE step_executions s SET {FOLLOW.assignment}, {TAKE}
    FROM executions e
    WHERE s.id = (SELECT q.id FROM step_executions q WHERE q.execution_id = %(execution)s::uuid AND q.path = %(path)s
                  AND q.{FOLLOW.guard} FOR UPDATE SKIP LOCKED)
      AND s.{FOLLOW.guard}
      AND e.id = %(execution)s::uuid AND e.status = '{ExecutionStatus.RUNNING}' AND EXISTS (SELECT FROM recorded)
    RETURNING {CLAIMED_ROW}
)
SELECT claimed.* FROM recorded LEFT JOIN claimed ON true
"""
_WRITTEN = {
    "id": "uuid",
    "held_token": "uuid",
    "input": "jsonb",
    "output": "jsonb",
    "error_kind": "text",
    "error_message": "text",
    "variables": "jsonb",
    "signals": "uuid[]",
    "has_besides": "bool",
}
_COMPLETE_AND_FOLLOW_ROUTINE = Routine(
    "complete_and_follow",
    f"""
    DECLARE
        taken uuid;
    BEGIN
        {EXECUTIONS_FIRST};
        RETURN QUERY {_COMPLETE_AND_FOLLOW};
        {_SETTLE}
    END
    """,
    _WRITTEN | {"execution": "uuid", "path": "text", "worker": "uuid", "token": "uuid"},
    CLAIMED,
)


def complete_and_follow(
    store: Store, execution_id: str, held: Claim, result: Result, path: str, worker_id: str
) -> tuple[bool, Claim | None]:
    """Record `held` as completed and take on `path`, in one statement: whether the record counted, and the
    new claim unless it was not to be had (the execution is paused or ended, or somebody has the step).

    Only for a `path` that is free once `held` is done; see Graph.next_in_run.
    """
    token = new_id()
    params = _written(held, result) | {
        "execution": execution_id,
        "path": path,
        "worker": worker_id,
        "token": token,
    }
    rows = store.call(_COMPLETE_AND_FOLLOW_ROUTINE, params, result.besides)
    return bool(rows), claim_of(rows[0], token) if rows and rows[0][0] else None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What decides what a step's end leads to: its dependents, and as pairs (dependent, step) all else that they
    wait for."""

    children: tuple[str, ...]
    waits: tuple[tuple[str, str], ...]


_COMPLETE_AND_GO_ON_ROUTINE = Routine(
    "complete_and_go_on",
    f"""
    DECLARE
        execution_status text;
        ready text[];
        is_waited_for bool;
        is_plain bool;
        taken uuid;
    BEGIN
        settled := false;
        SELECT e.status INTO execution_status FROM executions e WHERE e.id = %(execution)s FOR NO KEY UPDATE;
        UPDATE step_executions SET {COMPLETE.assignment}, {_RECORD}, finished_at = clock_timestamp()
        WHERE {HELD} AND {COMPLETE.guard};
        recorded := FOUND;
        {_SETTLE}
        IF NOT recorded OR execution_status <> '{ExecutionStatus.RUNNING}' THEN
            RETURN NEXT;
            RETURN;
        END IF;

        WITH waits AS (
            SELECT u.child, s.status FROM unnest(%(waiting)s, %(needs)s) AS u(child, path)
            JOIN step_executions s ON s.execution_id = %(execution)s AND s.path = u.path
        ), children AS (
            SELECT s.path, EXISTS (SELECT FROM waits w WHERE w.child = s.path
                                   AND w.status <> '{StepStatus.COMPLETED}') AS waits
            FROM step_executions s
            WHERE s.execution_id = %(execution)s AND s.path = ANY(%(children)s) AND s.{QUEUE.guard}
        )
        SELECT array_agg(c.path) FILTER (WHERE NOT c.waits), coalesce(bool_or(c.waits), false),
               NOT EXISTS (SELECT FROM waits w WHERE w.status IN ({sql_words(STEP_TERMINAL - {StepStatus.COMPLETED})}))
        INTO ready, is_waited_for, is_plain FROM children c;
        IF NOT is_plain OR (ready IS NULL AND NOT is_waited_for AND NOT EXISTS (
            SELECT FROM step_executions l WHERE l.execution_id = %(execution)s AND l.{LIVE})) THEN
            RETURN NEXT;
            RETURN;
        END IF;

        settled := true;
        UPDATE step_executions SET {QUEUE.assignment}, rung_at = clock_timestamp()
        WHERE execution_id = %(execution)s AND path = ANY(ready) AND {QUEUE.guard};
        UPDATE step_executions s SET {CLAIM.assignment}, {TAKE}, {UNRUNG}
        WHERE s.{CLAIM.guard} AND s.id = (
            SELECT q.id FROM step_executions q
            WHERE q.execution_id = %(execution)s AND q.{CLAIM.guard} AND q.queue = ANY(%(queues)s)
              AND (q.path = ANY(ready) OR {FEW} >= (
                  SELECT count(*) FROM (SELECT FROM step_executions f WHERE f.execution_id = %(execution)s
                                        AND f.{CLAIM.guard} LIMIT {FEW} + 1) AS few))
            ORDER BY q.height DESC LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING {CLAIMED_ROW} INTO id, path, attempt, losses, state, iteration, time_left, forgiven;
        queued := array_remove(ready, path);
        RETURN NEXT;
    END
    """,
    _WRITTEN
    | {
        "execution": "uuid",
        "children": "text[]",
        "waiting": "text[]",
        "needs": "text[]",
        "queues": "text[]",
        "worker": "uuid",
        "token": "uuid",
    },
    {"recorded": "bool", "settled": "bool"} | CLAIMED | {"queued": "text[]"},
)


@dataclass(frozen=True, slots=True)
class GoneOn:
    """What `complete_and_go_on` did. Not `settled`: the step was recorded (if `recorded`), and that is all.
    `queued` are the steps that have become ready, without the one that was claimed."""

    recorded: bool
    settled: bool
    claim: Claim | None
    queued: tuple[str, ...]


def complete_and_go_on(
    store: Store,
    execution_id: str,
    held: Claim,
    result: Result,
    around: Surroundings,
    *,
    queues: Collection[str],
    worker_id: str,
) -> GoneOn:
    """Record `held` as completed, queue what that makes ready, and take on the highest step of the execution
    that is queued on one of `queues`: all in one round trip and one commit.

    It decides only the plain case, in which whatever the dependents wait for has completed or has not ended, and
    the execution goes on.
    """
    token = new_id()
    params = _written(held, result) | {
        "execution": execution_id,
        "children": list(around.children),
        "waiting": [child for child, _ in around.waits],
        "needs": [needed for _, needed in around.waits],
        "queues": list(queues),
        "worker": worker_id,
        "token": token,
    }
    ((recorded, settled, *claimed, queued),) = store.call(_COMPLETE_AND_GO_ON_ROUTINE, params, result.besides)
    claim = claim_of(claimed, token) if claimed[0] else None
    return GoneOn(recorded, settled, claim, tuple(queued or ()))


_COMPLETE_AND_FINISH = f"""
WITH recorded AS (
    UPDATE step_executions SET {COMPLETE.assignment}, {_RECORD}, finished_at = clock_timestamp()
    WHERE {HELD} AND {COMPLETE.guard} RETURNING id
), finished AS (
    UPDATE executions SET {FINISH.assignment}, finished_at = clock_timestamp(),
        output = jsonb_build_object(%(path)s, %(output)s::jsonb)
    WHERE id = %(execution)s::uuid AND {FINISH.guard} AND EXISTS (SELECT FROM recorded) RETURNING id
)
SELECT EXISTS (SELECT FROM finished) AS finished, {ASKED} AS asked,
       (SELECT limit_keys FROM executions WHERE id = %(execution)s::uuid) AS limit_keys
FROM recorded
"""
_COMPLETE_AND_FINISH_ROUTINE = Routine(
    "complete_and_finish",
    f"""
    DECLARE
        taken uuid;
    BEGIN
        PERFORM FROM executions WHERE id = %(execution)s FOR NO KEY UPDATE;
        RETURN QUERY {_COMPLETE_AND_FINISH};
        {_SETTLE}
    END
    """,
    _WRITTEN | {"execution": "uuid", "path": "text"},
    {"finished": "bool", "asked": "bool", "limit_keys": "text[]"},
)


def complete_and_finish(
    store: Store, execution_id: str, held: Claim, result: Result
) -> tuple[bool, bool, Freed | None]:
    """Record `held` as completed and with it, in one statement, its execution, whose output it becomes: whether
    the record counted, whether it ended the execution (not one that is paused), and who may wait for that.

    Only for the last step of an execution that is a single run: nobody else can be ending a step of it.
    """
    params = _written(held, result) | {"execution": execution_id, "path": held.path}
    rows = store.call(_COMPLETE_AND_FINISH_ROUTINE, params, result.besides)
    if not rows:
        return False, False, None
    ((finished, asked, keys),) = rows
    return True, finished, Freed(tuple(keys or ())) if finished and (asked or keys) else None


_END = f"""
WITH recorded AS (
    UPDATE step_executions SET status = %(status)s{numbered()}, {_RECORD}, finished_at = clock_timestamp()
    WHERE {HELD} AND {COMPLETE.guard} RETURNING id
)
SELECT e.workflow_id::text, e.version, e.status, e.input, e.priority,
       e.trigger_id::text, e.outcome, e.error_message, e.parent_step_id::text,
       (SELECT jsonb_object_agg(path, status) FROM step_executions
        WHERE execution_id = e.id AND path = ANY(%(outlook)s))
FROM executions e WHERE e.id = %(execution)s AND (%(id)s IS NULL OR EXISTS (SELECT FROM recorded))
"""
assert COMPLETE.sources == FAIL.sources == DECLINE.sources
_END_ROUTINE = Routine(
    "end_step",
    f"""
    DECLARE
        taken uuid;
    BEGIN
        RETURN QUERY {_END};
        {_SETTLE}
    END
    """,
    _WRITTEN | {"status": "text", "execution": "uuid", "outlook": "text[]"},
    {
        "workflow_id": "text",
        "version": "int",
        "status": "text",
        "input": "jsonb",
        "priority": "smallint",
        "trigger_id": "text",
        "outcome": "text",
        "error_message": "text",
        "parent_step_id": "text",
        "states": "jsonb",
    },
)
# A statement of its own before the one that reads: what it waited for must be visible to that one.
_LOCK = "SELECT FROM executions WHERE id = %(execution)s::uuid FOR NO KEY UPDATE;"


@contextmanager
def ending(
    store: Store,
    execution_id: str,
    held: Claim | None,
    result: Result,
    status: StepStatus,
    outlook: Collection[str],
) -> Iterator[tuple[Connection, Locked, dict[str, StepStatus]] | None]:
    """A transaction that holds the execution's row, in which `held` has been recorded as `status` (completed,
    failed or skipped) and the states of `outlook` were read. None if the claim was no longer held; a `held` of None
    has been recorded before.
    """
    written = _written(held, result) if held is not None else dict.fromkeys(_WRITTEN)
    params = written | {"status": status, "execution": execution_id, "outlook": list(outlook)}
    with store.transaction_from(_LOCK + _END_ROUTINE.call, params, result.besides) as (connection, row):
        if row is None:
            yield None
            return
        locked = locked_row(row, execution_id)
        yield connection, locked, {path: StepStatus(state) for path, state in (row.states or {}).items()}


def rest(
    connection: Connection,
    held: Claim,
    result: Result,
    *,
    delay: float | None,
    resumes: bool,
    state: Any = None,
    awaits: str | None = None,
) -> bool:
    """Let the step wait `delay` seconds: before its next attempt, or (`resumes`) before going on with this one,
    which finds `state`. It goes on earlier when what it `awaits` comes; a `delay` of None has no end by itself. The
    time of an attempt that is to go on runs on meanwhile, unless its rate limit keeps it from beginning."""
    sql = (
        f"UPDATE step_executions SET {REST.assignment}, {_LEAVE}, resumes = %(resumes)s, state = %(state)s::jsonb, "
        f"deadline = CASE WHEN %(resumes)s AND %(awaits)s IS DISTINCT FROM '{AWAITS_RATE}' THEN deadline END, "
        "awaits = %(awaits)s, "
        "next_attempt_at = clock_timestamp() + %(delay)s * interval '1 second' "
        f"WHERE {HELD} AND {REST.guard}"
    )
    params = _written(held, result) | {"delay": delay, "resumes": resumes, "state": _json(state), "awaits": awaits}
    return run(connection, sql, params).rowcount == 1


def _written(held: Claim, result: Result) -> dict[str, Any]:
    return {
        "id": held.id,
        "held_token": held.token,
        "input": _json(result.input),
        "output": _json(result.output),
        "error_kind": result.error_kind,
        "error_message": result.error_message,
        "variables": _json(result.variables),
        # Written out it is one word for PostgreSQL; psycopg2 would make an expression of it.
        "signals": f"{{{','.join(result.signals)}}}" if result.signals else None,
        "has_besides": bool(result.besides),
    }


def _json(value: Any) -> str | None:
    return None if value is None else to_json(value)
