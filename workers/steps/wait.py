"""`wait`: for a while, or until a moment."""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError

from workers.steps.contract import Done, QueueClass, StepContext, StepType
from workers.steps.contract import Wait as Rest
from workers.steps.fields import Duration, Moment, validates_whole


class WaitFor(StepType):
    """`duration`, or `until` a moment; a moment that has passed is not waited for. It holds no worker, and outlives
    restarts. Output: `until`, `waited` (seconds)."""

    type: ClassVar[str] = "wait"
    queue: ClassVar[QueueClass] = "control"

    class Config(Schema):
        duration = Duration()
        until = Moment(metadata={"type": "string", "examples": ["2030-01-01T08:00:00+01:00"]})

        @validates_whole
        def _one_form(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
            if {"duration", "until"} <= written:
                raise ValidationError("write either `duration` or `until`, not both", "until")
            if written.isdisjoint({"duration", "until"}):
                raise ValidationError("is missing; write `duration`, or `until` a moment", "duration")

    def perform(self, context: StepContext) -> Done | Rest:
        now = datetime.now(UTC)
        if context.state is None:
            began = now
            until = context.config.get("until") or now + timedelta(seconds=context.config["duration"])
        else:
            began, until = (datetime.fromisoformat(context.state[name]) for name in ("began", "until"))
        if until > now:
            return Rest(until, {"began": began.isoformat(), "until": until.isoformat()})
        return Done({"until": until.astimezone(UTC).isoformat(), "waited": (now - began).total_seconds()})
