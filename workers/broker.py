"""What the broker holds, for those who look at it and send nothing."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.engine.overview import Beat, BrokerState
from orchestrator.engine.reconcile import Listed
from workers.app import PRIORITY_STEPS, QUEUES, app
from workers.canvas import RUN_STEPS

_PATIENCE = 2.0
"""Seconds for the connection, and for an answer: an operator who asks what is wrong is to be told, and reconcile has
other things to do."""
_CHUNK = 1_000
"""Messages read at a time: about a megabyte."""


class Broker:
    """The server itself, over a connection with a patience of its own. Every method raises OSError if it is away."""

    def __init__(self) -> None:
        backend: Any = app.backend
        quick = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE, "retry": Retry(NoBackoff(), 0)}
        self._client = backend._create_client(**{**backend.connparams, **quick})

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()

    def state(self, queues: Iterable[str]) -> BrokerState:
        """The messages of `queues`, and who holds RedBeat's lock."""
        with _as_os_errors():
            return BrokerState(self._count(queues), _beat(self._client))

    def listed(self, queue: str, most: int | None) -> Listed:
        """The steps that the messages in `queue` are for: of each priority the `most` oldest messages (None: all)."""
        with _as_os_errors():
            lengths = self._count([queue])[queue]
            keys = [key for key, length in zip(_lists(queue), lengths, strict=True) if length]
            messages = chain.from_iterable(self._oldest(key, most) if most else self._all(key) for key in keys)
            return Listed(frozenset(chain.from_iterable(map(_steps, messages))), not most or max(lengths) <= most)

    def _count(self, queues: Iterable[str]) -> dict[str, tuple[int, ...]]:
        names = list(queues)
        pipeline = self._client.pipeline(transaction=False)
        for key in chain.from_iterable(map(_lists, names)):
            pipeline.llen(key)
        counts = iter(pipeline.execute())
        return {queue: tuple(next(counts) for _ in PRIORITY_STEPS) for queue in names}

    def _oldest(self, key: str, most: int) -> list[bytes]:
        messages: list[bytes] = self._client.lrange(key, -most, -1)  # they are put in at the left
        return messages

    def _all(self, key: str) -> Iterator[bytes]:
        """From the newest on: what is sent meanwhile has some of them read twice, and none left out."""
        for start in count(0, _CHUNK):
            chunk = self._client.lrange(key, start, start + _CHUNK - 1)
            yield from chunk
            if len(chunk) < _CHUNK:
                return


def look(queues: Sequence[str]) -> BrokerState:
    """The messages of `queues`, and of those that every deployment has, and who holds RedBeat's lock. Raises OSError
    if the broker is away."""
    broker = Broker()
    try:
        return broker.state({*QUEUES, *queues})
    finally:
        broker.close()


def _lists(queue: str) -> list[str]:
    """The keys of a queue: a list for each priority, the most urgent first. A message that was taken is in none."""
    separator = app.conf.broker_transport_options["sep"]
    return [f"{queue}{separator}{step}" if step else queue for step in PRIORITY_STEPS]


def _steps(message: bytes) -> list[tuple[str, str]]:
    """(execution id, path) of the steps that a message is for; none if that is not what it is about."""
    envelope = json.loads(message)
    if envelope["headers"].get("task") != RUN_STEPS:
        return []
    (execution_id, starts, *_), _, _ = json.loads(b64decode(envelope["body"]))
    return [(execution_id, start) for start in starts]


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise OSError(str(error)) from error


def _beat(client: Any) -> Beat | None:
    """The lock holds a random word of whoever is the one clock at present."""
    from redbeat.schedulers import RedBeatConfig

    key = RedBeatConfig(app).lock_key
    holder, ttl = client.get(key), client.pttl(key)
    return None if holder is None else Beat(holder.decode(errors="replace"), max(ttl, 0) / 1000)
