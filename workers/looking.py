"""One look at a condition: perform its probe, evaluate its expression, and start something if it has become true.

    keep what was seen (compare and swap) > fire the edge, whose time is its slot > keep that it has fired

Whoever dies in between leaves an edge that has not fired, which the next look fires; of two looks at the same time the
one that keeps what it saw second has seen nothing.
"""

from __future__ import annotations

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
from orchestrator.store import triggers
from orchestrator.store.triggers import Trigger
from workers import trial

if TYPE_CHECKING:
    from workers.process import WorkerProcess

Json = Any


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the expression is about, and what it says; None if it cannot tell, and then `why`."""

    names: Mapping[str, Json]
    value: bool | None
    why: str = ""


def look(process: WorkerProcess, trigger_id: str) -> None:
    """Look at the condition of a trigger, unless there is nothing to be started by it."""
    trigger = _trigger(process, trigger_id)
    if trigger is None:
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
        now = triggers.now(connection)
    wanted = trigger.type == conditions.TYPE and trigger.is_enabled
    if not wanted or trigger.workflow_status is not WorkflowStatus.ACTIVE:
        return None
    return trigger if conditions.is_worth_a_look(State.of(trigger.state), _interval(trigger), now) else None


def _interval(trigger: Trigger) -> float:
    return parse_duration(trigger.config.get("interval", conditions.INTERVAL))


def _after(before: State, seen: _Seen, now: datetime) -> State:
    if seen.value is None:
        return conditions.unseen(before, seen.why, now)
    return conditions.seen(before, seen.value, now)


def _look(process: WorkerProcess, trigger: Trigger) -> _Seen:
    type, config = conditions.probe(trigger.config)
    probe = Trial(type, config, {}, {"input": {}}, conditions.look_timeout(_interval(trigger)))
    result = trial.performed(process, trigger.id, probe)
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
