"""How a trigger comes to start an execution, whatever it was that fired it.

    record the fire (one for each slot) > start the execution (once for each fire) > say what came of it

Each part is done once however often it is tried, so that whoever dies between two of them leaves to reconcile no more
than to go on. `trigger:<id>:<slot>` is the idempotency key of the execution.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.engine import control
from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Programs
from orchestrator.engine.slots import Timetable
from orchestrator.engine.start import check_payload, start_execution
from orchestrator.errors import Conflict, InputError, OrchestratorError, Problem
from orchestrator.lifecycle import FireOutcome, WorkflowStatus
from orchestrator.plugins import Missed, TriggerCatalogue, TriggerTypeInfo, load_trigger_types
from orchestrator.store import Store, executions, triggers
from orchestrator.store.session import DatabaseAway, new_id
from orchestrator.store.triggers import Fire, Trigger

logger = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that a slot may be late without being missed: as long as it takes to start a worker again."""
MAX_BACKFILL = 1000
_BATCH = 100
"""Triggers taken at a time: what else reconcile does is not to wait for a thousand of them."""
_LONGEST_SLOT = 200
_LONGEST_REASON = 2000
_DIED_AFTER = 10.0
"""Seconds after which a fire that is still pending was left by somebody who died."""
_LATER = timedelta(minutes=1)

Json = Any


@dataclass(frozen=True, slots=True)
class Fired:
    """What came of a fire. `outcome`: a FireOutcome, or `duplicate`; then the rest is of the fire that was first.
    `plans` are for the caller to dispatch."""

    fire_id: str
    outcome: str
    execution_id: str | None = None
    reason: str | None = None
    plans: tuple[Plan, ...] = ()


def fire(
    store: Store,
    programs: Programs,
    trigger: Trigger,
    *,
    slot: str | None = None,
    scheduled_for: datetime | None = None,
    payload: Json = None,
    input: Json = None,
) -> Fired:
    """Record a fire, once for each `slot` (None: it is one of a kind), and start an execution of the newest version.

    `input` None takes what the trigger's type says. Raises PayloadTooLarge or InputError for what cannot be recorded;
    anything else that is in the way is an outcome.
    """
    limit = programs.settings.executor.max_payload
    check_payload(payload, limit, "payload")
    if input is None:
        input = _type_of(programs, trigger).input(trigger.config)
    check_payload(input, limit)
    new = Fire(new_id(), trigger, slot if slot is None else _short(slot), scheduled_for, payload, input)
    with store.single() as connection:
        if triggers.record(connection, [new]):
            return carry_out(store, programs, new)
        assert new.slot is not None
        first = triggers.in_slot(connection, trigger.id, new.slot)
    if first is None:  # it was removed in between, and its trigger perhaps with it
        return Fired(new.id, FireOutcome.FAILED, reason="the trigger is gone")
    if first.outcome is not FireOutcome.PENDING:
        return Fired(first.id, "duplicate", first.execution_id, first.reason)
    # Whoever was first is still at it, or died over it: the answer is the same, if we help.
    done = carry_out(store, programs, first, again=True)
    return Fired(first.id, "duplicate", done.execution_id, done.reason, done.plans)


def fail(store: Store, trigger: Trigger, slot: str | None, payload: Json, reason: str) -> Fired:
    """Record a fire of which nothing can be started, whose `payload` is known to be of the right size."""
    slot = slot if slot is None else _short(slot)
    new = Fire(new_id(), trigger, slot, None, payload, {}, FireOutcome.FAILED, reason[:_LONGEST_REASON])
    with store.single() as connection:
        if not triggers.record(connection, [new]):
            first = triggers.in_slot(connection, trigger.id, str(slot))
            if first is not None:
                return Fired(first.id, "duplicate", first.execution_id, first.reason)
    return Fired(new.id, FireOutcome.FAILED, reason=new.reason)


def carry_out(store: Store, programs: Programs, fire: Fire, *, again: bool = False) -> Fired:
    """Start what a recorded fire is to start. `again`: somebody may have, and did not get to say so."""
    trigger = fire.trigger
    with store.single() as connection:
        known = executions.id_by_idempotency_key(connection, trigger.workflow_id, _key(fire)) if again else None
        if known is not None:
            return _settle(connection, fire, FireOutcome.STARTED, execution_id=known)
        if trigger.workflow_status is not WorkflowStatus.ACTIVE:
            return _settle(connection, fire, FireOutcome.SKIPPED, f"the workflow is {trigger.workflow_status}")
        known_type = _types(programs).get(trigger.type)
        overlap = "allow" if known_type is None else known_type.overlap(trigger.config)
        if overlap == "allow":
            return _start(connection, store, programs, fire)
    with store.transaction() as connection:
        triggers.hold(connection, trigger.id)
        live = executions.live_of_trigger(connection, trigger.id)
        if live and overlap == "skip":
            return _settle(connection, fire, FireOutcome.SKIPPED, f"execution {live[0]} has not ended")
        if live and overlap == "queue_one":
            return _wait(connection, fire, live[0])
        cancelled = _cancel(store, programs, live)
        return _start(connection, store, programs, fire, cancelled)


def _start(connection: Connection, store: Store, programs: Programs, fire: Fire, plans: tuple[Plan, ...] = ()) -> Fired:
    try:
        started = start_execution(
            store,
            programs,
            fire.trigger.workflow_id,
            fire.input,
            idempotency_key=_key(fire),
            trigger=_seen(fire),
        )
    except Conflict as error:
        return _settle(connection, fire, FireOutcome.SKIPPED, str(error), plans=plans)
    except OrchestratorError as error:
        return _settle(connection, fire, FireOutcome.FAILED, str(error), plans=plans)
    if started.plan is not None:
        plans = (*plans, started.plan)
    return _settle(connection, fire, FireOutcome.STARTED, execution_id=started.execution_id, plans=plans)


def _wait(connection: Connection, fire: Fire, live: str) -> Fired:
    reason = f"it waits for the end of execution {live}"
    if fire.outcome is FireOutcome.QUEUED or triggers.settle(connection, fire.id, FireOutcome.QUEUED, reason=reason):
        return Fired(fire.id, FireOutcome.QUEUED, reason=reason)
    return _settle(connection, fire, FireOutcome.SKIPPED, f"another one waits for the end of execution {live}")


def _cancel(store: Store, programs: Programs, live: Iterable[str]) -> tuple[Plan, ...]:
    plans: list[Plan] = []
    for execution_id in live:
        with suppress(Conflict):  # it has ended meanwhile
            plans += control.cancel(store, programs, execution_id, "its trigger fired again")
    return tuple(plans)


def _settle(
    connection: Connection,
    fire: Fire,
    outcome: FireOutcome,
    reason: str | None = None,
    *,
    execution_id: str | None = None,
    plans: tuple[Plan, ...] = (),
) -> Fired:
    reason = None if reason is None else reason[:_LONGEST_REASON]
    triggers.settle(connection, fire.id, outcome, execution_id=execution_id, reason=reason)
    return Fired(fire.id, outcome, execution_id, reason, plans)


def _seen(fire: Fire) -> dict[str, Json]:
    """What templates see as `trigger`."""
    return {
        "id": fire.trigger.id,
        "type": fire.trigger.type,
        "name": fire.trigger.name,
        "slot": fire.slot,
        "scheduled_for": None if fire.scheduled_for is None else text_of(fire.scheduled_for),
        "payload": fire.payload,
    }


def _key(fire: Fire) -> str:
    return f"trigger:{fire.trigger.id}:{fire.id if fire.slot is None else fire.slot}"


def _short(slot: str) -> str:
    """What comes from outside may be long, and stands in two indexes."""
    if len(slot) <= _LONGEST_SLOT and "\0" not in slot:
        return slot
    return f"sha256:{hashlib.sha256(slot.encode(errors='surrogatepass')).hexdigest()}"


def _types(programs: Programs) -> TriggerCatalogue:
    return load_trigger_types(programs.settings.plugins)


# --- by time -------------------------------------------------------------------------------------------------


def fire_due(store: Store, programs: Programs, trigger_id: str | None = None) -> Iterator[Fired | Look]:
    """Fire what is due (or just `trigger_id`, if it is), at most _BATCH triggers. A crowd of these at once is no
    trouble: each trigger is taken by one of them, and each slot is recorded once."""
    with store.single() as connection:
        seconds = triggers.seconds_to_next_slot(connection)
    if seconds is None or seconds > 0:
        return
    looks: list[Look] = []
    with store.transaction() as connection:
        taken = triggers.claim_due(connection, _BATCH, trigger_id)
        if not taken:
            return
        now = triggers.now(connection)
        fires: list[Fire] = []
        slots: dict[str, datetime | None] = {}
        for trigger in taken:
            due = _due(_types(programs), trigger, now)
            slots[trigger.id] = due.next_slot
            fires += due.fires
            looks += due.looks
        recorded = triggers.record(connection, fires) if fires else []
        triggers.set_next_slots(connection, slots)
    yield from looks
    for fire in recorded:
        if fire.outcome is FireOutcome.PENDING:
            yield _carried_out(store, programs, fire)


@dataclass(frozen=True, slots=True)
class Look:
    """A trigger that a worker is to look at."""

    trigger_id: str


@dataclass(frozen=True, slots=True)
class _Due:
    next_slot: datetime | None
    fires: Sequence[Fire] = ()
    looks: Sequence[Look] = ()


def _due(types: TriggerCatalogue, trigger: Trigger, now: datetime) -> _Due:
    try:
        return _due_of(types, trigger, now)
    except Exception:  # a plugin's type, or one that is not here
        logger.exception("trigger %s, of the type %r, cannot tell what is due", trigger.id, trigger.type)
        return _Due(now + _LATER)


def _due_of(types: TriggerCatalogue, trigger: Trigger, now: datetime) -> _Due:
    known = types[trigger.type]
    timetable = known.timetable(trigger.config, trigger.id)
    if timetable is None:
        return _Due(None)
    upcoming = next_due(timetable, now)
    if known.looks:
        return _Due(upcoming, looks=[Look(trigger.id)])
    return _Due(upcoming, list(_slots_due(known, trigger, timetable, now)))


def next_due(timetable: Timetable, now: datetime) -> datetime | None:
    slot = timetable.next_after(timetable.slot_due_at(now))
    return None if slot is None else timetable.due_at(slot)


def _slots_due(known: TriggerTypeInfo, trigger: Trigger, timetable: Timetable, now: datetime) -> Iterator[Fire]:
    assert trigger.next_slot is not None
    missed = known.missed(trigger.config)
    newest = timetable.newest(
        timetable.slot_due_at(trigger.next_slot), timetable.slot_due_at(now), max(int(GRACE) + 1, missed.limit)
    )
    for slot, reason in _worth_firing(newest, timetable.slot_due_at(now), missed):
        yield slot_fire(known, trigger, slot, reason)


def _worth_firing(slots: Sequence[datetime], now: datetime, missed: Missed) -> Iterator[tuple[datetime, str | None]]:
    """(slot, why it is not fired)."""
    in_time = [slot for slot in slots if (now - slot).total_seconds() <= GRACE]
    late = slots[: len(slots) - len(in_time)]
    if missed.policy == "run_all":
        yield from ((slot, None) for slot in late[-missed.limit :])
    elif late and not in_time:
        reason = f"nothing could fire it for {(now - late[-1]).total_seconds():.0f} seconds, and missed is skip"
        yield late[-1], None if missed.policy == "run_last" else reason
    yield from ((slot, None) for slot in in_time)


def slot_fire(known: TriggerTypeInfo, trigger: Trigger, slot: datetime, reason: str | None = None) -> Fire:
    outcome = FireOutcome.PENDING if reason is None else FireOutcome.SKIPPED
    return Fire(new_id(), trigger, text_of(slot), slot, None, known.input(trigger.config), outcome, reason)


def text_of(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def carry_out_unsettled(store: Store, programs: Programs) -> Iterator[Fired]:
    """Go on with what somebody died over, and with what waited for its turn."""
    with store.single() as connection:
        fires = triggers.to_carry_out(connection, _DIED_AFTER, _BATCH)
    for fire in fires:
        yield _carried_out(store, programs, fire, again=True)


def _carried_out(store: Store, programs: Programs, fire: Fire, *, again: bool = False) -> Fired:
    """The same for one of many: what is odd about it (a plugin's type, say) is not to keep the others from theirs."""
    try:
        return carry_out(store, programs, fire, again=again)
    except DatabaseAway:
        raise
    except Exception as error:
        logger.exception("fire %s of trigger %s could not be carried out", fire.id, fire.trigger.id)
        with store.single() as connection:
            return _settle(connection, fire, FireOutcome.FAILED, f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Filled:
    """`slots`: how many there are in that time; `fired`: those that had started nothing before."""

    slots: int
    fired: list[Fired]


def backfill(store: Store, programs: Programs, trigger: Trigger, first: datetime, last: datetime) -> Filled:
    """Fire each slot from `first` to `last` that has started nothing yet; executions may overlap.

    Raises Conflict if its workflow is not active; InputError if time is not what fires the trigger, or if these are
    more than MAX_BACKFILL slots.
    """
    if trigger.workflow_status is not WorkflowStatus.ACTIVE:
        raise Conflict(
            f"workflow {trigger.workflow_id} is {trigger.workflow_status}, and its triggers start nothing",
            trigger.workflow_status,
        )
    known, timetable = _type_of(programs, trigger), timetable_of(programs, trigger)
    slots: list[datetime] = []
    for slot in timetable.between(first, last):
        if len(slots) == MAX_BACKFILL:
            raise InputError([Problem("to", f"there are more than {MAX_BACKFILL:,} slots until then; take a part")])
        slots.append(slot)
    if not slots:
        return Filled(0, [])
    with store.single() as connection:
        recorded = triggers.record(connection, [slot_fire(known, trigger, slot) for slot in slots], again=True)
    return Filled(len(slots), [_start_overlapping(store, programs, fire) for fire in recorded])


def _start_overlapping(store: Store, programs: Programs, fire: Fire) -> Fired:
    with store.single() as connection:
        if fire.trigger.workflow_status is not WorkflowStatus.ACTIVE:
            return _settle(connection, fire, FireOutcome.SKIPPED, f"the workflow is {fire.trigger.workflow_status}")
        return _start(connection, store, programs, fire)


def timetable_of(programs: Programs, trigger: Trigger) -> Timetable:
    """When the trigger fires. Raises InputError if time is not what fires it."""
    known = _type_of(programs, trigger)
    timetable = known.timetable(trigger.config, trigger.id)
    if timetable is None or known.looks:
        raise InputError([Problem("type", f"a trigger of the type '{trigger.type}' has no slots")])
    return timetable


def _type_of(programs: Programs, trigger: Trigger) -> TriggerTypeInfo:
    """Raises InputError for a type of a plugin that is not here any more."""
    known = _types(programs).get(trigger.type)
    if known is None:
        raise InputError([Problem("type", f"there is no trigger type '{trigger.type}' here; add its plugin")])
    return known


# --- keeping them --------------------------------------------------------------------------------------------


def create(
    connection: Connection,
    types: TriggerCatalogue,
    workflow_id: str,
    *,
    type: str,
    name: str,
    config: Mapping[str, Json],
    is_enabled: bool,
    from_definition: bool = False,
) -> str:
    """Its id. `config` has been found valid. Raises NotFound, Conflict."""
    trigger_id = triggers.insert(
        connection,
        workflow_id,
        type=type,
        name=name,
        config=config,
        is_enabled=is_enabled,
        from_definition=from_definition,
    )
    _plan_ahead(connection, types, trigger_id)
    return trigger_id


def change(connection: Connection, types: TriggerCatalogue, trigger_id: str, changes: Mapping[str, Json]) -> None:
    """Set `name`, `config` (found valid) or `is_enabled`. Slots that passed while it was disabled are not made up for.
    Raises NotFound, Conflict."""
    before = triggers.find(connection, trigger_id)
    if "config" in changes and changes["config"] != before.config:
        changes = {**changes, "state": None}  # what was seen of another config says nothing of this one
    if changes:
        triggers.update(connection, trigger_id, changes)
    said = {"config": before.config, "is_enabled": before.is_enabled}
    if {**said, **{key: value for key, value in changes.items() if key in said}} != said:
        _plan_ahead(connection, types, trigger_id)


def _plan_ahead(connection: Connection, types: TriggerCatalogue, trigger_id: str) -> None:
    trigger = triggers.find(connection, trigger_id)
    known = types.get(trigger.type)
    timetable = None if known is None else known.timetable(trigger.config, trigger.id)
    upcoming = next_due(timetable, triggers.now(connection)) if timetable and trigger.is_enabled else None
    triggers.set_next_slots(connection, {trigger_id: upcoming})


def keep_in_step(
    connection: Connection,
    types: TriggerCatalogue,
    workflow_id: str,
    definition: Mapping[str, Json],
    *,
    enabled: bool = True,
) -> None:
    """Make the triggers that the definition brought those that it has now; others are left alone.

    They are known again by type and name. Whether one is enabled changes only if the definition says; new ones are
    not if not `enabled`. Raises Conflict if a name is taken by one of the others.
    """
    written = written_triggers(definition)
    for trigger in triggers.of_workflow(connection, workflow_id):
        if not trigger.from_definition:
            continue
        found = written.pop((trigger.type, trigger.name), None)
        if found is None:
            triggers.delete(connection, trigger.id)
            continue
        was = {"config": trigger.config, "is_enabled": trigger.is_enabled}
        changes: dict[str, Json] = {key: found[key] for key in was if key in found and found[key] != was[key]}
        if changes:
            change(connection, types, trigger.id, changes)
    for (type, name), found in written.items():
        create(
            connection,
            types,
            workflow_id,
            type=type,
            name=name,
            config=found["config"],
            is_enabled=enabled and found.get("is_enabled", True),
            from_definition=True,
        )


def written_triggers(definition: Mapping[str, Json]) -> dict[tuple[str, str], dict[str, Json]]:
    """The triggers in a valid definition, by type and name; one without a name has its type's, and a number where that
    is taken."""
    written = definition.get("triggers") or []
    taken = {trigger["name"] for trigger in written if trigger.get("name")}
    found: dict[tuple[str, str], dict[str, Json]] = {}
    for trigger in written:
        name, number = trigger.get("name") or trigger["type"], 1
        while not trigger.get("name") and name in taken:
            number += 1
            name = f"{trigger['type']} {number}"
        taken.add(name)
        found[trigger["type"], name] = {**trigger, "config": trigger.get("config") or {}}
    return found
