"""`signal`: waits for a named message to this execution."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import ClassVar

from marshmallow import Schema, fields, validate

from orchestrator.errors import StepTimeout
from workers.steps.contract import Done, QueueClass, StepContext, StepType, Wait
from workers.steps.fields import Duration


class Signal(StepType):
    """Takes the oldest message `name` sent by POST /executions/{id}/signals, before the step began or after; each is
    taken once. After `timeout` the `default` is taken for its payload; without one the step fails.

    Output: `payload`, `sent_at` (null for the default).
    """

    type: ClassVar[str] = "signal"
    queue: ClassVar[QueueClass] = "control"
    repeatable: ClassVar[bool] = True

    class Config(Schema):
        name = fields.String(required=True, validate=validate.Length(1, 200))
        timeout = Duration()
        default = fields.Raw(allow_none=True)

    def perform(self, context: StepContext) -> Done | Wait:
        config, state = context.config, context.state
        now = datetime.now(UTC)
        if state is None:
            signal = context.take_signal(config["name"])
            if signal is not None:
                return Done(signal)
            seconds = config.get("timeout")
            until = None if seconds is None else now + timedelta(seconds=seconds)
            state = {"until": until.isoformat() if until else None}
        if "signal" in state:
            return Done(state["signal"])
        until = datetime.fromisoformat(state["until"]) if state["until"] else None
        if until is None or until > now:
            return Wait(until, state, awaits=f"signal:{config['name']}")
        if "default" not in config:
            raise StepTimeout(f"no signal {config['name']!r} came in time, and there is no default")
        return Done({"payload": config["default"], "sent_at": None})
