"""Events from a Redis stream that others write. An entry is acknowledged once its fires are committed: it is taken at
least once, and by the slot of its fires it starts each thing once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis

from orchestrator.config import Settings
from orchestrator.engine.cloudevents import Event, NoEvent, from_fields
from orchestrator.engine.start import check_payload
from orchestrator.errors import InputError
from workers.app import app

logger = logging.getLogger(__name__)

_BLOCK = 1.0
"""Seconds that a read waits for entries: how long a stop may take."""
_BATCH = 100
_CLAIM_EVERY = 15.0
_ABANDONED_AFTER = 60.0
"""Seconds after which an entry that another consumer has not acknowledged is taken over."""
_KEPT_REJECTED = 1_000
_PAUSE = 1.0

Entry = tuple[str, Mapping[str, str]]


class EventStream:
    """A thread that reads the stream as one consumer of the group; any number may. `take` commits the fires of some
    events, and raises if it could not: then they are read again."""

    def __init__(self, settings: Settings, consumer: str, take: Callable[[Sequence[Event]], None]) -> None:
        self._stream = settings.events.stream
        self._group = settings.events.group
        self._max_event = settings.executor.max_payload
        self._consumer = consumer
        self._take = take
        self._own_first = True
        """Whether entries may be left that this consumer was given and did not acknowledge."""
        self._claim_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, name="events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * _BLOCK)

    @property
    def _redis(self) -> Any:
        backend: Any = app.backend
        return backend.client

    def _read_on(self) -> None:
        while not self._stop.is_set():
            try:
                self._round()
            except redis.ResponseError as error:
                self._recover(error)
            except Exception:  # the broker or the database is away: what was not acknowledged is read again
                logger.warning("events could not be taken from the stream %r", self._stream, exc_info=True)
                self._own_first = True
                self._stop.wait(_PAUSE)

    def _round(self) -> None:
        if self._own_first:
            self._own_first = bool(self._process(self._read("0")))
        elif time.monotonic() >= self._claim_at:
            self._take_over()
        else:
            self._process(self._read(">"))

    def _recover(self, error: redis.ResponseError) -> None:
        """The group is not there at first, nor after the server has lost its data."""
        if not str(error).startswith("NOGROUP"):
            logger.error("the stream %r cannot be read: %s", self._stream, error)
            self._stop.wait(_PAUSE)
            return
        try:
            self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except redis.RedisError as problem:
            if not str(problem).startswith("BUSYGROUP"):
                logger.warning("the group %r cannot be made: %s", self._group, problem)
                self._stop.wait(_PAUSE)

    def _read(self, since: str) -> list[Entry]:
        """`>`: what nobody was given; `0`: what this consumer was given and did not acknowledge."""
        block = int(_BLOCK * 1000) if since == ">" else None
        read = self._redis.xreadgroup(self._group, self._consumer, {self._stream: since}, count=_BATCH, block=block)
        streams = read.items() if isinstance(read, dict) else read or []
        return [entry for _, entries in streams for entry in _entries(entries)]

    def _take_over(self) -> None:
        """What consumers were given that are not there any more; what is left after one batch has time until soon."""
        claimed = self._redis.xautoclaim(
            self._stream, self._group, self._consumer, int(_ABANDONED_AFTER * 1000), "0", count=_BATCH
        )
        entries = _entries(claimed[1])
        self._process(entries)
        if len(entries) < _BATCH:
            self._claim_at = time.monotonic() + _CLAIM_EVERY

    def _process(self, entries: Sequence[Entry]) -> int:
        events: list[Event] = []
        for id, fields in entries:
            if not fields:
                continue  # it was deleted from the stream before it was read
            try:
                found = from_fields(fields, id, self._stream)
                for event in found:
                    check_payload(event, self._max_event, "event")
                events += found
            except (NoEvent, InputError) as error:
                self._reject(id, fields, str(error))
        if events:
            self._take(events)
        if entries:
            self._redis.xack(self._stream, self._group, *[id for id, _ in entries])
        return len(entries)

    def _reject(self, id: str, fields: Mapping[str, str], why: str) -> None:
        """What will never be an event is put aside, for whoever wrote it."""
        logger.warning("the entry %s of the stream %r is no event: %s", id, self._stream, why)
        given: Any = {**fields, "rejected_id": id, "rejected_because": why}
        self._redis.xadd(f"{self._stream}:rejected", given, maxlen=_KEPT_REJECTED, approximate=True)


def _entries(read: Any) -> list[Entry]:
    """Entries as texts; one that was deleted from the stream has no fields."""
    return [(_text(id), {_text(name): _text(value) for name, value in (fields or {}).items()}) for id, fields in read]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
