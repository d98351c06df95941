"""Workflows cloned, and taken elsewhere as a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment
from test_execution import step, workflow

from orchestrator.definition import read_definition

WORKFLOWS = "/api/v1/workflows"
SPEC = Path(__file__).parents[1] / "acceptance" / "spec"
SECRET = "a-very-secret-word-for-hooks"
DAILY = {"type": "schedule", "name": "daily", "config": {"cron": "0 2 * * *"}}


def hook(secret: str | None = SECRET) -> dict[str, Any]:
    config = {"path": f"/webhook/{uuid4()}"} | ({} if secret is None else {"secret": secret, "scheme": "hmac"})
    return {"type": "webhook", "name": "hook", "config": config}


def exported(servers: Deployment, workflow_id: str) -> str:
    answer = servers.client.get(f"{WORKFLOWS}/{workflow_id}/export")
    assert (answer.status_code, answer.mimetype) == (200, "application/yaml"), answer.text
    assert answer.headers["Content-Disposition"] == f"attachment; filename={workflow_id}.yaml"
    return answer.text


def imported(servers: Deployment, text: str, status: int = 201, **query: Any) -> Any:
    answer = servers.client.post(
        f"{WORKFLOWS}/import", data=text.encode(), content_type="application/yaml", query_string=query
    )
    assert answer.status_code == status, answer.text
    return answer.json


def triggers_of(servers: Deployment, workflow_id: str) -> dict[str, dict[str, Any]]:
    found = servers.client.get(f"{WORKFLOWS}/{workflow_id}/triggers").json["items"]
    return {trigger["name"]: trigger for trigger in found}


# --- export and import ----------------------------------------------------------------------------------------


def examples() -> dict[str, dict[str, Any]]:
    found = {path.name: read_definition(path.read_bytes()).data for path in SPEC.iterdir() if path.suffix != ".md"}
    workflows = {name: data for name, data in found.items() if "steps" in data}
    # The example of an LLM speaks of a step of the agent's example, and they have no variables of their own.
    workflows["llm.yaml"]["steps"] = [*workflows["agent.yaml"]["steps"], *workflows["llm.yaml"]["steps"]]
    workflows["llm.yaml"]["steps"][-1]["depends_on"] = ["analysis"]
    variables = {"variables": {"input_file": "", "assistant_id": ""}}
    return {name: variables | data for name, data in workflows.items()}


@pytest.mark.parametrize("name", examples())
def test_every_example_of_the_specification_comes_back_as_it_was(servers: Deployment, name: str) -> None:
    definition = {"name": "an example", **examples()[name]}
    created = servers.client.post(WORKFLOWS, json=definition).json
    try:
        copy = imported(servers, exported(servers, created["id"]))
        assert copy["definition"] == definition
        assert copy["id"] != created["id"]
        for key in ("name", "description", "tags", "is_template"):
            assert copy[key] == created[key]
        assert exported(servers, copy["id"]) == exported(servers, created["id"])
    finally:
        servers.client.delete(f"{WORKFLOWS}/{created['id']}")


def test_what_yaml_would_read_otherwise_comes_back_as_it_was(servers: Deployment) -> None:
    value = {
        "on": "no",
        "12:30": "0x10",
        "n": ["1e3", "~", 1e3, None, True, "true"],
        "script": "if x:\n\tpass\n",
        "": " ",
    }
    created = servers.create(workflow(step("a", value=value)))
    copy = imported(servers, exported(servers, created))
    assert copy["definition"] == workflow(step("a", value=value))


def test_the_words_of_a_workflow_go_with_it(servers: Deployment) -> None:
    body = {"name": "数据: 处理", "description": "on\noff", "tags": ["yes", "2"], "is_template": True}
    created = servers.client.post(WORKFLOWS, json={**body, "definition": workflow(step("a"))}).json
    copy = imported(servers, exported(servers, created["id"]))
    assert {key: copy[key] for key in body} == body
    assert (copy["status"], copy["version"]) == ("draft", 1)


def test_triggers_go_with_it_and_are_enabled_only_if_the_call_says_so(servers: Deployment) -> None:
    workflow_id = servers.create({**workflow(step("a")), "triggers": [DAILY]})
    added = {"type": "schedule", "name": "added", "config": {"interval": "5m"}, "is_enabled": True}
    assert servers.client.post(f"{WORKFLOWS}/{workflow_id}/triggers", json=added).status_code == 201
    text = exported(servers, workflow_id)
    for query, enabled in (({}, False), ({"enable_triggers": "true"}, True)):
        found = triggers_of(servers, imported(servers, text, **query)["id"])
        assert {name: trigger["is_enabled"] for name, trigger in found.items()} == {"daily": enabled, "added": enabled}
        assert found["added"]["config"] == added["config"]


def test_no_secret_of_a_trigger_is_exported_and_an_import_asks_for_it(servers: Deployment) -> None:
    workflow_id = servers.create({**workflow(step("a")), "triggers": [hook()]})
    second = {**hook(), "name": "second", "is_enabled": False}
    assert servers.client.post(f"{WORKFLOWS}/{workflow_id}/triggers", json=second).status_code == 201
    text = exported(servers, workflow_id)
    assert SECRET not in text
    refused = imported(servers, text, 422)
    assert [error["path"] for error in refused["errors"]] == [
        "definition.triggers[0].config.secret", "triggers[0].config.secret",
    ]  # fmt: skip
    assert all(error["line"] > 0 for error in refused["errors"])
    copy = imported(servers, text.replace('"***"', SECRET))
    assert set(triggers_of(servers, copy["id"])) == {"hook", "second"}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("name: x\n", "definition"),
        ("name: x\ndefinition: {steps: []}\n", "definition.steps"),
        ("name: x\ndefinition: {steps: [{id: a, type: noop}]}\ntriggers: [{type: nothing}]\n", "triggers[0].type"),
        ("name: x\ndefinition: {steps: [{id: a, type: noop}]}\ntriggers: [{config: {}}]\n", "triggers[0].type"),
        ("name: x\ndefinition: {steps: [{id: a, type: noop}]}\nversion: 3\n", "version"),
    ],
)
def test_a_document_that_is_wrong_makes_nothing(servers: Deployment, text: str, path: str) -> None:
    before = servers.sql("SELECT count(*) FROM workflows")
    assert path in [error["path"] for error in imported(servers, text, 422)["errors"]]
    assert servers.sql("SELECT count(*) FROM workflows") == before


# --- clone ----------------------------------------------------------------------------------------------------


def cloned(servers: Deployment, workflow_id: str, **given: Any) -> Any:
    answer = servers.client.post(f"{WORKFLOWS}/{workflow_id}/clone", json=given)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"].endswith(answer.json["id"])
    return answer.json


def test_a_clone_says_what_the_original_says_and_is_a_draft(servers: Deployment) -> None:
    body = {"name": "original", "description": "of it", "tags": ["t"], "definition": workflow(step("a"))}
    original = servers.client.post(WORKFLOWS, json=body).json
    servers.client.post(f"{WORKFLOWS}/{original['id']}/activate")
    servers.client.put(f"{WORKFLOWS}/{original['id']}", json={"definition": workflow(step("b"))})
    copy = cloned(servers, original["id"])
    assert (copy["name"], copy["description"], copy["tags"]) == ("original (copy)", "of it", ["t"])
    assert (copy["status"], copy["version"], copy["definition"]) == ("draft", 1, workflow(step("b")))
    named = cloned(servers, original["id"], name="another", tags=[])
    assert (named["name"], named["description"], named["tags"]) == ("another", "of it", [])


def test_a_clone_has_the_triggers_and_none_of_them_fires(servers: Deployment) -> None:
    workflow_id = servers.create({**workflow(step("a")), "triggers": [DAILY, hook()]})
    servers.client.post(f"{WORKFLOWS}/{workflow_id}/triggers", json={**hook(None), "name": "added"})
    before = triggers_of(servers, workflow_id)
    copies = triggers_of(servers, cloned(servers, workflow_id)["id"])
    assert copies.keys() == {"daily", "hook", "added"}
    assert not any(trigger["is_enabled"] for trigger in copies.values())
    assert [copies[name]["config"] for name in before] == [before[name]["config"] for name in before]
    assert triggers_of(servers, workflow_id) == before


def test_a_clone_keeps_what_its_step_templates_were(servers: Deployment) -> None:
    body = {"name": f"greet {uuid4()}", "step": {"type": "noop", "config": {"value": 1}}}
    template = servers.client.post("/api/v1/step-templates", json=body).json
    workflow_id = servers.create({"steps": [{"id": "a", "uses": template["name"]}]})
    assert servers.client.delete(f"/api/v1/step-templates/{template['id']}").status_code == 204
    copy = cloned(servers, workflow_id)
    shown = servers.client.get(f"{WORKFLOWS}/{copy['id']}/versions/1").json
    assert shown["resolved"]["steps"][0]["config"] == {"value": 1}


def test_what_is_not_there_is_not_taken_anywhere(servers: Deployment) -> None:
    for method, what in (("get", "export"), ("post", "clone")):
        answer = servers.client.open(
            f"{WORKFLOWS}/{uuid4()}/{what}", method=method, json={} if method == "post" else None
        )
        assert answer.status_code == 404
