"""What the service answers, as the types of the dictionaries that the client returns: times are RFC 3339 texts, ids
UUIDs as texts, durations seconds. A service that is newer may add fields. /openapi.json says more of each field, and a
test holds these types against it."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

Json = dict[str, Any]


class Workflow(TypedDict):
    id: str
    project: str
    name: str
    description: str
    status: str
    status_reason: str | None
    tags: list[str]
    owner_id: str | None
    is_template: bool
    version: int
    created_at: str
    updated_at: str


class WorkflowDetail(Workflow):
    definition: Json
    execution_count: int
    last_executed: str | None
    success_rate: float | None


class WorkflowStatus(TypedDict):
    id: str
    name: str
    status: str
    version: int
    running: int
    queued: int
    last_execution: Execution | None
    success_rate: float | None
    execution_count: int


class Version(TypedDict):
    workflow_id: str
    version: int
    restored_from: int | None
    created_at: str


class VersionDetail(Version):
    definition: Json
    resolved: Json | None


class Change(TypedDict):
    kind: str
    path: str
    old: Any
    new: Any


class VersionChanges(TypedDict):
    workflow_id: str
    old: int
    new: int
    changes: list[Change]
    resolved: list[Change]


class Execution(TypedDict):
    id: str
    workflow_id: str
    version: int
    status: str
    input: Json
    output: Any
    start_time: str | None
    end_time: str | None
    duration: float | None
    trigger_id: str | None
    priority: int
    rerun_of: str | None
    error_message: str | None
    created_at: str


class StepExecution(TypedDict):
    id: str
    execution_id: str
    step_id: str
    path: str
    type: str
    status: str
    attempt: int
    input: Any
    output: Any
    start_time: str | None
    end_time: str | None
    duration: float | None
    next_attempt_at: str | None
    error_kind: str | None
    error_message: str | None


class ExecutionDetail(Execution):
    step_executions: list[StepExecution]


class ProblemItem(TypedDict):
    path: str
    message: str
    line: NotRequired[int]


class Started(TypedDict):
    id: str | None
    is_new: bool
    detail: str | None
    errors: list[ProblemItem]


class StartedMany(TypedDict):
    items: list[Started]
    started: int
    existing: int
    refused: int


class LogLine(TypedDict):
    id: str
    seq: int
    execution_id: str
    step_execution_id: str
    step_id: str
    attempt: int
    level: str
    message: str
    at: str


class LogEvent(TypedDict):
    """A line as a stream tells it."""

    seq: int
    execution_id: str
    workflow_id: str
    step_execution_id: str
    step_id: str
    path: str
    attempt: int
    level: str
    message: str
    at: str


class Reason(TypedDict):
    reason: str
    detail: str
    facts: Json
    since: str | None


class Signal(TypedDict):
    id: str
    name: str


class Trigger(TypedDict):
    id: str
    workflow_id: str
    type: str
    name: str
    config: Json
    is_enabled: bool
    from_definition: bool
    last_triggered: str | None
    trigger_count: int
    created_at: str
    updated_at: str


class Fire(TypedDict):
    id: str
    trigger_id: str
    slot: str | None
    scheduled_for: str | None
    payload: Any
    input: Any
    outcome: str
    reason: str | None
    execution_id: str | None
    created_at: str


class Slot(TypedDict):
    slot: str
    local: str
    due_at: str


class Backfill(TypedDict):
    slots: int
    fired: list[Fire]


class Project(TypedDict):
    id: str
    name: str
    description: str
    created_at: str


class StepTemplate(TypedDict):
    id: str
    name: str
    description: str
    created_at: str
    updated_at: str


class StepTemplateDetail(StepTemplate):
    parameters: Json | None
    step: Json


class EventFired(TypedDict):
    event_id: str
    trigger_id: str
    execution_id: str | None
    outcome: str
    reason: str | None


class RoleGrant(TypedDict):
    id: str
    subject: str
    role: str
    project: str | None
    created_at: str


class AuditEntry(TypedDict):
    id: str
    at: str
    actor_kind: str
    actor_id: str | None
    actor_name: str | None
    action: str
    object_kind: str | None
    object_id: str | None
    project_id: str | None
    status: int
    detail: str | None
    before: Any
    after: Any
    address: str | None
    user_agent: str | None
    request_id: str | None


class Secret(TypedDict):
    id: str
    name: str
    project_id: str | None
    workflow_id: str | None
    description: str
    key_id: str
    created_at: str
    updated_at: str


class Grant(TypedDict):
    role: str
    project: NotRequired[str | None]


class Key(TypedDict):
    id: str
    name: str
    prefix: str
    grants: list[Grant]
    rate_limit: int | None
    max_body: int | None
    created_by: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class NewKey(Key):
    key: str


class Me(TypedDict):
    kind: str
    id: str
    name: str
    grants: list[Grant]


class Health(TypedDict):
    status: str
    checks: dict[str, str]
    stats: dict[str, int]
    script_isolation: dict[str, int] | None


class Stats(TypedDict):
    since: str
    until: str
    counts: Json
    success_rate: float | None
    success_rate_change: float | None
    series: list[Json]
    duration: Json
    queue_wait: Json
    error_kinds: dict[str, int]
    retries: Json


class WorkflowStats(Stats):
    steps: list[Json]
