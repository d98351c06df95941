"""`orchestrator.client` with a whole service, and with a connection that breaks."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, get_origin, get_type_hints, is_typeddict
from urllib.parse import urlsplit

import pytest
from test_cli_up import Up

from orchestrator import client as package
from orchestrator.client import Client, executions, shapes
from orchestrator.client.events import Event
from orchestrator.client.transport import Transport

ADD: dict[str, Any] = {
    "steps": [{"id": "add", "type": "set", "config": {"values": {"sum": "{{ input.a + input.b }}"}}}],
    "outputs": {"sum": "{{ steps.add.output.sum }}"},
}
TALKS: dict[str, Any] = {
    "steps": [
        {"id": "first", "type": "script", "config": {"runtime": "bash", "source": "echo one >&2; echo two >&2"}},
        {"id": "rest", "type": "signal", "depends_on": ["first"], "config": {"name": "go on"}},
        {
            "id": "last",
            "type": "script",
            "depends_on": ["rest"],
            "config": {"runtime": "bash", "source": "echo three >&2"},
        },
    ]
}


def key_of(up: Up) -> str:
    return (up.folder / "admin-key").read_text().strip()


@pytest.fixture(scope="module")
def client(up: Up) -> Client:
    return Client(up.wait_ready(), key_of(up))


@pytest.fixture
def adding(client: Client) -> str:
    return client.workflows.save({"name": "adding", "definition": ADD})["id"]


# --- what a service does -----------------------------------------------------------------------------------------


def test_a_workflow_lives_through_the_client(client: Client) -> None:
    made = client.workflows.create(ADD, name="a life", tags=["living"])
    assert made["status"] == "draft"
    changed = client.workflows.update(made["id"], version=1, description="longer", definition={**ADD, "variables": {}})
    assert (changed["version"], changed["description"]) == (2, "longer")
    with pytest.raises(package.Outdated):
        client.workflows.update(made["id"], version=1, description="unseen")
    assert [version["version"] for version in client.workflows.versions(made["id"])] == [2, 1]
    assert [change["path"] for change in client.workflows.diff(made["id"], 1, 2)["changes"]] == ["variables"]
    assert client.workflows.restore(made["id"], 1)["version"] == 3
    assert client.workflows.version(made["id"], 3)["definition"] == ADD
    found = client.workflows.find("a life")
    assert found is not None
    assert found["id"] == made["id"]
    copy = client.workflows.import_(client.workflows.export(made["id"]))
    assert client.workflows.get(copy["id"])["definition"] == ADD
    for id in made["id"], copy["id"]:
        client.workflows.delete(id)
        with pytest.raises(package.NotFound):
            client.workflows.get(id)


def test_an_execution_is_followed_to_its_end(client: Client, adding: str) -> None:
    moves: list[tuple[str, str]] = []
    started = client.workflows.execute(adding, {"a": 40, "b": 2}, priority=9)
    ended = client.executions.follow(started["id"], lambda step: moves.append((step["path"], step["status"])))
    assert (ended["status"], ended["output"], ended["priority"]) == ("completed", {"sum": 42}, 9)
    assert moves[-1] == ("add", "completed")
    assert client.executions.wait(started["id"]) == ended
    assert client.executions.why(started["id"])["reason"] == "completed"
    (step,) = ended["step_executions"]
    assert client.steps.output(step["id"]) == {"sum": 42}
    again = client.executions.rerun(started["id"], input={"a": 1, "b": 1})
    assert client.executions.wait(again["id"])["output"] == {"sum": 2}
    assert [one["id"] for one in client.executions.list(rerun_of=started["id"])] == [again["id"]]


def test_log_lines_come_while_the_execution_runs_and_end_with_it(client: Client) -> None:
    workflow = client.workflows.save({"name": "talking", "definition": TALKS})
    execution = client.workflows.execute(workflow["id"])
    lines = client.executions.follow_logs(execution["id"])
    first, second = next(lines), next(lines)
    assert first.keys() == get_type_hints(shapes.LogEvent).keys()
    assert [first["message"], second["message"]] == ["one", "two"]
    assert client.executions.get(execution["id"])["status"] == "running"
    client.executions.signal(execution["id"], "go on")
    assert [(line["step_id"], line["message"]) for line in lines] == [("last", "three")]
    assert client.executions.wait(execution["id"])["status"] == "completed"
    assert len(list(client.executions.logs(execution["id"]))) == 3
    assert [line["message"] for line in client.executions.follow_logs(execution["id"], step_id="last")] == ["three"]


def test_what_becomes_of_an_execution_is_told_to_its_end(client: Client, adding: str) -> None:
    execution = client.workflows.execute(adding, {"a": 1, "b": 2})
    told = list(client.executions.events(execution["id"]))
    assert told[-1].kind == "end"
    assert told[-1].data["status"] == "completed"
    assert ("step", "completed") in {(event.kind, event.data.get("status")) for event in told}
    middle = told[1]
    assert list(client.executions.events(execution["id"], after=middle.id)) == told[2:]
    assert list(client.executions.events(execution["id"], after=told[-1].id)) == []


def test_the_stream_of_events_says_when_to_look(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "_SOON", 1000.0)  # between looks, if no stream told
    monkeypatch.setattr(executions, "_QUIET", 1000.0)
    workflow = client.workflows.save({"name": "talking", "definition": TALKS})
    id = client.workflows.execute(workflow["id"])["id"]
    moves: list[tuple[str, str]] = []

    def changed(step: shapes.StepExecution) -> None:
        moves.append((step["path"], step["status"]))
        if moves[-1] == ("rest", "waiting"):
            client.executions.signal(id, "go on")

    assert client.executions.follow(id, changed)["status"] == "completed"
    assert ("rest", "waiting") in moves
    assert moves[-1] == ("last", "completed")
    again = client.executions.rerun(id)["id"]
    client.executions.signal(again, "go on")
    assert client.executions.wait(again)["status"] == "completed"


@pytest.mark.parametrize("broken", [package.Unreachable("cut off"), None])
def test_an_execution_is_waited_for_though_no_stream_tells(
    client: Client, monkeypatch: pytest.MonkeyPatch, broken: Exception | None
) -> None:
    def stream(*_: object, **__: object) -> Iterator[list[Event]]:
        if broken:
            raise broken
        yield []

    monkeypatch.setattr(Transport, "stream", stream)
    workflow = client.workflows.save({"name": "talking", "definition": TALKS})
    id = client.workflows.execute(workflow["id"])["id"]
    with pytest.raises(TimeoutError, match="it goes on"):
        client.executions.wait(id, timeout=0.2)
    client.executions.signal(id, "go on")
    moves: list[tuple[str, str]] = []
    ended = client.executions.follow(id, lambda step: moves.append((step["path"], step["status"])))
    assert (ended["status"], moves[-1]) == ("completed", ("last", "completed"))


def test_what_starts_on_an_event_is_started_and_told_by_events(client: Client) -> None:
    ordered = {"type": "event", "config": {"type": "client.ordered", "mapping": {"a": "{{ event.data.n }}", "b": 1}}}
    workflow = client.workflows.save({"name": "ordering", "definition": {**ADD, "triggers": [ordered]}})
    event = {"id": "1", "source": "/tests/client", "type": "client.ordered", "data": {"n": 41}}
    first, second = client.events.send(event, {**event, "id": "2"})
    (again,) = client.events.send(event)
    assert (first["event_id"], first["outcome"], again["outcome"]) == ("1", "started", "duplicate")
    assert again["execution_id"] == first["execution_id"]
    assert first["execution_id"] is not None
    assert second["execution_id"] is not None
    assert client.executions.wait(first["execution_id"])["output"] == {"sum": 42}
    (told, *_) = client.executions.events(first["execution_id"])
    before = str(int(told.id) - 1)
    heard = next(client.events.follow(workflow_id=workflow["id"], after=before))
    assert heard.data["execution_id"] in (first["execution_id"], second["execution_id"])


def test_an_execution_is_paused_resumed_cancelled_and_retried(client: Client) -> None:
    workflow = client.workflows.save({"name": "talking", "definition": TALKS})
    id = client.workflows.execute(workflow["id"])["id"]
    assert client.executions.pause(id)["status"] == "paused"
    assert client.executions.resume(id)["status"] in ("queued", "running")
    assert client.executions.cancel(id)["status"] == "cancelled"
    with pytest.raises(package.Conflict) as conflict:
        client.executions.pause(id)
    assert conflict.value.state == "cancelled"
    assert client.executions.retry(id)["status"] in ("queued", "running")
    with pytest.raises(TimeoutError, match="it goes on"):
        client.executions.wait(id, timeout=0.2)
    client.executions.signal(id, "go on")
    assert client.executions.wait(id)["status"] == "completed"


def test_a_list_goes_on_over_its_pages(client: Client, adding: str) -> None:
    items = [{"input": {"a": number, "b": 0}} for number in range(7)]
    started = client.workflows.execute_many(adding, items)
    assert (started["started"], started["refused"]) == (7, 0)
    ids = {one["id"] for one in started["items"]}
    assert ids <= {one["id"] for one in client.executions.list(workflow_id=adding, limit=2)}


def test_triggers_secrets_and_keys(client: Client, adding: str) -> None:
    trigger = client.triggers.create(adding, "manual", {"input": {"a": 1, "b": 2}}, name="by hand")
    fired = client.triggers.fire(trigger["id"])
    assert fired["execution_id"] is not None
    assert client.executions.wait(fired["execution_id"])["output"] == {"sum": 3}
    assert [fire["id"] for fire in client.triggers.fires(trigger["id"])] == [fired["id"]]
    assert client.triggers.update(trigger["id"], is_enabled=False)["is_enabled"] is False
    client.triggers.delete(trigger["id"])
    assert "by hand" not in {one["name"] for one in client.triggers.list(adding)}

    secret = client.secrets.create("of_the_client", "hush", workflow_id=adding)
    assert secret["id"] in {one["id"] for one in client.secrets.list(workflow_id=adding)}
    client.secrets.delete(secret["id"])

    key = client.keys.create("a viewer", [{"role": "viewer"}])
    viewer = Client(client.url, key["key"])
    assert viewer.me()["grants"] == [{"role": "viewer", "project": None}]
    with pytest.raises(package.Forbidden) as forbidden:
        viewer.workflows.execute(adding)
    assert forbidden.value.role == "operator"
    client.keys.revoke(key["id"])
    assert {one["id"]: one["revoked_at"] for one in client.keys.list()}[key["id"]] is not None


def test_step_templates_projects_grants_and_the_audit_log(client: Client) -> None:
    step = {"type": "set", "config": {"values": {}}}
    made = client.step_templates.create("of the client", step, description="sets nothing")
    assert client.step_templates.update(made["id"], description="still nothing")["step"] == step
    found = client.step_templates.find("of the client")
    assert found is not None
    assert (found["id"], found["description"]) == (made["id"], "still nothing")
    client.step_templates.delete(made["id"])
    assert client.step_templates.find("of the client") is None

    project = client.projects.create("of-the-client")
    assert client.projects.update(project["id"], description="for a test")["description"] == "for a test"
    grant = client.grants.create("company:1", "operator", "of-the-client")
    assert client.grants.get(grant["id"]) == grant
    assert grant in list(client.grants.list())
    client.grants.delete(grant["id"])
    client.projects.delete(project["id"])
    assert project["id"] not in {one["id"] for one in client.projects.list()}
    done = [entry["action"] for entry in client.audit.list(object_id=project["id"], denied=False)]
    assert done == ["project.delete", "project.update", "project.create"]


def test_what_the_service_is_and_does(client: Client, adding: str) -> None:
    assert client.health()["checks"]["database"] == "ok"
    assert client.stats("1h")["counts"].keys() == {"completed", "failed", "cancelled"}
    assert client.workflows.status(adding)["name"] == "adding"
    assert client.workflows.stats(adding)["steps"] is not None
    assert client.scheduler_status()["broker"] == "ok"


def test_an_error_says_what_is_wrong_and_where(client: Client) -> None:
    with pytest.raises(package.Invalid) as invalid:
        client.workflows.create({"steps": [{"id": "a", "type": "no such type"}]}, name="wrong")
    (problem,) = invalid.value.problems
    assert problem.path == "definition.steps[0].type"
    assert "POST" in str(invalid.value)
    assert problem.message in str(invalid.value)
    with pytest.raises(package.NotFound):
        client.workflows.get("../keys")
    with pytest.raises(package.Unauthorized, match="ORCHESTRATOR_KEY"):
        Client(client.url, "wrong").me()
    with pytest.raises(package.Unreachable, match=r"http://127\.0\.0\.1:1: Connection refused"):
        Client("http://127.0.0.1:1", "k", retries=0).me()


def test_address_and_key_come_from_the_environment(client: Client, up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_URL", client.url + "/")
    monkeypatch.setenv("ORCHESTRATOR_KEY", key_of(up))
    assert Client().url == client.url
    assert Client().me()["kind"] == "admin_key"


# --- a connection that breaks ------------------------------------------------------------------------------------


class Breaking:
    """A proxy that hands on each request, and of the first `broken` answers no more than so many bytes."""

    def __init__(self, url: str, broken: int, bytes: int = 0) -> None:
        self._bytes = bytes
        parts = urlsplit(url)
        self._service = (parts.hostname, parts.port)
        self._broken = broken
        self.seen = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            with caller:
                self._hand_on(caller)

    def _hand_on(self, caller: socket.socket) -> None:
        request = caller.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += caller.recv(65536)
        self.seen += 1
        with socket.create_connection(self._service) as service:
            service.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            left = self._bytes if self.seen <= self._broken else sys.maxsize
            for chunk in iter(lambda: service.recv(65536), b""):
                caller.sendall(chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    break


@pytest.fixture
def breaking(client: Client) -> Iterator[Breaking]:
    proxy = Breaking(client.url, broken=2)
    yield proxy
    proxy.close()


def test_an_execution_is_started_once_though_the_answer_is_lost(
    breaking: Breaking, client: Client, up: Up, adding: str
) -> None:
    before = {one["id"] for one in client.executions.list(workflow_id=adding)}
    started = Client(breaking.url, key_of(up)).workflows.execute(adding, {"a": 1, "b": 1})
    assert breaking.seen == 3
    assert {one["id"] for one in client.executions.list(workflow_id=adding)} - before == {started["id"]}


def test_what_cannot_be_repeated_is_not(breaking: Breaking, client: Client, up: Up) -> None:
    with pytest.raises(package.Unreachable):
        Client(breaking.url, key_of(up)).workflows.create(ADD, name="made and not known")
    assert breaking.seen == 1
    assert len(list(client.workflows.list(name="made and not known"))) == 1


def test_what_reads_is_tried_as_often_as_one_says(breaking: Breaking, up: Up) -> None:
    with pytest.raises(package.Unreachable):
        Client(breaking.url, key_of(up), retries=1).me()
    assert breaking.seen == 2
    assert Client(breaking.url, key_of(up)).me()["kind"] == "admin_key"


@pytest.mark.parametrize("bytes", [0, 900, 1300])
def test_a_stream_goes_on_where_it_was_cut_off(client: Client, up: Up, bytes: int) -> None:
    workflow = client.workflows.save({"name": "talking", "definition": TALKS})
    id = client.workflows.execute(workflow["id"])["id"]
    client.executions.signal(id, "go on")
    client.executions.wait(id)
    proxy = Breaking(client.url, broken=2, bytes=bytes)
    lines = [line["message"] for line in Client(proxy.url, key_of(up)).executions.follow_logs(id)]
    proxy.close()
    assert lines == ["one", "two", "three"]
    assert proxy.seen > 1


# --- its types ---------------------------------------------------------------------------------------------------

SCHEMAS = {
    "Workflow": "WorkflowOut", "WorkflowStatus": "WorkflowStatusOut", "Version": "VersionOut", "Change": "ChangeOut",
    "Execution": "ExecutionOut", "StepExecution": "StepExecutionOut", "Started": "StartedOut",
    "StartedMany": "ExecuteManyOut", "LogLine": "LogLineOut", "Reason": "ReasonOut", "Signal": "SignalOut",
    "Trigger": "TriggerOut", "Fire": "FireOut", "Slot": "SlotOut", "Backfill": "BackfillOut", "Project": "ProjectOut",
    "StepTemplate": "StepTemplateOut", "RoleGrant": "GrantOut",
    "Secret": "SecretOut", "Grant": "GrantOnKey", "Key": "KeyOut", "NewKey": "NewKeyOut", "Me": "MeOut",
    "Health": "HealthOut", "Stats": "StatsOut", "WorkflowStats": "WorkflowStatsOut",
}  # fmt: skip
"""By the names of the types; the others have the names of their schemas."""


def test_the_types_are_those_of_the_document(client: Client) -> None:
    schemas = client._api.get(dict[str, Any], "/openapi.json")["components"]["schemas"]
    types = {name: shape for name, shape in vars(shapes).items() if is_typeddict(shape)}
    del types["LogEvent"]  # which is told in a stream
    assert len(types) > 25
    for name, shape in types.items():
        schema = schemas[SCHEMAS.get(name, name)]
        hints = get_type_hints(shape, include_extras=True)
        assert hints.keys() == schema["properties"].keys(), name
        always = {field for field, hint in hints.items() if get_origin(hint) is not NotRequired}
        assert always == set(schema.get("required", ())), name
        nullable = {field for field, one in schema["properties"].items() if "null" in str(one.get("type", "null"))}
        assert {field for field in hints if "None" in str(hints[field])} <= nullable, name


def test_programs_that_use_it_are_type_checked() -> None:
    assert (Path(package.__file__).parents[1] / "py.typed").exists()
