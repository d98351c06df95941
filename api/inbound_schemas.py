"""The shapes of what comes from outside, and of the answers to it."""

from __future__ import annotations

from marshmallow import fields, validate

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
