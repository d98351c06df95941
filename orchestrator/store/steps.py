"""Step executions: each named transition as one guarded UPDATE that says whether it won."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import (
    BEGIN,
    CANCEL_STEP,
    CLAIM,
    COMPLETE,
    DECLINE,
    FAIL,
    FINISH,
    FOLLOW,
    QUEUE,
    REST,
    SKIP,
    STEP_LIVE,
    STEP_TERMINAL,
    ExecutionStatus,
    StepStatus,
    numbered,
    sql_words,
)
from orchestrator.store.admission import ASKED, Freed
from orchestrator.store.cancellations import CANCEL_ELSEWHERE
from orchestrator.store.everywhere import all_anywhere
from orchestrator.store.executions import Locked, locked_row
from orchestrator.store.rates import AWAITS_RATE
from orchestrator.store.routines import Routine
from orchestrator.store.session import EXECUTIONS_FIRST, REFUSE, Call, Store, new_id, run, to_json


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that this worker holds: only a write that shows `token` counts."""

    id: str
    path: str
    attempt: int
    losses: int
    token: str
    state: Any = None
    """What this attempt left for itself when it went to rest."""
    loop: Any = None
    """What its templates see as `loop`."""
    time_left: float | None = None
    """Seconds that the attempt has, at the time of the claim; None without a limit."""
    forgiven: int = 0
    """Attempts from before somebody had it tried again."""

    @property
    def counted(self) -> int:
        """Attempts that use up its retry policy, this one included. What a dying worker took with it says nothing about
        the step."""
        return self.attempt - self.forgiven - self.losses


@dataclass(frozen=True, slots=True)
class ExecutionFacts:
    """What performing a step needs to know of its execution."""

    id: str
    workflow_id: str
    version: int
    input: Any
    priority: int
    trigger_id: str | None
    seconds_left: float | None
    """Until the execution's deadline, at the time of the claim."""
    parent_step_id: str | None = None
    depth: int = 0
    begun: bool = False
    """Whether it was this claim that began the execution."""


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

LIVE = f"status IN ({sql_words({StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.WAITING})})"
"""The predicate of the index ix_step_executions_live."""

GRACE = 5.0
"""Seconds past a step's timeout after which reconcile takes the attempt for dead: the worker, which enforces
the timeout itself, is given the first chance to say so. A row's `deadline` is that much later than its time is up."""

TIME_IS_UP = f"deadline <= clock_timestamp() + {GRACE} * interval '1 second'"

UPSTREAM = "upstream"
"""The error_kind of a skipped step that a failure kept from running: what joins it with other branches is not
to run either, whereas a join after a branch not taken is."""

# Taking on a step writes the same columns whichever statement does it. An attempt that goes on has the deadline of its
# beginning; what came in time to a worker that did not still counts, so there is a moment to make something of it.
_TAKE = f"""
    attempt = s.attempt + CASE WHEN s.resumes THEN 0 ELSE 1 END, resumes = false,
    claim_token = %(token)s::uuid, worker_id = %(worker)s::uuid, started_at = clock_timestamp(),
    deadline = CASE WHEN s.deadline IS NULL THEN clock_timestamp() + (s.timeout + {GRACE}) * interval '1 second'
                    ELSE greatest(s.deadline, clock_timestamp() + {GRACE} * interval '1 second') END
"""
# What one attempt left behind is written over by the next.
_LEAVE = """
    input = %(input)s::jsonb, output = %(output)s::jsonb, error_kind = %(error_kind)s,
    error_message = %(error_message)s, variables = %(variables)s::jsonb, claim_token = NULL
"""
_RECORD = f"{_LEAVE}, deadline = NULL"
# What a claim returns, whichever statement makes it.
_CLAIMED = {
    "id": "text",
    "path": "text",
    "attempt": "int",
    "losses": "int",
    "state": "jsonb",
    "iteration": "jsonb",
    "time_left": "float8",
    "forgiven": "int",
}
_CLAIMED_ROW = (
    "s.id::text AS id, s.path, s.attempt, s.losses, s.state, s.iteration, "
    f"extract(epoch FROM s.deadline - clock_timestamp())::float8 - {GRACE} AS time_left, "
    "coalesce(s.forgiven, 0) AS forgiven"
)
HELD = "id = %(id)s::uuid AND claim_token = %(held_token)s::uuid"
# Of several claims. By the tokens alone, for which there is no index, all that is live would be looked at.
ARE_HELD = "s.id = ANY(%(ids)s::uuid[]) AND s.claim_token = ANY(%(tokens)s::uuid[])"


def held_params(claims: Collection[Claim]) -> dict[str, list[str]]:
    """For ARE_HELD."""
    return {"ids": [claim.id for claim in claims], "tokens": [claim.token for claim in claims]}


# What is claimed without a lease has lost its worker, and may do so as often as it is claimed again, until the step is
# taken for what kills its workers.
_HAS_LEASE = "EXISTS (SELECT FROM worker_processes w WHERE w.id = %(worker)s::uuid)"

_CLAIM = f"""
WITH claimed AS (
    UPDATE step_executions s SET {CLAIM.assignment}, {_TAKE}
    FROM executions e
    WHERE s.execution_id = %(execution)s::uuid AND s.path = %(path)s AND s.{CLAIM.guard}
      AND e.id = s.execution_id AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
      AND e.admitted_at IS NOT NULL AND {_HAS_LEASE}
    RETURNING {_CLAIMED_ROW}, e.workflow_id::text AS workflow_id, e.version, e.input,
        e.priority, e.trigger_id::text AS trigger_id,
        coalesce(extract(epoch FROM e.deadline - clock_timestamp())::float8, e.timeout) AS seconds_left,
        e.parent_step_id::text AS parent_step_id, e.depth
), begun AS (
    UPDATE executions SET {BEGIN.assignment}, started_at = clock_timestamp(),
        deadline = clock_timestamp() + timeout * interval '1 second'
    WHERE id = %(execution)s::uuid AND {BEGIN.guard} AND EXISTS (SELECT FROM claimed) RETURNING id
)
SELECT claimed.*, EXISTS (SELECT FROM begun) FROM claimed
"""
# Whoever wants the execution's row and its steps' takes the former first, or two could wait for each other. Only the
# claim that may begin the execution wants both.
_BEGIN_FIRST = f"""
DECLARE
BEGIN
    PERFORM FROM executions WHERE id = %(execution)s AND {BEGIN.guard} FOR NO KEY UPDATE;
    RETURN QUERY {_CLAIM};
END
"""

_CLAIM_ROUTINE = Routine(
    "claim_step",
    _BEGIN_FIRST,
    {"execution": "uuid", "path": "text", "worker": "uuid", "token": "uuid"},
    _CLAIMED
    | {
        "workflow_id": "text",
        "version": "int",
        "input": "jsonb",
        "priority": "smallint",
        "trigger_id": "text",
        "seconds_left": "float8",
        "parent_step_id": "text",
        "depth": "smallint",
        "begun": "bool",
    },
)


def claim(store: Store, execution_id: str, path: str, worker_id: str) -> tuple[Claim, ExecutionFacts] | None:
    """Take on a queued step of an execution that is not paused or ended; None if somebody else has it, or the worker
    has no lease.

    The first claim of an execution begins it.
    """
    token = new_id()
    rows = store.call(_CLAIM_ROUTINE, {"execution": execution_id, "path": path, "worker": worker_id, "token": token})
    if not rows:
        return None
    claimed, facts = rows[0][: len(_CLAIMED)], rows[0][len(_CLAIMED) :]
    return _claim(claimed, token), ExecutionFacts(execution_id, *facts)


def _claim(row: Sequence[Any], token: str) -> Claim:
    id, path, attempt, losses, state, loop, time_left, forgiven = row
    return Claim(id, path, attempt, losses, token, state, loop, time_left, forgiven)


_FEW = 64
"""Queued steps of one execution up to which a worker looks among them for its next; of more, most are on their way
in packs, in which they cost less."""

# A step taken without its message says nothing about how far the messages have come: see ring_again.
_UNRUNG = "rung_at = NULL"
_CLAIM_QUEUED_ROUTINE = Routine(
    "claim_queued",
    f"""
    DECLARE
    BEGIN
        {EXECUTIONS_FIRST};
        RETURN QUERY
            UPDATE step_executions s SET {CLAIM.assignment}, {_TAKE}, {_UNRUNG}
            FROM executions e
            WHERE e.id = %(execution)s AND e.status = '{ExecutionStatus.RUNNING}' AND s.{CLAIM.guard} AND {_HAS_LEASE}
              AND (SELECT count(*) FROM (SELECT FROM step_executions q WHERE q.execution_id = %(execution)s
                                         AND q.{CLAIM.guard} LIMIT {_FEW} + 1) AS few) <= {_FEW}
              AND s.id = (SELECT q.id FROM step_executions q
                          WHERE q.execution_id = %(execution)s AND q.{CLAIM.guard} AND q.queue = ANY(%(queues)s)
                          ORDER BY q.height DESC LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING {_CLAIMED_ROW};
    END
    """,
    {"execution": "uuid", "queues": "text[]", "worker": "uuid", "token": "uuid"},
    _CLAIMED,
)


def claim_queued(store: Store, execution_id: str, queues: Collection[str], worker_id: str) -> Claim | None:
    """Take on the highest step of a running execution that is queued on one of `queues`.

    None too if many are queued, or the worker has no lease.
    """
    token = new_id()
    params = {"execution": execution_id, "queues": list(queues), "worker": worker_id, "token": token}
    rows = store.call(_CLAIM_QUEUED_ROUTINE, params)
    if not rows:
        return None
    return _claim(rows[0], token)


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
    UPDATE step_executions s SET {FOLLOW.assignment}, {_TAKE}
    FROM executions e
    WHERE s.id = (SELECT q.id FROM step_executions q WHERE q.execution_id = %(execution)s::uuid AND q.path = %(path)s
                  AND q.{FOLLOW.guard} FOR UPDATE SKIP LOCKED)
      AND s.{FOLLOW.guard}
      AND e.id = %(execution)s::uuid AND e.status = '{ExecutionStatus.RUNNING}' AND EXISTS (SELECT FROM recorded)
    RETURNING {_CLAIMED_ROW}
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
    _CLAIMED,
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
    return bool(rows), _claim(rows[0], token) if rows and rows[0][0] else None


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
        UPDATE step_executions s SET {CLAIM.assignment}, {_TAKE}, {_UNRUNG}
        WHERE s.{CLAIM.guard} AND s.id = (
            SELECT q.id FROM step_executions q
            WHERE q.execution_id = %(execution)s AND q.{CLAIM.guard} AND q.queue = ANY(%(queues)s)
              AND (q.path = ANY(ready) OR {_FEW} >= (
                  SELECT count(*) FROM (SELECT FROM step_executions f WHERE f.execution_id = %(execution)s
                                        AND f.{CLAIM.guard} LIMIT {_FEW} + 1) AS few))
            ORDER BY q.height DESC LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING {_CLAIMED_ROW} INTO id, path, attempt, losses, state, iteration, time_left, forgiven;
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
    {"recorded": "bool", "settled": "bool"} | _CLAIMED | {"queued": "text[]"},
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
    claim = _claim(claimed, token) if claimed[0] else None
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


def held(connection: Connection, claims: Collection[Claim]) -> set[str]:
    """The tokens of those that still hold."""
    sql = f"SELECT s.claim_token::text FROM step_executions s WHERE {ARE_HELD}"
    return {token for (token,) in run(connection, sql, held_params(claims))}


def queue(connection: Connection, execution_id: str, paths: Iterable[str]) -> None:
    """These have become ready and are about to be rung for."""
    _move(connection, f"{QUEUE.assignment}, rung_at = clock_timestamp()", QUEUE.guard, execution_id, paths)


_QUEUE_AND_FOLLOW = f"""
WITH queued AS (
    UPDATE step_executions SET {QUEUE.assignment}, rung_at = clock_timestamp()
    WHERE execution_id = %(execution)s AND path = ANY(%(paths)s) AND {QUEUE.guard}
), claimed AS (
    UPDATE step_executions s SET {FOLLOW.assignment}, {_TAKE}
    WHERE s.execution_id = %(execution)s AND s.path = %(path)s AND s.{FOLLOW.guard}
    RETURNING {_CLAIMED_ROW}
)
SELECT * FROM claimed
"""
_QUEUE_AND_FOLLOW_ROUTINE = Routine(
    "queue_and_follow",
    _QUEUE_AND_FOLLOW,
    {"execution": "uuid", "paths": "text[]", "path": "text", "worker": "uuid", "token": "uuid"},
    _CLAIMED,
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
    return _claim(tuple(row), token) if row else None


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
