"""What /openapi.json says of the service: it is valid, complete, and true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from deployment import KEY, Deployment
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.examples import BODIES

JSON, PROBLEM = "application/json", "application/problem+json"


@pytest.fixture(scope="module")
def document(servers: Deployment) -> Any:
    return servers.client.get("/openapi.json").json


def operations(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield f"{method.upper()} {path}", operation


def test_it_is_a_valid_document(document: Any) -> None:
    problems = list(OpenAPIV31SpecValidator(document).iter_errors())
    assert not problems, problems[:5]


def test_every_path_of_the_specification_is_there(document: Any) -> None:
    text = (Path(__file__).parents[1] / "acceptance" / "spec" / "api.md").read_text(encoding="utf-8")
    asked = {re.sub(r"{\w+}", "{}", found) for found in re.findall(r"^(?:GET|POST|PUT|DELETE) [\w/{}-]+", text, re.M)}
    asked |= {"GET /health", "GET /metrics", "GET /api/v1/scheduler/status", "GET /api/v1/workflows/{}/status"}
    assert len(asked) > 25
    assert asked <= {re.sub(r"{\w+}", "{}", name) for name, _ in operations(document)}


def test_every_operation_has_a_name_that_a_function_could_have(document: Any) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch("[a-z]+(_[a-z]+)+", name), name
        assert "_by_" not in name


def test_every_operation_says_what_it_does_and_what_it_answers(document: Any) -> None:
    for name, operation in operations(document):
        assert 4 < len(operation["summary"]) <= 100, (name, operation["summary"])
        assert not set("\n.:;") & set(operation["summary"]), (name, operation["summary"])
        assert operation["description"].startswith(operation["summary"]), name
        assert {"default"} < operation["responses"].keys(), name
        for status, response in operation["responses"].items():
            if status[0] == "2" and status != "204":
                assert response["description"], (name, status)
                assert all(media["schema"] for media in response["content"].values()), (name, status)


def test_every_operation_has_the_errors_that_it_may_answer_with(document: Any) -> None:
    for name, operation in operations(document):
        expected = set()
        if operation.get("security") != []:
            expected |= {"401", "403", "429", "503"} | (set() if name.startswith("GET ") else {"409"})
        if "{" in name:
            expected |= {"404"}
        if operation.get("parameters"):
            expected |= {"422"}
        if "requestBody" in operation:
            expected |= {"400", "413", "415"}
        assert expected <= operation["responses"].keys(), name


def test_every_parameter_and_every_tag_is_described(document: Any) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            shared = operation if isinstance(operation, list) else operation.get("parameters", [])
            for parameter in shared:
                assert parameter["description"], (path, parameter["name"])
    described = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert len(described) == len(document["tags"])
    used = [operation["tags"] for _, operation in operations(document)]
    assert {tag for (tag,) in used} == described.keys()
    assert all(described.values())


def test_every_field_of_a_body_is_described(document: Any) -> None:
    contents = [one.get("requestBody", {}).get("content", {}) for _, one in operations(document)]
    left = [content[JSON]["schema"] for content in contents if JSON in content]
    named = set()
    while left:
        shape = left.pop()
        name = shape.get("$ref", "").rpartition("/")[2]
        if name and name not in named:
            named.add(name)
            for field, inner in document["components"]["schemas"][name]["properties"].items():
                assert inner.get("description"), (name, field)
                left += [inner, inner.get("items", {})]
    assert len(named) > 25


def test_every_error_is_the_one_shape(document: Any) -> None:
    assert document["components"]["securitySchemes"]["bearer"]["description"]
    for response in document["components"]["responses"].values():
        (media,) = response["content"]
        assert media == PROBLEM
        assert response["content"][media]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_body_answer_and_error_has_an_example_that_is_one(document: Any) -> None:
    looked_at = 0
    described = [
        (name, operation["requestBody"]) for name, operation in operations(document) if "requestBody" in operation
    ]
    described += [(name, one) for name, one in document["components"]["responses"].items() if name != "DEFAULT_ERROR"]
    described += [
        (name, answer)
        for name, operation in operations(document)
        for answer in operation["responses"].values()
        if any("$ref" in media["schema"] for media in answer.get("content", {}).values())
    ]
    for name, one in described:
        for media_type, media in one["content"].items():
            validator = Draft202012Validator({**media["schema"], "components": document["components"]})
            wrong = [error.message for error in validator.iter_errors(media["example"])]
            assert not wrong, (name, media_type, wrong)
            looked_at += 1
    assert looked_at > 130


_OF_AN_EVENT = {"ce-id": "1", "ce-source": "/tests", "ce-type": "tried", "ce-specversion": "1.0"}
"""Attributes of the event whose data a body is, where it is one."""


def test_the_service_takes_every_body_that_is_an_example(
    servers: Deployment, document: Any, known: dict[str, str]
) -> None:
    servers.client.post("/api/v1/projects", json={"name": "billing"})  # which others speak of
    for name, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if JSON in content and name not in _LEFT_OUT:
            method, path = name.split()
            answer = servers.client.open(
                path.format_map(Known(known)), method=method, json=content[JSON]["example"], headers=_OF_AN_EVENT
            )
            # 404: of what is not there; 409: what is there already, or ended
            assert answer.status_code in (200, 201, 202, 404, 409), (name, answer.text)


# --- what a stranger's program makes of it ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(servers: Deployment) -> dict[str, str]:
    """Ids of what is there, so that not all that is asked for is missing."""
    template = servers.client.post("/api/v1/step-templates", json={"name": "known", "step": {"type": "noop"}}).json
    workflow_id = servers.create({**BODIES["WorkflowIn"]["definition"], "triggers": [{"type": "manual"}]})
    execution = servers.client.get(f"/api/v1/executions/{servers.execute(workflow_id)}").json
    trigger = servers.client.get(f"/api/v1/workflows/{workflow_id}/triggers").json["items"][0]
    return {
        "workflow_id": workflow_id,
        "execution_id": execution["id"],
        "step_execution_id": execution["step_executions"][0]["id"],
        "trigger_id": trigger["id"],
        "step_template_id": template["id"],
    }


_EACH = 3
"""Requests of an operation in either mode: as the document says, and not so."""
_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
           response_schema_conformance]  # fmt: skip
_LEFT_OUT = {
    "POST /api/v1/steps/test",  # takes a worker; test_trying.py has some
    "GET /health",  # says 503 without one, as it should
}


def test_whatever_is_sent_is_answered_as_the_document_says(servers: Deployment, known: dict[str, str]) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", servers.client.application)
    wrong = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.label in _LEFT_OUT:
            continue
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            try:
                sent(operation.as_strategy(generation_mode=mode), known)
            except Unsatisfiable:
                pass  # there is nothing that could be wrong with it
            except (Exception, FailureGroup) as failure:
                wrong.append(f"{operation.label}: {failure}")
    assert not wrong, "\n\n".join(wrong)


def sent(cases: Any, known: dict[str, str]) -> None:
    @given(case=cases)
    @settings(
        max_examples=_EACH, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def send(case: Any) -> None:
        parameters = case.path_parameters or {}
        case.path_parameters = {**parameters, **{name: known[name] for name in parameters if name in known}}
        case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=_CHECKS)

    send()


class Known(dict[str, str]):
    """The ids that are known, and one of nothing for the others."""

    def __missing__(self, key: str) -> str:
        return "0192f3c4-0000-7000-8000-000000000000"
