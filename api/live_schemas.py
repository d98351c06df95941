"""The shapes of requests for live streams."""

from __future__ import annotations

import json

from marshmallow import RAISE, Schema, fields, validate
from webargs.fields import DelimitedList

from orchestrator.store import feed

_MOST = 2**63 - 1


class ExecutionEventsQuery(Schema):
    class Meta:
        unknown = RAISE

    kinds = DelimitedList(
        fields.String(validate=validate.OneOf(feed.KINDS)),
        load_default=feed.KINDS,
        validate=validate.Length(1),
        metadata={
            "description": "which events, such as `execution,step`; all if it is left out",
            "default": list(feed.KINDS),  # what it is, not how an address has it
        },
    )


class EventsQuery(ExecutionEventsQuery):
    workflow_id = fields.UUID(metadata={"description": "events of this workflow's executions"})


class ResumeHeaders(Schema):
    after = fields.Integer(
        data_key="Last-Event-ID",
        validate=validate.Range(0, _MOST),
        metadata={"description": "id of the last event that you have got; browsers send it by themselves"},
    )


_STATE = {
    "seq": 311,
    "execution_id": "01976f2e-5c00-7000-8000-000000000001",
    "workflow_id": "01976f2e-5c00-7000-8000-000000000002",
    "step_execution_id": "01976f2e-5c00-7000-8000-000000000003",
    "step_id": "fetch",
    "path": "fetch",
    "attempt": 1,
}
_AT = "2030-01-01T08:00:00.123456Z"
LINE_EXAMPLE = json.dumps({**_STATE, "level": "info", "message": "3 pages", "at": _AT})
EVENT_EXAMPLE = {
    "id": "311",
    "event": "step",
    "data": json.dumps({**_STATE, "status": "completed", "error_message": None, "at": _AT}),
}
EVENT = {
    "type": "object",
    "description": "one event of the stream; its data is JSON, see docs/api.md",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$", "description": "for Last-Event-ID"},
        "event": {"type": "string", "enum": [*feed.KINDS, "end", "reset"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
