"""How a listener is told: as server-sent events, or log lines as text or newline-delimited JSON."""

from __future__ import annotations

from datetime import UTC
from typing import Any, Protocol

import orjson

from orchestrator.store.feed import End, Entry

RECONNECT = 1000
"""Milliseconds after which a browser comes back to a stream that has been cut off."""


class Format(Protocol):
    media_type: str
    opening: bytes

    def entry(self, entry: Entry) -> bytes: ...

    def heartbeat(self, seq: int | None) -> bytes:
        """Told when there is nothing else. `seq`: up to here there was nothing for this listener."""

    def end(self, end: End) -> bytes:
        """The execution has ended, and so does the stream."""

    def gap(self) -> bytes:
        """The listener's place is too far back to be told all since: they begin anew."""


class EventStream:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html: an event's id is the entry's number."""

    media_type = "text/event-stream"
    opening = b"retry: %d\n\n" % RECONNECT

    def entry(self, entry: Entry) -> bytes:
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, entry.kind.encode(), _json(_data(entry)))

    def heartbeat(self, seq: int | None) -> bytes:
        # An id without data moves the place from which a client resumes, and is no event.
        return b": heartbeat\n\n" if seq is None else b": heartbeat\nid: %d\n\n" % seq

    def end(self, end: End) -> bytes:
        data = _json({"execution_id": end.execution_id, "status": end.status})
        return b"id: %d\nevent: end\ndata: %s\n\n" % (end.seq, data)

    def gap(self) -> bytes:
        reason = "too much has happened since Last-Event-ID; read anew what you need: this goes on from now"
        return b"event: reset\ndata: %s\n\n" % _json({"reason": reason})


class _Lines:
    """Nothing but log lines."""

    opening = b""

    def heartbeat(self, seq: int | None) -> bytes:  # noqa: ARG002
        return b""

    def end(self, end: End) -> bytes:  # noqa: ARG002
        return b""

    def gap(self) -> bytes:
        return b""


class NdJson(_Lines):
    media_type = "application/x-ndjson"

    def entry(self, entry: Entry) -> bytes:
        return _json(_data(entry)) + b"\n"


class Text(_Lines):
    media_type = "text/plain"

    def entry(self, entry: Entry) -> bytes:
        assert entry.at is not None, "only of a state may the time not be known"
        moment = entry.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return f"{moment} {entry.level:<7} {entry.path or entry.step_id}: {entry.message}\n".encode()


EVENT_STREAM, NDJSON, TEXT = EventStream(), NdJson(), Text()


def _data(entry: Entry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "seq": entry.seq,
        "execution_id": entry.execution_id,
        "workflow_id": entry.workflow_id,
    }
    if entry.step_execution_id is not None:
        data |= {
            "step_execution_id": entry.step_execution_id,
            "step_id": entry.step_id,
            "path": entry.path,
            "attempt": entry.attempt,
        }
    if entry.level is not None:
        data |= {"level": entry.level, "message": entry.message}
    else:
        data |= {"status": entry.status, "error_message": entry.message}
    data["at"] = entry.at
    return data


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)
