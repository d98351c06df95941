"""Executions: their insertion with all step rows, their transitions, and what the engine asks of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.lifecycle import (
    CANCEL_EXECUTION,
    EXECUTION_LIVE,
    FAIL_EXECUTION,
    FINISH,
    STARTABLE,
    STEP_TERMINAL,
    ExecutionStatus,
    StepStatus,
    Transition,
    WorkflowStatus,
    sql_words,
)
from orchestrator.store import admission
from orchestrator.store.audit import LOG_START, Entry
from orchestrator.store.everywhere import first_anywhere
from orchestrator.store.rates import Rate, use
from orchestrator.store.routines import Routine
from orchestrator.store.session import Store, new_id, run, to_json
from orchestrator.store.step_rows import PLACE, PLACED, STEP_ROWS, StepRows

AWAITS_BODY, AWAITS_CHILD = "body", "child"
"""What a step waits for whose body runs, and one that started another execution (step_executions.awaits)."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The step that starts an execution (None: it does not wait for it); `depth` is that of its own execution."""

    step_execution_id: str | None
    depth: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What an execution runs under: `places` for all of the service, and of its own, as many as `most` at a time of
    those that share a key, and begins as its `rate` allows."""

    places: int
    own: tuple[tuple[str, int], ...] = ()
    rate: Rate | None = None


def has_key(workflow: str, key: str) -> str:
    """SQL: whether the workflow has an execution with this idempotency key, be it laid aside. Of those that come at the
    same time, the unique index of the present ones lets one in.

    It is asked in the order of the keys, so that a plan which is kept from a time when there were few executions uses
    their index, and does not go through all of the workflow."""
    return (
        f"((SELECT true FROM all_executions k WHERE k.workflow_id = {workflow} AND k.idempotency_key >= {key} "
        f"AND k.idempotency_key <= {key} ORDER BY k.idempotency_key LIMIT 1) IS NOT NULL)"
    )


_INSERT_ROUTINE = Routine(
    "start_execution",
    f"""
    DECLARE
        is_held bool := false;
        is_paced bool := false;
        is_admitted bool;
        moment timestamptz;
        next_turn bigint := 0;
    BEGIN
        SELECT w.version, w.status, w.is_template INTO current_version, workflow_status, is_template
        FROM workflows w WHERE w.id = %(workflow)s;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        created := false;
        IF current_version <> %(version)s OR is_template OR workflow_status NOT IN ({sql_words(STARTABLE)}) THEN
            RETURN NEXT;
            RETURN;
        END IF;
        -- The key of a child is one of its parent's own, with which it is laid aside.
        IF %(key)s IS NOT NULL AND %(parent)s IS NULL AND {has_key("%(workflow)s", "%(key)s")} THEN
            RETURN NEXT;
            RETURN;
        END IF;
        PERFORM {admission.LOCK};
        moment := clock_timestamp();
        IF %(limit_keys)s IS NOT NULL THEN
            is_held := {admission.reached("%(limit_keys)s", "%(limits)s")};
        END IF;
        IF %(rate_key)s IS NOT NULL AND NOT is_held THEN
            is_paced := {admission.has_to_wait("moment", "%(rate_key)s", "%(rate_limit)s", "%(rate_per)s")};
            is_held := is_paced;
        END IF;
        is_admitted := NOT is_held AND (%(parent)s IS NOT NULL OR (
            NOT EXISTS (SELECT FROM executions e WHERE {admission.BACKLOG})
            AND ({admission.TAKEN}) < %(places)s));
        IF NOT is_admitted THEN
            next_turn := {admission.next_turn("%(workflow)s", "%(priority)s")};
        END IF;
        INSERT INTO executions (id, workflow_id, version, status, input, priority, trigger_id, trigger_data,
                                idempotency_key, timeout, parent_step_id, depth, admitted_at, held, paced, turn,
                                limit_keys, limits, rate_key, rate_limit, rate_per)
        VALUES (%(id)s, %(workflow)s, %(version)s, '{ExecutionStatus.QUEUED}', %(input)s, %(priority)s, %(trigger)s,
                %(trigger_data)s, %(key)s, %(timeout)s, %(parent)s, %(depth)s,
                CASE WHEN is_admitted THEN moment END, is_held, is_paced, next_turn,
                %(limit_keys)s, %(limits)s, %(rate_key)s, %(rate_limit)s, %(rate_per)s)
        ON CONFLICT (workflow_id, idempotency_key) DO NOTHING;
        created := FOUND;
        admitted := created AND is_admitted;
        IF admitted AND %(rate_key)s IS NOT NULL THEN
            {use("moment", "%(rate_key)s", "%(rate_per)s")};
        ELSIF created AND is_paced THEN
            {admission.look_again("moment", "%(rate_key)s", "%(rate_limit)s", "%(rate_per)s")};
        END IF;
        IF created THEN
            INSERT INTO step_executions (id, execution_id, {PLACE}, rung_at)
            SELECT u.id, %(id)s, {PLACED},
                   CASE WHEN is_admitted AND u.status = '{StepStatus.QUEUED}' THEN clock_timestamp() END
            FROM {STEP_ROWS};
        END IF;
        IF created AND %(log)s IS NOT NULL THEN
            {LOG_START};
        END IF;
        RETURN NEXT;
    END
    """,
    {
        "id": "uuid",
        "workflow": "uuid",
        "version": "int",
        "input": "jsonb",
        "priority": "smallint",
        "trigger": "uuid",
        "trigger_data": "jsonb",
        "key": "text",
        "timeout": "float8",
        "parent": "uuid",
        "depth": "smallint",
        "places": "int",
        "limit_keys": "text[]",
        "limits": "int[]",
        "rate_key": "text",
        "rate_limit": "int",
        "rate_per": "float8",
        "ids": "uuid[]",
        "rows": "jsonb",
        "log": "jsonb",
    },
    {
        "created": "bool",
        "admitted": "bool",
        "current_version": "int",
        "workflow_status": "text",
        "is_template": "bool",
    },
)


@dataclass(frozen=True, slots=True)
class Inserted:
    """`id` is None if nothing was inserted: because the workflow has another `version` by now, a `status` that
    starts nothing or `is_template`, or else because an execution with this key is already there."""

    id: str | None
    admitted: bool
    """It has a place; else it waits for one."""
    version: int
    status: WorkflowStatus
    is_template: bool


def insert(
    store: Store,
    workflow_id: str,
    version: int,
    input: Any,
    steps: StepRows,
    *,
    priority: int,
    timeout: float | None,
    limits: Limits,
    trigger: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    parent: Parent | None = None,
    log: Entry | None = None,
) -> Inserted:
    """Insert an execution with all its step rows, if `version` is still the workflow's newest and its status
    allows it; and then the entry `log` of the audit log. `trigger` is what templates see of what started it, its `id`
    at least. Raises NotFound if there is no such workflow."""
    execution_id = new_id()
    rows = store.call(
        _INSERT_ROUTINE,
        {
            "id": execution_id,
            "workflow": workflow_id,
            "version": version,
            "input": to_json(input),
            "priority": priority,
            "trigger": None if trigger is None else trigger["id"],
            "trigger_data": None if trigger is None else to_json(trigger),
            "key": idempotency_key,
            "timeout": timeout,
            "parent": parent.step_execution_id if parent else None,
            "depth": parent.depth + 1 if parent else 0,
            "places": limits.places,
            "limit_keys": [key for key, _ in limits.own] or None,
            "limits": [most for _, most in limits.own] or None,
            **rate_columns(limits.rate),
            "ids": [new_id() for _ in range(steps.number)],
            "rows": steps.written,
            "log": None if log is None else to_json(log.as_row()),
        },
    )
    if not rows:
        raise NotFound("workflow", workflow_id)
    created, admitted, current_version, status, is_template = rows[0]
    return Inserted(
        execution_id if created else None, bool(admitted), current_version, WorkflowStatus(status), is_template
    )


def rate_columns(rate: Rate | None) -> dict[str, Any]:
    """A rate limit as the columns of an execution that runs under it."""
    return {
        "rate_key": rate and rate.key,
        "rate_limit": rate and rate.limit,
        "rate_per": rate and rate.per,
    }


@dataclass(frozen=True, slots=True)
class New:
    """What is an execution's own among those that are inserted together."""

    input: Any
    priority: int
    limits: Limits
    idempotency_key: str | None = None


_INSERT_MANY = _INSERT_ROUTINE.call_for_each(
    "id", "input", "priority", "key", "places", "limit_keys", "limits", "rate_key", "rate_limit", "rate_per", "ids"
)


def insert_many(
    connection: Connection,
    workflow_id: str,
    version: int,
    wanted: Sequence[New],
    steps: StepRows,
    *,
    timeout: float | None,
) -> list[Inserted]:
    """As `insert` for each of them, in one statement. Raises NotFound."""
    each = [
        {
            "id": new_id(),
            "input": new.input,
            "priority": new.priority,
            "key": new.idempotency_key,
            "places": new.limits.places,
            "limit_keys": [key for key, _ in new.limits.own] or None,
            "limits": [most for _, most in new.limits.own] or None,
            **rate_columns(new.limits.rate),
            "ids": [new_id() for _ in range(steps.number)],
        }
        for new in wanted
    ]
    rows = run(
        connection,
        _INSERT_MANY,
        {
            "each": to_json(each),
            "workflow": workflow_id,
            "version": version,
            "trigger": None,
            "trigger_data": None,
            "timeout": timeout,
            "parent": None,
            "depth": 0,
            "rows": steps.written,
            "log": None,
        },
    ).all()
    if not rows:
        raise NotFound("workflow", workflow_id)
    return [
        Inserted(
            one["id"] if row.created else None,
            bool(row.admitted),
            row.current_version,
            WorkflowStatus(row.workflow_status),
            row.is_template,
        )
        for one, row in zip(each, rows, strict=True)
    ]


def ids_by_idempotency_keys(connection: Connection, workflow_id: str, keys: Collection[str]) -> dict[str, str]:
    """{key: id} of those that are there."""
    rows = run(
        connection,
        "SELECT idempotency_key, id::text FROM all_executions "
        "WHERE workflow_id = %(workflow)s::uuid AND idempotency_key = ANY(%(keys)s)",
        {"workflow": workflow_id, "keys": list(keys)},
    )
    return {row.idempotency_key: row.id for row in rows}


def id_by_idempotency_key(connection: Connection, workflow_id: str, key: str) -> str | None:
    id: str | None = run(
        connection,
        "SELECT id::text FROM all_executions WHERE workflow_id = %(workflow)s::uuid AND idempotency_key = %(key)s",
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
    outcome: ExecutionStatus | None = None
    error_message: str | None = None
    parent_step_id: str | None = None


def lock(connection: Connection, execution_id: str) -> Locked | None:
    """Hold the execution's row: the one lock by which steps that end at the same time see each other."""
    return _read(connection, execution_id, "FOR NO KEY UPDATE")


def look(connection: Connection, execution_id: str) -> Locked | None:
    """The same, as it is now, without holding it."""
    return _read(connection, execution_id, "")


def _read(connection: Connection, execution_id: str, lock: str) -> Locked | None:
    sql = (
        "SELECT id::text AS id, workflow_id::text AS workflow_id, version, status, input, priority, "
        "trigger_id::text AS trigger_id, outcome, error_message, parent_step_id::text AS parent_step_id "
        f"FROM executions WHERE id = %(id)s::uuid {lock}"
    )
    row = first_anywhere(connection, sql, {"id": execution_id})
    if row is None and lock:  # it may have been moved by whoever this waited for
        row = first_anywhere(connection, sql, {"id": execution_id})
    return None if row is None else locked_row(row, execution_id)


def locked_row(row: Any, execution_id: str) -> Locked:
    return Locked(
        execution_id,
        row.workflow_id,
        row.version,
        ExecutionStatus(row.status),
        row.input,
        row.priority,
        row.trigger_id,
        None if row.outcome is None else ExecutionStatus(row.outcome),
        row.error_message,
        row.parent_step_id,
    )


def trigger_data(connection: Connection, execution_id: str) -> Any:
    """What templates see as `trigger` in an execution that a trigger started."""
    sql = "SELECT trigger_data FROM executions WHERE id = %(id)s::uuid"
    row = first_anywhere(connection, sql, {"id": execution_id})
    return None if row is None else row.trigger_data


def live_of_trigger(connection: Connection, trigger_id: str) -> list[str]:
    """Executions that the trigger started and that have not ended, the oldest first."""
    rows = run(
        connection,
        "SELECT id::text FROM executions WHERE trigger_id = %(id)s::uuid "
        f"AND status IN ({sql_words(EXECUTION_LIVE)}) ORDER BY id",
        {"id": trigger_id},
    )
    return [id for (id,) in rows]


def seconds_left(connection: Connection, execution_id: str) -> float | None:
    """Until its deadline; None if it has none."""
    seconds: float | None = run(
        connection,
        "SELECT extract(epoch FROM deadline - clock_timestamp())::float8 FROM executions WHERE id = %(id)s::uuid",
        {"id": execution_id},
    ).scalar()
    return seconds


def is_untouched(connection: Connection, execution_id: str) -> bool:
    """Whether it waits for a place, and no step of it has begun."""
    untouched: bool = run(
        connection,
        "SELECT admitted_at IS NULL AND NOT EXISTS (SELECT FROM step_executions s WHERE s.execution_id = e.id "
        "AND s.attempt > coalesce(s.forgiven, 0)) FROM executions e WHERE id = %(id)s::uuid",
        {"id": execution_id},
    ).scalar_one()
    return untouched


def live_of_workflow(connection: Connection, workflow_id: str, limit: int) -> list[str]:
    """Executions of the workflow that have not ended, the oldest first."""
    rows = run(
        connection,
        "SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid "
        f"AND status IN ({sql_words(EXECUTION_LIVE)}) ORDER BY id LIMIT %(limit)s",
        {"id": workflow_id, "limit": limit},
    )
    return [id for (id,) in rows]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an execution, as far as it has."""

    status: ExecutionStatus
    output: Any
    error_message: str | None


def outcome(connection: Connection, execution_id: str) -> Outcome | None:
    sql = "SELECT status, output, error_message FROM executions WHERE id = %(id)s::uuid"
    row = first_anywhere(connection, sql, {"id": execution_id})
    return None if row is None else Outcome(ExecutionStatus(row.status), row.output, row.error_message)


def finish(connection: Connection, execution_id: str, output: Any) -> bool:
    return _end(connection, FINISH, execution_id, "output = %(output)s::jsonb", output=to_json(output))


# One moment for both: an execution of which no step began has taken no time, and not less than none.
_NOW = "finished_at = moment.now, started_at = coalesce(started_at, moment.now)"
_MOMENT = "FROM clock_timestamp() AS moment(now)"

_FINISH_ROUTINE = Routine(
    "finish_execution",
    f"""
    UPDATE executions SET {FINISH.assignment}, {_NOW},
        output = (SELECT coalesce(jsonb_object_agg(path, step_executions.output), '{{}}') FROM step_executions
                  WHERE execution_id = %(execution)s AND path = ANY(%(paths)s)
                  AND step_executions.status = '{StepStatus.COMPLETED}')
    {_MOMENT} WHERE id = %(execution)s AND {FINISH.guard} RETURNING true
    """,
    {"execution": "uuid", "paths": "text[]"},
    {"finished": "bool"},
)


def finish_with_outputs_of(connection: Connection, execution_id: str, paths: Sequence[str]) -> bool:
    """Finish with `{path: output}` of those of `paths` that completed."""
    params = {"execution": execution_id, "paths": list(paths)}
    return run(connection, _FINISH_ROUTINE.call, params).first() is not None


def fail(connection: Connection, execution_id: str, message: str) -> bool:
    return _end(connection, FAIL_EXECUTION, execution_id, "error_message = %(message)s", message=message)


def cancel(connection: Connection, execution_id: str, message: str) -> bool:
    return _end(connection, CANCEL_EXECUTION, execution_id, "error_message = %(message)s", message=message)


def _end(connection: Connection, transition: Transition, execution_id: str, also: str, **params: Any) -> bool:
    sql = (
        f"UPDATE executions SET {transition.assignment}, {also}, {_NOW} {_MOMENT} "
        f"WHERE id = %(id)s::uuid AND {transition.guard}"
    )
    return run(connection, sql, {"id": execution_id, **params}).rowcount == 1


def settle_outcome(connection: Connection, execution_id: str, outcome: ExecutionStatus, message: str | None) -> None:
    """What the execution will end as, once the steps have run that run at its end. The first word counts; they
    have the time that the whole had. They begin at once, unless it waits for a place: then they do, too."""
    status = f"CASE WHEN admitted_at IS NULL THEN '{ExecutionStatus.QUEUED}' ELSE '{ExecutionStatus.RUNNING}' END"
    run(
        connection,
        "UPDATE executions SET outcome = %(outcome)s, error_message = %(message)s, "
        "started_at = coalesce(started_at, CASE WHEN admitted_at IS NOT NULL THEN clock_timestamp() END), "
        f"status = {status}, seq = CASE WHEN status = {status} THEN seq ELSE nextval('feed_seq') END, "
        f"begun_seq = CASE WHEN status = {status} THEN begun_seq ELSE nextval('feed_seq') END, "
        "deadline = clock_timestamp() + timeout * interval '1 second' "
        f"WHERE id = %(id)s::uuid AND outcome IS NULL AND {FAIL_EXECUTION.guard}",
        {"id": execution_id, "outcome": outcome, "message": message},
    )


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


_ABANDONED = Routine(
    "abandoned",
    f"""
    SELECT e.id::text FROM executions e LEFT JOIN step_executions s ON s.id = e.parent_step_id
    WHERE e.status IN ({sql_words(EXECUTION_LIVE)}) AND e.outcome IS NULL AND e.parent_step_id IS NOT NULL
      AND (s.id IS NULL OR s.status IN ({sql_words(STEP_TERMINAL)}) OR e.idempotency_key IS NULL)
    LIMIT %(limit)s
    """,
    {"limit": "int"},
    {"id": "text"},
)


def abandoned(connection: Connection, limit: int) -> list[str]:
    """Live executions whose parent has gone on without them: the step that started them has ended, has let go of them
    (see control.let_go), or was forgotten with what ran at the end before a retry."""
    return [id for (id,) in run(connection, _ABANDONED.call, {"limit": limit})]


def of_cancelled_workflows(connection: Connection, limit: int) -> list[str]:
    """Live executions of workflows that have been retired."""
    rows = run(
        connection,
        "SELECT e.id::text FROM executions e JOIN workflows w ON w.id = e.workflow_id "
        f"WHERE e.status IN ({sql_words(EXECUTION_LIVE)}) AND e.outcome IS NULL "
        f"AND w.status = '{WorkflowStatus.CANCELLED}' LIMIT %(limit)s",
        {"limit": limit},
    )
    return [id for (id,) in rows]


def stalled(connection: Connection, limit: int) -> list[str]:
    """Live executions of which nothing is queued, running or waiting, except for their own bodies: whoever was to
    advance them died."""
    rows = run(
        connection,
        f"""
        SELECT e.id::text FROM executions e
        WHERE e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
          AND NOT EXISTS (SELECT FROM step_executions s WHERE s.execution_id = e.id
                          AND (s.status IN ('queued', 'running')
                               OR (s.status = 'waiting' AND s.awaits IS DISTINCT FROM '{AWAITS_BODY}')))
        LIMIT %(limit)s
        """,
        {"limit": limit},
    )
    return [id for (id,) in rows]
