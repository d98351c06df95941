"""What differs between two definitions, by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.definition.paths import Key, join

Json = Any


class Kind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    MOVED = "moved"
    """The same things in another order."""


@dataclass(frozen=True, slots=True)
class Change:
    """`old` is None for what was added, `new` for what was removed; of what moved they are the names in their order.

    In `path` a step stands by its id and a trigger by its name, wherever they stand in their lists:
    `steps.fetch.config.url`.
    """

    kind: Kind
    path: str
    old: Json
    new: Json


_MISSING = object()
_NAMES = ("id", "name")
"""What tells the members of a list apart, if all have it and no two share it."""


def changes(old: Json, new: Json, path: str = "") -> Iterator[Change]:
    """In document order, none if the two are equal, and then only: the order of an object's keys says nothing, that of
    a list does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _of_members(old, new, path)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _of_lists(old, new, path)
    elif type(old) is not type(new) or old != new:
        yield Change(Kind.CHANGED, path, old, new)


def _of_lists(old: Sequence[Json], new: Sequence[Json], path: str) -> Iterator[Change]:
    names = next((name for name in _NAMES if _names(old, name) and _names(new, name)), None)
    if names is None:
        yield from _of_members(dict(enumerate(old)), dict(enumerate(new)), path)
        return
    was, now = ({member[names]: member for member in members} for members in (old, new))
    order, reordered = [key for key in was if key in now], [key for key in now if key in was]
    if order != reordered:
        yield Change(Kind.MOVED, path, order, reordered)
    yield from _of_members(was, now, path)


def _names(members: Sequence[Json], name: str) -> bool:
    found = [member.get(name) if isinstance(member, Mapping) else None for member in members]
    return all(isinstance(one, str) for one in found) and len(set(found)) == len(found)


def _of_members(old: Mapping[Key, Json], new: Mapping[Key, Json], path: str) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        was, now, where = old.get(key, _MISSING), new.get(key, _MISSING), join(path, key)
        if now is _MISSING:
            yield Change(Kind.REMOVED, where, was, None)
        elif was is _MISSING:
            yield Change(Kind.ADDED, where, None, now)
        else:
            yield from changes(was, now, where)
