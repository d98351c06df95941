"""`set`: values for later steps, computed by templates."""

from __future__ import annotations

from typing import ClassVar

from marshmallow import Schema, fields

from workers.steps.contract import Done, QueueClass, StepContext, StepType


class Set(StepType):
    """The output is the rendered mapping `values`."""

    type: ClassVar[str] = "set"
    queue: ClassVar[QueueClass] = "control"
    pure: ClassVar[bool] = True

    class Config(Schema):
        values = fields.Dict(keys=fields.String(), required=True)

    def perform(self, context: StepContext) -> Done:
        return Done(dict(context.config["values"]))
