"""`approval`: somebody decides, through the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from orchestrator.errors import StepFailed, StepTimeout
from workers.steps.contract import Done, QueueClass, StepContext, StepType, Wait
from workers.steps.fields import Duration

_DECISIONS = ["approve", "reject"]


class Approval(StepType):
    """Waits for POST /step-executions/{id}/decision: `{"approved": true, "comment": ..., "by": ...}`. After
    `timeout` the `default` counts; without one the step fails.

    Output: `approved`, `comment`, `by`, `decided_at`. A rejection fails the step with kind `rejected`, unless
    `on_reject: continue`.
    """

    type: ClassVar[str] = "approval"
    queue: ClassVar[QueueClass] = "control"

    class Config(Schema):
        message = fields.String()
        timeout = Duration()
        default = fields.String(validate=validate.OneOf(_DECISIONS))
        on_reject = fields.String(load_default="fail", validate=validate.OneOf(["fail", "continue"]))

    def perform(self, context: StepContext) -> Done | Wait:
        decision = (context.state or {}).get("decision")
        if decision is None:
            decision = _by_default(context)
        if isinstance(decision, Wait):
            return decision
        if not decision["approved"] and context.config["on_reject"] == "fail":
            comment = f": {decision['comment']}" if decision["comment"] else ""
            raise StepFailed(
                f"rejected by {decision['by'] or 'nobody named'}{comment}",
                kind="rejected",
                retryable=False,
                output=decision,
            )
        return Done(decision)


def _by_default(context: StepContext) -> dict[str, Any] | Wait:
    """Nobody has decided yet."""
    now = datetime.now(UTC)
    if context.state is None:
        seconds = context.config.get("timeout")
        until = None if seconds is None else now + timedelta(seconds=seconds)
        return Wait(until, {"until": until.isoformat() if until else None}, awaits="decision")
    until = context.state["until"] and datetime.fromisoformat(context.state["until"])
    if until is None or until > now:
        return Wait(until, context.state, awaits="decision")
    default = context.config.get("default")
    if default is None:
        raise StepTimeout("nobody decided in time, and there is no default")
    return {
        "approved": default == "approve",
        "comment": "nobody decided in time",
        "by": None,
        "decided_at": now.isoformat(),
    }
