"""Events: CloudEvents that are sent, and server-sent events
(https://html.spec.whatwg.org/multipage/server-sent-events.html) as the service tells what happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.client.shapes import EventFired

if TYPE_CHECKING:
    from orchestrator.client.transport import Transport

_ROOT = "/api/v1/events"
_BATCH = "application/cloudevents-batch+json"


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is `execution`, `step`, `log`, `end` or `reset`; `id` says where to go on from, and may be without an
    event, whose `kind` is "" then."""

    id: str
    kind: str
    data: dict[str, Any]


class Events:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def send(self, *events: Mapping[str, Any]) -> list[EventFired]:
        """What up to 1,000 CloudEvents fired, each with `id`, `source` and `type`. One that is sent again, by its
        source and id, starts nothing, so this call may be repeated."""
        body = [{"specversion": "1.0", **event} for event in events]
        answer = self._api.send("POST", _ROOT, body, headers={"Content-Type": _BATCH}, repeated=True)
        fired: list[EventFired] = json.loads(answer)["fired"]
        return fired

    def follow(
        self,
        *,
        kinds: Iterable[str] = ("execution", "step"),
        workflow_id: str | None = None,
        after: str | None = None,
    ) -> Iterator[Event]:
        """What becomes of all executions that the key may see, from now on or after the event with the id `after`; a
        `reset` event says that this was too long ago, and that it goes on from now. Kinds: `execution`, `step`, `log`.
        """
        query = {"kinds": ",".join(kinds), "workflow_id": workflow_id}
        return self._api.events(f"{_ROOT}/stream", after=after, **query)


def read_events(chunks: Iterable[bytes]) -> Iterator[list[Event]]:
    """Of a stream that comes in pieces, the events that are whole with each piece; of a heartbeat there may be none."""
    fields: dict[str, str] = {}
    for lines in _lines(chunks):
        told = []
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            elif fields.keys() & {"id", "data"}:
                told.append(Event(fields.get("id", ""), fields.get("event", ""), json.loads(fields.get("data", "{}"))))
                fields = {}
        yield told


def _lines(chunks: Iterable[bytes]) -> Iterator[list[str]]:
    """Those that are whole with each piece."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield [line.decode() for line in lines]
