"""Step templates and workflow templates through the API, up to the execution of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from deployment import Deployment
from flask.testing import FlaskClient

from orchestrator.cli.validate import validate

STEPS = "/api/v1/step-templates"
WORKFLOWS = "/api/v1/workflows"
LISTED = {"id", "name", "description", "created_at", "updated_at"}
GREET = {
    "description": "says something to somebody",
    "parameters": {
        "type": "object",
        "properties": {"whom": {"type": "string"}, "word": {"type": "string", "default": "hello"}},
        "required": ["whom"],
    },
    "step": {"type": "noop", "config": {"value": "{{ params.word }}, {{ params.whom }}"}},
}


def new_template(client: FlaskClient, **changes: Any) -> Any:
    """A step template of a name that no other has, as the API shows it."""
    answer = client.post(STEPS, json={"name": f"greet-{uuid4()}", **GREET, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json


def using(template: Any, **more: Any) -> dict[str, Any]:
    """A definition with one step, which uses the template."""
    return {"steps": [{"id": "only", "uses": template["name"], "with": {"whom": "world"}, **more}]}


def value_of(execution: Any) -> Any:
    """What the one step of an execution was given."""
    assert execution["status"] == "completed", execution["error_message"]
    (step,) = execution["step_executions"]
    return step["output"]["result"]


def errors_of(answer: Any) -> dict[str, str]:
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json"), answer.text
    return {error["path"]: error["message"] for error in answer.json["errors"]}


# --- step templates ------------------------------------------------------------------------------------------


def test_a_step_template_is_created_shown_and_listed(servers: Deployment) -> None:
    name = f"greet-{uuid4()}"
    answer = servers.client.post(STEPS, json={"name": name, **GREET})
    assert answer.status_code == 201
    created = answer.json
    assert created.keys() == LISTED | {"parameters", "step"}
    assert {key: created[key] for key in GREET} == GREET
    shown = servers.client.get(answer.headers["Location"])
    assert (shown.status_code, shown.json) == (200, created)
    listed = servers.client.get(STEPS, query_string={"name": name}).json
    assert listed == {"items": [{key: created[key] for key in LISTED}], "next": None}


def test_a_step_template_may_be_yaml_and_its_problems_have_lines(servers: Deployment) -> None:
    text = f"name: {uuid4()}\nstep:\n  type: noop\n  config:\n    value: '{{{{ params.x }}}}'\n"
    answer = servers.client.post(STEPS, data=text, content_type="application/yaml")
    assert answer.status_code == 201, answer.text
    assert (answer.json["parameters"], answer.json["description"]) == (None, "")
    answer = servers.client.post(STEPS, data=text.replace("noop", "nop"), content_type="application/yaml")
    assert [(error["path"], error["line"]) for error in answer.json["errors"]] == [("step.type", 3)]


def test_pages_of_step_templates_hold_each_once_newest_first(servers: Deployment) -> None:
    made = [new_template(servers.client)["id"] for _ in range(5)]
    seen, cursor = [], None
    while len(seen) < 5:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = servers.client.get(STEPS, query_string=query).json
        assert len(page["items"]) == 2
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert seen[:5] == made[::-1]


def test_an_update_changes_what_is_given_and_is_checked_as_a_whole(servers: Deployment) -> None:
    created = new_template(servers.client)
    path = f"{STEPS}/{created['id']}"
    changed = servers.client.put(path, json={"description": "new"})
    assert changed.status_code == 200
    assert changed.json == {**created, "description": "new", "updated_at": changed.json["updated_at"]}
    assert changed.json["updated_at"] > created["updated_at"]
    assert errors_of(servers.client.put(path, json={"parameters": {"properties": {"whom": {}}}})) == {
        "step.config.value": "there is no parameter 'word'; declare it under parameters.properties"
    }
    assert servers.client.get(path).json == changed.json


def test_a_deleted_step_template_is_gone(servers: Deployment) -> None:
    path = f"{STEPS}/{new_template(servers.client)['id']}"
    answer = servers.client.delete(path)
    assert (answer.status_code, answer.data) == (204, b"")
    for call in (servers.client.get, servers.client.delete):
        assert call(path).status_code == 404
    assert servers.client.put(path, json={"description": "x"}).status_code == 404


def test_a_name_is_taken_once(servers: Deployment) -> None:
    first, second = new_template(servers.client), new_template(servers.client)
    answers = [
        servers.client.post(STEPS, json={**GREET, "name": first["name"]}),
        servers.client.put(f"{STEPS}/{second['id']}", json={"name": first["name"]}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json["state"]) == (409, "taken")
        assert first["name"] in answer.json["detail"]
    assert servers.client.get(f"{STEPS}/{second['id']}").json == second


def test_all_that_is_wrong_with_a_step_template_is_said_at_once(servers: Deployment) -> None:
    wrong = {
        "name": "x",
        "parameters": {"type": "list"},
        "step": {"id": "a", "depends_on": [], "uses": "y"},
    }
    assert errors_of(servers.client.post(STEPS, json=wrong)).keys() == {
        "parameters.type", "step.id", "step.depends_on", "step.uses",
    }  # fmt: skip
    missing = servers.client.post(STEPS, json={"nme": "x"})
    assert errors_of(missing).keys() == {"name", "step", "nme"}


# --- workflows that use them ---------------------------------------------------------------------------------


def test_a_step_that_uses_a_template_is_executed(deployment: Deployment) -> None:
    greet = new_template(deployment.client)
    definition = {
        "variables": {"punctuation": "!"},
        "steps": [
            {"id": "first", "uses": greet["name"], "with": {"whom": "{{ input.whom }}"}},
            {
                "id": "second",
                "uses": greet["name"],
                "with": {"whom": "{{ steps.first.output.result }}{{ variables.punctuation }}", "word": "I say"},
                "depends_on": "first",
            },
            {
                "id": "each",
                "type": "loop",
                "config": {
                    "items": ["a", "b"],
                    "steps": [{"id": "inner", "uses": greet["name"], "with": {"whom": "{{ loop.item }}"}}],
                },
            },
        ],
    }
    workflow = deployment.create(definition)
    execution = deployment.ended(deployment.execute(workflow, {"whom": "world"}))
    assert execution["status"] == "completed", execution["error_message"]
    assert execution["output"]["second"] == {"result": "I say, hello, world!"}
    assert execution["output"]["each"]["results"] == [{"result": "hello, a"}, {"result": "hello, b"}]
    assert deployment.client.get(f"{WORKFLOWS}/{workflow}").json["definition"] == definition


def test_a_version_keeps_what_its_template_was(deployment: Deployment) -> None:
    greet = new_template(deployment.client)
    workflow = deployment.create(using(greet))
    path = f"{WORKFLOWS}/{workflow}"
    assert deployment.client.put(path, json={"definition": using(greet)}).json["version"] == 1
    changed = {"type": "noop", "config": {"value": "bye, {{ params.whom }}"}}
    assert deployment.client.put(f"{STEPS}/{greet['id']}", json={"step": changed}).status_code == 200
    assert value_of(deployment.ended(deployment.execute(workflow))) == "hello, world"
    assert deployment.client.put(path, json={"description": "no new definition"}).json["version"] == 1
    saved = deployment.client.put(path, json={"definition": using(greet)}).json
    assert (saved["version"], saved["definition"]) == (2, using(greet))
    assert value_of(deployment.ended(deployment.execute(workflow))) == "bye, world"
    assert deployment.client.delete(f"{STEPS}/{greet['id']}").status_code == 204
    assert value_of(deployment.ended(deployment.execute(workflow))) == "bye, world"
    refused = deployment.client.put(path, json={"definition": using(greet)})
    assert errors_of(refused).keys() == {"definition.steps[0].uses"}


def test_a_definition_that_stops_using_templates_is_run_as_it_is_written(deployment: Deployment) -> None:
    workflow = deployment.create(using(new_template(deployment.client)))
    plain = {"steps": [{"id": "only", "type": "noop", "config": {"value": "plain"}}]}
    assert deployment.client.put(f"{WORKFLOWS}/{workflow}", json={"definition": plain}).json["version"] == 2
    assert value_of(deployment.ended(deployment.execute(workflow))) == "plain"


def test_uses_that_are_wrong_are_refused_with_their_places(servers: Deployment) -> None:
    greet = new_template(servers.client)
    close = greet["name"][:-1]
    text = f"""\
steps:
- id: one
  uses: {close}
- id: two
  uses: {greet["name"]}
  with: {{whom: 5, wrd: x}}
"""
    answer = servers.client.post(WORKFLOWS, data=f"name: n\n{text}", content_type="application/yaml")
    assert {error["path"]: error["line"] for error in answer.json["errors"]} == {
        "steps[0].uses": 4,
        "steps[1].with.whom": 7,
        "steps[1].with.wrd": 7,
    }
    messages = errors_of(answer)
    assert messages["steps[0].uses"] == f"there is no step template '{close}'; did you mean '{greet['name']}'?"
    assert messages["steps[1].with.wrd"].endswith("did you mean 'word'?")


def test_validate_says_what_only_the_service_can_check(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "steps:\n- {id: a, uses: anything, with: {x: 1}}\n- {id: b, type: set, depends_on: a, config: {}}\n"
    )
    done = CliRunner().invoke(validate, [str(file)])
    assert (done.exit_code, "w.yaml:3: steps[1].config.values: is missing" in done.output) == (1, True), done.output
    assert "steps[0]" not in done.output
    file.write_text("steps: [{id: a, uses: anything, with: {x: 1}}]\n")
    done = CliRunner().invoke(validate, [str(file)])
    assert done.exit_code == 0
    assert done.output.endswith("valid (1 step; 1 by a step template, which only the service can check)\n")


# --- workflow templates --------------------------------------------------------------------------------------

REGIONAL = {
    "name": "regional",
    "variables": {"region": "eu", "count": 1},
    "steps": [{"id": "only", "type": "noop", "config": {"value": "{{ variables.region }} {{ variables.count }}"}}],
}


def workflow_template(client: FlaskClient, definition: dict[str, Any] = REGIONAL, **more: Any) -> str:
    body = {"name": "a template", "definition": definition, "is_template": True, **more}
    answer = client.post(WORKFLOWS, json=body)
    assert answer.status_code == 201, answer.text
    return f"{WORKFLOWS}/{answer.json['id']}"


@pytest.mark.parametrize("verb", ["execute", "activate", "execute?dry_run=true"])
def test_a_template_is_neither_executed_nor_activated(servers: Deployment, verb: str) -> None:
    path = workflow_template(servers.client)
    answer = servers.client.post(f"{path}/{verb}", json={})
    assert (answer.status_code, answer.json["state"]) == (409, "template")
    assert "instantiate" in answer.json["detail"]
    shown = servers.client.get(path).json
    assert (shown["status"], shown["execution_count"]) == ("draft", 0)


def test_a_draft_becomes_a_template_and_one_again_and_an_active_workflow_does_not(servers: Deployment) -> None:
    workflow = servers.create(REGIONAL)
    path = f"{WORKFLOWS}/{workflow}"
    servers.execute(workflow)  # from now on the process knows its version
    assert servers.client.put(path, json={"is_template": True}).status_code == 200
    assert servers.client.post(f"{path}/execute", json={}).status_code == 409
    assert servers.client.put(path, json={"is_template": False}).status_code == 200
    assert servers.client.post(f"{path}/activate").status_code == 200
    answer = servers.client.put(path, json={"is_template": True})
    assert (answer.status_code, answer.json["state"]) == (409, "active")
    assert servers.client.get(path).json["is_template"] is False


def test_a_template_is_not_started_by_a_step(deployment: Deployment) -> None:
    id = workflow_template(deployment.client).rpartition("/")[2]
    parent = {"steps": [{"id": "start", "type": "workflow", "config": {"workflow": id}}]}
    execution = deployment.run(parent)
    (step,) = execution["step_executions"]
    assert (execution["status"], step["error_kind"], step["attempt"]) == ("failed", "workflow", 1)
    assert "is a template" in step["error_message"]


def test_a_name_means_a_workflow_rather_than_a_template(deployment: Deployment) -> None:
    name = f"shared-{uuid4()}"
    made = deployment.create({"steps": [{"id": "only", "type": "noop"}]}, name)
    workflow_template(deployment.client, name=name)
    parent = {"steps": [{"id": "start", "type": "workflow", "config": {"workflow": name}}]}
    assert deployment.run(parent)["status"] == "completed"
    assert deployment.client.get(f"{WORKFLOWS}/{made}").json["execution_count"] == 1


def test_a_workflow_made_from_a_template_runs_with_its_own_variables(deployment: Deployment) -> None:
    path = workflow_template(deployment.client, description="of the template", tags=["t"])
    owner = str(uuid4())
    given = {"name": "asian", "variables": {"region": "asia"}, "owner_id": owner}
    answer = deployment.client.post(f"{path}/instantiate", json=given)
    assert answer.status_code == 201, answer.text
    made = answer.json
    assert deployment.client.get(answer.headers["Location"]).json == made
    assert (made["name"], made["status"], made["version"], made["is_template"]) == ("asian", "draft", 1, False)
    assert (made["description"], made["tags"], made["owner_id"]) == ("of the template", ["t"], owner)
    own = {"name": "asian", "variables": {"region": "asia", "count": 1}}
    assert made["definition"] == {**REGIONAL, **own}
    assert value_of(deployment.ended(deployment.execute(made["id"]))) == "asia 1"
    assert deployment.client.get(path).json["definition"] == REGIONAL


def test_what_is_made_from_a_template_keeps_its_step_templates_as_they_were(deployment: Deployment) -> None:
    greet = new_template(deployment.client)
    definition = {"variables": {"whom": "world"}, **using(greet)}
    definition["steps"][0]["with"] = {"whom": "{{ variables.whom }}"}
    path = workflow_template(deployment.client, definition)
    assert deployment.client.delete(f"{STEPS}/{greet['id']}").status_code == 204
    made = deployment.client.post(f"{path}/instantiate", json={"name": "x", "variables": {"whom": "you"}}).json
    assert made["definition"]["steps"] == definition["steps"]
    assert value_of(deployment.ended(deployment.execute(made["id"]))) == "hello, you"


def test_only_variables_that_are_there_can_be_given(servers: Deployment) -> None:
    path = workflow_template(servers.client)
    answer = servers.client.post(f"{path}/instantiate", json={"name": "x", "variables": {"regoin": "a", "zzz": 1}})
    messages = errors_of(answer)
    assert messages["variables.regoin"] == "the template has no variable 'regoin'; did you mean 'region'?"
    assert messages["variables.zzz"].endswith("it has region, count")
    assert errors_of(servers.client.post(f"{path}/instantiate", json={"variables": 1})).keys() == {"name", "variables"}


def test_only_templates_are_instantiated(servers: Deployment) -> None:
    answer = servers.client.post(f"{WORKFLOWS}/{servers.create(REGIONAL)}/instantiate", json={"name": "x"})
    assert (answer.status_code, answer.json["state"]) == (409, "draft")
    assert servers.client.post(f"{WORKFLOWS}/{uuid4()}/instantiate", json={"name": "x"}).status_code == 404


def test_the_list_is_filtered_by_what_is_a_template(servers: Deployment) -> None:
    owner = str(uuid4())
    template = workflow_template(servers.client, owner_id=owner).rpartition("/")[2]
    body = {"name": "w", "definition": REGIONAL, "owner_id": owner}
    other = servers.client.post(WORKFLOWS, json=body).json["id"]
    for value, expected in (("true", [template]), ("false", [other])):
        items = servers.client.get(WORKFLOWS, query_string={"owner_id": owner, "is_template": value}).json["items"]
        assert [item["id"] for item in items] == expected
    assert errors_of(servers.client.get(WORKFLOWS, query_string={"is_template": "maybe"})).keys() == {"is_template"}
