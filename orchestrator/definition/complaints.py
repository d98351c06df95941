"""marshmallow's errors, in the words and with the paths of a definition."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

from marshmallow import Schema, fields

from orchestrator.definition.bounds import kind
from orchestrator.definition.paths import Key

Complaint = tuple[tuple[Key, ...], str]
"""Where (the keys from the document's root), and what."""

_WORDS = {
    "Not a valid string.": "must be a text, not {kind}",
    "Not a valid mapping type.": "must be a mapping, not {kind}",
    "Invalid input type.": "must be a mapping, not {kind}",
    "Not a valid list.": "must be a list, not {kind}",
    "Not a valid integer.": "must be a whole number, not {kind}",
    "Not a valid number.": "must be a number, not {kind}",
    "Not a valid boolean.": "must be true or false, not {kind}",
    "Field may not be null.": "must not be null",
    "Missing data for required field.": "is missing",
}
UNKNOWN = "unknown key"
"""How a complaint begins about a key that no schema knows."""
_MISSING = object()
_MANY = 200


class Hints:
    """Suggestions for names that are not known. Finding one takes milliseconds among thousands of names, so
    only a document's first unknown names get one."""

    def __init__(self, allowance: int = 100) -> None:
        self.allowance = allowance

    def __call__(self, name: str, known: Collection[Any], otherwise: str = "") -> str:
        """`; did you mean 'x'?`, or `otherwise` when no known name is close."""
        if self.allowance <= 0:
            return otherwise
        self.allowance -= 1
        names: Iterable[str] = map(str, known)
        if len(known) > _MANY:
            alike = (item for item in names if item[:1] == name[:1] and abs(len(item) - len(name)) <= 2)
            names = islice(alike, _MANY)
        close = get_close_matches(name[:128], names, n=1)
        return f"; did you mean '{close[0]}'?" if close else otherwise


def complaints(
    messages: Any,
    value: Any,
    at: tuple[Key, ...],
    hints: Hints,
    schema: Schema | None = None,
) -> Iterator[Complaint]:
    """The errors in `messages` (as ValidationError.messages has them) about `value`, which stands at `at`.

    `schema` is what `value` was checked with.
    """
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            yield from _inner(key, inner, value, at, hints, schema)
    else:
        for message in messages if isinstance(messages, list) else [messages]:
            if isinstance(message, Mapping):  # what a validator says of single items
                yield from complaints(message, value, at, hints, schema)
            else:
                yield at, _worded(str(message), value)


def _inner(
    key: Any, messages: Any, value: Any, at: tuple[Key, ...], hints: Hints, schema: Schema | None
) -> Iterator[Complaint]:
    item = _item(value, key)
    if key == "_schema" or (item is _MISSING and schema is None and key in ("key", "value")):
        # The second is how fields.Dict speaks of an entry that we have already stepped into.
        yield from complaints(messages, value, at, hints, schema)
    elif messages == ["Unknown field."] and schema is not None:
        known = [str(field.data_key or name) for name, field in schema.fields.items()]
        yield (*at, key), UNKNOWN + hints(str(key), known, f"; known are {', '.join(known)}")
    else:
        yield from complaints(messages, item, (*at, key), hints, _schema_of(schema, key))


def _item(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, _MISSING)
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    return _MISSING


def _schema_of(schema: Schema | None, key: Any) -> Schema | None:
    """The schema inside the field `key`; a list's items have their list's."""
    if schema is None or isinstance(key, int):
        return schema
    field = next((field for name, field in schema.fields.items() if (field.data_key or name) == key), None)
    if isinstance(field, fields.List):
        field = field.inner
    return field.schema if isinstance(field, fields.Nested) else None


def _worded(message: str, value: Any) -> str:
    if message == "Unknown field.":
        return UNKNOWN
    words = _WORDS.get(message)
    return words.format(kind=kind(value)) if words else message
