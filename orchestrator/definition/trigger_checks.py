"""Whether triggers are valid, written in a definition or given by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from marshmallow import ValidationError

from orchestrator.definition import paths
from orchestrator.definition.complaints import Complaint, Hints, complaints
from orchestrator.definition.paths import Key
from orchestrator.plugins import TriggerCatalogue

Keys = tuple[Key, ...]


def check_triggers(triggers: Any, types: TriggerCatalogue, hints: Hints) -> Iterator[Complaint]:
    """What is wrong with a definition's `triggers`, apart from their shape."""
    names: dict[str, Keys] = {}
    for index, trigger in enumerate(triggers if isinstance(triggers, list) else ()):
        if not isinstance(trigger, Mapping):
            continue
        at: Keys = ("triggers", index)
        name = trigger.get("name")
        if isinstance(name, str) and name and names.setdefault(name, at) != at:
            first = paths.join_all(names[name])
            yield (*at, "name"), f"the name '{name}' is taken by {first}; give one of them another"
        if isinstance(trigger.get("type"), str):
            yield from check_trigger(trigger["type"], trigger.get("config"), at, types, hints)


def check_trigger(type: str, config: Any, at: Keys, types: TriggerCatalogue, hints: Hints) -> Iterator[Complaint]:
    """What is wrong with the `type` and the `config` of a trigger that stands at `at`."""
    known = types.get(type)
    if known is None:
        hint = hints(type, types, f"; known are {', '.join(sorted(types))}")
        yield (*at, "type"), f"there is no trigger type '{type}'{hint}"
        return
    config = {} if config is None else config
    if not isinstance(config, Mapping):
        return  # the shape's complaint
    schema = known.Config()
    at = (*at, "config")
    try:
        schema.load(config)
    except ValidationError as error:
        yield from complaints(error.messages, config, at, hints, schema)
        return
    try:
        wrong = list(known.check(config))
    except Exception as error:  # noqa: BLE001  (a plugin's check may not expect everything)
        wrong = [("", f"the type '{type}' could not check this: {error.__class__.__name__}: {error}")]
    for path, message in wrong:
        yield (*at, *paths.split(path)), message
