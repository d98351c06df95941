"""Ring the doorbell, after the commit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import cast

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from orchestrator.engine.plan import Plan
from orchestrator.metrics import BROKER_ERRORS, tally
from workers import canvas
from workers.app import app
from workers.canvas import dispatch
from workers.transport import Channel

logger = logging.getLogger(__name__)

_IN_ONE_TRIP = 200
"""Plans whose messages go to the broker together: some 200 KB."""


def send(plan: Plan | None) -> None:
    """Send a plan's messages. What the broker does not take now, reconcile rings for later."""
    if plan is None:
        return
    try:
        dispatch(plan)
    except (OperationalError, OSError):
        tally.add(BROKER_ERRORS)
        logger.warning("the broker is away; execution %s will be rung for again", plan.execution_id)


def send_all(plans: Sequence[Plan]) -> None:
    """The same for many, in few round trips. With a broker that is away, all of it is left to reconcile."""
    try:
        with app.producer_pool.acquire(block=True) as producer:
            channel = cast(Channel, producer.channel)
            for at in range(0, len(plans), _IN_ONE_TRIP):
                with channel.one_trip():
                    for plan in plans[at : at + _IN_ONE_TRIP]:
                        dispatch(plan, producer)
    except (OperationalError, OSError, RedisError):
        tally.add(BROKER_ERRORS)
        logger.warning("the broker is away; %d executions will be rung for again", len(plans))


def send_trial(id: str, queue: str) -> bool:
    """Have a step tried out; False if the broker does not take the message. Nobody sends it again."""
    try:
        canvas.trial(id, queue).apply_async()
    except (OperationalError, OSError):
        tally.add(BROKER_ERRORS)
        logger.warning("the broker is away; a step cannot be tried out", exc_info=True)
        return False
    return True


def send_look(trigger_id: str) -> None:
    """Have a condition looked at; what the broker does not take is left to the next time that it is due."""
    try:
        canvas.look(trigger_id).apply_async()
    except (OperationalError, OSError):
        tally.add(BROKER_ERRORS)
        logger.warning("the broker is away; nobody looks at trigger %s", trigger_id)


class Doorbell:
    """Sends from a thread of its own, now or a little later, so that a worker goes on with its next step.

    What a dying process had not yet sent is found by reconcile, like any lost message.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], Plan | None]]] = []
        self._order = count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._ring_all, name="doorbell", daemon=True)
        self._thread.start()

    def ring(self, plan: Plan | None) -> None:
        if plan is not None:
            self.ring_later(0.0, lambda: plan)

    def ring_all(self, plans: Iterable[Plan]) -> None:
        for plan in plans:
            self.ring(plan)

    def ring_later(self, seconds: float, plan: Callable[[], Plan | None]) -> None:
        """Ask for the plan, and send it, after `seconds`."""
        with self._changed:
            heappush(self._due, (time.monotonic() + seconds, next(self._order), plan))
            self._changed.notify()

    def close(self) -> None:
        """Send what is left without waiting for its time; for a second at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=1)

    def _ring_all(self) -> None:
        while (plan := self._next()) is not None:
            try:
                send(plan())
            except Exception:  # a plan that cannot be sent must not silence the bell for the others
                logger.exception("a message could not be sent; reconcile will ring")

    def _next(self) -> Callable[[], Plan | None] | None:
        with self._changed:
            while True:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if self._due and (self._closed or (wait is not None and wait <= 0)):
                    return heappop(self._due)[2]
                if self._closed:
                    return None
                self._changed.wait(wait)
