"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as the service sends them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is `execution`, `step`, `log`, `end` or `reset`; `id` says where to go on from, and may be without an
    event, whose `kind` is "" then."""

    id: str
    kind: str
    data: dict[str, Any]


def read_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events in a stream that comes in pieces."""
    fields: dict[str, str] = {}
    for line in _lines(chunks):
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields.keys() & {"id", "data"}:
            yield Event(fields.get("id", ""), fields.get("event", ""), json.loads(fields.get("data", "{}")))
            fields = {}


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)
