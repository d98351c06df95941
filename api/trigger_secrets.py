"""Secrets in the configs of triggers: shown to nobody, and kept where what was shown comes back.

A trigger stands for itself or in a definition; either way `MASK` is shown in the place of a secret, and where a caller
sends the mask, it means the secret that was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flask import g

from api.service import service
from orchestrator.definition.changes import Change, changes
from orchestrator.definition.paths import Key, join_all
from orchestrator.errors import InputError, Problem
from orchestrator.masking import MASK

Definition = Mapping[str, Any]


def masked(trigger: Mapping[str, Any]) -> dict[str, Any]:
    """A trigger without the secrets in its `config`, if it has one."""
    return _hidden(trigger, lambda _: MASK)


def masked_definition(definition: Definition) -> dict[str, Any]:
    return _with_triggers(definition, masked)


def masked_fields(trigger: Mapping[str, Any]) -> Iterator[list[str]]:
    """Where a trigger has the mask for a secret."""
    return (keys for keys in _secret_fields(trigger.get("type")) if _at(trigger.get("config"), keys) == MASK)


def unmasked(trigger: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """`trigger` with the secrets of `before` where it has the mask, which stays where that has none."""
    config = trigger.get("config")
    for keys in masked_fields(trigger):
        known = _at((before or {}).get("config"), keys)
        if known is not None:
            config = _with(config, keys, known)
    return dict(trigger) if config is None else {**trigger, "config": config}


def unmasked_definition(definition: Definition, before: Definition) -> dict[str, Any]:
    """The same for the triggers of definitions, of which the new one need not be valid. They are known again by type
    and name; those without a name by their order."""
    known = dict(_identified(before))
    found = iter([unmasked(trigger, known.get(identity)) for identity, trigger in _identified(definition)])
    return _with_triggers(definition, lambda _: next(found))


def places_of_masks(definition: Any, at: tuple[Key, ...] = ()) -> Iterator[tuple[Key, ...]]:
    """Where a definition, which stands at `at` and need not be valid, has the mask for a secret."""
    for number, trigger in enumerate(_triggers(definition)):
        if isinstance(trigger, Mapping):
            for keys in masked_fields(trigger):
                yield *at, "triggers", number, "config", *keys


def refuse_masks(places: Iterable[tuple[Key, ...]]) -> None:
    """Raises InputError, with the lines of a YAML body, if there are any."""
    found = [join_all(keys) for keys in places]
    if found:
        raise InputError([Problem(path, NOT_A_SECRET, g.document.line_of(path)) for path in found])


NOT_A_SECRET = f"is {MASK}, which is shown in the place of a secret and is none; write the secret out, or leave it out"


def masked_changes(old: Definition, new: Definition) -> list[Change]:
    """What differs between two definitions: that a secret does, and not what it is."""
    return [
        Change(change.kind, change.path, _shown(change.old), _shown(change.new))
        for change in changes(_with_triggers(old, _compared), _with_triggers(new, _compared))
    ]


@dataclass(frozen=True, slots=True)
class _Secret:
    value: Any


def _compared(trigger: Mapping[str, Any]) -> dict[str, Any]:
    return _hidden(trigger, _Secret)


def _shown(value: Any) -> Any:
    if isinstance(value, _Secret):
        return MASK
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value


def _hidden(trigger: Mapping[str, Any], hide: Callable[[Any], Any]) -> dict[str, Any]:
    config = trigger.get("config")
    for keys in _secret_fields(trigger.get("type")):
        secret = _at(config, keys)
        if secret is not None:
            config = _with(config, keys, hide(secret))
    return {**trigger, "config": config} if config else dict(trigger)


def _triggers(definition: Any) -> list[Any]:
    written = definition.get("triggers") if isinstance(definition, Mapping) else None
    return written if isinstance(written, list) else []


def _with_triggers(definition: Definition, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    written = _triggers(definition)
    if not written:
        return dict(definition)
    return {**definition, "triggers": [change(one) if isinstance(one, Mapping) else one for one in written]}


def _identified(definition: Definition) -> Iterator[tuple[tuple[str, str, int], Mapping[str, Any]]]:
    """The triggers, each with its type, its name, and the how manieth of that it is."""
    seen: dict[tuple[str, str], int] = {}
    for trigger in _triggers(definition):
        if isinstance(trigger, Mapping):
            words = str(trigger.get("type")), str(trigger.get("name") or "")
            seen[words] = seen.get(words, -1) + 1
            yield (*words, seen[words]), trigger


def _secret_fields(type: object) -> list[list[str]]:
    known = service().trigger_types.get(type) if isinstance(type, str) else None
    return [] if known is None else [field.split(".") for field in known.secret_fields]


def _at(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _with(config: Any, keys: list[str], value: Any) -> dict[str, Any]:
    first, *rest = keys
    return {**config, first: _with(config[first], rest, value) if rest else value}
