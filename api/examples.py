"""Examples for /openapi.json: bodies by the names of their schemas, errors by status. A test holds each against its
schema, and none of a body may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from werkzeug.http import HTTP_STATUS_CODES

_ID = "01980d2c-7a31-7c52-9f0e-6a4b1f2d3c4e"

_DEFINITION: dict[str, Any] = {
    "version": "1.0",
    "variables": {"greeting": "Hello"},
    "steps": [
        {
            "id": "greet",
            "type": "set",
            "config": {"values": {"text": "{{ variables.greeting }}, {{ input.name | default('world') }}!"}},
        }
    ],
    "outputs": {"text": "{{ steps.greet.output.text }}"},
}
_STEP = {"type": "http", "config": {"url": "{{ params.url }}", "timeout": "5s"}, "retry_policy": {"max_attempts": 3}}

BODIES: Mapping[str, dict[str, Any]] = {
    "WorkflowIn": {"name": "greeting", "description": "Greets somebody", "tags": ["demo"], "definition": _DEFINITION},
    "InstantiateIn": {"name": "greeting in French", "variables": {"greeting": "Bonjour"}},
    "CloneIn": {"name": "greeting, second try"},
    "ImportIn": {
        "name": "greeting",
        "definition": _DEFINITION,
        "triggers": [
            {"type": "schedule", "name": "mornings", "config": {"cron": "0 8 * * *", "timezone": "Europe/Rome"}}
        ],
    },
    "ExecuteIn": {"input": {"name": "Ada"}, "priority": 7},
    "ExecuteManyIn": {"items": [{"input": {"name": "Ada"}}, {"input": {"name": "Alan"}, "idempotency_key": "alan-1"}]},
    "RerunIn": {"from_step": "greet", "input": {"name": "Grace"}},
    "BulkIn": {"action": "retry", "filter": {"workflow_id": _ID, "status": "failed"}, "limit": 100},
    "SignalIn": {"name": "payment", "payload": {"amount": 12.5}},
    "DecisionIn": {"approved": True, "comment": "Looks right", "by": "Ada"},
    "TriggerIn": {"type": "schedule", "name": "hourly", "config": {"interval": "1h"}},
    "TriggerChange": {"is_enabled": False},
    "FireIn": {"input": {"name": "Ada"}},
    "BackfillIn": {"from": "2025-01-01T00:00:00Z", "to": "2025-01-02T00:00:00Z"},
    "StepTemplateIn": {
        "name": "fetch",
        "description": "Gets an address, with retries",
        "parameters": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
        "step": _STEP,
    },
    "StepTemplateChange": {"description": "Gets an address, three times if need be"},
    "StepTestIn": {
        "type": "set",
        "config": {"values": {"total": "{{ input.amount * 2 }}"}},
        "input": {"amount": 21},
        "timeout": "10s",
    },
    "ProjectIn": {"name": "billing", "description": "Invoices and reminders"},
    "ProjectChange": {"description": "Invoices, reminders and receipts"},
    "KeyIn": {"name": "the website", "grants": [{"role": "operator", "project": "billing"}], "rate_limit": 600},
    "KeyChange": {"grants": [{"role": "viewer", "project": "billing"}]},
    "GrantIn": {"subject": "company:248289761001", "role": "editor", "project": "billing"},
    "SecretIn": {"name": "api_token", "value": "not-a-real-token", "project": "billing", "description": "Of the bank"},
    "SecretChange": {"value": "another-token"},
}

EVENT = {
    "id": "b5e0d7b2",
    "source": "https://example.com/shop",
    "specversion": "1.0",
    "type": "com.example.order.created",
    "data": {"order": 17},
}

ERRORS: Mapping[int, dict[str, Any]] = {
    400: {
        "detail": "the body cannot be read as YAML",
        "errors": [{"path": "", "message": "a list that begins here has no end", "line": 3}],
    },
    401: {"detail": "this key is not valid: it is unknown, revoked or has expired"},
    403: {"detail": "this takes the role editor in the project", "role": "editor"},
    404: {"detail": f"there is no workflow {_ID}"},
    409: {"detail": "a workflow that is cancelled cannot be activated", "state": "cancelled"},
    405: {"detail": "this webhook takes POST, not GET"},
    410: {"detail": "the large output of a step is not in the artifact store any more; run the step again"},
    412: {"detail": "the workflow has version 4 by now, not 3; get it, and make your change of that"},
    413: {
        "detail": "the body is larger than 1,048,576 bytes, a limit that follows from the setting executor.max_payload"
    },
    415: {"detail": "send application/json or application/yaml, not text/xml"},
    422: {
        "detail": "the definition is not valid",
        "errors": [
            {"path": "definition.steps[1].depends_on", "message": "there is no step 'fetsh'; did you mean 'fetch'?"}
        ],
    },
    429: {"detail": "600 requests a minute have been made with this key; try again in 12 s"},
    503: {"detail": "the database does not answer; try again"},
    504: {"detail": "no worker took the step within 40 s, and none will now: start one for the queue 'io', or more"},
}


def example_error(status: int) -> dict[str, Any] | None:
    """The whole body of an error with this status, if there is one."""
    if status not in ERRORS:
        return None
    return {"type": "about:blank", "title": HTTP_STATUS_CODES[status], "status": status, **ERRORS[status]}
