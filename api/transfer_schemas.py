"""The shapes of workflows that are taken from one place to another."""

from __future__ import annotations

from marshmallow import RAISE, Schema, fields, validate

from api.schemas import InstantiateIn, WorkflowIn
from api.trigger_schemas import TriggerIn


class CloneIn(InstantiateIn):
    """What the copy has of its own; the rest is the original's."""

    class Meta:
        exclude = ("variables",)
        unknown = RAISE

    name = fields.String(
        validate=validate.Length(1, 200), metadata={"description": "default: that of the original, with `(copy)`"}
    )


class ImportIn(WorkflowIn):
    """What an export says, or a workflow as it is created, or a definition document by itself."""

    triggers = fields.List(
        fields.Nested(TriggerIn), load_default=list, metadata={"description": "besides those of the definition"}
    )


class ImportQuery(Schema):
    class Meta:
        unknown = RAISE

    enable_triggers = fields.Boolean(
        load_default=False,
        truthy={"true", "1"},
        falsy={"false", "0"},
        metadata={"description": "have its triggers enabled where the document does not say otherwise"},
    )
