"""A secret goes through the success and the failure of every type of step, and is nowhere to be found afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from counterparts import TOKEN, Counterparts, counterparts
from deployment import Deployment, deployed
from test_execution import step, workflow

from orchestrator.config import (
    AgentSettings,
    ConnectionSettings,
    EmailSettings,
    LlmSettings,
    McpServerSettings,
    McpSettings,
    Settings,
)
from orchestrator.plugins import load_catalogue

CANARY = TOKEN  # which the API on the other side asks for
NAMED = "{{ secrets.canary }}"
TYPES = frozenset(load_catalogue(""))


@pytest.fixture(scope="module")
def them() -> Iterator[Counterparts]:
    with counterparts() as them:
        yield them


def with_them(settings: Settings, them: Counterparts, folder: Path) -> Settings:
    return replace(
        settings,
        connections={"own": ConnectionSettings(url=f"sqlite:///{folder / 'own.db'}")},
        email=EmailSettings(host="127.0.0.1", port=them.mail_port, security="none", sender="a@example.com"),
        agents={
            "a2a": AgentSettings(url=them.agent, poll_interval=0.05),
            "http": AgentSettings(url=f"{them.web}/data-analyst", protocol="http"),
        },
        llm=LlmSettings(base_url=f"{them.web}/v1", api_key=NAMED),
        mcp=McpSettings(servers={"it": McpServerSettings(url=them.mcp, headers={"X-Token": NAMED})}),
    )


def given(one: dict[str, Any], **input: Any) -> dict[str, Any]:
    return {**one, "input_mapping": input}


def waiting(type: str, **config: Any) -> dict[str, Any]:
    """A step that waits for what does not come."""
    return {"id": type, "type": type, "config": {"timeout": "1ms", **config}}


def good(them: Counterparts, child: str) -> Iterator[dict[str, Any]]:
    """Steps that come to a good end with the secret, in their output wherever a type can have it there."""
    echo = f"{them.web}/echo?token={NAMED}"
    yield step("set", "set", values={"v": NAMED, NAMED: "as a key", "deep": [{"x": f"around {NAMED}"}]})
    yield step("condition", "condition", expression="secrets.canary == 'x'", then=[], **{"else": []})
    yield step("http", "http", url=f"{them.web}/data", headers={"Authorization": f"Bearer {NAMED}"})
    yield step("http_basic", "http", url=echo, method="POST", json=NAMED, auth={
        "type": "basic", "username": "me", "password": NAMED,
    })  # fmt: skip
    yield step("webhook", "webhook", url=f"{them.web}/echo", payload={"x": NAMED}, secret=NAMED)
    source = "import sys; d = sys.stdin.read(); print(d, file=sys.stderr); print(d)"
    yield given(step("script", "script", source=source), x=NAMED)
    yield step("database", "database", connection="own", operation="query", sql="SELECT :x AS x", params={"x": NAMED})
    yield step("email", "email", to="b@example.com", subject=NAMED, text=NAMED)
    yield step("llm", "llm", prompt=NAMED, model=NAMED)
    yield step("mcp", "mcp", action="echo", arguments={"value": NAMED})
    yield step("mcp_headers", "mcp", action="seen")
    yield given(step("agent", "agent", agent_id="http", task=NAMED), x=NAMED)
    yield given(step("agent_a2a", "agent", agent_id="a2a", task=NAMED), batch_size=NAMED)
    yield given(step("wait", "wait", duration="1ms"), x=NAMED)
    yield waiting("signal", name=f"n {NAMED}", default=NAMED)
    yield waiting("approval", message=NAMED, default="approve")
    inner = step("i", "set", values={"v": "{{ loop.item }}", "w": NAMED})
    yield step("loop", "loop", items=[NAMED], steps=[inner])
    yield step("parallel", "parallel", branches={"b": [step("p", "set", values={"v": NAMED})]})
    yield step("workflow", "workflow", workflow=child, input={"x": NAMED})
    yield step("talk", "talk", lines=[f"says {NAMED}"])


def bad(them: Counterparts) -> Iterator[dict[str, Any]]:
    """Steps that fail over the secret, and repeat it in what they say of that wherever they can."""
    nobody = "http://127.0.0.1:9/"
    quoted = "{{ secrets.canary.nothing[secrets.canary] }}"
    yield step("set", "set", values={"v": quoted})
    yield step("condition", "condition", expression="secrets.canary > 5", then=[], **{"else": []})
    yield step("http", "http", url=nobody + NAMED, headers={"X-Token": NAMED}, json={"x": NAMED})
    yield step("http_status", "http", url=f"{them.web}/refusing?t={NAMED}", method="POST", json={"x": NAMED})
    yield step("webhook", "webhook", url=f"{them.web}/refusing?t={NAMED}", payload={"x": NAMED}, secret=NAMED)
    yield given(step("script", "script", source="import sys; sys.exit(sys.stdin.read())"), x=NAMED)
    yield step(
        "database", "database", connection="own", operation="query", sql="SELECT :x FROM no", params={"x": NAMED}
    )
    yield step("database_name", "database", connection=NAMED, operation="query", sql="SELECT 1")
    yield step("email", "email", to=f"no address {NAMED}", subject=NAMED, text=NAMED)
    yield step("llm", "llm", prompt=f"refuse {NAMED}", model=NAMED)
    yield step("mcp", "mcp", action="fail", arguments={"message": NAMED})
    yield step("mcp_server", "mcp", server=NAMED, action="x", arguments={"x": NAMED})
    yield given(step("agent", "agent", agent_id="http", task=f"refuse {NAMED}"), x=NAMED)
    yield step("agent_name", "agent", agent_id=NAMED, task=NAMED)
    yield step("wait", "wait", duration=NAMED)
    yield waiting("signal", name=f"n {NAMED}")
    yield waiting("approval", message=NAMED)
    failing = step("f", "fail", message=f"failed over {NAMED}")
    yield step("loop", "loop", items=[NAMED], steps=[failing])
    yield step("parallel", "parallel", branches={"b": [{**failing, "id": "g"}]})
    yield step("workflow", "workflow", workflow=NAMED, input={"x": NAMED})


@pytest.mark.timeout(900)
def test_a_secret_is_nowhere_to_be_found_after_every_type_of_step_had_it(tmp_path: Path, them: Counterparts) -> None:
    with deployed(tmp_path, adjusted=lambda settings: with_them(settings, them, tmp_path)) as deployment:
        deployment.start_worker("control,cpu")
        deployment.start_worker("io", pool="threads", concurrency=4)
        written = deployment.client.post("/api/v1/secrets", json={"name": "canary", "value": CANARY})
        assert written.status_code == 201, written.text
        child = deployment.create(workflow(step("c", value={"x": "{{ input.x }}", "again": NAMED})))
        executions = {}
        for status, those in (("completed", good(them, child)), ("failed", bad(them))):
            definition = workflow(*({**one, "on_error": "continue"} for one in those))
            execution = deployment.ended(deployment.execute(deployment.create(definition, name=status)), seconds=200)
            executions[status] = execution["id"]
            outer = [row for row in execution["step_executions"] if row["step_id"] == row["path"]]
            others = {row["path"]: row["error_message"] for row in outer if row["status"] != status}
            assert not others, others
            assert {row["type"] for row in outer} >= TYPES
        shown = {row["path"]: row for row in deployment.execution(executions["completed"])["step_executions"]}
        assert shown["http"]["output"]["body"]["authorization"] == "Bearer ***"  # it was there
        assert all(them.asked_of(path) for path in ("/data", "/echo", "/refusing", "/data-analyst"))
        for where, text in everything(deployment, executions.values()):
            assert CANARY not in text, f"{where}: {around(text)}"


def everything(deployment: Deployment, executions: Any) -> Iterator[tuple[str, str]]:
    """All that the service has kept, and all that it says."""
    paths = [
        "/api/v1/executions", "/api/v1/secrets", "/api/v1/workflows", "/api/v1/audit", "/api/v1/audit/export",
        "/api/v1/stats", "/api/v1/scheduler/status", "/metrics", "/health", "/api/v1/events/stream",
    ]  # fmt: skip
    for id in executions:
        execution = deployment.execution(id)
        paths += [f"/api/v1/executions/{id}{more}" for more in ("", "/logs", "/logs?format=text", "/why", "/events")]
        paths += [f"/api/v1/workflows/{execution['workflow_id']}{more}" for more in ("", "/stats", "/export")]
        for row in execution["step_executions"]:
            one = f"/api/v1/step-executions/{row['id']}"
            paths += [one, f"{one}/output", f"{one}/why", f"/api/v1/executions/{id}/steps/{row['path']}/output"]
    for path in paths:
        answer = deployment.client.get(path)
        assert answer.status_code < 300, f"{path}: {answer.text}"
        yield path, answer.text
    for worker in list(deployment.workers):
        deployment.stop_worker(worker)  # so that all that they count is told
    for (table,) in deployment.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        for (row,) in deployment.sql(f'SELECT t::text FROM "{table}" t'):
            yield f"table {table}", row
    yield "/metrics", deployment.client.get("/metrics").text
    client = redis.Redis.from_url(deployment.settings.broker.url)
    for key in client.scan_iter():
        yield f"broker {key!r}", repr(key) + repr(client.dump(key))
    for file in deployment.folder.rglob("*.log"):
        yield str(file), file.read_text(errors="replace")


def around(text: str) -> str:
    at = text.index(CANARY)
    return text[max(0, at - 200) : at + 200]
