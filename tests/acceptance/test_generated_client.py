"""A stranger's client, made of /openapi.json by openapi-python-client, does what the specification is about."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from deployment import wait_until
from test_cli_up import Up

DEFINITION = {
    "steps": [
        {"id": "add", "type": "set", "config": {"values": {"sum": "{{ input.a + input.b }}"}}},
        {
            "id": "say",
            "type": "script",
            "depends_on": ["add"],
            "config": {
                "runtime": "bash",
                "source": "echo the sum is $SUM >&2",
                "env": {"SUM": "{{ steps.add.output.sum }}"},
            },
        },
    ],
    "outputs": {"sum": "{{ steps.add.output.sum }}"},
}


@pytest.fixture(scope="module")
def generated(up: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the generator said; the package `generated` can be imported."""
    folder = tmp_path_factory.mktemp("client")
    with urllib.request.urlopen(f"{up.wait_ready()}/openapi.json") as answer:
        (folder / "openapi.json").write_bytes(answer.read())
    (folder / "config.yaml").write_text("post_hooks: []")  # it would format what it has made
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--path", "openapi.json"]
    command += ["--config", "config.yaml", "--output-path", "generated"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(folder))
    return done.stdout + done.stderr


def test_the_generator_understands_all_of_the_document_that_is_json(generated: str) -> None:
    warnings = re.findall(r"^WARNING parsing (.+)\n\n(.+)", generated, re.MULTILINE)
    assert len(warnings) == generated.count("WARNING")
    # A body in YAML stands beside the same in JSON; what is answered as YAML or as lines is handed on as bytes.
    strange = [(where, what) for where, what in warnings if "application/yaml" not in what]
    assert [where for where, _ in strange] == ["GET /api/v1/audit/export within audit."], strange
    assert "application/x-ndjson" in strange[0][1]


def test_a_workflow_is_created_executed_followed_and_deleted_by_a_generated_client(generated: str, up: Up) -> None:
    api = Generated(up.wait_ready(), (up.folder / "admin-key").read_text().strip())
    made = api.body("WorkflowIn", {"name": "of a stranger", "definition": DEFINITION})
    workflow = api.call("workflows.create_workflow", body=made)
    assert (workflow.status, workflow.version) == ("draft", 1)
    assert api.call("workflows.activate_workflow", workflow_id=workflow.id).status == "active"

    given = api.body("ExecuteIn", {"input": {"a": 40, "b": 2}})
    execution = api.call("workflows.execute_workflow", workflow_id=workflow.id, body=given, idempotency_key="once")

    def ended() -> Any:
        now = api.call("executions.get_execution", execution_id=execution.id)
        return now if now.status in ("completed", "failed", "cancelled") else None

    over = wait_until(ended)
    assert (over.status, over.output) == ("completed", {"sum": 42})
    assert [(step.path, step.status) for step in over.step_executions] == [("add", "completed"), ("say", "completed")]
    lines = api.call("executions.list_execution_logs", execution_id=execution.id).items
    assert [(line.step_id, line.message) for line in lines] == [("say", "the sum is 42")]
    listed = api.call("executions.list_executions", workflow_id=workflow.id).items
    assert [one.id for one in listed] == [execution.id]

    api.call("workflows.delete_workflow", workflow_id=workflow.id)
    missing = api.refused("workflows.get_workflow", workflow_id=workflow.id)
    assert (missing.status, missing.detail) == (404, f"there is no workflow {workflow.id}")


def test_events_are_sent_whole_or_in_headers_by_a_generated_client(generated: str, up: Up) -> None:
    api = Generated(up.wait_ready(), (up.folder / "admin-key").read_text().strip())
    ordered = {"type": "event", "config": {"type": "order.made", "mapping": {"order": "{{ event.data.order }}"}}}
    made = api.body("WorkflowIn", {"name": "of events", "definition": {**DEFINITION, "triggers": [ordered]}})
    api.call("workflows.activate_workflow", workflow_id=api.call("workflows.create_workflow", body=made).id)
    attributes = {"source": "/shop", "specversion": "1.0", "type": "order.made"}
    whole = api.body("CloudEvent", {**attributes, "id": "1", "data": {"order": 17}})
    in_headers = {f"ce_{name}": value for name, value in attributes.items()}
    data = api.body("SendEventJsonBody", {"order": 18})
    sent = [
        api.call("events.send_event", body=whole),
        api.call("events.send_event", body=data, ce_id="2", **in_headers),
        api.call("events.send_event", body=whole),
    ]
    started = [[(fired.event_id, str(fired.outcome)) for fired in one.fired] for one in sent]
    assert started == [[("1", "started")], [("2", "started")], [("1", "duplicate")]]
    inputs = [api.call("executions.get_execution", execution_id=one.fired[0].execution_id).input_ for one in sent[:2]]
    assert [given.to_dict() for given in inputs] == [{"order": 17}, {"order": 18}]


def test_a_generated_client_sees_what_is_wrong_with_each_field(generated: str, up: Up) -> None:
    api = Generated(up.wait_ready(), (up.folder / "admin-key").read_text().strip())
    definition = {"steps": [{"id": "a", "type": "no such type"}, {"id": "a", "type": "noop"}]}
    refused = api.refused(
        "workflows.create_workflow", body=api.body("WorkflowIn", {"name": "x", "definition": definition})
    )
    assert refused.status == 422
    assert {error.path for error in refused.errors} >= {"definition.steps[0].type", "definition.steps[1].id"}
    stranger = Generated(up.wait_ready(), "no key")
    assert stranger.refused("workflows.list_workflows").status == 401


class Generated:
    """The generated modules by their names, with one client for all calls."""

    def __init__(self, url: str, key: str) -> None:
        self._client = importlib.import_module("generated").AuthenticatedClient(base_url=url, token=key)

    def body(self, name: str, fields: dict[str, Any]) -> Any:
        return getattr(importlib.import_module("generated.models"), name).from_dict(fields)

    def call(self, operation: str, **arguments: Any) -> Any:
        """The answer of a call that is done."""
        answer = importlib.import_module(f"generated.api.{operation}").sync_detailed(client=self._client, **arguments)
        assert answer.status_code < 300, answer.parsed
        return answer.parsed

    def refused(self, operation: str, **arguments: Any) -> Any:
        """The problem of one that is not."""
        answer = importlib.import_module(f"generated.api.{operation}").sync_detailed(client=self._client, **arguments)
        assert answer.status_code == answer.parsed.status >= 400, answer.parsed
        return answer.parsed
