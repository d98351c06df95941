"""`event`: a CloudEvent that was sent to the API, or written to a stream, starts an execution."""

from __future__ import annotations

from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from beat.triggers.contract import TriggerType
from beat.triggers.fields import Expression, Templates, overlap
from orchestrator.engine import events


def _pattern(says: str, **options: Any) -> fields.String:
    return fields.String(validate=validate.Length(1, 500), metadata={"description": says}, **options)


class Event(TriggerType):
    """An event is for it if everything that is given fits: `*` in `type`, `source` and `subject` stands for any
    text, and `filter` is an expression over `event`."""

    type: ClassVar[str] = events.TYPE

    class Config(Schema):
        type = _pattern("the event's, such as order.created or order.*", required=True)
        source = _pattern("the event's, such as /shop or https://example.com/*")
        subject = _pattern("the event's")
        filter = Expression(events.NAMES, metadata={"examples": ["event.data.amount > 100"]})
        mapping = Templates(events.NAMES)
        overlap = overlap()
