"""The shapes of triggers and their fires."""

from __future__ import annotations

from marshmallow import fields, validate

from api.schemas import Moment, Page, PageQuery, Sort, _In, _Out
from orchestrator.lifecycle import FireOutcome
from orchestrator.store import triggers

_NAME = validate.Length(1, 500)
_OUTCOME = validate.OneOf([*map(str, FireOutcome), "duplicate"])
_MASKED = "fields that are secret are shown as ***"


class TriggerQuery(PageQuery):
    sort = Sort(triggers.ORDERS, default="created_at")


class FireQuery(PageQuery):
    sort = Sort(triggers.FIRE_ORDERS, default="-created_at")


class TriggerIn(_In):
    type = fields.String(required=True, metadata={"description": "a trigger type, such as schedule"})
    name = fields.String(validate=_NAME, metadata={"description": "unique in the workflow; default: the type"})
    config = fields.Dict(keys=fields.String(), load_default=dict, metadata={"description": "what its type needs"})
    is_enabled = fields.Boolean(
        load_default=True, truthy={True}, falsy={False}, metadata={"description": "false: it starts nothing yet"}
    )


class TriggerChange(_In):
    name = fields.String(validate=_NAME, metadata={"description": "unique in the workflow"})
    config = fields.Dict(
        keys=fields.String(), metadata={"description": f"takes the place of the one before; {_MASKED}, and stay"}
    )
    is_enabled = fields.Boolean(
        truthy={True}, falsy={False}, metadata={"description": "false: it starts nothing until it is enabled again"}
    )


class TriggerOut(_Out):
    id = fields.UUID()
    workflow_id = fields.UUID()
    type = fields.String()
    name = fields.String()
    config = fields.Dict(metadata={"description": _MASKED})
    is_enabled = fields.Boolean()
    from_definition = fields.Boolean(metadata={"description": "it is written in the workflow's definition"})
    last_triggered = fields.DateTime(allow_none=True, metadata={"description": "when it last started an execution"})
    trigger_count = fields.Integer(metadata={"description": "executions that it has started"})
    created_at = fields.DateTime()
    updated_at = fields.DateTime()


class TriggerPage(Page):
    items = fields.List(fields.Nested(TriggerOut))


class FireIn(_In):
    input = fields.Dict(
        keys=fields.String(), metadata={"description": "of the execution; default: what the trigger's config says"}
    )


class FireOut(_Out):
    id = fields.UUID()
    trigger_id = fields.UUID()
    slot = fields.String(allow_none=True, metadata={"description": "what it is one of a kind by"})
    scheduled_for = fields.DateTime(allow_none=True)
    payload = fields.Raw(allow_none=True, metadata={"description": "what came"})
    input = fields.Raw(allow_none=True)
    outcome = fields.String(validate=_OUTCOME)
    reason = fields.String(allow_none=True, metadata={"description": "why nothing was started, or what it waits for"})
    execution_id = fields.UUID(allow_none=True)
    created_at = fields.DateTime()


class FirePage(Page):
    items = fields.List(fields.Nested(FireOut))


class PreviewQuery(_In):
    count = fields.Integer(
        load_default=10, validate=validate.Range(1, 100), metadata={"description": "slots, if there are as many"}
    )
    start = Moment(data_key="from", metadata={"description": "default: now"})


class SlotOut(_Out):
    slot = fields.DateTime()
    local = fields.String(metadata={"description": "as the clocks show it in the schedule's time zone"})
    due_at = fields.DateTime(metadata={"description": "with the jitter"})


class PreviewOut(_Out):
    items = fields.List(fields.Nested(SlotOut))


class BackfillIn(_In):
    first = Moment(required=True, data_key="from", metadata={"description": "the first moment of the time"})
    last = Moment(
        required=True, data_key="to", metadata={"description": "the last moment of the time, which has passed"}
    )


class BackfillOut(_Out):
    slots = fields.Integer(metadata={"description": "in that time"})
    fired = fields.List(fields.Nested(FireOut), metadata={"description": "those that had started nothing before"})
