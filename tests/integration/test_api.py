"""The API's contract: every path, what it answers, and in which shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from deployment import KEY, Deployment, deployed, wait_until

from orchestrator.config import DatabaseSettings

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": 1}}]}
PAIR = {
    "steps": [
        {"id": "first", "type": "noop", "config": {"value": "{{ input.word }}"}},
        {
            "id": "second",
            "type": "noop",
            "depends_on": ["first"],
            "config": {"value": "{{ steps.first.output.result }}"},
        },
    ]
}

WORKFLOW = {
    "id", "project", "name", "description", "status", "status_reason", "tags", "owner_id", "is_template", "version",
    "created_at", "updated_at",
}  # fmt: skip
WORKFLOW_DETAIL = WORKFLOW | {"definition", "execution_count", "last_executed", "success_rate"}
EXECUTION = {
    "id", "workflow_id", "version", "status", "input", "output", "start_time", "end_time", "duration", "trigger_id",
    "priority", "rerun_of", "error_message", "created_at",
}  # fmt: skip
STEP_EXECUTION = {
    "id", "execution_id", "step_id", "path", "type", "status", "attempt", "input", "output", "start_time", "end_time",
    "duration", "next_attempt_at", "error_kind", "error_message",
}  # fmt: skip
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

ROUTES = {
    ("/api/v1/secrets", "get"),
    ("/api/v1/secrets", "post"),
    ("/api/v1/secrets/{secret_id}", "get"),
    ("/api/v1/secrets/{secret_id}", "put"),
    ("/api/v1/secrets/{secret_id}", "delete"),
    ("/api/v1/stats", "get"),
    ("/api/v1/workflows/{workflow_id}/stats", "get"),
    ("/metrics", "get"),
    ("/api/v1/projects", "get"),
    ("/api/v1/projects", "post"),
    ("/api/v1/projects/{project_id}", "get"),
    ("/api/v1/projects/{project_id}", "put"),
    ("/api/v1/projects/{project_id}", "delete"),
    ("/api/v1/keys", "get"),
    ("/api/v1/keys", "post"),
    ("/api/v1/keys/{key_id}", "get"),
    ("/api/v1/keys/{key_id}", "put"),
    ("/api/v1/keys/{key_id}", "delete"),
    ("/api/v1/grants", "get"),
    ("/api/v1/grants", "post"),
    ("/api/v1/grants/{grant_id}", "get"),
    ("/api/v1/grants/{grant_id}", "delete"),
    ("/api/v1/me", "get"),
    ("/api/v1/audit", "get"),
    ("/api/v1/audit/export", "get"),
    ("/api/v1/workflows", "get"),
    ("/api/v1/workflows", "post"),
    ("/api/v1/workflows/{workflow_id}", "get"),
    ("/api/v1/workflows/{workflow_id}", "put"),
    ("/api/v1/workflows/{workflow_id}", "delete"),
    ("/api/v1/workflows/{workflow_id}/activate", "post"),
    ("/api/v1/workflows/{workflow_id}/pause", "post"),
    ("/api/v1/workflows/{workflow_id}/resume", "post"),
    ("/api/v1/workflows/{workflow_id}/cancel", "post"),
    ("/api/v1/workflows/{workflow_id}/execute", "post"),
    ("/api/v1/workflows/{workflow_id}/execute/bulk", "post"),
    ("/api/v1/workflows/{workflow_id}/instantiate", "post"),
    ("/api/v1/workflows/{workflow_id}/clone", "post"),
    ("/api/v1/workflows/{workflow_id}/export", "get"),
    ("/api/v1/workflows/import", "post"),
    ("/api/v1/workflows/{workflow_id}/versions", "get"),
    ("/api/v1/workflows/{workflow_id}/versions/{version}", "get"),
    ("/api/v1/workflows/{workflow_id}/versions/{version}/restore", "post"),
    ("/api/v1/workflows/{workflow_id}/versions/{old}/diff/{new}", "get"),
    ("/api/v1/step-templates", "get"),
    ("/api/v1/step-templates", "post"),
    ("/api/v1/step-templates/{step_template_id}", "get"),
    ("/api/v1/step-templates/{step_template_id}", "put"),
    ("/api/v1/step-templates/{step_template_id}", "delete"),
    ("/api/v1/executions", "get"),
    ("/api/v1/executions/{execution_id}", "get"),
    ("/api/v1/executions/{execution_id}/logs", "get"),
    ("/api/v1/executions/{execution_id}/steps/{path}/output", "get"),
    ("/api/v1/executions/{execution_id}/events", "get"),
    ("/api/v1/events/stream", "get"),
    ("/api/v1/workflows/{workflow_id}/triggers", "get"),
    ("/api/v1/workflows/{workflow_id}/triggers", "post"),
    ("/api/v1/triggers/{trigger_id}", "get"),
    ("/api/v1/triggers/{trigger_id}", "put"),
    ("/api/v1/triggers/{trigger_id}", "delete"),
    ("/api/v1/triggers/{trigger_id}/fires", "get"),
    ("/api/v1/triggers/{trigger_id}/fire", "post"),
    ("/api/v1/triggers/{trigger_id}/preview", "get"),
    ("/api/v1/triggers/{trigger_id}/backfill", "post"),
    ("/api/v1/step-executions/{step_execution_id}", "get"),
    ("/api/v1/step-executions/{step_execution_id}/output", "get"),
    ("/api/v1/step-executions/{step_execution_id}/decision", "post"),
    ("/api/v1/step-executions/{step_execution_id}/retry", "post"),
    ("/api/v1/executions/{execution_id}/signals", "post"),
    ("/api/v1/executions/{execution_id}/pause", "post"),
    ("/api/v1/executions/{execution_id}/resume", "post"),
    ("/api/v1/executions/{execution_id}/cancel", "post"),
    ("/api/v1/executions/{execution_id}/retry", "post"),
    ("/api/v1/executions/{execution_id}/rerun", "post"),
    ("/api/v1/executions/{execution_id}", "delete"),
    ("/api/v1/executions/bulk", "post"),
    ("/api/v1/scheduler/status", "get"),
    ("/api/v1/workflows/{workflow_id}/status", "get"),
    ("/api/v1/executions/{execution_id}/why", "get"),
    ("/api/v1/step-executions/{step_execution_id}/why", "get"),
    ("/api/v1/schema", "get"),
    ("/api/v1/steps/test", "post"),
    ("/api/v1/events", "post"),
    *(("/webhook/{path}", method) for method in ("get", "post", "put", "patch", "delete")),
    ("/health", "get"),
}


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def pages(deployment: Deployment, path: str, **query: Any) -> Iterator[list[Any]]:
    cursor = None
    while True:
        answer = deployment.client.get(path, query_string={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        assert answer.json.keys() == {"items", "next"}
        yield answer.json["items"]
        cursor = answer.json["next"]
        if cursor is None:
            return


# --- workflows -----------------------------------------------------------------------------------------------


def test_a_created_workflow_is_a_draft_of_version_1_and_its_location_shows_it(servers: Deployment) -> None:
    owner = str(uuid4())
    given = {
        "name": "数据处理工作流",
        "description": "自动化数据处理和分析流程",
        "definition": {**NOOP, "variables": {"z": 1, "a": 2}},
        "tags": ["数据处理", "自动化"],
        "owner_id": owner,
        "is_template": True,
    }
    answer = servers.client.post("/api/v1/workflows", json=given)
    assert answer.status_code == 201
    created = answer.json
    assert created.keys() == WORKFLOW_DETAIL
    assert {key: created[key] for key in given} == given
    assert list(created["definition"]["variables"]) == ["z", "a"]
    assert (created["status"], created["version"], created["execution_count"]) == ("draft", 1, 0)
    assert created["last_executed"] is None
    assert created["success_rate"] is None
    assert TIME.fullmatch(created["created_at"])
    assert TIME.fullmatch(created["updated_at"])
    shown = servers.client.get(answer.headers["Location"])
    assert (shown.status_code, shown.json) == (200, created)


YAML_DOCUMENT = """\
# a definition by itself
name: from yaml
description: read with its comments
tags: [one, two]
steps:
  - id: only
    type: noop
    config: {value: 1}
"""


@pytest.mark.parametrize("media", ["application/yaml", "application/x-yaml", "text/yaml; charset=utf-8"])
def test_a_definition_document_by_itself_makes_a_workflow_of_its_name(servers: Deployment, media: str) -> None:
    answer = servers.client.post("/api/v1/workflows", data=YAML_DOCUMENT, content_type=media)
    assert answer.status_code == 201, answer.text
    assert answer.json["name"] == "from yaml"
    assert answer.json["description"] == "read with its comments"
    assert answer.json["tags"] == ["one", "two"]
    assert answer.json["definition"]["steps"] == NOOP["steps"]


def test_yaml_is_taken_for_the_envelope_and_for_an_execution(servers: Deployment) -> None:
    indented = "".join(f"  {line}\n" for line in YAML_DOCUMENT.splitlines())
    answer = servers.client.post(
        "/api/v1/workflows", data=f"name: outer\ndefinition:\n{indented}", content_type="application/yaml"
    )
    assert answer.status_code == 201, answer.text
    assert answer.json["name"] == "outer"
    assert answer.json["tags"] == ["one", "two"]
    started = servers.client.post(
        f"/api/v1/workflows/{answer.json['id']}/execute",
        data="input: {word: hello}\npriority: 7\n",
        content_type="application/yaml",
    )
    assert started.status_code == 202, started.text
    assert (started.json["input"], started.json["priority"]) == ({"word": "hello"}, 7)


def test_the_list_is_filtered_by_owner_status_tag_and_name(servers: Deployment) -> None:
    owner, tag, name = str(uuid4()), f"标签{uuid4()}", f"name {uuid4()}"
    body = {"definition": NOOP, "name": name}
    wanted = servers.client.post("/api/v1/workflows", json={**body, "owner_id": owner, "tags": [tag, "b"]}).json
    servers.client.post("/api/v1/workflows", json={**body, "name": "another"})
    servers.client.post(f"/api/v1/workflows/{wanted['id']}/activate")
    for query in ({"owner_id": owner}, {"tags": tag}, {"name": name}, {"status": "active", "owner_id": owner}):
        (items,) = pages(servers, "/api/v1/workflows", **query)
        assert [item["id"] for item in items] == [wanted["id"]]
        assert items[0].keys() == WORKFLOW
    assert list(pages(servers, "/api/v1/workflows", status="paused", owner_id=owner)) == [[]]


def test_pages_of_workflows_hold_each_once_newest_first(servers: Deployment) -> None:
    owner = str(uuid4())
    made = [
        servers.client.post("/api/v1/workflows", json={"name": f"{n}", "definition": NOOP, "owner_id": owner}).json[
            "id"
        ]
        for n in range(7)
    ]
    seen = list(pages(servers, "/api/v1/workflows", owner_id=owner, limit=3))
    assert [len(page) for page in seen] == [3, 3, 1]
    assert [item["id"] for page in seen for item in page] == made[::-1]


def test_an_update_changes_what_is_given_and_keeps_the_rest(servers: Deployment) -> None:
    body = {"name": "before", "description": "kept", "tags": ["kept"], "definition": NOOP}
    created = servers.client.post("/api/v1/workflows", json=body).json
    answer = servers.client.put(f"/api/v1/workflows/{created['id']}", json={"name": "after"})
    assert answer.status_code == 200
    assert answer.json == {**created, "name": "after", "updated_at": answer.json["updated_at"]}
    assert answer.json["updated_at"] > created["updated_at"]


def test_a_definition_that_differs_is_a_new_version_and_the_same_one_is_not(servers: Deployment) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP)}"
    assert servers.client.put(path, json={"definition": NOOP}).json["version"] == 1
    assert servers.client.put(path, json={"definition": PAIR}).json["version"] == 2
    shown = servers.client.get(path).json
    assert (shown["version"], shown["definition"]) == (2, PAIR)


def test_an_update_by_a_definition_document_takes_over_its_name(servers: Deployment) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP, name='before')}"
    answer = servers.client.put(path, data=YAML_DOCUMENT, content_type="application/yaml")
    assert answer.status_code == 200, answer.text
    assert (answer.json["name"], answer.json["version"]) == ("from yaml", 2)


def test_an_execution_stays_with_the_version_it_started_with(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    before = servers.execute(workflow)
    servers.client.put(f"/api/v1/workflows/{workflow}", json={"definition": PAIR})
    after = servers.execute(workflow)
    assert servers.client.get(f"/api/v1/executions/{before}").json["version"] == 1
    assert servers.client.get(f"/api/v1/executions/{after}").json["version"] == 2


def test_a_deleted_workflow_is_gone(servers: Deployment) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP)}"
    answer = servers.client.delete(path)
    assert (answer.status_code, answer.data) == (204, b"")
    assert servers.client.get(path).status_code == 404
    assert servers.client.delete(path).status_code == 404


def test_a_workflow_with_a_live_execution_is_not_deleted(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    servers.execute(workflow)
    answer = servers.client.delete(f"/api/v1/workflows/{workflow}")
    assert answer.status_code == 409
    assert answer.json["state"] == "draft"
    assert "not ended" in answer.json["detail"]
    assert servers.client.get(f"/api/v1/workflows/{workflow}").status_code == 200


def test_a_status_call_said_twice_is_done_once(servers: Deployment) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP)}"
    for verb, status in (("activate", "active"), ("pause", "paused"), ("resume", "active")):
        first = servers.client.post(f"{path}/{verb}")
        assert (first.status_code, first.json["status"]) == (200, status)
        assert first.json.keys() == WORKFLOW_DETAIL
        again = servers.client.post(f"{path}/{verb}")
        assert (again.status_code, again.json) == (200, first.json)


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_status_call_that_makes_no_sense_is_a_conflict_with_the_state(servers: Deployment, verb: str) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP)}"
    answer = servers.client.post(f"{path}/{verb}")
    assert answer.status_code == 409
    assert answer.content_type == "application/problem+json"
    assert answer.json["state"] == "draft"
    assert servers.client.get(path).json["status"] == "draft"


def test_a_paused_workflow_is_not_executed(servers: Deployment) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP)}"
    servers.client.post(f"{path}/activate")
    servers.client.post(f"{path}/pause")
    answer = servers.client.post(f"{path}/execute", json={})
    assert (answer.status_code, answer.json["state"]) == (409, "paused")
    assert servers.client.get(path).json["execution_count"] == 0


def test_a_workflow_counts_its_executions_and_their_success(deployment: Deployment) -> None:
    definition = {
        "steps": [{"id": "picky", "type": "noop"}, {"id": "last", "type": "fail", "depends_on": ["picky"]}],
    }
    workflow = deployment.create(definition)
    assert deployment.ended(deployment.execute(workflow))["status"] == "failed"
    deployment.client.put(f"/api/v1/workflows/{workflow}", json={"definition": NOOP})
    last = deployment.ended(deployment.execute(workflow))
    shown = deployment.client.get(f"/api/v1/workflows/{workflow}").json
    assert (shown["execution_count"], shown["success_rate"]) == (2, 0.5)
    assert datetime.fromisoformat(shown["last_executed"]) == last["created_at"]


# --- executing -----------------------------------------------------------------------------------------------


def test_an_execution_is_accepted_with_its_steps_and_where_to_find_it(servers: Deployment) -> None:
    workflow = servers.create(PAIR)
    answer = servers.client.post(
        f"/api/v1/workflows/{workflow}/execute", json={"input": {"word": "hello"}, "priority": 9}
    )
    assert answer.status_code == 202
    started = answer.json
    assert started.keys() == EXECUTION | {"step_executions"}
    assert (started["workflow_id"], started["version"], started["status"]) == (workflow, 1, "queued")
    assert (started["input"], started["priority"]) == ({"word": "hello"}, 9)
    assert started["start_time"] is None
    assert started["duration"] is None
    assert [(step["path"], step["status"]) for step in started["step_executions"]] == [
        ("first", "queued"),
        ("second", "pending"),
    ]
    assert servers.client.get(answer.headers["Location"]).json == started


def test_an_execution_without_a_body_has_no_input_and_the_middle_priority(servers: Deployment) -> None:
    answer = servers.client.post(f"/api/v1/workflows/{servers.create(NOOP)}/execute")
    assert answer.status_code == 202
    assert (answer.json["input"], answer.json["priority"]) == ({}, 5)


def test_the_same_idempotency_key_is_the_same_execution(servers: Deployment) -> None:
    path = f"/api/v1/workflows/{servers.create(NOOP)}/execute"
    headers = {"Idempotency-Key": "order 7"}
    first = servers.client.post(path, json={}, headers=headers)
    second = servers.client.post(path, json={}, headers=headers)
    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json["id"] == first.json["id"]
    assert second.headers["Location"] == first.headers["Location"]
    other = servers.client.post(path, json={}, headers={"Idempotency-Key": "order 8"})
    assert other.status_code == 202
    assert other.json["id"] != first.json["id"]


def test_a_workflow_deleted_elsewhere_is_not_started_by_a_process_that_knows_it(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    servers.execute(workflow)  # from now on the process keeps its definition
    servers.sql("DELETE FROM workflows WHERE id = %(id)s::uuid", id=workflow)
    answer = servers.client.post(f"/api/v1/workflows/{workflow}/execute", json={})
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")


def test_an_idempotency_key_belongs_to_one_workflow(servers: Deployment) -> None:
    headers = {"Idempotency-Key": "shared"}
    answers = [
        servers.client.post(f"/api/v1/workflows/{servers.create(NOOP)}/execute", json={}, headers=headers)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]


def test_twenty_calls_at_once_with_one_key_make_one_execution(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    application = servers.client.application

    def post(_: int) -> tuple[int, str]:
        with application.test_client() as client:
            answer = client.post(
                f"/api/v1/workflows/{workflow}/execute",
                json={},
                headers={"Authorization": f"Bearer {KEY}", "Idempotency-Key": "once"},
            )
            return answer.status_code, answer.json["id"]

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(post, range(20)))
    assert sorted(status for status, _ in answers) == [200] * 19 + [202]
    assert len({id for _, id in answers}) == 1
    assert servers.client.get(f"/api/v1/workflows/{workflow}").json["execution_count"] == 1


def test_an_execution_shows_its_result_and_every_step_of_it(deployment: Deployment) -> None:
    execution_id = deployment.execute(deployment.create(PAIR), {"word": "hello"})
    deployment.ended(execution_id)
    execution = deployment.client.get(f"/api/v1/executions/{execution_id}").json
    assert execution.keys() == EXECUTION | {"step_executions"}
    assert execution["status"] == "completed"
    assert execution["output"] == {"second": {"result": "hello"}}
    assert execution["trigger_id"] is None
    assert execution["error_message"] is None
    for step in execution["step_executions"]:
        assert step.keys() == STEP_EXECUTION
        assert step["execution_id"] == execution_id
        assert (step["type"], step["status"], step["attempt"]) == ("noop", "completed", 1)
        assert step["output"] == {"result": "hello"}
        assert step["input"] == {"value": "hello"}
        assert step["path"] == step["step_id"]
    assert [step["path"] for step in execution["step_executions"]] == ["first", "second"]
    for shown in (execution, *execution["step_executions"]):
        assert TIME.fullmatch(shown["start_time"])
        assert TIME.fullmatch(shown["end_time"])
        assert shown["duration"] == pytest.approx(seconds_between(shown["start_time"], shown["end_time"]), abs=1e-5)


def test_a_failed_step_says_why_and_so_does_its_execution(deployment: Deployment) -> None:
    definition = {"steps": [{"id": "bad", "type": "fail", "config": {"message": "no luck"}}]}
    execution_id = deployment.execute(deployment.create(definition))
    deployment.ended(execution_id)
    execution = deployment.client.get(f"/api/v1/executions/{execution_id}").json
    (step,) = execution["step_executions"]
    assert (execution["status"], step["status"]) == ("failed", "failed")
    assert (step["error_kind"], step["error_message"]) == ("asked", "no luck")
    assert "no luck" in execution["error_message"]


def test_the_duration_of_what_runs_is_so_far(deployment: Deployment, tmp_path: Path) -> None:
    gate = tmp_path / "open"
    execution_id = deployment.execute(
        deployment.create({"steps": [{"id": "gate", "type": "gate", "config": {"file": str(gate)}}]})
    )
    path = f"/api/v1/executions/{execution_id}"

    def running() -> Any:
        answer = deployment.client.get(path).json
        return answer if answer["status"] == "running" and answer["duration"] else None

    try:
        execution = wait_until(running, what="the step's start")
        assert execution["end_time"] is None
        assert execution["duration"] > 0
        (step,) = execution["step_executions"]
        assert step["duration"] > 0
    finally:
        gate.touch()
    deployment.ended(execution_id)


def test_the_list_of_executions_is_filtered_by_workflow_and_status(deployment: Deployment) -> None:
    workflow = deployment.create(PAIR)
    good = deployment.execute(workflow, {"word": 1})
    bad = deployment.execute(workflow)
    for execution_id in (good, bad):
        deployment.ended(execution_id)
    for status, expected in (("completed", [good]), ("failed", [bad]), ("running", [])):
        (items,) = pages(deployment, "/api/v1/executions", workflow_id=workflow, status=status)
        assert [item["id"] for item in items] == expected
        assert all(item.keys() == EXECUTION for item in items)
    assert list(pages(deployment, "/api/v1/executions", workflow_id=str(uuid4()))) == [[]]


@pytest.mark.parametrize("limit", [1, 4, 5, 10, 11])
def test_pages_of_executions_hold_each_once_newest_first(servers: Deployment, limit: int) -> None:
    workflow = servers.create(NOOP)
    started = [servers.execute(workflow) for _ in range(10)]
    seen = list(pages(servers, "/api/v1/executions", workflow_id=workflow, limit=limit))
    assert [item["id"] for page in seen for item in page] == started[::-1]
    assert all(len(page) == limit for page in seen[:-1])


def test_what_starts_meanwhile_moves_no_row_of_the_pages_that_follow(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    started = [servers.execute(workflow) for _ in range(6)]
    seen = []
    for page in pages(servers, "/api/v1/executions", workflow_id=workflow, limit=2):
        seen += [item["id"] for item in page]
        servers.execute(workflow)
    assert seen == started[::-1]


# --- logs and steps ------------------------------------------------------------------------------------------


def test_logs_are_in_order_filtered_by_step_and_paged(deployment: Deployment) -> None:
    definition = {
        "steps": [
            {"id": "one", "type": "talk", "config": {"lines": ["a", "b", "c"]}},
            {"id": "two", "type": "talk", "depends_on": ["one"], "config": {"lines": ["d", "e"]}},
        ]
    }
    execution_id = deployment.execute(deployment.create(definition))
    ended = deployment.ended(execution_id)
    assert ended["status"] == "completed", ended
    path = f"/api/v1/executions/{execution_id}/logs"
    (lines,) = pages(deployment, path)
    assert [line["message"] for line in lines] == ["a", "b", "c", "d", "e"]
    assert lines[0].keys() == {
        "id", "seq", "execution_id", "step_execution_id", "step_id", "attempt", "level", "message", "at",
    }  # fmt: skip
    assert (lines[0]["level"], lines[0]["attempt"], lines[0]["execution_id"]) == ("info", 1, execution_id)
    assert TIME.fullmatch(lines[0]["at"])
    (of_two,) = pages(deployment, path, step_id="two")
    assert [line["message"] for line in of_two] == ["d", "e"]
    assert [[line["message"] for line in page] for page in pages(deployment, path, limit=2)] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
    ]
    assert list(pages(deployment, path, step_id="three")) == [[]]


def test_a_step_execution_and_its_output_are_there_by_themselves(deployment: Deployment) -> None:
    execution_id = deployment.execute(deployment.create(PAIR), {"word": [1, {"deep": None}, "二"]})
    deployment.ended(execution_id)
    (first, _) = deployment.client.get(f"/api/v1/executions/{execution_id}").json["step_executions"]
    answer = deployment.client.get(f"/api/v1/step-executions/{first['id']}")
    assert (answer.status_code, answer.json) == (200, first)
    answer = deployment.client.get(f"/api/v1/step-executions/{first['id']}/output")
    assert (answer.status_code, answer.json) == (200, {"output": {"result": [1, {"deep": None}, "二"]}})


def test_the_output_of_a_step_that_has_not_run_is_null(servers: Deployment) -> None:
    execution = servers.client.get(f"/api/v1/executions/{servers.execute(servers.create(NOOP))}").json
    answer = servers.client.get(f"/api/v1/step-executions/{execution['step_executions'][0]['id']}/output")
    assert (answer.status_code, answer.json) == (200, {"output": None})


# --- health --------------------------------------------------------------------------------------------------


def test_health_is_as_specified_and_needs_no_key(deployment: Deployment) -> None:
    client = deployment.client.application.test_client()

    def healthy() -> Any:
        answer = client.get("/health")
        return answer if answer.status_code == 200 else None

    answer = wait_until(healthy, what="health")
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["status", "checks", "stats", "script_isolation"]
    assert answer.json["status"] == "healthy"
    assert answer.json["checks"] == {"database": "ok", "scheduler": "ok", "executor": "ok"}
    assert list(answer.json["stats"]) == [
        "active_executions", "queued_executions", "total_workflows", "active_workflows",
    ]  # fmt: skip
    assert all(type(count) is int for count in answer.json["stats"].values())


def test_health_counts_workflows_and_queued_executions(servers: Deployment) -> None:
    before = servers.client.get("/health").json["stats"]
    workflow = servers.create(NOOP)
    servers.execute(workflow)
    servers.client.post(f"/api/v1/workflows/{workflow}/activate")
    after = servers.client.get("/health").json["stats"]
    grown = {name: after[name] - before[name] for name in after}
    assert grown == {
        "active_executions": 0, "queued_executions": 1, "total_workflows": 1, "active_workflows": 1,
    }  # fmt: skip


def test_without_a_worker_health_is_503_and_says_what_is_missing(servers: Deployment) -> None:
    answer = servers.client.get("/health")
    assert answer.status_code == 503
    assert answer.json["status"] == "unhealthy"
    assert answer.json["checks"]["database"] == "ok"
    assert answer.json["checks"]["executor"] != "ok"
    assert answer.json["checks"]["scheduler"] != "ok"


def test_without_its_database_health_is_503_and_calls_say_so(servers: Deployment) -> None:
    from api import create_app

    nowhere = replace(servers.settings, database=DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/none"))
    client = create_app(nowhere).test_client()
    answer = client.get("/health")
    assert (answer.status_code, answer.json["status"]) == (503, "unhealthy")
    assert answer.json["checks"]["database"] == "unreachable"
    headers = {"Authorization": f"Bearer {KEY}"}
    for answer in (
        client.get("/api/v1/executions", headers=headers),
        client.post(f"/api/v1/workflows/{uuid4()}/execute", headers=headers),
    ):
        assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
        assert "database" in answer.json["detail"]
        assert "Retry-After" in answer.headers


def test_times_are_utc_whatever_zone_the_database_is_in(tmp_path: Path) -> None:
    with deployed(tmp_path) as elsewhere:
        (name,) = elsewhere.sql("SELECT current_database()")[0]
        elsewhere.sql(f"ALTER DATABASE \"{name}\" SET timezone TO 'Asia/Shanghai'")
        elsewhere.store.close()
        workflow = elsewhere.create(NOOP)
        shown = elsewhere.client.get(f"/api/v1/workflows/{workflow}").json
        assert TIME.fullmatch(shown["created_at"])
        now = datetime.now(datetime.fromisoformat(shown["created_at"]).tzinfo)
        assert abs((now - datetime.fromisoformat(shown["created_at"])).total_seconds()) < 60


# --- documentation and the key -------------------------------------------------------------------------------


def test_the_openapi_document_has_every_route_and_the_key(servers: Deployment) -> None:
    document = servers.client.application.test_client().get("/openapi.json").json
    assert document["openapi"].startswith("3.")
    described = {
        (path, method) for path, item in document["paths"].items() for method in item if method != "parameters"
    }
    assert described == ROUTES
    bearer = document["components"]["securitySchemes"]["bearer"]
    assert (bearer["type"], bearer["scheme"]) == ("http", "bearer")
    assert document["security"] == [{"bearer": []}]
    for path, method in (("/health", "get"), ("/webhook/{path}", "post")):
        assert document["paths"][path][method]["security"] == []


def test_every_reference_in_the_openapi_document_leads_somewhere(servers: Deployment) -> None:
    document = servers.client.get("/openapi.json").json

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            node = list(node.values())
        for item in node if isinstance(node, list) else []:
            yield from references(item)

    found = set(references(document))
    assert found
    for reference in found:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_the_openapi_document_says_that_bodies_may_be_yaml_and_errors_are_problems(servers: Deployment) -> None:
    document = servers.client.get("/openapi.json").json
    for path, method in (("/api/v1/workflows", "post"), ("/api/v1/workflows/{workflow_id}/execute", "post")):
        operation = document["paths"][path][method]
        assert operation["requestBody"]["content"].keys() == {"application/json", "application/yaml"}
        name = operation["responses"]["default"]["$ref"].rpartition("/")[2]
        assert document["components"]["responses"][name]["content"].keys() == {"application/problem+json"}


def test_the_openapi_document_names_the_parameters_users_need(servers: Deployment) -> None:
    document = servers.client.get("/openapi.json").json
    execute = document["paths"]["/api/v1/workflows/{workflow_id}/execute"]
    parameters = {item["name"] for item in [*execute["post"]["parameters"], *execute.get("parameters", [])]}
    assert parameters == {"workflow_id", "dry_run", "Idempotency-Key"}


@pytest.mark.parametrize("address", ["/docs", "/docs/"])
def test_the_documentation_page_loads_nothing_from_elsewhere(servers: Deployment, address: str) -> None:
    client = servers.client.application.test_client()
    page = client.get(address)
    assert page.status_code == 200
    links = re.findall(r'(?:src|href|url)\s*[=:]\s*"([^"]+)"', page.text)
    assert any(link.endswith(".js") for link in links)
    assert any(link.endswith(".css") for link in links)
    for link in links:
        assert link.startswith("/"), link
        answer = client.get(link)
        assert answer.status_code == 200, link
        assert len(answer.data) > 1000


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer ключ"]
)
def test_every_route_but_health_webhooks_and_documentation_needs_the_key(
    servers: Deployment, header: str | None
) -> None:
    client = servers.client.application.test_client()
    headers = {} if header is None else {"Authorization": header.encode().decode("latin-1")}
    routes = [route for route in sorted(ROUTES) if route[0].startswith("/api/")]
    for path, method in [*routes, ("/api/v1/no-such-route", "get"), ("/", "get")]:
        url = re.sub(r"\{\w+\}", str(uuid4()), path)
        answer = client.open(url, method=method.upper(), headers=headers)
        assert answer.status_code == 401, (method, path)
        assert answer.content_type == "application/problem+json"
        assert answer.json["status"] == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_call_without_the_key_changes_nothing(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    client = servers.client.application.test_client()
    client.delete(f"/api/v1/workflows/{workflow}")
    client.post(f"/api/v1/workflows/{workflow}/execute", json={})
    shown = servers.client.get(f"/api/v1/workflows/{workflow}").json
    assert (shown["status"], shown["execution_count"]) == ("draft", 0)


def test_the_word_bearer_may_be_written_in_any_case(servers: Deployment) -> None:
    client = servers.client.application.test_client()
    assert client.get("/api/v1/executions", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
