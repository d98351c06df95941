"""Which executions may run: as many as the limits allow, the most urgent first, each workflow in its turn.

An execution is admitted once, before its first step is claimed. Until then it waits in the backlog; or it is held, if
one of its own limits (of its workflow, of a key) is reached, or if it is a child whose step has still to come to it
(`meet_child`). What runs is counted from the rows, by whoever admits, under one lock: so a limit is never exceeded,
and there is no counter that could leak. One that its rate limit holds (it is `paced`) is let into the backlog by
reconcile, in the order of the backlog, when there is a use for it; that is made when it is admitted.

Turns make it fair (start-time fair queueing, Goyal, Vin and Cheng 1996): an execution that has to wait gets the turn
after the last of its workflow's that wait, or that of the one which is next of its priority if that is later. So of two
workflows that wait, each gets every second place, however many the other has waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus, StepStatus
from orchestrator.store.rates import Rate, Turn, is_open, opens_at, turn, use
from orchestrator.store.routines import Routine
from orchestrator.store.session import Store, run

# Any constant will do, as long as every release uses the same.
LOCK = "pg_advisory_xact_lock(1634887011)"

HAS_PLACE = "e.admitted_at IS NOT NULL AND e.finished_at IS NULL"
"""The predicate of the index ix_executions_admitted. It does not name the status: else PostgreSQL could count by the
index of all that live as well, and does so once a VACUUM has told it the sizes of both."""
WAITS = f"e.status = '{ExecutionStatus.QUEUED}' AND e.admitted_at IS NULL"
BACKLOG = f"{WAITS} AND NOT e.held"
"""The predicate of the index ix_executions_backlog."""
COMES_LATER = f"p.status IN ('{StepStatus.PENDING}', '{StepStatus.QUEUED}')"
"""Of the step `p` that waits for an execution, and was tried again together with it: it may have to wait for a place
itself before it comes to that."""
_HELD = f"""
    {WAITS} AND e.held AND NOT e.paced
    AND NOT EXISTS (SELECT FROM step_executions p WHERE p.id = e.parent_step_id AND {COMES_LATER})
"""
_PACED = f"{WAITS} AND e.paced"
"""The predicate of the index ix_executions_paced."""

PRIORITY = "coalesce(s.priority, e.priority)"
"""That of the messages for a step `s` of an execution `e`."""

TAKEN = f"SELECT count(*) FROM executions e WHERE {HAS_PLACE} AND e.parent_step_id IS NULL"
"""The places that are taken. An execution that a step waits for runs in the place of that step's own: else all places
could be taken by those that wait for one."""


_IN_USE = f"""
    SELECT coalesce(jsonb_object_agg(used.key, used.number), '{{}}') FROM (
        SELECT u.key, count(*) AS number FROM executions e, unnest(e.limit_keys) AS u(key)
        WHERE {HAS_PLACE} GROUP BY u.key) AS used
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
        f"(SELECT count(*) FROM executions e WHERE {HAS_PLACE} AND e.limit_keys @> ARRAY[own.key]))"
    )


def has_to_wait(moment: str, key: str, limit: str, per: str) -> str:
    """SQL: whether an execution that comes at `moment` is held by its rate limit, or by those that are already."""
    return (
        f"(EXISTS (SELECT FROM executions e WHERE {_PACED} AND e.rate_key = {key}) "
        f"OR NOT {is_open(moment, key, limit, per)})"
    )


def look_again(moment: str, key: str, limit: str, per: str) -> str:
    """SQL: a statement that has somebody look at `key` when it is open: it holds one more from `moment` on."""
    return f"""
        INSERT INTO rate_looks (key, at)
        VALUES ({key}, greatest({moment}, {opens_at(key, limit, per)}))
        ON CONFLICT (key) DO UPDATE SET at = excluded.at WHERE excluded.at < rate_looks.at
    """


def next_turn(workflow: str, priority: str) -> str:
    """SQL: the turn of an execution of `workflow` that begins to wait now, among those of its `priority`."""
    first = f"SELECT e.turn FROM executions e WHERE {BACKLOG} AND e.priority = {priority} ORDER BY e.turn LIMIT 1"
    return (
        f"greatest(coalesce(({first}), 0), "
        f"1 + coalesce((SELECT max(e.turn) FROM executions e WHERE e.workflow_id = {workflow} AND {WAITS}), 0))"
    )


_LOOK_EVERY = 300
"""Seconds after which a rate limit that holds executions is looked at again at the latest."""
_MOST = 100
"""Executions looked at in one call, so that nobody holds the lock for long."""

_RATE = ("next_one.rate_key", "next_one.rate_limit", "next_one.rate_per")
_ADMIT_NEXT = f"""
    UPDATE executions SET admitted_at = moment, held = false, paced = false WHERE id = next_one.id;
    IF next_one.rate_key IS NOT NULL THEN
        {use("moment", "next_one.rate_key", "next_one.rate_per")};
    END IF;
    admitted := admitted || next_one.id;
"""
_NEXT_ONE = "e.id, e.parent_step_id, e.limit_keys, e.limits, e.rate_key, e.rate_limit, e.rate_per"
_NEXT = "ORDER BY e.priority DESC, e.turn, e.id LIMIT 1"
_FIRST = f"{_NEXT} FOR NO KEY UPDATE OF e SKIP LOCKED"

_ADMIT_ROUTINE = Routine(
    "admit",
    f"""
    DECLARE
        free int;
        next_one record;
        freed_key text;
        open_key text;
        ahead int;
        in_use jsonb;
        moment timestamptz;
        admitted uuid[] := '{{}}';
    BEGIN
        PERFORM {LOCK};
        moment := clock_timestamp();
        -- Rows that somebody holds are passed over: who waited for them would have everybody wait, and those that are
        -- being cancelled would be admitted after that.
        SELECT %(places)s - taken.count INTO free FROM ({TAKEN}) AS taken;
        -- A key that has become free lets the first into the backlog that nothing else holds back. One that a step
        -- waits for needs no place, and so is never in the backlog: it might wait there for a place that its own parent
        -- has.
        FOREACH freed_key IN ARRAY %(freed)s LOOP
            in_use := ({_IN_USE});
            SELECT {_NEXT_ONE} INTO next_one FROM executions e
            WHERE {_HELD} AND e.limit_keys @> ARRAY[freed_key] AND NOT {_is_reached("in_use")} {_FIRST};
            CONTINUE WHEN NOT FOUND;
            IF next_one.rate_key IS NOT NULL AND {has_to_wait("moment", *_RATE)} THEN
                UPDATE executions SET paced = true WHERE id = next_one.id;
                {look_again("moment", *_RATE)};
            ELSIF next_one.parent_step_id IS NOT NULL THEN
                {_ADMIT_NEXT}
            ELSE
                UPDATE executions SET held = false WHERE id = next_one.id;
            END IF;
        END LOOP;
        -- A rate limit lets as many into the backlog as there are uses, those that are there already counted.
        FOREACH open_key IN ARRAY %(opened)s LOOP
            SELECT count(*) INTO ahead FROM executions e WHERE {BACKLOG} AND e.rate_key = open_key;
            FOR looked IN 1..{_MOST} LOOP
                SELECT {_NEXT_ONE} INTO next_one FROM executions e WHERE {_PACED} AND e.rate_key = open_key {_FIRST};
                EXIT WHEN NOT FOUND OR NOT {is_open("moment", *_RATE, "ahead")};
                IF next_one.limit_keys IS NOT NULL AND {reached("next_one.limit_keys", "next_one.limits")} THEN
                    UPDATE executions SET paced = false WHERE id = next_one.id;
                ELSIF next_one.parent_step_id IS NOT NULL THEN
                    {_ADMIT_NEXT}
                ELSE
                    UPDATE executions SET held = false, paced = false WHERE id = next_one.id;
                    ahead := ahead + 1;
                END IF;
            END LOOP;
            -- The next look, or none if nobody is held. Of those that come to the backlog first, nobody knows when they
            -- will have made their uses; and behind the first there may be others with another limit.
            SELECT {_NEXT_ONE} INTO next_one FROM executions e WHERE {_PACED} AND e.rate_key = open_key {_NEXT};
            IF FOUND THEN
                UPDATE rate_looks SET at = CASE WHEN ahead < next_one.rate_limit THEN
                    least(greatest(moment, {opens_at(*_RATE, "ahead")}), moment + interval '{_LOOK_EVERY} s')
                    ELSE moment + interval '1 s' END
                WHERE key = open_key;
            ELSE
                DELETE FROM rate_looks WHERE key = open_key;
            END IF;
        END LOOP;
        FOR looked IN 1..{_MOST} LOOP
            EXIT WHEN free <= 0;
            SELECT {_NEXT_ONE} INTO next_one FROM executions e WHERE {BACKLOG} {_FIRST};
            EXIT WHEN NOT FOUND;
            IF next_one.limit_keys IS NOT NULL AND {reached("next_one.limit_keys", "next_one.limits")} THEN
                UPDATE executions SET held = true WHERE id = next_one.id;
            ELSIF next_one.rate_key IS NOT NULL AND NOT {is_open("moment", *_RATE)} THEN
                UPDATE executions SET held = true, paced = true WHERE id = next_one.id;
                {look_again("moment", *_RATE)};
            ELSE
                {_ADMIT_NEXT}
                free := free - 1;
            END IF;
        END LOOP;
        RETURN QUERY
            UPDATE step_executions s SET rung_at = clock_timestamp() FROM executions e
            WHERE s.execution_id = ANY(admitted) AND s.status = '{StepStatus.QUEUED}' AND e.id = s.execution_id
            RETURNING s.execution_id::text, s.path, s.queue, {PRIORITY};
    END
    """,
    {"places": "int", "freed": "text[]", "opened": "text[]"},
    {"execution_id": "text", "path": "text", "queue": "text", "priority": "smallint"},
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A first step of an execution that has just been admitted: it is to be rung for, or claimed."""

    execution_id: str
    path: str
    queue: str
    priority: int


def admit(store: Store, places: int, freed: Collection[str] = (), opened: Collection[str] = ()) -> list[Admitted]:
    """Admit what may run now, if `places` executions may at a time. `freed` are the keys of the limits under which an
    execution has just ended, `opened` those of the rate limits that let in again."""
    params = {"places": places, "freed": list(freed), "opened": list(opened)}
    return [Admitted(*row) for row in store.call(_ADMIT_ROUTINE, params)]


ASKED = f"EXISTS (SELECT FROM executions e WHERE {BACKLOG})"
"""SQL: whether anybody waits for a place."""


@dataclass(frozen=True, slots=True)
class Freed:
    """Somebody may be let in now: for the place of an execution that has ended, or under one of the `keys`."""

    keys: tuple[str, ...] = ()


def all_freed(freed: Iterable[Freed | None]) -> Freed | None:
    """By several ends."""
    some = [one.keys for one in freed if one is not None]
    return Freed(tuple(dict.fromkeys(chain.from_iterable(some)))) if some else None


def freed(connection: Connection, execution_id: str) -> Freed | None:
    """To be asked when an execution has ended: None if nobody can be waiting for that."""
    row = run(
        connection,
        f"SELECT {ASKED} AS asked, limit_keys FROM executions WHERE id = %(id)s::uuid",
        {"id": execution_id},
    ).one()
    return Freed(tuple(row.limit_keys or ())) if row.asked or row.limit_keys else None


@dataclass(frozen=True, slots=True)
class Met:
    """A child that a step has come to. It `has_ended`, or it was held for that step alone and is `admitted` now, or it
    may be under the keys of `freed`."""

    has_ended: bool
    admitted: bool = False
    freed: Freed | None = None


def meet_child(connection: Connection, execution_id: str) -> Met:
    """To be called before the step that waits for this execution is brought to rest; it does not end before this
    transaction does."""
    row = run(
        connection,
        f"SELECT status, {WAITS} AND held AS is_held, limit_keys, rate_key FROM executions e WHERE id = %(id)s::uuid "
        "FOR NO KEY UPDATE",
        {"id": execution_id},
    ).first()
    if row is None or row.status in EXECUTION_TERMINAL:
        return Met(has_ended=True)
    if not row.is_held or row.limit_keys:
        return Met(has_ended=False, freed=Freed(tuple(row.limit_keys)) if row.is_held else None)
    if row.rate_key is None:
        run(
            connection,
            "UPDATE executions SET admitted_at = clock_timestamp(), held = false WHERE id = %(id)s::uuid",
            {"id": execution_id},
        )
        return Met(has_ended=False, admitted=True)
    run(
        connection,
        "UPDATE executions SET paced = true WHERE id = %(id)s::uuid; "
        "INSERT INTO rate_looks (key, at) VALUES (%(key)s, clock_timestamp()) "
        "ON CONFLICT (key) DO UPDATE SET at = excluded.at",
        {"id": execution_id, "key": row.rate_key},
    )
    return Met(has_ended=False)


def is_asked_for(connection: Connection) -> bool:
    asked: bool = run(connection, f"SELECT {ASKED}").scalar_one()
    return asked


_KEYS_WITH_ROOM = Routine(
    "keys_with_room",
    f"""
    WITH used AS MATERIALIZED (SELECT ({_IN_USE}) AS in_use)
    SELECT e.limit_keys[1] FROM executions e, used
    WHERE {_HELD} AND e.limit_keys IS NOT NULL AND NOT {_is_reached("used.in_use")} LIMIT %(limit)s
    """,
    {"limit": "int"},
    {"key": "text"},
)


def keys_with_room(connection: Connection, limit: int) -> list[str]:
    """Keys of executions that are held back although no limit of theirs is reached: whoever was to say so died."""
    return list(dict.fromkeys(key for (key,) in run(connection, _KEYS_WITH_ROOM.call, {"limit": limit})))


# --- rate limits ---------------------------------------------------------------------------------------------


def rates_that_let_in(connection: Connection, limit: int) -> list[str]:
    """The keys of rate limits that may hold executions which they need not hold any longer."""
    rows = run(
        connection,
        "SELECT key FROM rate_looks WHERE at <= clock_timestamp() ORDER BY at LIMIT %(limit)s",
        {"limit": limit},
    )
    return [key for (key,) in rows]


def seconds_to_next_opening(connection: Connection) -> float | None:
    """Until a rate limit may let in one of those that it holds; None if none holds any."""
    seconds: float | None = run(
        connection, "SELECT extract(epoch FROM min(at) - clock_timestamp())::float8 FROM rate_looks"
    ).scalar()
    return seconds


def look_at_forgotten(connection: Connection) -> None:
    """Have those looked at soon that a rate limit holds and nobody is to look at: they were paused meanwhile, or done
    again."""
    run(
        connection,
        # Who admits writes several of these rows in an order of their own.
        f"SELECT {LOCK}; "
        "INSERT INTO rate_looks (key, at) SELECT DISTINCT e.rate_key, clock_timestamp() FROM executions e "
        f"WHERE {_PACED} AND NOT EXISTS (SELECT FROM rate_looks l WHERE l.key = e.rate_key) ON CONFLICT DO NOTHING",
    )


def turn_of(connection: Connection, execution_id: str) -> Turn:
    """Of an execution that its rate limit holds."""
    row = run(
        connection,
        f"""
        SELECT x.rate_key, x.rate_limit, x.rate_per,
               (SELECT count(*) FROM executions e WHERE e.rate_key = x.rate_key AND {WAITS} AND (NOT e.held OR (
                    e.paced AND (-e.priority, e.turn, e.id) < (-x.priority, x.turn, x.id)))) AS ahead
        FROM executions x WHERE x.id = %(id)s::uuid
        """,
        {"id": execution_id},
    ).one()
    return turn(connection, Rate(row.rate_key, row.rate_limit, row.rate_per), row.ahead)
