"""Triggers, and their fires: when they are due, what came, and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.errors import Conflict, NotFound
from orchestrator.lifecycle import EXECUTION_LIVE, UNSETTLED, FireOutcome, WorkflowStatus, sql_words
from orchestrator.store import models as tables
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.models import MATCHES_EVENTS, NAMES_EVENT, WEBHOOK_METHOD, WEBHOOK_PATH
from orchestrator.store.routines import Routine
from orchestrator.store.session import as_dicts, new_id, run, to_json

_NOTHING_STARTED = frozenset({FireOutcome.SKIPPED, FireOutcome.FAILED})


@dataclass(frozen=True, slots=True)
class Trigger:
    id: str
    workflow_id: str
    type: str
    name: str
    config: dict[str, Any]
    is_enabled: bool
    from_definition: bool
    state: Any
    next_slot: datetime | None
    workflow_status: WorkflowStatus
    project_id: str


@dataclass(frozen=True, slots=True)
class Fire:
    """A fire as it was recorded, with its trigger as that is now."""

    id: str
    trigger: Trigger
    slot: str | None
    scheduled_for: datetime | None
    payload: Any
    input: Any
    outcome: FireOutcome = FireOutcome.PENDING
    reason: str | None = None
    execution_id: str | None = None


_TRIGGER = (
    "t.id::text AS trigger_id, t.workflow_id::text AS workflow_id, t.type, t.name, t.config, t.is_enabled, "
    "t.from_definition, t.state, t.next_slot, w.status AS workflow_status, w.project_id::text AS project_id"
)
_JOINED = "triggers t JOIN workflows w ON w.id = t.workflow_id"


def _trigger(row: Any) -> Trigger:
    return Trigger(
        row.trigger_id,
        row.workflow_id,
        row.type,
        row.name,
        row.config,
        row.is_enabled,
        row.from_definition,
        row.state,
        row.next_slot,
        WorkflowStatus(row.workflow_status),
        row.project_id,
    )


def find(connection: Connection, trigger_id: str) -> Trigger:
    """Raises NotFound."""
    sql = f"SELECT {_TRIGGER} FROM {_JOINED} WHERE t.id = %(id)s::uuid"
    row = run(connection, sql, {"id": trigger_id}).first()
    if row is None:
        raise NotFound("trigger", trigger_id)
    return _trigger(row)


def of_workflow(connection: Connection, workflow_id: str) -> list[Trigger]:
    """In the order in which they were made."""
    sql = f"SELECT {_TRIGGER} FROM {_JOINED} WHERE t.workflow_id = %(id)s::uuid ORDER BY t.id"
    return [_trigger(row) for row in run(connection, sql, {"id": workflow_id})]


def insert(
    connection: Connection,
    workflow_id: str,
    *,
    type: str,
    name: str,
    config: Mapping[str, Any],
    is_enabled: bool,
    from_definition: bool = False,
) -> str:
    """Its id. Raises NotFound if there is no such workflow; Conflict if it has a trigger of this name, or the path of a
    webhook is taken."""
    with _unique():
        id: str | None = run(
            connection,
            "INSERT INTO triggers (id, workflow_id, type, name, config, is_enabled, from_definition) "
            "SELECT %(id)s::uuid, w.id, %(type)s, %(name)s, %(config)s::jsonb, %(enabled)s, %(written)s "
            "FROM workflows w WHERE w.id = %(workflow)s::uuid "
            "ON CONFLICT (workflow_id, name) DO NOTHING RETURNING id::text",
            {
                "id": new_id(),
                "workflow": workflow_id,
                "type": type,
                "name": name,
                "config": to_json(config),
                "enabled": is_enabled,
                "written": from_definition,
            },
        ).scalar()
    if id is None:
        if run(connection, "SELECT FROM workflows WHERE id = %(id)s::uuid", {"id": workflow_id}).first() is None:
            raise NotFound("workflow", workflow_id)
        raise Conflict(_TAKEN["uq_triggers_name"], "taken")
    return id


def update(connection: Connection, trigger_id: str, changes: Mapping[str, Any]) -> None:
    """Set the columns that are given, `next_slot` among them. Raises NotFound; Conflict if another of the workflow's
    triggers has the name, or another webhook the path."""
    with _unique():
        done = connection.execute(
            tables.triggers.update()
            .where(tables.triggers.c.id == trigger_id)
            .values(**changes, updated_at=sa.func.clock_timestamp())
        )
    if done.rowcount == 0:
        raise NotFound("trigger", trigger_id)


_TAKEN = {
    "uq_triggers_name": "the workflow has a trigger of this name already; give this one another",
    "uq_triggers_webhook": "another webhook that is enabled has this path and method; take another path, or disable "
    "one of them",
}


@contextmanager
def _unique() -> Iterator[None]:
    """Raises Conflict for what only one trigger can have."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        taken = _TAKEN.get(getattr(getattr(error.orig, "diag", None), "constraint_name", None) or "")
        if taken is None:
            raise
        raise Conflict(taken, "taken") from None


def delete(connection: Connection, trigger_id: str) -> None:
    """Remove it with the record of its fires; executions stay. Raises NotFound."""
    if run(connection, "DELETE FROM triggers WHERE id = %(id)s::uuid", {"id": trigger_id}).rowcount == 0:
        raise NotFound("trigger", trigger_id)


# --- what comes from outside ---------------------------------------------------------------------------------


def webhooks_at(connection: Connection, route: str) -> dict[str, Trigger]:
    """The webhooks at a path, by method."""
    sql = (
        f"SELECT {_TRIGGER}, {WEBHOOK_METHOD} AS method FROM {_JOINED} "
        f"WHERE t.is_enabled AND t.type = 'webhook' AND {WEBHOOK_PATH} = %(path)s"
    )
    return {row.method: _trigger(row) for row in run(connection, sql, {"path": route})}


def for_events(
    connection: Connection, types: Sequence[str], projects: Collection[str] | None = None
) -> tuple[dict[str, list[Trigger]], list[Trigger]]:
    """(the triggers that name one of these types of event, by that; those with a pattern), the oldest first; in
    `projects` alone if these are given."""
    columns = f"SELECT {_TRIGGER}, t.config ->> 'type' AS event_type FROM {_JOINED}"
    within = "" if projects is None else "w.project_id = ANY(%(projects)s::uuid[]) AND "
    rows = run(
        connection,
        f"{columns} WHERE {within}{NAMES_EVENT} AND t.config ->> 'type' = ANY(%(types)s) "
        f"UNION ALL {columns} WHERE {within}{MATCHES_EVENTS} ORDER BY trigger_id",
        {"types": list(types), "projects": list(projects or ())},
    )
    exact: dict[str, list[Trigger]] = {}
    patterns: list[Trigger] = []
    for row in rows:
        (patterns if "*" in row.event_type else exact.setdefault(row.event_type, [])).append(_trigger(row))
    return exact, patterns


def keep_state(connection: Connection, trigger_id: str, before: Any, after: Any) -> bool:
    """Keep what the type has to remember; False if it is not `before` any more that is remembered."""
    sql = (
        "UPDATE triggers SET state = %(after)s::jsonb "
        "WHERE id = %(id)s::uuid AND state IS NOT DISTINCT FROM %(before)s::jsonb"
    )
    params = {"id": trigger_id, "after": to_json(after), "before": None if before is None else to_json(before)}
    return run(connection, sql, params).rowcount == 1


# --- time ----------------------------------------------------------------------------------------------------


def now(connection: Connection) -> datetime:
    """The database's clock, by which all is decided."""
    moment: datetime = run(connection, "SELECT clock_timestamp()").scalar_one()
    return moment


def seconds_to_next_slot(connection: Connection) -> float | None:
    """Until the next trigger is due; None if none is by time."""
    seconds: float | None = run(
        connection,
        "SELECT extract(epoch FROM min(next_slot) - clock_timestamp())::float8 FROM triggers "
        "WHERE is_enabled AND next_slot IS NOT NULL",
    ).scalar()
    return seconds


def timetabled(connection: Connection) -> dict[str, dict[str, Any]]:
    """Of each trigger that is due by time: its `trigger_id`, `type` and `config`, by its id."""
    rows = run(
        connection,
        "SELECT id::text AS trigger_id, type, config FROM triggers WHERE is_enabled AND next_slot IS NOT NULL",
    )
    return {row.trigger_id: row._asdict() for row in rows}


def claim_due(connection: Connection, limit: int, trigger_id: str | None = None) -> list[Trigger]:
    """Triggers that are due, the longest first, held until this transaction ends; those that another holds are left to
    it."""
    sql = (
        f"SELECT {_TRIGGER} FROM {_JOINED} WHERE t.is_enabled AND t.next_slot <= clock_timestamp() "
        "AND (%(id)s::uuid IS NULL OR t.id = %(id)s::uuid) "
        "ORDER BY t.next_slot LIMIT %(limit)s FOR NO KEY UPDATE OF t SKIP LOCKED"
    )
    return [_trigger(row) for row in run(connection, sql, {"id": trigger_id, "limit": limit})]


def set_next_slots(connection: Connection, slots: Mapping[str, datetime | None]) -> None:
    run(
        connection,
        "UPDATE triggers t SET next_slot = u.slot FROM unnest(%(ids)s::uuid[], %(slots)s::timestamptz[]) "
        "AS u(id, slot) WHERE t.id = u.id",
        {"ids": list(slots), "slots": list(slots.values())},
    )


# --- fires ---------------------------------------------------------------------------------------------------


def hold(connection: Connection, trigger_id: str) -> None:
    """Until this transaction ends no other one looks at what the trigger has running. No row is locked for it: who
    deletes the workflow meanwhile would wait for us, and what we start for them."""
    run(connection, "SELECT pg_advisory_xact_lock(hashtextextended('trigger ' || %(id)s, 0))", {"id": trigger_id})


_NEW = """
new AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(triggers)s::uuid[], %(slots)s::text[], %(times)s::timestamptz[],
                         %(payloads)s::jsonb[], %(inputs)s::jsonb[], %(outcomes)s::text[], %(reasons)s::text[])
           AS u(id, trigger_id, slot, scheduled_for, payload, input, outcome, reason)
)"""
_INSERT = """
INSERT INTO trigger_fires (id, trigger_id, slot, scheduled_for, payload, input, outcome, reason)
SELECT * FROM new WHERE slot IS NULL OR id IN (SELECT fire_id FROM slots) RETURNING id::text, trigger_id::text, slot
"""
_RECORD = f"""
WITH {_NEW}, slots AS (
    INSERT INTO trigger_slots SELECT trigger_id, slot, id FROM new WHERE slot IS NOT NULL
    ON CONFLICT (trigger_id, slot) DO NOTHING RETURNING fire_id
) {_INSERT}
"""
_RECORD_AGAIN = f"""
WITH {_NEW}, slots AS (
    INSERT INTO trigger_slots AS s SELECT trigger_id, slot, id FROM new WHERE slot IS NOT NULL
    ON CONFLICT (trigger_id, slot) DO UPDATE SET fire_id = s.fire_id RETURNING s.trigger_id, s.slot, s.fire_id
), again AS (
    UPDATE trigger_fires f SET outcome = '{FireOutcome.PENDING}', reason = NULL, input = new.input
    FROM slots JOIN new USING (trigger_id, slot)
    WHERE f.id = slots.fire_id AND f.outcome IN ({sql_words(_NOTHING_STARTED)})
    RETURNING f.id::text, f.trigger_id::text, f.slot
), added AS ({_INSERT}) SELECT * FROM again UNION ALL SELECT * FROM added
"""


def record(connection: Connection, fires: Sequence[Fire], *, again: bool = False) -> list[Fire]:
    """Record them; those that are new: of each slot there is one. `again`: those that started nothing are as new."""
    rows: Sequence[Any] = run(
        connection,
        _RECORD_AGAIN if again else _RECORD,
        {
            "ids": [fire.id for fire in fires],
            "triggers": [fire.trigger.id for fire in fires],
            "slots": [fire.slot for fire in fires],
            "times": [fire.scheduled_for for fire in fires],
            "payloads": [None if fire.payload is None else to_json(fire.payload) for fire in fires],
            "inputs": [to_json(fire.input) for fire in fires],
            "outcomes": [fire.outcome for fire in fires],
            "reasons": [fire.reason for fire in fires],
        },
    ).all()
    by_slot = {(fire.trigger.id, fire.slot): fire for fire in fires if fire.slot is not None}
    by_id = {fire.id: fire for fire in fires}
    return [replace(by_id.get(row[0]) or by_slot[row[1], row[2]], id=row[0]) for row in rows]


_FIRE = (
    f"SELECT f.id::text AS id, f.slot, f.scheduled_for, f.payload, f.input, f.outcome, f.reason, "
    f"f.execution_id::text AS execution_id, {_TRIGGER} "
    f"FROM trigger_fires f JOIN triggers t ON t.id = f.trigger_id JOIN workflows w ON w.id = t.workflow_id "
)


def _fire(row: Any) -> Fire:
    return Fire(
        row.id,
        _trigger(row),
        row.slot,
        row.scheduled_for,
        row.payload,
        row.input,
        FireOutcome(row.outcome),
        row.reason,
        row.execution_id,
    )


def in_slot(connection: Connection, trigger_id: str, slot: str) -> Fire | None:
    """The fire of a slot."""
    sql = f"{_FIRE} JOIN trigger_slots s ON s.fire_id = f.id WHERE s.trigger_id = %(id)s::uuid AND s.slot = %(slot)s"
    row = run(connection, sql, {"id": trigger_id, "slot": slot}).first()
    return None if row is None else _fire(row)


# Most of the time there is none, and to plan how to look in all partitions takes far longer than to look.
_TO_CARRY_OUT = Routine(
    "fires_to_carry_out",
    f"""
    SELECT f.id::text FROM trigger_fires f
    WHERE f.outcome IN ({sql_words(UNSETTLED)}) AND CASE f.outcome
        WHEN '{FireOutcome.PENDING}' THEN f.created_at < clock_timestamp() - %(age)s * interval '1 second'
        ELSE NOT EXISTS (SELECT FROM executions e WHERE e.trigger_id = f.trigger_id
                         AND e.status IN ({sql_words(EXECUTION_LIVE)})) END
    ORDER BY f.created_at LIMIT %(limit)s
    """,
    {"age": "float8", "limit": "int"},
    {"id": "text"},
)


def to_carry_out(connection: Connection, older_than: float, limit: int) -> list[Fire]:
    """Fires that somebody died over, or left `older_than` seconds ago, and those that waited and whose turn it is."""
    ids = [id for (id,) in run(connection, _TO_CARRY_OUT.call, {"age": older_than, "limit": limit})]
    if not ids:
        return []
    sql = f"{_FIRE} WHERE f.id = ANY(%(ids)s::uuid[]) ORDER BY f.created_at"
    return [_fire(row) for row in run(connection, sql, {"ids": ids})]


def settle(
    connection: Connection,
    fire_id: str,
    outcome: FireOutcome,
    *,
    execution_id: str | None = None,
    reason: str | None = None,
) -> bool:
    """What came of a fire, the first word of it; False if somebody has said it, or if another one waits already."""
    if outcome is FireOutcome.QUEUED:
        return _let_wait(connection, fire_id, reason)
    # The trigger before its fire: so does whoever deletes it.
    held = "SELECT FROM triggers WHERE id = (SELECT trigger_id FROM trigger_fires WHERE id = %(id)s::uuid)"
    counted = "UPDATE triggers t SET last_triggered = clock_timestamp(), trigger_count = trigger_count + 1"
    changed = run(
        connection,
        f"WITH held AS ({held} AND %(outcome)s = '{FireOutcome.STARTED}' FOR NO KEY UPDATE), "
        "settled AS (UPDATE trigger_fires SET outcome = %(outcome)s, reason = %(reason)s, "
        f"execution_id = %(execution)s::uuid WHERE id = %(id)s::uuid AND outcome IN ({sql_words(UNSETTLED)}) "
        f"AND (SELECT count(*) FROM held) >= 0 RETURNING trigger_id), "
        f"counted AS ({counted} FROM settled WHERE t.id = settled.trigger_id "
        f"AND %(outcome)s = '{FireOutcome.STARTED}') SELECT FROM settled",
        {"id": fire_id, "outcome": outcome, "reason": reason, "execution": execution_id},
    )
    return changed.first() is not None


def _let_wait(connection: Connection, fire_id: str, reason: str | None) -> bool:
    """To be called while the trigger is held: then one waits at a time."""
    sql = (
        f"UPDATE trigger_fires f SET outcome = '{FireOutcome.QUEUED}', reason = %(reason)s WHERE id = %(id)s::uuid "
        f"AND outcome = '{FireOutcome.PENDING}' AND NOT EXISTS (SELECT FROM trigger_fires o "
        f"WHERE o.trigger_id = f.trigger_id AND o.outcome = '{FireOutcome.QUEUED}')"
    )
    return run(connection, sql, {"id": fire_id, "reason": reason}).rowcount == 1


def release(connection: Connection, fire_id: str) -> FireOutcome | None:
    """Let the slot of a fire be used again if it started nothing; what came of it, None if it is gone."""
    row = run(
        connection,
        f"WITH released AS (UPDATE trigger_fires SET slot = CASE WHEN outcome IN ({sql_words(_NOTHING_STARTED)}) "
        "THEN NULL ELSE slot END WHERE id = %(id)s::uuid RETURNING id, slot, outcome), "
        "freed AS (DELETE FROM trigger_slots s USING released r WHERE s.fire_id = r.id AND r.slot IS NULL) "
        "SELECT outcome FROM released",
        {"id": fire_id},
    ).first()
    return None if row is None else FireOutcome(row.outcome)


# --- what users read -----------------------------------------------------------------------------------------

_t, _f = tables.triggers, tables.trigger_fires
_SHOWN = (
    _t.c.id,
    _t.c.workflow_id,
    _t.c.type,
    _t.c.name,
    _t.c.config,
    _t.c.is_enabled,
    _t.c.from_definition,
    _t.c.last_triggered,
    _t.c.trigger_count,
    _t.c.created_at,
    _t.c.updated_at,
)
_FIRE_SHOWN = (
    _f.c.id,
    _f.c.trigger_id,
    _f.c.slot,
    _f.c.scheduled_for,
    _f.c.payload,
    _f.c.input,
    _f.c.outcome,
    _f.c.reason,
    _f.c.execution_id,
    _f.c.created_at,
)


def get(connection: Connection, trigger_id: str) -> dict[str, Any]:
    """Raises NotFound."""
    row = connection.execute(sa.select(*_SHOWN).where(_t.c.id == trigger_id)).first()
    if row is None:
        raise NotFound("trigger", trigger_id)
    return row._asdict()


ORDERS = both_ways(created_at=(_t.c.id,))
FIRE_ORDERS = both_ways(created_at=(_f.c.id,))


def listing(connection: Connection, window: Window, workflow_id: str) -> list[dict[str, Any]]:
    """A workflow's triggers."""
    return as_dicts(connection.execute(window.of(sa.select(*_SHOWN).where(_t.c.workflow_id == workflow_id))).all())


def get_fire(connection: Connection, fire_id: str) -> dict[str, Any]:
    """Raises NotFound."""
    row = connection.execute(sa.select(*_FIRE_SHOWN).where(_f.c.id == fire_id)).first()
    if row is None:
        raise NotFound("fire", fire_id)
    return row._asdict()


def fires(connection: Connection, window: Window, trigger_id: str) -> list[dict[str, Any]]:
    """A trigger's fires."""
    return as_dicts(connection.execute(window.of(sa.select(*_FIRE_SHOWN).where(_f.c.trigger_id == trigger_id))).all())
