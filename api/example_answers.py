"""Examples of answers for /openapi.json, composed of their schemas: a field is what FIELDS says for its name, unless OF
has something else for that schema, and else as plain as its type allows. So an example follows its schema by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.examples import BODIES

_ID = "01980d2c-7a31-7c52-9f0e-6a4b1f2d3c4e"
_AT = "2030-01-01T08:00:00.250000Z"
_OUTPUT = {"text": "Hello, Ada!"}

FIELDS: Mapping[str, Any] = {
    "action": "workflow.update",
    "actor_id": "admin",
    "actor_name": "admin",
    "attempt": 1,
    "completed": 98,
    "count": 98,
    "created_by": "admin",
    "definition": BODIES["WorkflowIn"]["definition"],
    "depends_on": [],
    "description": "Greets somebody",
    "done": 2,
    "duration": 0.33,
    "execution_count": 100,
    "failed": 2,
    "host": "worker-1",
    "input": {"name": "Ada"},
    "is_enabled": True,
    "is_new": True,
    "level": "info",
    "local": "2030-01-01T09:00:00+01:00",
    "matched": 2,
    "max_concurrent": 100,
    "mean": 0.4,
    "mean_duration": 0.2,
    "message": "Hello, Ada!",
    "name": "greeting",
    "node": "worker-1@host",
    "object_kind": "workflow",
    "output": _OUTPUT,
    "p50": 0.31,
    "p95": 0.92,
    "p99": 1.4,
    "path": "greet",
    "pid": 4711,
    "priority": 5,
    "project": "default",
    "queue": "control",
    "seconds": 0.2,
    "seen_seconds": 1.5,
    "slots": 8,
    "started": 1,
    "step_id": "greet",
    "success_rate": 0.98,
    "tags": ["demo"],
    "trigger_rule": "all_success",
    "type": "set",
    "version": 3,
    "workers": 2,
}
"""By a field's name, for all schemas in which it may have this type."""

OF: Mapping[str, Mapping[str, Any]] = {
    "AuditEntry": {"status": 200, "actor_kind": "admin_key", "after": {"version": 4}, "before": {"version": 3}},
    "ChangeOut": {
        "kind": "changed",
        "path": "steps.fetch.config.url",
        "old": "https://a.example",
        "new": "https://b.example",
    },
    "ExecutionDetail": {"status": "completed", "start_time": _AT, "end_time": _AT},
    "ExecutionOut": {"status": "completed", "start_time": _AT, "end_time": _AT},
    "FireOut": {"outcome": "started", "slot": _AT, "scheduled_for": _AT, "execution_id": _ID, "payload": None},
    "GrantOnKey": {"role": "operator"},
    "GrantOut": {"subject": "company:248289761001", "role": "editor"},
    "HealthOut": {
        "status": "healthy",
        "checks": {"database": "ok", "scheduler": "ok", "executor": "ok"},
        "stats": {"active_executions": 3, "queued_executions": 0, "total_workflows": 12, "active_workflows": 9},
        "script_isolation": {"bubblewrap": 3},
    },
    "KeyOut": {"name": "the website", "prefix": "orc_4f9a"},
    "MeOut": {"kind": "key", "id": _ID, "name": "the website"},
    "NewKeyOut": {"name": "the website", "prefix": "orc_4f9a", "key": "orc_4f9a-not-a-real-key"},
    "BucketOut": {"up_to": 0.5},
    "BulkOut": {"refused": []},
    "QueueOut": {"name": "io", "depth": 0},
    "ReasonOut": {
        "reason": "waiting_for_signal",
        "detail": "step approve waits for the signal 'payment'",
        "facts": {"signal": "payment"},
    },
    "RetriesOut": {"steps": 5, "completed": 4, "success_rate": 0.8},
    "SecretOut": {"name": "api_token", "description": "Of the bank", "key_id": "3f1c"},
    "StartedOut": {"id": _ID, "errors": []},
    "StepExecutionOut": {"status": "completed", "start_time": _AT, "end_time": _AT},
    "StepTemplateDetail": BODIES["StepTemplateIn"],
    "StepTemplateOut": {"name": "fetch"},
    "StepTestOut": {
        "status": "completed",
        "output": {"total": 42},
        "error": None,
        "waits_for": None,
        "rendered": {"values": {"total": 42}},
    },
    "VersionChanges": {"old": 2, "new": 3, "resolved": []},
    "TriggerOut": BODIES["TriggerIn"],
    "WebhookResult": {"status": "completed", "execution_id": _ID},
    "WorkflowDetail": {"status": "active"},
    "WorkflowOut": {"status": "active"},
    "WorkflowStatusOut": {"status": "active"},
}
"""By the name of a schema, what is special there."""

_PLAIN: Mapping[str, Any] = {"string": "", "integer": 0, "number": 0.0, "boolean": False, "object": {}}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}
_FORMATS = {"uuid": _ID, "date-time": _AT}


def example_answer(name: str, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """An example of the schema with this name, with all that is always there."""
    schema, special = schemas[name], OF.get(name, {})
    fields = schema["properties"]
    return {
        field: special[field] if field in special else _example(field, fields[field], schemas)
        for field in fields
        if field in schema.get("required", ())
    }


def _example(field: str, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return example_answer(schema["$ref"].rpartition("/")[2], schemas)
    if "anyOf" in schema:
        return _example(field, schema["anyOf"][0], schemas)
    given = schema.get("type")
    types: list[str] = given if isinstance(given, list) else [given or ""]
    known = FIELDS.get(field)
    if (
        known is not None
        and (given is None or any(_is(known, type) for type in types))
        and not _excludes(schema, known)
    ):
        return known
    if "enum" in schema:
        return schema["enum"][0]
    if given is None or "null" in types:
        return None
    if given == "array":
        return [_example(field, schema["items"], schemas)]
    return _FORMATS.get(schema.get("format", ""), _PLAIN[given])


def _is(value: object, type: str) -> bool:
    return type != "null" and isinstance(value, _TYPES[type]) and (type == "boolean" or not isinstance(value, bool))


def _excludes(schema: Mapping[str, Any], value: object) -> bool:
    return "format" in schema or ("enum" in schema and value not in schema["enum"])
