"""Bad input: one shape of error, never a 5xx, and nothing changed by it."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import orjson
import pytest
from deployment import Deployment, deployed
from werkzeug.test import TestResponse

NOOP = {"steps": [{"id": "only", "type": "noop"}]}
STEP = NOOP["steps"][0]
NUL = "a\0b"
HALF = "\ud800"


@pytest.fixture(scope="module")
def workflow(servers: Deployment) -> str:
    return servers.create(NOOP, name="untouched")


def refused(answer: TestResponse, status: int) -> dict[str, Any]:
    """The error's body, once it is known to have the one shape."""
    assert answer.status_code == status, answer.text[:1000]
    assert answer.content_type == "application/problem+json"
    body: dict[str, Any] = answer.json
    assert body["status"] == status
    assert body.keys() - {"errors", "state"} == {"type", "title", "status", "detail"}
    assert body["title"]
    assert body["detail"]
    for item in body.get("errors", []):
        assert item.keys() - {"line"} == {"path", "message"}
        assert item["message"]
    return body


def rows(deployment: Deployment) -> list[Any]:
    """Everything that a request could have changed."""
    tables = ("workflows", "workflow_versions", "executions", "step_executions")
    return [deployment.sql(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t") for table in tables]


def with_step(**changes: Any) -> dict[str, Any]:
    return {"steps": [{**STEP, **changes}]}


# --- bodies that are no documents ----------------------------------------------------------------------------

JSON, YAML = "application/json", "application/yaml"
LAUGHS = b"a0: &a0 [lol, lol]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
)
UNREADABLE = {
    "cut JSON": (JSON, b'{"name": "x", '),
    "no JSON at all": (JSON, b"name: x"),
    "JSON with a comma too many": (JSON, b'{"a": 1,}'),
    "NaN in JSON": (JSON, b'{"input": {"n": NaN}}'),
    "a number past what JSON can carry": (JSON, b'{"input": {"n": 1e999}}'),
    "an integer of 5,000 digits": (JSON, b'{"input": {"n": ' + b"9" * 5000 + b"}}"),
    "JSON that is not UTF-8": (JSON, '{"name": "é"}'.encode("latin-1")),
    "UTF-16": (JSON, '{"name": "x"}'.encode("utf-16")),
    "a raw NUL in JSON": (JSON, b'{"name": "a\0b"}'),
    "a duplicate key in JSON": (JSON, b'{"input": {"a": 1, "a": 2}}'),
    "JSON nested 100,000 deep": (JSON, b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "JSON nested 1,000 deep": (JSON, b'{"input": {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}}"),
    "YAML with a bracket open": (YAML, b"steps: [\n  a\n"),
    "YAML with tabs": (YAML, b"steps:\n\t- id: a\n"),
    "YAML that is not UTF-8": (YAML, "name: é".encode("latin-1")),
    "a raw NUL in YAML": (YAML, b"name: a\0b"),
    "a duplicate key in YAML": (YAML, b"input:\n  a: 1\n  a: 2\n"),
    "a tag of Python's": (YAML, b"input: !!python/object/apply:os.system ['true']"),
    "an alias without an anchor": (YAML, b"input: *nobody"),
    "an alias inside itself": (YAML, b"input: &a [*a]"),
    "YAML nested 10,000 deep": (YAML, b"input: " + b"[" * 10_000 + b"]" * 10_000),
    "two YAML documents": (YAML, b"a: 1\n---\nb: 2\n"),
    "a billion laughs": (YAML, LAUGHS),
}


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("call", ["create", "update", "execute"])
def test_a_body_that_is_no_document_is_refused_and_changes_nothing(
    servers: Deployment, workflow: str, call: str, case: str
) -> None:
    media, data = UNREADABLE[case]
    before = rows(servers)
    method, path = {
        "create": ("POST", "/api/v1/workflows"),
        "update": ("PUT", f"/api/v1/workflows/{workflow}"),
        "execute": ("POST", f"/api/v1/workflows/{workflow}/execute"),
    }[call]
    body = refused(servers.client.open(path, method=method, data=data, content_type=media), 400)
    assert body["errors"]
    assert rows(servers) == before


def test_the_line_of_malformed_yaml_is_named(servers: Deployment) -> None:
    answer = servers.client.post("/api/v1/workflows", data="name: x\nsteps: [\n- id\n", content_type=YAML)
    (error,) = refused(answer, 400)["errors"]
    assert error["line"] >= 2


@pytest.mark.parametrize("media", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "", "json"])
@pytest.mark.parametrize("path", ["", "/{}/execute"])
def test_another_content_type_is_refused_with_those_there_are(
    servers: Deployment, workflow: str, path: str, media: str
) -> None:
    url = "/api/v1/workflows" + path.format(workflow)
    body = refused(servers.client.post(url, data=b'{"input": {}}', headers={"Content-Type": media}), 415)
    assert "application/json" in body["detail"]
    assert "application/yaml" in body["detail"]


# --- fields --------------------------------------------------------------------------------------------------

NO_WORKFLOW = [
    ("", None),
    ("", []),
    ("", "text"),
    ("", 5),
    ("name", {"name": None, "definition": NOOP}),
    ("name", {"name": 5, "definition": NOOP}),
    ("name", {"name": "", "definition": NOOP}),
    ("name", {"name": "x" * 201, "definition": NOOP}),
    ("name", {"name": NUL, "definition": NOOP}),
    ("name", {"name": HALF, "definition": NOOP}),
    ("name", {"definition": NOOP}),
    ("definition.name", {"definition": {**NOOP, "name": "x" * 201}}),
    ("description", {"name": "x", "definition": NOOP, "description": ["y"]}),
    ("description", {"name": "x", "definition": NOOP, "description": NUL}),
    ("description", {"name": "x", "definition": NOOP, "description": "x" * 10_001}),
    ("tags", {"name": "x", "definition": NOOP, "tags": "one"}),
    ("tags[1]", {"name": "x", "definition": NOOP, "tags": ["one", 2]}),
    ("tags[0]", {"name": "x", "definition": NOOP, "tags": [NUL]}),
    ("tags[0]", {"name": "x", "definition": NOOP, "tags": [""]}),
    ("tags", {"name": "x", "definition": NOOP, "tags": ["t"] * 51}),
    ("owner_id", {"name": "x", "definition": NOOP, "owner_id": "user-uuid"}),
    ("owner_id", {"name": "x", "definition": NOOP, "owner_id": 7}),
    ("is_template", {"name": "x", "definition": NOOP, "is_template": "yes"}),
    ("is_template", {"name": "x", "definition": NOOP, "is_template": [True]}),
    ("colour", {"name": "x", "definition": NOOP, "colour": "red"}),
    ('["a b"]', {"name": "x", "definition": NOOP, "a b": 1}),
    ("definition", {"name": "x"}),
    ("definition", {"name": "x", "definition": None}),
    ("definition", {"name": "x", "definition": "steps"}),
    ("definition", {"name": "x", "definition": [NOOP]}),
]


@pytest.mark.parametrize(("path", "body"), NO_WORKFLOW)
def test_a_wrong_field_of_a_workflow_is_named(servers: Deployment, path: str, body: Any) -> None:
    before = rows(servers)
    answer = servers.client.post("/api/v1/workflows", data=json.dumps(body), content_type=JSON)
    assert path in [error["path"] for error in refused(answer, 422)["errors"]]
    assert rows(servers) == before


# An update may leave out what a new workflow needs, and its definition need not name it.
LACKING = ({"definition": NOOP}, {"name": "x"})
NO_UPDATE = [case for case in NO_WORKFLOW if case[0] != "definition.name" and case[1] not in LACKING]


@pytest.mark.parametrize(("path", "body"), NO_UPDATE)
def test_a_wrong_field_of_an_update_is_named(servers: Deployment, workflow: str, path: str, body: Any) -> None:
    before = rows(servers)
    answer = servers.client.put(f"/api/v1/workflows/{workflow}", data=json.dumps(body), content_type=JSON)
    assert path in [error["path"] for error in refused(answer, 422)["errors"]]
    assert rows(servers) == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", []),
        ("", "text"),
        ("input", {"input": None}),
        ("input", {"input": []}),
        ("input", {"input": "text"}),
        ("input.a", {"input": {"a": NUL}}),
        ("input.a[0].b", {"input": {"a": [{"b": HALF}]}}),
        ("input.a\0b", {"input": {NUL: 1}}),
        ("priority", {"priority": 10}),
        ("priority", {"priority": -1}),
        ("priority", {"priority": 5.5}),
        ("priority", {"priority": "5"}),
        ("priority", {"priority": True}),
        ("priority", {"priority": None}),
        ("inputs", {"inputs": {}}),
        ("?", {HALF: 1}),
    ],
)
def test_a_wrong_field_of_an_execution_is_named(servers: Deployment, workflow: str, path: str, body: Any) -> None:
    before = rows(servers)
    answer = servers.client.post(f"/api/v1/workflows/{workflow}/execute", data=json.dumps(body), content_type=JSON)
    assert path in [error["path"] for error in refused(answer, 422)["errors"]]
    assert rows(servers) == before


def test_all_wrong_fields_are_named_at_once(servers: Deployment) -> None:
    answer = servers.client.post("/api/v1/workflows", json={"name": 5, "tags": 5, "owner_id": 5, "x": 5})
    body = refused(answer, 422)
    assert {error["path"] for error in body["errors"]} == {"name", "tags", "owner_id", "x"}
    assert "4 fields" in body["detail"]


@pytest.mark.parametrize("data", [b"", b"  \n"])
def test_a_workflow_without_a_body_is_refused(servers: Deployment, data: bytes) -> None:
    (error,) = refused(servers.client.post("/api/v1/workflows", data=data, content_type=JSON), 422)["errors"]
    assert error["path"] == "definition"


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_from_1_to_255_characters(servers: Deployment, workflow: str, key: str) -> None:
    before = rows(servers)
    path = f"/api/v1/workflows/{workflow}/execute"
    answer = servers.client.post(path, json={}, headers={"Idempotency-Key": key})
    (error,) = refused(answer, 422)["errors"]
    assert error["path"] == "Idempotency-Key"
    assert rows(servers) == before


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("workflows", "limit", "0"),
        ("workflows", "limit", "201"),
        ("workflows", "limit", "many"),
        ("workflows", "limit", "1" * 5000),
        ("workflows", "cursor", "abc"),
        ("workflows", "owner_id", "user-uuid"),
        ("workflows", "status", "busy"),
        ("workflows", "tags", NUL),
        ("workflows", "name", NUL),
        ("workflows", "colour", "red"),
        ("executions", "workflow_id", "1"),
        ("executions", "status", "Running"),
        ("executions", "cursor", NUL),
        ("executions", "state", "running"),
        ("executions/{}/logs", "limit", "10001"),
        ("executions/{}/logs", "step_id", NUL),
        ("executions/{}/logs", "step", "one"),
    ],
)
def test_a_wrong_or_unknown_query_parameter_is_named(
    servers: Deployment, workflow: str, path: str, name: str, value: str
) -> None:
    url = f"/api/v1/{path}".format(uuid4())
    (error,) = refused(servers.client.get(url, query_string={name: value}), 422)["errors"]
    assert error["path"] == name


# --- names and methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id", ["0192f3c4-0000-7000-8000-000000000000", "not-a-uuid", "%00", "%F0%9F%98%80", "0" * 5000]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "workflows/{}"),
        ("PUT", "workflows/{}"),
        ("DELETE", "workflows/{}"),
        ("POST", "workflows/{}/activate"),
        ("POST", "workflows/{}/pause"),
        ("POST", "workflows/{}/resume"),
        ("POST", "workflows/{}/execute"),
        ("GET", "executions/{}"),
        ("GET", "executions/{}/logs"),
        ("GET", "step-executions/{}"),
        ("GET", "step-executions/{}/output"),
        ("GET", "no-such-things/{}"),
    ],
)
def test_what_does_not_exist_is_404(servers: Deployment, method: str, path: str, id: str) -> None:
    refused(servers.client.open(f"/api/v1/{path.format(id)}", method=method), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/api/v1/workflows/{}", {"GET", "PUT", "DELETE"}),
        ("DELETE", "/api/v1/workflows", {"GET", "POST"}),
        ("GET", "/api/v1/workflows/{}/execute", {"POST"}),
        ("POST", "/api/v1/executions", {"GET"}),
        ("POST", "/health", {"GET"}),
    ],
)
def test_another_method_is_405_with_those_there_are(
    servers: Deployment, method: str, path: str, allowed: set[str]
) -> None:
    answer = servers.client.open(path.format(uuid4()), method=method)
    refused(answer, 405)
    assert allowed <= {word.strip() for word in answer.headers["Allow"].split(",")}


# --- sizes ---------------------------------------------------------------------------------------------------


def test_an_input_of_1_mb_is_accepted_and_reaches_the_step(deployment: Deployment) -> None:
    definition = {"steps": [{"id": "only", "type": "set", "config": {"values": {"end": "{{ input.end }}"}}}]}
    given = {"text": "", "end": "reached"}
    given["text"] = "x" * (deployment.settings.executor.max_payload - len(orjson.dumps(given)))
    ended = deployment.run(definition, given)
    assert ended["status"] == "completed", ended["error_message"]
    assert ended["output"] == {"only": {"end": "reached"}}
    assert ended["input"] == given


def test_an_input_past_the_limit_is_413_and_names_limit_and_setting(servers: Deployment, workflow: str) -> None:
    before = rows(servers)
    limit = servers.settings.executor.max_payload
    answer = servers.client.post(f"/api/v1/workflows/{workflow}/execute", json={"input": {"text": "x" * limit}})
    (error,) = refused(answer, 413)["errors"]
    assert error["path"] == "input"
    assert f"{limit:,}" in error["message"]
    assert "executor.max_payload" in error["message"]
    assert rows(servers) == before


def test_a_definition_past_the_limit_is_413_and_names_limit_and_setting(servers: Deployment) -> None:
    before = rows(servers)
    definition = {**NOOP, "variables": {"text": "x" * servers.settings.executor.max_payload}}
    answer = servers.client.post("/api/v1/workflows", json={"name": "large", "definition": definition})
    (error,) = refused(answer, 413)["errors"]
    assert "executor.max_payload" in error["message"]
    assert rows(servers) == before


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_past_any_use_is_413_and_names_limit_and_setting(
    servers: Deployment, workflow: str, declared: bool
) -> None:
    limit = servers.client.application.config["MAX_CONTENT_LENGTH"]
    body = b'{"input": {"text": "' + b"x" * limit + b'"}}'
    path = f"/api/v1/workflows/{workflow}/execute"
    if declared:
        answer = servers.client.post(path, data=body, content_type=JSON)
    else:  # as a server hands on a chunked body
        from io import BytesIO

        answer = servers.client.post(
            path,
            input_stream=BytesIO(body),
            content_type=JSON,
            headers={"Transfer-Encoding": "chunked"},
            environ_overrides={"wsgi.input_terminated": True},
        )
    detail = refused(answer, 413)["detail"]
    assert f"{limit:,}" in detail
    assert "executor.max_payload" in detail


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.thorough)])
def test_a_definition_of_many_steps_runs_to_its_end(deployment: Deployment, count: int) -> None:
    half = count // 2
    side_by_side = [{"id": f"s{n}", "type": "set", "config": {"values": {"n": n}}} for n in range(half)]
    in_a_row: list[dict[str, Any]] = [
        {"id": f"c{n}", "type": "set", "config": {"values": {"n": n}}, "depends_on": [f"c{n - 1}"] if n else []}
        for n in range(half)
    ]
    definition = {
        "steps": side_by_side + in_a_row,
        "outputs": {name: f"{{{{ steps.{id}{half - 1}.output.n }}}}" for name, id in (("wide", "s"), ("long", "c"))},
    }
    execution_id = deployment.execute(deployment.create(definition))
    ended = deployment.ended(execution_id, seconds=600)
    assert (ended["status"], ended["output"]) == ("completed", {"wide": half - 1, "long": half - 1})
    shown = deployment.client.get(f"/api/v1/executions/{execution_id}").json["step_executions"]
    assert [step["path"] for step in shown] == [step["id"] for step in definition["steps"]]
    assert {(step["status"], step["attempt"]) for step in shown} == {("completed", 1)}


# --- definitions ---------------------------------------------------------------------------------------------

WRONG_DEFINITIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("no steps", "steps", {"steps": []}),
    ("steps that are no list", "steps", {"steps": {"a": {}}}),
    ("a step that is no mapping", "steps[0]", {"steps": ["a"]}),
    ("a step without an id", "steps[0]", {"steps": [{"type": "noop"}]}),
    ("a step without a type", "steps[0]", {"steps": [{"id": "a"}]}),
    ("an unknown type", "steps[0].type", with_step(type="nothing_known")),
    ("an id used twice", "steps[1].id", {"steps": [STEP, STEP]}),
    ("an unknown dependency", "steps[0].depends_on", with_step(depends_on=["nobody"])),
    ("a step that waits for itself", "steps[0].depends_on", with_step(depends_on=["only"])),
    (
        "a cycle",
        "steps",
        {"steps": [{"id": a, "type": "noop", "depends_on": [b]} for a, b in (("a", "b"), ("b", "c"), ("c", "a"))]},
    ),
    ("an unknown field of a step", "steps[0].colour", with_step(colour="red")),
    ("an unknown field of a config", "steps[0].config", with_step(config={"colour": "red"})),
    ("a config that is no mapping", "steps[0].config", with_step(config=[1])),
    ("a config field of another type", "steps[0].config.n", with_step(type="fibonacci", config={"n": "many"})),
    ("a config without what it needs", "steps[0].config", with_step(type="fibonacci", config={})),
    ("a timeout without sense", "steps[0].timeout", with_step(timeout="soon")),
    ("a retry policy without sense", "steps[0].retry_policy", with_step(retry_policy={"max_attempts": 0})),
    ("an on_error without sense", "steps[0].on_error", with_step(on_error="cry")),
    ("an unknown field at the top", "colour", {**NOOP, "colour": "red"}),
    ("a template cut off", "steps[0].config.value", with_step(config={"value": "{{ input.x "})),
    ("a template with an unknown root", "steps[0].config.value", with_step(config={"value": "{{ nonsense.x }}"})),
    (
        "a template of an unknown step",
        "steps[0].config.value",
        with_step(config={"value": "{{ steps.nobody.output }}"}),
    ),
    ("a NUL in a template", "steps[0].config.value", with_step(config={"value": NUL})),
]


@pytest.mark.parametrize(
    ("path", "definition"),
    [case[1:] for case in WRONG_DEFINITIONS],
    ids=[case[0].replace(" ", "-") for case in WRONG_DEFINITIONS],
)
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "envelope"])
def test_a_wrong_definition_is_refused_with_where(
    servers: Deployment, path: str, definition: dict[str, Any], bare: bool
) -> None:
    before = rows(servers)
    body = {"name": "x", **definition} if bare else {"name": "x", "definition": definition}
    errors = refused(servers.client.post("/api/v1/workflows", json=body), 422)["errors"]
    where = path if bare else f"definition.{path}"
    assert any(error["path"].startswith(where) for error in errors), errors
    assert rows(servers) == before


def test_all_that_is_wrong_in_a_definition_is_said_at_once(servers: Deployment) -> None:
    definition = {
        "steps": [
            {"id": "a", "type": "nothing_known"},
            {"id": "b", "type": "noop", "depends_on": ["nobody"]},
            {"id": "c", "type": "noop", "timeout": "soon"},
        ]
    }
    answer = servers.client.post("/api/v1/workflows", json={"name": "x", "definition": definition})
    paths = [error["path"] for error in refused(answer, 422)["errors"]]
    for number in range(3):
        assert any(path.startswith(f"definition.steps[{number}].") for path in paths), paths


BARE = """\
name: lines
steps:
  - id: a
    type: noop
  - id: b
    type: noop
    depends_on: [a]
    timeout: soon
"""


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_problem_in_yaml_has_its_line_in_the_body_that_was_sent(
    servers: Deployment, workflow: str, method: str
) -> None:
    url = "/api/v1/workflows" + (f"/{workflow}" if method == "PUT" else "")
    envelope = "name: outer\ndefinition:\n" + "".join(f"  {line}\n" for line in BARE.splitlines())
    for text, path, line in ((BARE, "steps[1].timeout", 8), (envelope, "definition.steps[1].timeout", 10)):
        answer = servers.client.open(url, method=method, data=text, content_type=YAML)
        (error,) = refused(answer, 422)["errors"]
        assert (error["path"], error["line"]) == (path, line)


# --- steps that would harm -----------------------------------------------------------------------------------

BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**(10**10) }}",
    "{{ range(10**9) | list }}",
    "{{ ('a' * 999999) ~ ('a' * 999999) ~ ('a' * 999999) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'a'.center(10**9) }}",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_bomb_fails_its_step_and_harms_nothing_else(deployment: Deployment, bomb: str) -> None:
    family = {process.pid for worker in deployment.workers for process in deployment.children_of(worker)}
    body = {"name": "bomb", "definition": {"steps": [{"id": "bomb", "type": "noop", "config": {"value": bomb}}]}}
    answer = deployment.client.post("/api/v1/workflows", json=body)
    if answer.status_code == 422:  # what can be seen when it is written is refused then
        refused(answer, 422)
        return
    ended = deployment.ended(deployment.execute(answer.json["id"]))
    (step,) = ended["step_executions"]
    assert (ended["status"], step["status"], step["error_kind"]) == ("failed", "failed", "template")
    assert len(step["error_message"]) < 1000
    assert deployment.run(NOOP)["status"] == "completed"
    assert family == {process.pid for worker in deployment.workers for process in deployment.children_of(worker)}


def test_a_rendered_integer_too_wide_for_json_fails_its_step(deployment: Deployment) -> None:
    ended = deployment.run({"steps": [{"id": "wide", "type": "noop", "config": {"value": "{{ 10 ** 100 }}"}}]})
    (step,) = ended["step_executions"]
    assert (ended["status"], step["error_kind"], step["attempt"]) == ("failed", "template", 1)


def test_an_output_past_the_limit_fails_its_step_and_names_limit_and_setting(deployment: Deployment) -> None:
    half = "{{ input.text }}"
    ended = deployment.run(
        {"steps": [{"id": "big", "type": "noop", "config": {"value": {"a": half, "b": half}}}]},
        {"text": "x" * (deployment.settings.executor.max_payload // 2)},
    )
    (step,) = ended["step_executions"]
    assert (ended["status"], step["error_kind"]) == ("failed", "output")
    assert "executor.max_payload" in step["error_message"]


def test_a_secret_appears_in_no_row_and_in_no_answer(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"s3cr3t-{uuid4()}"
    monkeypatch.setenv("ORCHESTRATOR_SECRET_TOKEN", secret)
    definition = {
        "steps": [
            {
                "id": "used",
                "type": "noop",
                "config": {"value": {"header": "Bearer {{ secrets.token }}"}},
            },
            {"id": "logged", "type": "talk", "config": {"lines": ["the token is {{ secrets.token }}"]}},
            {
                "id": "raised",
                "type": "fail",
                "depends_on": ["used", "logged"],
                "config": {"message": "refused {{ secrets.token }}"},
            },
        ]
    }
    with deployed(tmp_path_factory.mktemp("secrets")) as own:
        own.start_worker()
        execution_id = own.execute(own.create(definition))
        ended = own.ended(execution_id)
        steps = {step["step_id"]: step for step in ended["step_executions"]}
        assert steps["used"]["output"] == {"header": "Bearer ***"}
        assert steps["raised"]["error_message"] == "refused ***"
        answers = [own.client.get(f"/api/v1/executions/{execution_id}{part}").text for part in ("", "/logs")]
        assert "the token is ***" in answers[1]
        tables = [name for (name,) in own.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        assert {"executions", "step_executions", "step_logs"} <= set(tables)
        stored = [str(own.sql(f'SELECT t::text FROM "{name}" t')) for name in tables]
        for text in (*answers, *stored):
            assert secret not in text
        logs = [file.read_text() for file in own.folder.glob("*.log")]
        assert logs
        assert not any(secret in text for text in logs)


def test_the_error_body_is_json_whatever_was_sent(servers: Deployment) -> None:
    for name in (HALF, NUL, "\u2028", "😀" * 1000, '"', "a.b[0]"):
        answer = servers.client.post("/api/v1/workflows", data=json.dumps({name: name}), content_type=JSON)
        orjson.loads(answer.data)
        refused(answer, 422)
