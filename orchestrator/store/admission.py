"""Which executions may run: as many as the limits allow, the most urgent first, each workflow in its turn.

An execution is admitted once, before its first step is claimed. Until then it waits in the backlog; or it is held, if
one of its own limits (of its workflow, of a key) is reached. What runs is counted from the rows, by whoever admits,
under one lock: so a limit is never exceeded, and there is no counter that could leak.

Turns make it fair (start-time fair queueing, Goyal, Vin and Cheng 1996): an execution that has to wait gets the turn
after the last of its workflow's that wait, or that of the one which is next if that is later. So of two workflows that
wait, each gets every second place, however many the other has waiting.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus, StepStatus, sql_words
from orchestrator.store.routines import Routine
from orchestrator.store.session import Store, run

# Any constant will do, as long as every release uses the same.
LOCK = "pg_advisory_xact_lock(1634887011)"

_LIVE = f"e.admitted_at IS NOT NULL AND e.status NOT IN ({sql_words(EXECUTION_TERMINAL)})"
"""The predicate of the index ix_executions_admitted."""
WAITS = f"e.status = '{ExecutionStatus.QUEUED}' AND e.admitted_at IS NULL"
BACKLOG = f"{WAITS} AND NOT e.held"
"""The predicate of the index ix_executions_backlog."""
_HELD = f"{WAITS} AND e.held"

TAKEN = f"SELECT count(*) FROM executions e WHERE {_LIVE} AND e.parent_step_id IS NULL"
"""The places that are taken. An execution that a step waits for runs in the place of that step's own: else all places
could be taken by those that wait for one."""


_IN_USE = f"""
    SELECT coalesce(jsonb_object_agg(used.key, used.number), '{{}}') FROM (
        SELECT u.key, count(*) AS number FROM executions e, unnest(e.limit_keys) AS u(key)
        WHERE {_LIVE} GROUP BY u.key) AS used
"""
"""SQL: how many run under each key."""


def _is_reached(in_use: str) -> str:
    """SQL: whether one of the own limits of an execution `e` is, `in_use` being what runs under each key."""
    return (
        "EXISTS (SELECT FROM unnest(e.limit_keys, e.limits) AS own(key, most) "
        f"WHERE own.most <= coalesce(({in_use} ->> own.key)::int, 0))"
    )


def reached(keys: str, limits: str) -> str:
    """SQL: whether one of an execution's own limits is reached."""
    return (
        f"EXISTS (SELECT FROM unnest({keys}, {limits}) AS own(key, most) WHERE own.most <= "
        f"(SELECT count(*) FROM executions e WHERE {_LIVE} AND e.limit_keys @> ARRAY[own.key]))"
    )


def next_turn(workflow: str) -> str:
    """SQL: the turn of an execution of `workflow` that begins to wait now."""
    return (
        f"greatest(coalesce((SELECT min(e.turn) FROM executions e WHERE {BACKLOG}), 0), "
        f"1 + coalesce((SELECT max(e.turn) FROM executions e WHERE e.workflow_id = {workflow} AND {WAITS}), 0))"
    )


_MOST = 100
"""Executions looked at in one call, so that nobody holds the lock for long."""

_ADMIT_ROUTINE = Routine(
    "admit",
    f"""
    DECLARE
        free int;
        next_one record;
        freed_key text;
        in_use jsonb;
        admitted uuid[] := '{{}}';
    BEGIN
        PERFORM {LOCK};
        -- Rows that somebody holds are passed over: who waited for them would have everybody wait, and those that are
        -- being cancelled would be admitted after that.
        SELECT %(places)s - taken.count INTO free FROM ({TAKEN}) AS taken;
        -- A key that has become free lets the first into the backlog that nothing else holds back. One that a step
        -- waits for needs no place, and so is never in the backlog: it might wait there for a place that its own parent
        -- has.
        FOREACH freed_key IN ARRAY %(freed)s LOOP
            in_use := ({_IN_USE});
            SELECT e.id, e.parent_step_id INTO next_one FROM executions e
            WHERE {_HELD} AND e.limit_keys @> ARRAY[freed_key] AND NOT {_is_reached("in_use")}
            ORDER BY e.priority DESC, e.turn, e.id LIMIT 1 FOR NO KEY UPDATE OF e SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            UPDATE executions SET held = false,
                admitted_at = CASE WHEN next_one.parent_step_id IS NOT NULL THEN clock_timestamp() END
            WHERE id = next_one.id;
            IF next_one.parent_step_id IS NOT NULL THEN
                admitted := admitted || next_one.id;
            END IF;
        END LOOP;
        FOR looked IN 1..{_MOST} LOOP
            EXIT WHEN free <= 0;
            SELECT e.id, e.limit_keys, e.limits INTO next_one FROM executions e
            WHERE {BACKLOG} ORDER BY e.priority DESC, e.turn, e.id LIMIT 1 FOR NO KEY UPDATE OF e SKIP LOCKED;
            EXIT WHEN NOT FOUND;
            IF next_one.limit_keys IS NOT NULL AND {reached("next_one.limit_keys", "next_one.limits")} THEN
                UPDATE executions SET held = true WHERE id = next_one.id;
            ELSE
                UPDATE executions SET admitted_at = clock_timestamp() WHERE id = next_one.id;
                admitted := admitted || next_one.id;
                free := free - 1;
            END IF;
        END LOOP;
        RETURN QUERY
            UPDATE step_executions s SET rung_at = clock_timestamp() FROM executions e
            WHERE s.execution_id = ANY(admitted) AND s.status = '{StepStatus.QUEUED}' AND e.id = s.execution_id
            RETURNING s.execution_id::text, s.path, s.queue, e.priority;
    END
    """,
    {"places": "int", "freed": "text[]"},
    {"execution_id": "text", "path": "text", "queue": "text", "priority": "smallint"},
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A first step of an execution that has just been admitted: it is to be rung for, or claimed."""

    execution_id: str
    path: str
    queue: str
    priority: int


def admit(store: Store, places: int, freed: Collection[str] = ()) -> list[Admitted]:
    """Admit what may run now, if `places` executions may at a time. `freed` are the keys of the limits under which an
    execution has just ended."""
    return [Admitted(*row) for row in store.call(_ADMIT_ROUTINE, {"places": places, "freed": list(freed)})]


ASKED = f"EXISTS (SELECT FROM executions e WHERE {BACKLOG})"
"""SQL: whether anybody waits for a place."""


@dataclass(frozen=True, slots=True)
class Freed:
    """An execution has ended, and somebody may wait for its place, or under one of its `keys`."""

    keys: tuple[str, ...] = ()


def freed(connection: Connection, execution_id: str) -> Freed | None:
    """To be asked when an execution has ended: None if nobody can be waiting for that."""
    row = run(
        connection,
        f"SELECT {ASKED} AS asked, limit_keys FROM executions WHERE id = %(id)s::uuid",
        {"id": execution_id},
    ).one()
    return Freed(tuple(row.limit_keys or ())) if row.asked or row.limit_keys else None


def is_asked_for(connection: Connection) -> bool:
    asked: bool = run(connection, f"SELECT {ASKED}").scalar_one()
    return asked


def keys_with_room(connection: Connection, limit: int) -> list[str]:
    """Keys of executions that are held back although no limit of theirs is reached: whoever was to say so died."""
    rows = run(
        connection,
        f"""
        WITH used AS MATERIALIZED (SELECT ({_IN_USE}) AS in_use)
        SELECT e.limit_keys[1] FROM executions e, used WHERE {_HELD} AND NOT {_is_reached("used.in_use")}
        LIMIT %(limit)s
        """,
        {"limit": limit},
    )
    return list(dict.fromkeys(key for (key,) in rows))
