"""Ring the doorbell, after the commit."""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue

from kombu.exceptions import OperationalError

from orchestrator.engine.plan import Plan
from workers.canvas import dispatch

logger = logging.getLogger(__name__)


def send(plan: Plan | None) -> None:
    """Send a plan's messages. What the broker does not take now, reconcile rings for later."""
    if plan is None:
        return
    try:
        dispatch(plan)
    except (OperationalError, OSError):
        logger.warning("the broker is away; execution %s will be rung for again", plan.execution_id)


class Doorbell:
    """Sends from a thread of its own, so that a worker goes on with its next step meanwhile.

    What a dying process had not yet sent is found by reconcile, like any lost message.
    """

    def __init__(self) -> None:
        self._plans: SimpleQueue[Plan | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="doorbell", daemon=True)
        self._thread.start()

    def ring(self, plan: Plan | None) -> None:
        if plan is not None:
            self._plans.put(plan)

    def close(self) -> None:
        """Send what is left, for a second at most."""
        self._plans.put(None)
        self._thread.join(timeout=1)

    def _send_all(self) -> None:
        while (plan := self._plans.get()) is not None:
            try:
                send(plan)
            except Exception:  # a plan that cannot be sent must not silence the bell for the others
                logger.exception("execution %s could not be rung for", plan.execution_id)
