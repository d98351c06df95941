"""Ring the doorbell, after the commit."""

from __future__ import annotations

import logging

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
