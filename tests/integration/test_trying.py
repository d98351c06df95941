"""Trying things out: one step outside of an execution, and the plan of an execution that is not started."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from deployment import PATIENCE, Deployment, deployed, wait_until

from orchestrator.store import step_tests

SECRET = "s3cr3t-of-the-test"


def attempted(deployment: Deployment, type: str, config: dict[str, Any] | None = None, **more: Any) -> Any:
    """The answer to trying a step."""
    body = {"type": type, "config": config or {}, **more}
    return deployment.client.post("/api/v1/steps/test", json=body)


def tried(deployment: Deployment, type: str, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What came of it, without what differs from time to time."""
    answer = attempted(deployment, type, config, **more)
    assert answer.status_code == 200, answer.text
    assert answer.json.pop("duration") >= 0
    result: dict[str, Any] = answer.json
    return result


def logged(deployment: Deployment, answer: Any) -> list[dict[str, Any]]:
    """What the audit log has of it."""
    query = {"request_id": answer.headers["X-Request-ID"]}
    entries: list[dict[str, Any]] = deployment.client.get("/api/v1/audit", query_string=query).json["items"]
    return entries


def problems(answer: Any) -> dict[str, str]:
    """The messages of a 422, by their paths."""
    assert answer.status_code == 422, answer.text
    assert answer.content_type == "application/problem+json"
    return {item["path"]: item["message"] for item in answer.json["errors"]}


# --- one step ------------------------------------------------------------------------------------------------


class _Echo(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Authorization"]))
        body = b'{"hello": "world"}'
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def secretive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose one worker knows a secret."""
    with pytest.MonkeyPatch.context() as patch, deployed(tmp_path_factory.mktemp("secretive")) as own:
        patch.setenv("ORCHESTRATOR_SECRET_TOKEN", SECRET)
        own.start_worker(concurrency=1)
        yield own


def test_a_step_is_tried_with_the_secrets_of_its_project(deployment: Deployment) -> None:
    projects = [
        deployment.client.post("/api/v1/projects", json={"name": f"p-{uuid4()}"}).json["name"] for _ in range(2)
    ]
    name, value = f"n_{uuid4().hex}", "a-secret-of-16-ch"
    body = {"name": name, "value": value, "project": projects[0]}
    assert deployment.client.post("/api/v1/secrets", json=body).status_code == 201
    naming = {"value": f"{{{{ [secrets.{name}, secrets.{name} | length] }}}}"}
    assert tried(deployment, "noop", naming, project=projects[0])["output"] == {"result": ["***", len(value)]}
    for others in ({"project": projects[1]}, {}):
        assert name in tried(deployment, "noop", naming, **others)["error"]["message"]


def test_an_http_step_is_performed_and_its_config_shown_as_it_was_rendered(
    deployment: Deployment, address: str
) -> None:
    result = tried(
        deployment,
        "http",
        {"url": "{{ variables.base }}/{{ steps.before.output.path }}", "params": {"n": "{{ input.n }}"}},
        context={
            "variables": {"base": address},
            "input": {"n": 3},
            "steps": {"before": {"output": {"path": "things"}}},
        },
    )
    assert result["status"] == "completed"
    assert result["output"]["body"] == {"hello": "world"}
    assert result["rendered"] == {"url": f"{address}/things", "params": {"n": 3}}
    assert (result["error"], result["waits_for"], result["logs"]) == (None, None, [])
    assert _Echo.seen[-1][0] == "/things?n=3"


def test_what_a_script_is_given_and_prints_is_its_input_and_its_log(deployment: Deployment) -> None:
    source = (
        "import json, sys; given = json.load(sys.stdin); print('a'); print('b', file=sys.stderr); print(given['n'])"
    )
    result = tried(deployment, "script", {"source": source}, input={"n": 5})
    assert result["output"] == {"result": 5, "exit_code": 0}
    assert {(line["level"], line["message"]) for line in result["logs"]} == {
        ("info", "a"), ("warning", "b"), ("info", "5"),
    }  # fmt: skip
    assert all(line["at"].endswith("Z") for line in result["logs"])


def test_a_step_that_fails_says_how_and_is_not_tried_again(deployment: Deployment, address: str) -> None:
    before = len(_Echo.seen)
    result = tried(deployment, "http", {"url": f"{address}/missing"})
    assert (result["status"], result["error"]["kind"]) == ("failed", "http_status")
    assert "answered 404" in result["error"]["message"]
    assert result["output"]["body"] == {"hello": "world"}
    assert len(_Echo.seen) == before + 1


def test_everything_that_templates_may_name_is_there_if_the_context_has_it(deployment: Deployment) -> None:
    given = {
        "loop": "{{ loop.item }} {{ loop.index }}",
        "trigger": "{{ trigger.payload.n }}",
        "execution": "{{ execution.id }}/{{ execution.workflow_id }}",
        "failed": "{{ steps.bad.status }}: {{ steps.bad.error.message }}",
        "not given": "{{ trigger.id }}",
    }
    context = {
        "loop": {"item": "x", "index": 2},
        "trigger": {"payload": {"n": 1}},
        "execution": {"id": "mine", "workflow_id": "w"},
        "steps": {"bad": {"status": "failed", "error": {"kind": "k", "message": "m"}}},
    }
    assert tried(deployment, "set", {"values": given}, context=context)["output"] == {
        "loop": "x 2", "trigger": 1, "execution": "mine/w", "failed": "failed: m", "not given": None,
    }  # fmt: skip


def test_the_input_of_the_step_and_of_the_execution_stand_for_each_other(deployment: Deployment) -> None:
    source = "import sys; print(sys.stdin.read())"
    config = {"source": source, "args": ["{{ input.who }}"]}
    for given in ({"input": {"who": "a"}}, {"context": {"input": {"who": "a"}}}):
        result = tried(deployment, "script", config, **given)
        assert (result["output"]["result"], result["rendered"]["args"]) == ({"who": "a"}, ["a"])
    result = tried(deployment, "script", config, input=[1], context={"input": {"who": "b"}})
    assert (result["output"]["result"], result["rendered"]["args"]) == ([1], ["b"])


def test_a_template_that_fails_leaves_nothing_rendered(deployment: Deployment) -> None:
    result = tried(deployment, "noop", {"value": "{{ input.missing }}"})
    assert (result["status"], result["error"]["kind"], result["rendered"]) == ("failed", "template", None)
    assert "input.missing" in result["error"]["message"]


def test_an_output_past_the_limit_fails_the_step_and_so_much_is_not_shown_as_rendered(deployment: Deployment) -> None:
    half = {"value": {"a": "{{ input }}", "b": "{{ input }}"}}
    result = tried(deployment, "noop", half, input="x" * (deployment.settings.executor.max_payload * 2 // 3))
    assert (result["status"], result["error"]["kind"]) == ("failed", "output")
    assert "executor.max_payload" in result["error"]["message"]
    assert result["rendered"] is None


@pytest.mark.parametrize(
    ("type", "config", "awaits"),
    [
        ("approval", {"message": "go?"}, "decision"),
        ("signal", {"name": "{{ input.name }}"}, "signal:paid"),
        ("wait", {"duration": "1h"}, None),
    ],
)
def test_a_step_that_would_rest_says_what_it_waits_for(
    deployment: Deployment, type: str, config: dict[str, Any], awaits: str | None
) -> None:
    result = tried(deployment, type, config, input={"name": "paid"})
    assert (result["status"], result["waits_for"]["awaits"]) == ("waiting", awaits)
    assert (result["waits_for"]["until"] is not None) == (type == "wait")


def test_a_step_past_its_time_fails_with_timeout(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.resources.trying.GRACE", PATIENCE)
    result = tried(deployment, "script", {"source": "import time; time.sleep(60)"}, timeout="300ms")
    assert (result["status"], result["error"]["kind"]) == ("failed", "timeout")


def test_trying_writes_no_execution_and_no_log(deployment: Deployment) -> None:
    def rows() -> list[int]:
        names = ("executions", "step_executions", "step_logs", "cached_results")
        return [deployment.sql(f"SELECT count(*) FROM {name}")[0][0] for name in names]

    before = rows()
    tried(deployment, "talk", {"lines": ["a", "b"]})
    assert rows() == before


def test_a_secret_reaches_the_other_side_and_no_row_nor_answer(secretive: Deployment, address: str) -> None:
    auth = {"headers": {"Authorization": "Bearer {{ secrets.token }}"}}
    result = tried(secretive, "http", {"url": address, **auth})
    assert _Echo.seen[-1] == ("/", f"Bearer {SECRET}")
    assert result["rendered"]["headers"] == {"Authorization": "Bearer ***"}
    results = [
        result,
        tried(secretive, "noop", {"value": "{{ secrets.token }}"}),
        tried(secretive, "talk", {"lines": ["it is {{ secrets.token }}"]}),
        tried(secretive, "fail", {"message": "refused {{ secrets.token }}"}),
        tried(secretive, "signal", {"name": "{{ secrets.token }}"}),
    ]
    assert results[1]["output"] == {"result": "***"}
    assert results[2]["logs"][0]["message"] == "it is ***"
    assert results[3]["error"] == {"kind": "asked", "message": "refused ***"}
    assert results[4]["waits_for"]["awaits"] == "signal:***"
    assert SECRET not in str(results)
    assert SECRET not in str(secretive.sql("SELECT request, result FROM step_tests"))


def test_an_unknown_type_is_refused_with_a_suggestion(servers: Deployment) -> None:
    assert problems(attempted(servers, "htp", {"url": "http://x"})) == {
        "type": "there is no step type 'htp'; did you mean 'http'?"
    }


def test_all_that_is_wrong_is_said_at_once_with_its_place_in_the_request(servers: Deployment) -> None:
    config = {
        "metod": "GET",
        "url": "{{ steps.other.output.x }}",
        "timeout": "soon",
        "headers": {"a": "{{ variables.y }}", "b": "{{ loop.item }}"},
    }
    context = {"variables": {"x-y": "{{ 1", "z": 1}, "steps": {"before": {}, "not an id": {}}}
    found = problems(attempted(servers, "http", config, context=context))
    assert found.keys() == {
        "config.metod", "config.url", "config.timeout", "config.headers.a", "config.headers.b",
        'context.steps["not an id"]',
    }  # fmt: skip
    assert "no step 'other'" in found["config.url"]
    assert "'loop' is not defined" in found["config.headers.b"]


def test_a_problem_in_yaml_has_its_line(servers: Deployment) -> None:
    body = "type: http\nconfig:\n  url: http://x\n  timeout: soon\n"
    answer = servers.client.post("/api/v1/steps/test", data=body, content_type="application/yaml")
    assert problems(answer).keys() == {"config.timeout"}
    assert answer.json["errors"][0]["line"] == 4


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"timeout": "6m"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"config": []}, "config"),
        ({"context": {"stps": {}}}, "context.stps"),
        ({"context": {"steps": {"a": {"status": "odd"}}}}, "context.steps.a.value.status"),
        ({"type": None}, "type"),
        ({"count": 1}, "count"),
    ],
)
def test_a_request_that_is_no_request_is_refused(servers: Deployment, given: dict[str, Any], path: str) -> None:
    body = {"type": "noop", **given}
    assert problems(servers.client.post("/api/v1/steps/test", json=body)).keys() == {path}


INNER = [{"id": "a", "type": "noop"}]


@pytest.mark.parametrize(
    ("type", "config"),
    [
        ("loop", {"items": [1], "steps": INNER}),
        ("parallel", {"branches": {"left": INNER}}),
        ("workflow", {"workflow": "another"}),
    ],
)
def test_what_would_start_other_steps_is_refused(servers: Deployment, type: str, config: dict[str, Any]) -> None:
    found = problems(attempted(servers, type, config))
    assert found.keys() == {"type"}
    assert "execute a workflow with it" in found["type"]


def test_without_a_worker_the_answer_says_so_and_none_performs_it_later(servers: Deployment) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.resources.trying.GRACE", 0.2)
        answer = attempted(servers, "io_noop", {}, timeout=0.1)
    assert (answer.status_code, answer.content_type) == (504, "application/problem+json")
    assert "'io'" in answer.json["detail"]
    assert "no worker took the step" in answer.json["detail"]
    assert logged(servers, answer) == []
    assert servers.sql("SELECT * FROM step_tests") == []


def test_without_a_broker_the_answer_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    with deployed(tmp_path) as own:
        assert own.servers.valkey is not None
        own.servers.valkey.kill()
        answer = attempted(own, "noop")
        assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
        assert "broker" in answer.json["detail"]
        assert "Retry-After" in answer.headers
        assert own.sql("SELECT * FROM step_tests") == []


def test_a_step_that_does_not_end_is_told_from_one_that_nobody_takes(deployment: Deployment) -> None:
    # A function in a thread cannot be ended.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.resources.trying.GRACE", 0.2)
        answer = attempted(deployment, "io_nap", {"seconds": 6}, timeout=3)
    assert answer.status_code == 504
    assert "did not end within 3.2 s" in answer.json["detail"]
    tried = {"type": "io_nap", "config": {"seconds": 6}, "status": "unknown"}
    assert [(entry["status"], entry["after"]) for entry in logged(deployment, answer)] == [(504, tried)]
    wait_until(lambda: deployment.sql("SELECT count(*) FROM step_tests WHERE result IS NULL") == [(0,)])


def test_a_message_that_comes_twice_performs_a_step_once(deployment: Deployment, tmp_path: Path) -> None:
    from workers import canvas

    marks = tmp_path / "marks"
    tried(deployment, "mark", {"file": str(marks)})
    ((id,),) = deployment.sql("SELECT id::text FROM step_tests ORDER BY id DESC LIMIT 1")
    canvas.trial(id, "cpu").apply_async()
    tried(deployment, "mark", {"file": str(marks)})
    assert len(marks.read_text().splitlines()) == 2


def test_old_tests_and_expired_results_are_removed(deployment: Deployment) -> None:
    workflow_id = deployment.create({"steps": [{"id": "only", "type": "noop"}]})
    with deployment.store.single() as connection:
        old, new = (step_tests.insert(connection, {"type": "noop"}) for _ in range(2))
    deployment.sql(
        "INSERT INTO cached_results (workflow_id, step_id, key, expires_at) "
        "VALUES (%(id)s::uuid, 'only', 'k', now() - interval '1 second')",
        id=workflow_id,
    )
    deployment.sql("UPDATE step_tests SET created_at = now() - interval '61 minutes' WHERE id = %(id)s::uuid", id=old)
    wait_until(lambda: deployment.sql("SELECT FROM step_tests WHERE id = %(id)s::uuid", id=old) == [])
    wait_until(lambda: deployment.sql("SELECT FROM cached_results WHERE expires_at < now()") == [])
    assert len(deployment.sql("SELECT FROM step_tests WHERE id = %(id)s::uuid", id=new)) == 1


# --- the plan of an execution --------------------------------------------------------------------------------


def dry(deployment: Deployment, definition: dict[str, Any], **body: Any) -> Any:
    """The answer to a dry run."""
    path = f"/api/v1/workflows/{deployment.create(definition)}/execute?dry_run=true"
    return deployment.client.post(path, json=body)


def planned(deployment: Deployment, definition: dict[str, Any], **body: Any) -> dict[str, Any]:
    """The plan, its steps by their paths."""
    answer = dry(deployment, definition, **body)
    assert answer.status_code == 200, answer.text
    plan: dict[str, Any] = answer.json
    return plan | {"steps": {entry["path"]: entry for entry in plan["steps"]}}


def step(id: str, type: str = "noop", needs: str = "", config: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "depends_on": needs.split(), "config": config or {}, **more}


DIAMOND = {
    "variables": {"base": "http://example.com"},
    "inputs": {"type": "object", "properties": {"n": {"type": "integer", "default": 7}}},
    "steps": [
        step("start", config={"value": "{{ variables.base }}/{{ input.n }} {{ execution.version }}"}),
        step("left", "io_noop", "start", {"value": ["{{ steps.start.output.result }}", "{{ input.n + 1 }}"]}),
        step("right", "noop", "start", {"value": "{{ secrets.token }}"}, when="input.n > 3"),
        step("more", "noop", "right", {"value": "{{ execution.id }}"}),
        step("end", "noop", "left more", trigger_rule="all_done"),
    ],
}


def test_a_dry_run_shows_every_step_with_its_level_run_and_queue(servers: Deployment) -> None:
    plan = planned(servers, DIAMOND)
    steps = plan["steps"]
    assert list(steps) == ["start", "left", "right", "more", "end"]
    assert {path: (entry["level"], entry["height"], entry["queue"]) for path, entry in steps.items()} == {
        "start": (0, 4, "cpu"), "left": (1, 2, "io"), "right": (1, 3, "cpu"), "more": (2, 2, "cpu"),
        "end": (3, 1, "cpu"),
    }  # fmt: skip
    assert steps["right"]["run"] == steps["more"]["run"]
    assert len({entry["run"] for entry in steps.values()}) == 4
    assert steps["end"]["depends_on"] == ["left", "more"]
    assert (steps["right"]["when"], steps["end"]["trigger_rule"]) == ("input.n > 3", "all_done")
    assert plan["messages"] == {"chains": [[{"queue": "cpu", "starts": ["start"], "priority": 5}]], "join": None}
    assert (plan["on_failure"], plan["finally"], plan["problems"]) == ([], [], [])


def test_a_dry_run_renders_what_is_known_and_leaves_the_rest_as_written(servers: Deployment) -> None:
    plan = planned(servers, DIAMOND)
    assert plan["input"] == {"n": 7}
    assert {path: entry["rendered"] for path, entry in plan["steps"].items()} == {
        "start": {"value": "http://example.com/7 1"},
        "left": {"value": ["{{ steps.start.output.result }}", 8]},
        "right": {"value": "{{ secrets.token }}"},
        "more": {"value": "{{ execution.id }}"},
        "end": {},
    }


def test_a_variable_that_a_step_before_may_set_is_not_rendered(servers: Deployment) -> None:
    definition = {
        "variables": {"a": 1, "b": 2},
        "steps": [
            step("first", config={"value": "{{ variables.a }}"}, output_mapping={"a": "{{ output.result }}"}),
            step("second", needs="first", config={"value": ["{{ variables.a }}", "{{ variables.b }}"]}),
        ],
    }
    steps = planned(servers, definition)["steps"]
    assert steps["first"]["rendered"] == {"value": 1}
    assert steps["second"]["rendered"] == {"value": ["{{ variables.a }}", 2]}


def test_a_dry_run_names_the_templates_that_fail_with_this_input(servers: Deployment) -> None:
    definition = {"steps": [step("only", config={"value": [1, "{{ input.missing.x }}"]})]}
    plan = planned(servers, definition)
    (problem,) = plan["problems"]
    assert problem["path"] == "only.config.value[1]"
    assert "input.missing" in problem["message"]
    assert plan["steps"]["only"]["rendered"] == {"value": [1, "{{ input.missing.x }}"]}


def test_the_messages_of_a_dry_run_are_those_that_start_would_send(servers: Deployment) -> None:
    steps = [step(f"s{n}", "io_noop" if n % 2 else "noop", queue=f"q{n}") for n in range(4)]
    definition = {"steps": [*steps, step("end", needs="s0 s1 s2 s3", priority=8)]}
    messages = planned(servers, definition, priority=2)["messages"]
    assert messages == {
        "chains": [[{"queue": f"q{n}", "starts": [f"s{n}"], "priority": 2}] for n in range(4)],
        "join": {"queue": "cpu", "starts": ["end"], "priority": 8},
    }


def test_bodies_and_endings_stand_inside_the_plan(servers: Deployment) -> None:
    inner = [step("get", config={"value": "{{ loop.item }} {{ input.x }}"}), step("put", needs="get")]
    definition = {
        "steps": [
            step("each", "loop", config={"items": "{{ input.list }}", "steps": inner}),
            step("fork", "parallel", "each", {"branches": {"a": [step("one")], "b": [step("two", "io_noop")]}}),
            step("pay", needs="fork", compensate={"type": "noop", "config": {"value": "{{ input.x }}"}}),
        ],
        "finally": [step("last", config={"value": "{{ execution.status }} {{ input.x }}"})],
        "on_failure": [step("tell", config={"value": "{{ input.x }}"})],
    }
    plan = planned(servers, definition, input={"x": 1, "list": [1, 2]})
    each, fork, pay = plan["steps"].values()
    assert each["rendered"] == {"items": [1, 2]}
    (get, put) = each["bodies"]["steps"]
    assert (get["path"], get["rendered"]) == ("each[*].get", {"value": "{{ loop.item }} {{ input.x }}"})
    assert (put["level"], put["depends_on"], put["run"]) == (1, ["each[*].get"], get["run"])
    assert {name: [one["path"] for one in body] for name, body in fork["bodies"].items()} == {
        "a": ["fork.a.one"],
        "b": ["fork.b.two"],
    }
    assert (pay["compensate"]["path"], pay["compensate"]["rendered"]) == ("compensate.pay", {"value": 1})
    assert plan["finally"][0]["rendered"] == {"value": "{{ execution.status }} {{ input.x }}"}
    assert plan["on_failure"][0]["rendered"] == {"value": 1}


def test_a_dry_run_writes_nothing_and_sends_nothing(servers: Deployment) -> None:
    workflow_id = servers.create(DIAMOND)
    servers.client.get("/health")

    def rows() -> dict[str, int]:
        # That it was asked for is in the audit log like any other call.
        names = {name for (name,) in servers.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
        names = {name for name in names if not name.startswith("audit_log")}
        return {name: servers.sql(f'SELECT count(*) FROM "{name}"')[0][0] for name in names}

    before = rows()
    path = f"/api/v1/workflows/{workflow_id}/execute?dry_run=true"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.dispatch.dispatch", lambda _: pytest.fail("a message was sent"))
        assert servers.client.post(path, json={}, headers={"Idempotency-Key": "k"}).status_code == 200
    assert rows() == before
    assert (
        servers.client.post(path.replace("true", "false"), json={}, headers={"Idempotency-Key": "k"}).status_code == 202
    )
    assert rows()["executions"] == before["executions"] + 1


def test_a_dry_run_refuses_what_an_execution_would(servers: Deployment) -> None:
    answer = dry(servers, DIAMOND, input={"n": "seven"})
    assert problems(answer).keys() == {"input.n"}
    path = f"/api/v1/workflows/{servers.create(DIAMOND)}"
    for verb in ("activate", "pause"):
        servers.client.post(f"{path}/{verb}")
    real, dried = (servers.client.post(f"{path}/execute?dry_run={word}", json={}) for word in ("false", "true"))
    assert (dried.status_code, dried.json["state"]) == (409, "paused")
    assert dried.json == real.json
    assert servers.client.post(f"{path}/execute?dry_run=perhaps", json={}).status_code == 422
    body = {"name": "a template", "definition": DIAMOND, "is_template": True}
    template = servers.client.post("/api/v1/workflows", json=body).json["id"]
    refused = servers.client.post(f"/api/v1/workflows/{template}/execute?dry_run=true", json={})
    assert (refused.status_code, refused.json["state"]) == (409, "template")
    missing = "/api/v1/workflows/00000000-0000-0000-0000-000000000000/execute?dry_run=true"
    assert servers.client.post(missing, json={}).status_code == 404
