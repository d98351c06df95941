"""The shapes of what comes from outside, and of the answers to it."""

from __future__ import annotations

from marshmallow import INCLUDE, Schema, fields, validate

from api.schemas import _Out
from orchestrator.lifecycle import EXECUTION_TERMINAL, FireOutcome

_OUTCOMES = [*(str(outcome) for outcome in FireOutcome), "duplicate"]


class WebhookAccepted(_Out):
    fire_id = fields.UUID()
    execution_id = fields.UUID(allow_none=True, metadata={"description": "null while it waits for another one's end"})


class WebhookResult(WebhookAccepted):
    status = fields.String(validate=validate.OneOf(sorted(EXECUTION_TERMINAL)))
    output = fields.Raw(allow_none=True)
    error_message = fields.String(allow_none=True)


class CloudEvent(Schema):
    """For the document alone: orchestrator/engine/cloudevents.py reads events, with all that is wrong at once. Any
    other field is an extension attribute."""

    class Meta:
        unknown = INCLUDE

    id = fields.String(required=True, metadata={"description": "what no other event of its source has"})
    source = fields.String(
        required=True, metadata={"description": "what it happened to, or in", "format": "uri-reference"}
    )
    specversion = fields.String(
        required=True, validate=validate.Equal("1.0"), metadata={"description": "the version of CloudEvents"}
    )
    type = fields.String(required=True, metadata={"description": "what happened, by which triggers know it"})
    subject = fields.String(metadata={"description": "which part of the source it happened to"})
    time = fields.DateTime(metadata={"description": "when it happened"})
    datacontenttype = fields.String(metadata={"description": "the media type of the data"})
    dataschema = fields.String(metadata={"description": "where the data's schema is", "format": "uri"})
    data = fields.Raw(metadata={"description": "what the event says"})
    data_base64 = fields.String(metadata={"description": "the data, if it is not text"})


class EventFired(_Out):
    event_id = fields.String()
    trigger_id = fields.UUID()
    execution_id = fields.UUID(allow_none=True)
    outcome = fields.String(
        validate=validate.OneOf(_OUTCOMES), metadata={"description": "duplicate: the event was taken before"}
    )
    reason = fields.String(allow_none=True, metadata={"description": "why nothing was started"})


class EventsTaken(_Out):
    fired = fields.List(fields.Nested(EventFired))
