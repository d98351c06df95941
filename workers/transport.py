"""The broker's transport, which knows of one more way to lose a connection, and keeps its client; and the connection,
which is soon there again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
from kombu.transport import redis

_TRY_EVERY = 1.0
"""Seconds between attempts to reach a broker that is away."""


class Channel(redis.Channel):
    """A channel that says so when its connection is gone, and that sends with one client.

    A task that outlives the connection its message came by is acknowledged on the old channel, and a channel
    that could not be closed along with its connection restores its messages later. Kombu then reads the address
    of the broker from a connection that is None: an AttributeError, which nobody takes for a lost connection, in
    the worker's event loop. It would end the consumer. Nothing is lost by giving up here: the message has gone
    with the broker, or is delivered again and finds its claims taken.
    """

    _sender: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Kombu makes a client for each message, which takes longer than sending it. (One that consumes is kept
        already: it has a connection of its own.)"""
        if asynchronous:
            return super()._create_client(asynchronous)  # type: ignore[misc]
        if self._sender is None or self._sender.connection_pool is not self.pool:
            self._sender = super()._create_client()  # type: ignore[misc]
        return self._sender

    @contextmanager
    def one_trip(self) -> Iterator[None]:
        """What is sent within goes to the broker at its end, all of it in one round trip. Raises redis.RedisError."""
        client = self._create_client()
        self._sender = client.pipeline(transaction=False)
        try:
            yield
            self._sender.execute()
        finally:
            self._sender = client

    def _get_pool(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection of this channel was closed")
        return super()._get_pool(asynchronous)  # type: ignore[misc]  # kombu's stubs leave it out


class Transport(redis.Transport):
    Channel = Channel


class Connection(kombu.Connection):
    """What a worker waits with for a broker that is away. Kombu waits two seconds longer each time, up to half a
    minute: after an outage the broker would be back for that long before anybody works."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        steadily = {"interval_start": _TRY_EVERY, "interval_step": 0, "interval_max": _TRY_EVERY}
        return super().ensure_connection(*args, **{**steadily, **kwargs})
