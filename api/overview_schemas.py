"""The shapes of what operators look at."""

from __future__ import annotations

from marshmallow import fields, validate

from api.schemas import ExecutionOut, _Out
from orchestrator.engine.why import Why
from orchestrator.lifecycle import WorkflowStatus


class QueueOut(_Out):
    name = fields.String()
    depth = fields.Integer(allow_none=True, metadata={"description": "messages at the broker; null while it is away"})
    waiting = fields.Integer(metadata={"description": "queued steps"})
    oldest_seconds = fields.Float(allow_none=True, metadata={"description": "how long the first of them has waited"})
    workers = fields.Integer(metadata={"description": "worker processes that serve it"})


class PerformedStep(_Out):
    execution_id = fields.UUID()
    path = fields.String()
    type = fields.String()
    seconds = fields.Float()


class WorkerOut(_Out):
    id = fields.UUID()
    node = fields.String(metadata={"description": "as Celery names it"})
    host = fields.String()
    pid = fields.Integer()
    queues = fields.List(fields.String(), allow_none=True)
    slots = fields.Integer(allow_none=True, metadata={"description": "tasks that it performs at a time"})
    script_isolation = fields.String(
        allow_none=True, metadata={"description": "what scripts run in there: `bubblewrap`, or `limits` alone"}
    )
    seen_seconds = fields.Float(metadata={"description": "since it last kept its lease"})
    steps = fields.List(fields.Nested(PerformedStep), metadata={"description": "that it performs now"})


class PlacesOut(_Out):
    running = fields.Integer(metadata={"description": "executions that count for max_concurrent"})
    queued = fields.Integer(metadata={"description": "executions that wait for a place"})
    held = fields.Integer(metadata={"description": "executions that a limit of their own holds back"})
    max_concurrent = fields.Integer()


class TimersOut(_Out):
    next_due = fields.DateTime(allow_none=True)
    overdue_seconds = fields.Float(metadata={"description": "of the oldest waiting step that is due"})


class SchedulesOut(_Out):
    next_due = fields.DateTime(allow_none=True)
    lag_seconds = fields.Float(metadata={"description": "of the oldest trigger that is due"})


class ReconcilerOut(_Out):
    holder = fields.UUID(allow_none=True)
    kept_seconds_ago = fields.Float(allow_none=True)


class BeatOut(_Out):
    holder = fields.String(allow_none=True, metadata={"description": "what RedBeat's lock holds; null: nobody"})
    ttl_seconds = fields.Float(allow_none=True, metadata={"description": "that the lock is good for"})


class SchedulerStatus(_Out):
    broker = fields.String(validate=validate.OneOf(["ok", "unreachable"]))
    queues = fields.List(fields.Nested(QueueOut))
    workers = fields.List(fields.Nested(WorkerOut))
    executions = fields.Nested(PlacesOut)
    timers = fields.Nested(TimersOut)
    schedules = fields.Nested(SchedulesOut)
    reconciler = fields.Nested(ReconcilerOut)
    beat = fields.Nested(BeatOut, allow_none=True, metadata={"description": "null while the broker is away"})


class ReasonOut(_Out):
    reason = fields.String(validate=validate.OneOf([str(word) for word in Why]))
    detail = fields.String(metadata={"description": "one sentence for people"})
    facts = fields.Dict(keys=fields.String(), metadata={"description": "by the reason"})
    since = fields.DateTime(allow_none=True)


class WorkflowStatusOut(_Out):
    id = fields.UUID()
    name = fields.String()
    status = fields.String(validate=validate.OneOf([str(status) for status in WorkflowStatus]))
    version = fields.Integer()
    running = fields.Integer(metadata={"description": "executions"})
    queued = fields.Integer(metadata={"description": "executions"})
    last_execution = fields.Nested(ExecutionOut, allow_none=True)
    success_rate = fields.Float(allow_none=True, metadata={"description": "completed share of those ended, 0..1"})
    execution_count = fields.Integer()
