"""The shapes of requests and answers, for checking the first and documenting both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema
from werkzeug.http import parse_etags

from api.errors import ProblemItem
from orchestrator.definition.durations import parse_duration
from orchestrator.engine.bulk import MOST, Action
from orchestrator.lifecycle import ExecutionStatus, StepStatus, WorkflowStatus
from orchestrator.store import execution_views, logs, step_templates, workflows
from orchestrator.store.search import question

_WORKFLOW_STATUS = validate.OneOf([str(status) for status in WorkflowStatus])
_EXECUTION_STATUS = validate.OneOf([str(status) for status in ExecutionStatus])

_PROJECT = (
    "name of the project that it belongs to; a new one without it belongs to the only project in which the caller may "
    "write, or else to `default`"
)


def _is_stored_as_text(value: str) -> None:
    if "\0" in value:
        raise ValidationError("holds a NUL character, which nothing stored has")


class Moment(fields.AwareDateTime):
    """A moment with its zone, as RFC 3339 has it; in UTC, since PostgreSQL knows no offset of 16 hours and more."""

    default_error_messages = {  # noqa: RUF012  (as marshmallow declares it)
        "invalid_awareness": "must say its zone, like 2030-01-01T08:00:00Z"
    }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> datetime:
        moment = super()._deserialize(value, attr, data, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise ValidationError("is beyond the years 1 to 9999 in UTC") from None


class _In(Schema):
    class Meta:
        unknown = RAISE


MAY_BE_ABSENT = {"absent": True}
"""Metadata of what not every answer has."""


class _Out(Schema):
    """What the service answers with: every field is there, unless its metadata says MAY_BE_ABSENT, so that a program
    made of /openapi.json need not ask."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:  # noqa: ARG002
        field_obj.required = not field_obj.metadata.get("absent")


class WorkflowIn(_In):
    """A workflow. A definition document by itself (`steps` at the top) is taken too: its name, description
    and tags are the workflow's."""

    name = fields.String(
        validate=validate.Length(1, 200),
        metadata={"description": "what it is called; default: what the definition says"},
    )
    description = fields.String(validate=validate.Length(max=10_000), metadata={"description": "what it is for"})
    definition = fields.Dict(keys=fields.String(), metadata={"description": "see the definition language"})
    tags = fields.List(
        fields.String(validate=validate.Length(1, 100)),
        validate=validate.Length(max=50),
        metadata={"description": "words that it is found by"},
    )
    project = fields.String(validate=validate.Length(1, 100), metadata={"description": _PROJECT})
    owner_id = fields.UUID(
        allow_none=True, metadata={"description": "the user whom it belongs to; default: the caller"}
    )
    is_template = fields.Boolean(
        truthy={True},
        falsy={False},
        metadata={"description": "workflows are made of it, and it is never executed itself"},
    )


_IS_VERSION = re.compile("[1-9][0-9]{0,9}")


class Versions(fields.Field[frozenset[int] | None]):
    """Entity tags as in If-Match, which are versions here; None for `*`, which is any."""

    default_error_messages = {  # noqa: RUF012  (as marshmallow declares it)
        "required": "is missing: send the ETag that you got with the workflow, which is its version, or * for any"
    }

    def __init__(self, *, metadata: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options, metadata={"type": "string", "example": '"3"', **metadata})

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> frozenset[int] | None:
        tags = parse_etags(value)
        if tags.star_tag:
            return None
        return frozenset(int(tag) for tag in tags.as_set() if tag and _IS_VERSION.fullmatch(tag))


class ChangeHeaders(Schema):
    seen = Versions(
        data_key="If-Match",
        required=True,
        metadata={"description": "ETag of the workflow that you change; 412 if it has another version by now"},
    )


class InstantiateIn(_In):
    """What the new workflow has of its own; the rest is the template's."""

    name = fields.String(required=True, validate=validate.Length(1, 200), metadata={"description": "what it is called"})
    description = fields.String(
        validate=validate.Length(max=10_000), metadata={"description": "what it is for; default: as of the template"}
    )
    variables = fields.Dict(
        keys=fields.String(), load_default=dict, metadata={"description": "values for variables that the template has"}
    )
    tags = fields.List(
        fields.String(validate=validate.Length(1, 100)),
        validate=validate.Length(max=50),
        metadata={"description": "words that it is found by; default: as of the template"},
    )
    project = fields.String(validate=validate.Length(1, 100), metadata={"description": _PROJECT})
    owner_id = fields.UUID(
        allow_none=True, metadata={"description": "the user whom it belongs to; default: the caller"}
    )


class StepTemplateIn(_In):
    name = fields.String(
        required=True,
        validate=validate.Length(1, 200),
        metadata={"description": "what a step says to use it: `uses: NAME`"},
    )
    description = fields.String(
        load_default="", validate=validate.Length(max=10_000), metadata={"description": "what it is for"}
    )
    parameters = fields.Dict(
        keys=fields.String(),
        allow_none=True,
        load_default=None,
        metadata={"description": "a JSON Schema of the values that the step knows as `params`"},
    )
    step = fields.Dict(
        keys=fields.String(), required=True, metadata={"description": "a step without id and depends_on"}
    )


class StepTemplateChange(StepTemplateIn):
    """Whatever of it is to change; for `partial=True`."""


def _has_words(value: str) -> None:
    if question(value) is None:
        raise ValidationError("holds no word to look for")


class Sort(fields.String):
    """What a list is sorted by: one of its store's ORDERS, with `-` for descending, `+` or nothing for ascending."""

    def __init__(self, orders: Iterable[str], *, default: str) -> None:
        super().__init__(
            load_default=default,
            validate=validate.OneOf(list(orders)),
            metadata={"description": "what the list is sorted by; descending with `-` before it"},
        )

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, *args, **kwargs)
        return text.lstrip("+ ")  # a plus sign that is not escaped in an address is a space


class PageQuery(Schema):
    class Meta:
        unknown = RAISE

    limit = fields.Integer(
        load_default=50, validate=validate.Range(1, 200), metadata={"description": "items of a page at most"}
    )
    cursor = fields.String(
        validate=validate.Length(max=2000), metadata={"description": "`next` of the page before, as it is"}
    )


class WorkflowQuery(PageQuery):
    sort = Sort(workflows.ORDERS, default="-created_at")
    owner_id = fields.UUID(metadata={"description": "workflows that belong to this user"})
    status = fields.String(validate=_WORKFLOW_STATUS, metadata={"description": "workflows that have this status"})
    tags = fields.String(validate=_is_stored_as_text, metadata={"description": "workflows that have this tag"})
    name = fields.String(validate=_is_stored_as_text, metadata={"description": "workflows of exactly this name"})
    is_template = fields.Boolean(
        truthy={"true", "1"}, falsy={"false", "0"}, metadata={"description": "templates alone, or all but those"}
    )
    q = fields.String(
        validate=[validate.Length(max=500), _has_words],
        metadata={
            "description": "words that are all in the name, the description or the tags; each may be cut short",
            "example": "数据 report",
        },
    )


class StepTemplateQuery(PageQuery):
    sort = Sort(step_templates.ORDERS, default="-created_at")
    name = fields.String(validate=_is_stored_as_text, metadata={"description": "the template of exactly this name"})


class ExecutionQuery(PageQuery):
    sort = Sort(execution_views.ORDERS, default="-created_at")
    workflow_id = fields.UUID(metadata={"description": "executions of this workflow"})
    status = fields.String(validate=_EXECUTION_STATUS, metadata={"description": "executions that have this status"})
    rerun_of = fields.UUID(metadata={"description": "executions that do this one again"})
    created_after = Moment(metadata={"description": "at that moment or later, like 2030-01-01T08:00:00Z"})
    created_before = Moment(metadata={"description": "before that moment"})


class LogQuery(PageQuery):
    sort = Sort(logs.ORDERS, default="at")
    limit = fields.Integer(
        load_default=1000, validate=validate.Range(1, 10_000), metadata={"description": "lines of a page at most"}
    )
    step_id = fields.String(validate=_is_stored_as_text, metadata={"description": "lines of this step"})
    level = fields.String(
        validate=validate.OneOf(logs.LEVELS), metadata={"description": "lines of this level and of more severe ones"}
    )
    since = Moment(metadata={"description": "lines of that moment or later, like 2030-01-01T08:00:00Z"})
    until = Moment(metadata={"description": "lines from before that moment"})
    follow = fields.Boolean(
        load_default=False,
        truthy={"true", "1"},
        falsy={"false", "0"},
        metadata={"description": "all lines, and then those that are still written, until the execution has ended"},
    )
    format = fields.String(
        validate=validate.OneOf(["json", "text", "ndjson"]),
        metadata={
            "description": "json: a page, or with `follow` server-sent events (the default); "
            "text or ndjson: all lines as they are written to a file"
        },
    )

    @validates_schema
    def _check_pages(self, query: dict[str, Any], **_: Any) -> None:
        if "cursor" in query and (query["follow"] or query.get("format") in ("text", "ndjson")):
            raise ValidationError("is of a page; lines that are followed or downloaded are not paged", "cursor")


class ExecuteIn(_In):
    input = fields.Dict(
        keys=fields.String(), load_default=dict, metadata={"description": "what templates know as `input`"}
    )
    priority = fields.Integer(
        load_default=5,
        strict=True,
        validate=validate.Range(0, 9),
        metadata={"description": "9 is the highest"},
    )


class ExecuteOneOfMany(ExecuteIn):
    idempotency_key = fields.String(
        load_default=None,
        allow_none=True,
        validate=[validate.Length(1, 255), _is_stored_as_text],
        metadata={"description": "as the header Idempotency-Key of a single call"},
    )


class ExecuteManyIn(_In):
    items = fields.List(
        fields.Nested(ExecuteOneOfMany),
        required=True,
        validate=validate.Length(1, MOST),
        metadata={"description": "one for each execution"},
    )


class StartedOut(_Out):
    """What came of one input: an execution, or what was in the way."""

    id = fields.UUID(allow_none=True, metadata={"description": "of the execution; null if none was started"})
    is_new = fields.Boolean(metadata={"description": "false: it was there already, under the same key"})
    detail = fields.String(allow_none=True, metadata={"description": "why none was started"})
    errors = fields.List(fields.Nested(ProblemItem), metadata={"description": "what is wrong with the input"})


class ExecuteManyOut(_Out):
    items = fields.List(fields.Nested(StartedOut), metadata={"description": "one for each input, in their order"})
    started = fields.Integer()
    existing = fields.Integer(metadata={"description": "were there already"})
    refused = fields.Integer()


class ExecuteQuery(Schema):
    class Meta:
        unknown = RAISE

    dry_run = fields.Boolean(
        load_default=False, metadata={"description": "answer with what an execution would do, and start none"}
    )


class ExecuteHeaders(Schema):
    idempotency_key = fields.String(
        data_key="Idempotency-Key",
        validate=[validate.Length(1, 255), _is_stored_as_text],
        metadata={"description": "a repeated call with the same key answers with the first one's execution"},
    )


class RerunIn(_In):
    """What is to be other than in the original."""

    from_step = fields.String(
        validate=[validate.Length(1, 500), _is_stored_as_text],
        metadata={
            "description": "id, or path in a body, of the first step that is done again; what stands before it is kept"
        },
    )
    input = fields.Dict(keys=fields.String(), metadata={"description": "default: as of the original"})
    version = fields.Integer(
        strict=True,
        validate=validate.Range(1, 2**31 - 1),
        metadata={"description": "of the workflow; default: as of the original"},
    )
    priority = fields.Integer(strict=True, validate=validate.Range(0, 9), metadata={"description": "9 is the highest"})


class ExecutionFilter(_In):
    """All that is given must be so, and something must be given."""

    ids = fields.List(fields.UUID(), validate=validate.Length(max=MOST), metadata={"description": "of these ids"})
    workflow_id = fields.UUID(metadata={"description": "of this workflow"})
    status = fields.String(
        validate=_EXECUTION_STATUS, metadata={"description": "default: without ids, those that the action is for"}
    )
    created_after = Moment(metadata={"description": "made at that moment or later"})
    created_before = Moment(metadata={"description": "made before that moment"})

    @validates_schema
    def _something(self, data: Mapping[str, Any], **_: object) -> None:
        if not data:
            raise ValidationError(f"give at least one of {', '.join(self.fields)}")


class BulkIn(_In):
    action = fields.Enum(Action, by_value=True, required=True, metadata={"description": "what is done to each of them"})
    filter = fields.Nested(ExecutionFilter, required=True, metadata={"description": "to which executions"})
    limit = fields.Integer(
        load_default=MOST,
        strict=True,
        validate=validate.Range(1, MOST),
        metadata={"description": "executions at most, the oldest first"},
    )


class BulkRefused(_Out):
    id = fields.UUID()
    state = fields.String(allow_none=True, metadata={"description": "null if there is no such execution"})
    detail = fields.String()


class BulkOut(_Out):
    matched = fields.Integer(metadata={"description": "as many as the limit: there may be more"})
    done = fields.Integer()
    refused = fields.List(fields.Nested(BulkRefused))


class WorkflowOut(_Out):
    id = fields.UUID()
    project = fields.String(metadata={"description": "name of the project that it belongs to"})
    name = fields.String()
    description = fields.String()
    status = fields.String(validate=_WORKFLOW_STATUS)
    status_reason = fields.String(
        allow_none=True, metadata={"description": "why it has this status, if no user asked for it"}
    )
    tags = fields.List(fields.String())
    owner_id = fields.UUID(allow_none=True)
    is_template = fields.Boolean()
    version = fields.Integer(metadata={"description": "the newest; versions never change"})
    created_at = fields.DateTime()
    updated_at = fields.DateTime()


class WorkflowDetail(WorkflowOut):
    definition = fields.Dict()
    execution_count = fields.Integer()
    last_executed = fields.DateTime(allow_none=True)
    success_rate = fields.Float(allow_none=True, metadata={"description": "completed share of those ended, 0..1"})


class StepExecutionOut(_Out):
    id = fields.UUID()
    execution_id = fields.UUID()
    step_id = fields.String()
    path = fields.String()
    type = fields.String()
    status = fields.String(validate=validate.OneOf([str(status) for status in StepStatus]))
    attempt = fields.Integer()
    input = fields.Raw(allow_none=True)
    output = fields.Raw(allow_none=True)
    start_time = fields.DateTime(allow_none=True)
    end_time = fields.DateTime(allow_none=True)
    duration = fields.Float(allow_none=True, metadata={"description": "seconds, so far if it has not ended"})
    next_attempt_at = fields.DateTime(allow_none=True)
    error_kind = fields.String(allow_none=True)
    error_message = fields.String(allow_none=True)


class ExecutionOut(_Out):
    id = fields.UUID()
    workflow_id = fields.UUID()
    version = fields.Integer()
    status = fields.String(validate=_EXECUTION_STATUS)
    input = fields.Dict()
    output = fields.Raw(allow_none=True)
    start_time = fields.DateTime(allow_none=True)
    end_time = fields.DateTime(allow_none=True)
    duration = fields.Float(allow_none=True, metadata={"description": "seconds, so far if it has not ended"})
    trigger_id = fields.UUID(allow_none=True)
    priority = fields.Integer()
    rerun_of = fields.UUID(allow_none=True, metadata={"description": "the execution that this one does again"})
    error_message = fields.String(allow_none=True)
    created_at = fields.DateTime()


class ExecutionDetail(ExecutionOut):
    step_executions = fields.List(fields.Nested(StepExecutionOut))


class LogLineOut(_Out):
    id = fields.UUID()
    seq = fields.Integer(metadata={"description": "its place; a stream goes on after it with this as Last-Event-ID"})
    execution_id = fields.UUID()
    step_execution_id = fields.UUID()
    step_id = fields.String()
    attempt = fields.Integer()
    level = fields.String()
    message = fields.String()
    at = fields.DateTime()


class StepTemplateOut(_Out):
    id = fields.UUID()
    name = fields.String()
    description = fields.String()
    created_at = fields.DateTime()
    updated_at = fields.DateTime()


class StepTemplateDetail(StepTemplateOut):
    parameters = fields.Dict(allow_none=True)
    step = fields.Dict()


class Page(_Out):
    next = fields.String(allow_none=True, metadata={"description": "the cursor of the next page; null on the last"})


class WorkflowPage(Page):
    items = fields.List(fields.Nested(WorkflowOut))


class StepTemplatePage(Page):
    items = fields.List(fields.Nested(StepTemplateOut))


class ExecutionPage(Page):
    items = fields.List(fields.Nested(ExecutionOut))


class LogPage(Page):
    items = fields.List(fields.Nested(LogLineOut))


class StepOutput(_Out):
    output = fields.Raw(allow_none=True)


class HealthOut(_Out):
    status = fields.String(validate=validate.OneOf(["healthy", "unhealthy"]))
    checks = fields.Dict(keys=fields.String(), values=fields.String())
    stats = fields.Dict(keys=fields.String(), values=fields.Integer())
    script_isolation = fields.Dict(
        keys=fields.String(validate=validate.OneOf(["bubblewrap", "limits"])),
        values=fields.Integer(),
        allow_none=True,
        metadata={"description": "how many worker processes run scripts in which; null if that cannot be known now"},
    )


class SignalIn(_In):
    name = fields.String(
        required=True,
        validate=[validate.Length(1, 200), _is_stored_as_text],
        metadata={"description": "what the step that waits calls it"},
    )
    payload = fields.Raw(load_default=None, allow_none=True, metadata={"description": "any JSON"})


class SignalOut(_Out):
    id = fields.UUID()
    name = fields.String()


class DecisionIn(_In):
    approved = fields.Boolean(required=True, truthy={True}, falsy={False}, metadata={"description": "false: rejected"})
    comment = fields.String(
        load_default=None,
        allow_none=True,
        validate=[validate.Length(max=10_000), _is_stored_as_text],
        metadata={"description": "why, for those who look later"},
    )
    by = fields.String(
        load_default=None,
        allow_none=True,
        validate=[validate.Length(max=200), _is_stored_as_text],
        metadata={"description": "who decided"},
    )


class TestTimeout(fields.Field[float]):
    """Seconds up to five minutes, from a number or a text such as `30s`."""

    _LONGEST = 300.0

    def __init__(self, **options: Any) -> None:
        shape = {"anyOf": [{"type": "number"}, {"type": "string"}], "description": "30s, 5m, or seconds; at most 5m"}
        super().__init__(**options, metadata=shape)

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if not 0 < seconds <= self._LONGEST:
            raise ValidationError(f"must be more than 0 and at most {self._LONGEST:g} seconds")
        return seconds


class ErrorSeen(_In):
    kind = fields.String(required=True)
    message = fields.String(required=True)


class StepSeen(_In):
    """What templates see of a step that came before."""

    output = fields.Raw(allow_none=True)
    status = fields.String(load_default="completed", validate=validate.OneOf(["completed", "failed", "skipped"]))
    error = fields.Nested(ErrorSeen, allow_none=True)


class TestContext(_In):
    """What the templates of the config see, by the names that they start from."""

    variables = fields.Dict(keys=fields.String(), metadata={"description": "the workflow's"})
    input = fields.Raw(allow_none=True, metadata={"description": "the execution's; default: the step's"})
    steps = fields.Dict(keys=fields.String(), values=fields.Nested(StepSeen), metadata={"description": "by their ids"})
    loop = fields.Dict(keys=fields.String(), metadata={"description": "item, index, parent"})
    trigger = fields.Dict(keys=fields.String(), metadata={"description": "what started the execution"})
    execution = fields.Dict(keys=fields.String(), metadata={"description": "such as its id"})


class StepTestIn(_In):
    type = fields.String(required=True, metadata={"description": "a step type"})
    config = fields.Dict(keys=fields.String(), load_default=dict, metadata={"description": "as in a definition"})
    input = fields.Raw(allow_none=True, metadata={"description": "the step's input; default: the context's, or {}"})
    context = fields.Nested(
        TestContext, load_default=dict, metadata={"description": "what the templates of the config see"}
    )
    timeout = TestTimeout(load_default=30.0)
    project = fields.String(
        validate=validate.Length(1, 100),
        metadata={
            "description": "in which it is tried, with its secrets and seen by its administrators; "
            "without it found as for a workflow"
        },
    )


class TestLogLine(_Out):
    level = fields.String()
    message = fields.String()
    at = fields.DateTime()


class WaitsFor(_Out):
    until = fields.DateTime(allow_none=True)
    awaits = fields.String(allow_none=True, metadata={"description": "decision, or signal:NAME"})


class StepTestOut(_Out):
    status = fields.String(validate=validate.OneOf(["completed", "failed", "waiting"]))
    output = fields.Raw(allow_none=True)
    error = fields.Nested(ErrorSeen, allow_none=True)
    waits_for = fields.Nested(
        WaitsFor, allow_none=True, metadata={"description": "of a step that would now rest without a worker"}
    )
    logs = fields.List(fields.Nested(TestLogLine))
    duration = fields.Float(metadata={"description": "seconds"})
    rendered = fields.Dict(
        allow_none=True, metadata={"description": "the config as the step got it; null if it got none"}
    )


class PlannedMessage(_Out):
    queue = fields.String()
    starts = fields.List(fields.String(), metadata={"description": "the first steps of the runs in it"})
    priority = fields.Integer()


class PlannedMessages(_Out):
    chains = fields.List(fields.List(fields.Nested(PlannedMessage)))
    join = fields.Nested(PlannedMessage, allow_none=True, metadata={"description": "follows when all chains are done"})


class PlannedStep(_Out):
    path = fields.String(metadata={"description": "in a loop, with * for the number of the round"})
    id = fields.String()
    type = fields.String()
    queue = fields.String()
    depends_on = fields.List(fields.String())
    trigger_rule = fields.String()
    when = fields.Raw(allow_none=True)
    level = fields.Integer(metadata={"description": "the longest way to it from a first step, from 0"})
    height = fields.Integer(metadata={"description": "steps on the longest way from it to a last one, itself included"})
    run = fields.Integer(metadata={"description": "steps of one number go in one message, one after the other"})
    rendered = fields.Dict(metadata={"description": "the config; what only a running execution knows is as written"})
    bodies = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.Nested(lambda: PlannedStep())),
        metadata={"description": "by branch", **MAY_BE_ABSENT},
    )
    compensate = fields.Nested(lambda: PlannedStep(), metadata=MAY_BE_ABSENT)


class PlanProblem(_Out):
    path = fields.String()
    message = fields.String()


class ExecutionPlan(_Out):
    """What an execution would do."""

    workflow_id = fields.UUID()
    version = fields.Integer()
    input = fields.Dict(metadata={"description": "with the defaults of `inputs`"})
    steps = fields.List(fields.Nested(PlannedStep))
    on_failure = fields.List(fields.Nested(PlannedStep))
    finally_ = fields.List(fields.Nested(PlannedStep), data_key="finally")
    messages = fields.Nested(PlannedMessages, metadata={"description": "what would be sent at the start"})
    problems = fields.List(fields.Nested(PlanProblem), metadata={"description": "templates that this input makes fail"})
