"""Events: which triggers one is for, and starting what these start."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator.definition.templates import compile_expression, compile_value
from orchestrator.definition.truth import is_true
from orchestrator.engine.cloudevents import Event
from orchestrator.engine.programs import Programs
from orchestrator.engine.triggers import Fired, fail, fire
from orchestrator.errors import InputError, TemplateError
from orchestrator.store import Store, triggers
from orchestrator.store.triggers import Trigger

Json = Any

TYPE = "event"
"""The trigger type that these functions serve."""
NAMES = frozenset(("event",))
"""What its filter and the templates of its mapping start from."""
WILDCARD = "*"
_PATTERNS = ("type", "source", "subject")


@dataclass(frozen=True, slots=True)
class Received:
    """What an event did with one of the triggers that it is for; the plans of the fire are to be dispatched."""

    event: Event
    trigger: Trigger
    fired: Fired


def receive(
    store: Store, programs: Programs, events: Sequence[Event], projects: Collection[str] | None = None
) -> Iterator[Received]:
    """Fire the triggers of each event, in the order of the events; in `projects` alone if these are given. What was
    received before fires nothing again, so that whoever dies half-way may begin anew."""
    with store.single() as connection:
        exact, patterns = triggers.for_events(connection, sorted({event["type"] for event in events}), projects)
    for event in events:
        for trigger in (*exact.get(event["type"], ()), *patterns):
            fired = _fired(store, programs, trigger, event)
            if fired is not None:
                yield Received(event, trigger, fired)


def _fired(store: Store, programs: Programs, trigger: Trigger, event: Event) -> Fired | None:
    try:
        if not matches(trigger.config, event):
            return None
        given = execution_input(trigger.config, event)
        return fire(store, programs, trigger, slot=slot(event), payload=event, input=given)
    except (TemplateError, InputError) as error:
        return fail(store, trigger, slot(event), event, str(error))


def matches(config: Mapping[str, Any], event: Event) -> bool:
    """Whether an event is for a trigger with this config. Raises TemplateError if its filter cannot tell."""
    for name in _PATTERNS:
        pattern = config.get(name)
        if pattern is not None and not _pattern(pattern).fullmatch(str(event.get(name, ""))):
            return False
    written = config.get("filter")
    return written is None or is_true(compile_expression(written).render({"event": event}))


def slot(event: Event) -> str:
    """What an event is one of a kind by: its source and id, which by the standard no other event has together."""
    # There is no white space in a source, so that no other pair makes the same text.
    return f"{event['source']} {event['id']}"


def execution_input(config: Mapping[str, Any], event: Event) -> Json:
    """The input of the execution: the `mapping`; without one `{"event": ...}`. Raises TemplateError."""
    mapping = config.get("mapping")
    return {"event": event} if mapping is None else compile_value(dict(mapping)).render({"event": event})


@lru_cache(maxsize=1024)
def _pattern(written: str) -> re.Pattern[str]:
    """`*` stands for any text, or none; everything else for itself."""
    return re.compile(".*".join(re.escape(part) for part in written.split(WILDCARD)), re.DOTALL)
