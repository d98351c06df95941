"""The broker's transport, which gives back what it can and keeps its client; and the connection, which is soon there
again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
from kombu.transport import redis
from kombu.utils.json import dumps

logger = logging.getLogger(__name__)

GOES_FIRST = "goes_first"
"""The header of a message that is put before all that waits at its priority."""

_TRY_EVERY = 1.0
"""Seconds between attempts to reach a broker that is away."""


class Channel(redis.Channel):
    """A channel that gives back to the broker what it can of the messages that are not done, that sends with one
    client, and that has some messages go first.

    A channel whose connection is lost has messages that it cannot give back: kombu would read the address of the broker
    from a connection that is None, and write what it could not restore to a file for somebody to look into. Reconcile
    looks: what is given up here is rung for again.
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

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        """Lists are read from the right; kombu puts everything in at the left."""
        if not message["headers"].get(GOES_FIRST):
            super()._put(queue, message, **kwargs)
            return
        priority = self._get_message_priority(message, reverse=False)
        key = self._q_for_pri(queue, priority)  # type: ignore[attr-defined]
        with self.conn_or_acquire() as client:
            client.rpush(key, dumps(message))

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        if self.connection is None or self.connection.client is None:
            return
        try:
            super()._restore(message, leftmost)  # type: ignore[call-arg]
        except self.connection.connection_errors:
            logger.info("a message could not be given back to the broker; reconcile rings again", exc_info=True)


class Transport(redis.Transport):
    Channel = Channel


class Connection(kombu.Connection):
    """What a worker waits with for a broker that is away. Kombu waits two seconds longer each time, up to half a
    minute: after an outage the broker would be back for that long before anybody works."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        steadily = {"interval_start": _TRY_EVERY, "interval_step": 0, "interval_max": _TRY_EVERY}
        return super().ensure_connection(*args, **{**steadily, **kwargs})
