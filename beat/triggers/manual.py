"""A trigger that a user fires (POST /api/v1/triggers/{id}/fire), with an input that is ready."""

from __future__ import annotations

from typing import ClassVar

from marshmallow import Schema, fields

from beat.triggers.contract import TriggerType


class Manual(TriggerType):
    type: ClassVar[str] = "manual"

    class Config(Schema):
        input = fields.Dict(keys=fields.String(), metadata={"description": "of executions, when the call names none"})
