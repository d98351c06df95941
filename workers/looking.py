"""One look for a trigger. At a condition: perform its probe, evaluate its expression, and start something if it has
become true.

    keep what was seen (compare and swap) > fire the edge, whose time is its slot > keep that it has fired

Whoever dies in between leaves an edge that has not fired, which the next look fires; of two looks at the same time the
one that keeps what it saw second has seen nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.definition.durations import parse_duration
from orchestrator.definition.templates import compile_expression, compile_value
from orchestrator.definition.truth import is_true
from orchestrator.engine import conditions
from orchestrator.engine.conditions import State
from orchestrator.engine.triggers import fail, fire
from orchestrator.engine.trying import Trial
from orchestrator.errors import InputError, NotFound, TemplateError
from orchestrator.lifecycle import WorkflowStatus
from orchestrator.plugins import load_trigger_types
from orchestrator.store import triggers
from orchestrator.store.triggers import Trigger
from workers import trial

if TYPE_CHECKING:
    from workers.process import WorkerProcess

logger = logging.getLogger(__name__)

Json = Any


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the expression is about, and what it says; None if it cannot tell, and then `why`."""

    names: Mapping[str, Json]
    value: bool | None
    why: str = ""


def look(process: WorkerProcess, trigger_id: str) -> None:
    """Look for a trigger, unless there is nothing to be started by it."""
    trigger = _trigger(process, trigger_id)
    if trigger is None:
        return
    if trigger.type == conditions.TYPE:
        _look_at_condition(process, trigger)
    else:
        _look_by_its_type(process, trigger)


def _look_by_its_type(process: WorkerProcess, trigger: Trigger) -> None:
    """Fire what it finds, each under its own slot, and only then keep the state: who looks in between, or after us if
    we die, finds the same and starts nothing for it again."""
    known = load_trigger_types(process.settings.plugins)[trigger.type]
    try:
        looked = known.look(trigger.config, trigger.state)
    except Exception:  # the next look begins where this one did
        logger.exception("trigger %s, of the type %r, could not look", trigger.id, trigger.type)
        return
    for found in looked.found:
        try:
            fired = fire(
                process.store, process.programs, trigger, slot=found.slot, payload=found.payload, input=found.input
            )
        except InputError as error:
            fired = fail(process.store, trigger, found.slot, None, str(error))
        process.doorbell.ring_all(fired.plans)
    with process.store.single() as connection:
        triggers.keep_state(connection, trigger.id, trigger.state, looked.state)


def _look_at_condition(process: WorkerProcess, trigger: Trigger) -> None:
    if not _is_worth_a_look(process, trigger):
        return
    seen = _look(process, trigger)
    before = State.of(trigger.state)
    with process.store.single() as connection:
        state = _after(before, seen, triggers.now(connection))
        if not triggers.keep_state(connection, trigger.id, trigger.state, state.as_json()):
            return
    hold = parse_duration(trigger.config.get("for", 0))
    # Where it is false by now, there may still be the edge that somebody died over.
    edge = conditions.due_edge(before if seen.value is False else state, hold)
    if edge is None:
        return
    _fire(process, trigger, edge, {**seen.names, "since": edge, "checked_at": state.checked_at})
    if state.value:
        with process.store.single() as connection:
            triggers.keep_state(connection, trigger.id, state.as_json(), replace(state, fired=True).as_json())


def _trigger(process: WorkerProcess, trigger_id: str) -> Trigger | None:
    with process.store.single() as connection:
        try:
            trigger = triggers.find(connection, trigger_id)
        except NotFound:
            return None
    known = load_trigger_types(process.settings.plugins).get(trigger.type)
    wanted = known is not None and known.looks and trigger.is_enabled
    return trigger if wanted and trigger.workflow_status is WorkflowStatus.ACTIVE else None


def _is_worth_a_look(process: WorkerProcess, trigger: Trigger) -> bool:
    with process.store.single() as connection:
        now = triggers.now(connection)
    return conditions.is_worth_a_look(State.of(trigger.state), _interval(trigger), now)


def _interval(trigger: Trigger) -> float:
    return parse_duration(trigger.config.get("interval", conditions.INTERVAL))


def _after(before: State, seen: _Seen, now: datetime) -> State:
    if seen.value is None:
        return conditions.unseen(before, seen.why, now)
    return conditions.seen(before, seen.value, now)


def _look(process: WorkerProcess, trigger: Trigger) -> _Seen:
    type, config = conditions.probe(trigger.config)
    probe = Trial(type, config, {}, {"input": {}}, conditions.look_timeout(_interval(trigger)))
    result = trial.performed(process, trigger.id, probe, process.secrets.of(trigger.workflow_id))
    names = {"output": result["output"], "error": result["error"]}
    expression = compile_expression(trigger.config["expression"])
    if result["error"] is not None and "error" not in expression.roots:
        return _Seen(names, None, result["error"]["message"])
    try:
        return _Seen(names, is_true(expression.render(names)))
    except TemplateError as error:
        return _Seen(names, None, str(error))


def _fire(process: WorkerProcess, trigger: Trigger, edge: str, payload: Mapping[str, Json]) -> None:
    mapping = trigger.config.get("mapping")
    try:
        given = payload if mapping is None else compile_value(dict(mapping)).render(payload)
        fired = fire(process.store, process.programs, trigger, slot=edge, payload=payload, input=given)
    except (TemplateError, InputError) as error:
        fail(process.store, trigger, edge, None, str(error))
        return
    process.doorbell.ring_all(fired.plans)
