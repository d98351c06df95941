"""Every call that controls something, in every state that it may find: it is done, or refused with 409 and that state;
and said twice, it is answered like the first time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment
from test_execution import step, workflow
from test_triggers_api import fired

from orchestrator.lifecycle import EXECUTION_TERMINAL, STEP_TERMINAL, ExecutionStatus, StepStatus, WorkflowStatus

LIVE = ExecutionStatus.QUEUED, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED
SLOT = "2026-01-05T00:00:00+00:00"
"""A past one of the schedule."""


def answered(servers: Deployment, method: str, path: str, body: Any, state: str, done: int, allowed: Collection[str]):
    """That both of two calls are answered alike."""
    for _ in range(2):
        answer = servers.client.open(f"/api/v1{path}", method=method, json=body)
        assert answer.status_code == (done if state in allowed else 409), (method, path, state, answer.text)
        if answer.status_code == 409:
            assert answer.json["state"] == state, answer.text


@pytest.mark.parametrize("state", ExecutionStatus)
@pytest.mark.parametrize(
    ("call", "body", "done", "allowed"),
    [
        ("pause", None, 200, LIVE),
        ("resume", None, 200, LIVE),
        ("cancel", None, 200, (*LIVE, "cancelled")),
        ("retry", None, 200, ("failed", "cancelled")),
        ("rerun", {}, 202, ExecutionStatus),
        ("rerun", {"from_step": "a"}, 202, EXECUTION_TERMINAL),
        ("signals", {"name": "paid"}, 202, LIVE),
    ],
)
def test_of_an_execution(servers: Deployment, state: str, call: str, body: Any, done: int, allowed: Collection[str]):
    execution_id = servers.execute(servers.create(workflow(step("a"))))
    servers.sql(
        "UPDATE executions SET status = %(state)s, started_at = now(), paused_at = now(), "
        "finished_at = CASE WHEN %(ended)s THEN now() END WHERE id = %(id)s::uuid",
        state=state, ended=state in EXECUTION_TERMINAL, id=execution_id,
    )  # fmt: skip
    answered(servers, "POST", f"/executions/{execution_id}/{call}", body, state, done, allowed)


@pytest.mark.parametrize("state", StepStatus)
@pytest.mark.parametrize(
    ("call", "body", "done", "allowed"),
    [("retry", None, 200, ("failed", "cancelled")), ("decision", {"approved": True}, 202, ("waiting",))],
)
def test_of_a_step(servers: Deployment, state: str, call: str, body: Any, done: int, allowed: Collection[str]):
    execution_id = servers.execute(servers.create(workflow({"id": "ok", "type": "approval", "config": {}})))
    ((step_id,),) = servers.sql(
        "UPDATE step_executions SET status = %(state)s, finished_at = CASE WHEN %(ended)s THEN now() END, "
        "claim_token = CASE WHEN %(state)s = 'running' THEN gen_random_uuid() END, "
        "awaits = CASE WHEN %(state)s = 'waiting' THEN 'decision' END "
        "WHERE execution_id = %(id)s::uuid RETURNING id::text",
        state=state, ended=state in STEP_TERMINAL, id=execution_id,
    )  # fmt: skip
    answered(servers, "POST", f"/step-executions/{step_id}/{call}", body, state, done, allowed)


def workflow_in(servers: Deployment, state: str) -> tuple[str, str]:
    """A workflow in a state, and its schedule."""
    daily = {"type": "schedule", "config": {"cron": "0 0 * * *", "timezone": "UTC"}}
    workflow_id = servers.create(workflow(step("a"), triggers=[daily]))
    servers.sql("UPDATE workflows SET status = %(state)s WHERE id = %(id)s::uuid", state=state, id=workflow_id)
    (trigger,) = servers.client.get(f"/api/v1/workflows/{workflow_id}/triggers").json["items"]
    return workflow_id, trigger["id"]


@pytest.mark.parametrize("state", WorkflowStatus)
@pytest.mark.parametrize(
    ("call", "done", "allowed"),
    [
        ("activate", 200, ("draft", "active", "paused", "completed", "failed")),
        ("pause", 200, ("active", "paused")),
        ("resume", 200, ("active", "paused")),
        ("cancel", 200, WorkflowStatus),
        ("execute", 202, ("draft", "active")),
    ],
)
def test_of_a_workflow(servers: Deployment, state: str, call: str, done: int, allowed: Collection[str]):
    workflow_id, _ = workflow_in(servers, state)
    body = {} if call == "execute" else None
    answered(servers, "POST", f"/workflows/{workflow_id}/{call}", body, state, done, allowed)


@pytest.mark.parametrize("state", WorkflowStatus)
def test_of_a_trigger(servers: Deployment, state: str):
    _, trigger_id = workflow_in(servers, state)
    for is_enabled in (False, True):
        answered(servers, "PUT", f"/triggers/{trigger_id}", {"is_enabled": is_enabled}, state, 200, WorkflowStatus)
    past = {"from": SLOT, "to": SLOT}
    answered(servers, "POST", f"/triggers/{trigger_id}/backfill", past, state, 200, ("active",))
    key = str(uuid4())
    first, second = (fired(servers, trigger_id, {}, key=key).json for _ in range(2))
    # That it fired is on record whatever came of it; so this is no refusal.
    assert (first["outcome"], second["outcome"]) == ("started" if state == "active" else "skipped", "duplicate")
    assert (first["execution_id"], first["reason"]) == (second["execution_id"], second["reason"])
