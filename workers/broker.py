"""What the broker holds, for those who look at it and send nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.engine.overview import Beat, BrokerState
from workers.app import PRIORITY_STEPS, QUEUES, app

_PATIENCE = 2.0
"""Seconds for the connection, and for an answer: an operator who asks what is wrong is to be told."""


def look(queues: Sequence[str]) -> BrokerState:
    """The messages of `queues`, and of those that every deployment has, and who holds RedBeat's lock. The connection
    is made for the one look, with a patience of its own. Raises OSError if the broker is away.
    """
    backend: Any = app.backend
    quick = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE, "retry": Retry(NoBackoff(), 0)}
    client = backend._create_client(**{**backend.connparams, **quick})
    try:
        return BrokerState(count_messages(client, {*QUEUES, *queues}), _beat(client))
    except redis.RedisError as error:
        raise OSError(str(error)) from error
    finally:
        client.close()
        client.connection_pool.disconnect()


def count_messages(client: Any, queues: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Of each queue its messages by priority, the most urgent ones first. A queue is a list for each priority; a
    message that was taken and not acknowledged is in none."""
    separator = app.conf.broker_transport_options["sep"]
    names = list(queues)
    pipeline = client.pipeline(transaction=False)
    for queue in names:
        for step in PRIORITY_STEPS:
            pipeline.llen(f"{queue}{separator}{step}" if step else queue)
    counts = iter(pipeline.execute())
    return {queue: tuple(next(counts) for _ in PRIORITY_STEPS) for queue in names}


def _beat(client: Any) -> Beat | None:
    """The lock holds a random word of whoever is the one clock at present."""
    from redbeat.schedulers import RedBeatConfig

    key = RedBeatConfig(app).lock_key
    holder, ttl = client.get(key), client.pttl(key)
    return None if holder is None else Beat(holder.decode(errors="replace"), max(ttl, 0) / 1000)
