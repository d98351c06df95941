"""The audit log: what was done and refused, who reads it, and that nobody changes it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from deployment import KEY, Deployment, wait_until
from flask.testing import FlaskClient

from api import audit as recording
from api import create_app
from api.access import RULES
from api.service import Service
from orchestrator.access import DEFAULT_PROJECT

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": 1}}]}


def with_key(servers: Deployment, key: str) -> FlaskClient:
    client = servers.client.application.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    client.environ_base["HTTP_IF_MATCH"] = "*"
    return client


def new_key(servers: Deployment, *grants: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = servers.client.post("/api/v1/keys", json={"name": "k", "grants": list(grants)}).json
    return made


def new_project(servers: Deployment) -> str:
    name: str = servers.client.post("/api/v1/projects", json={"name": f"team-{uuid4()}"}).json["name"]
    return name


def entries(client: FlaskClient, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/audit", query_string={"sort": "at", "limit": 200, **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json["items"]
    return found


def stranger(servers: Deployment) -> FlaskClient:
    """From a process of its own, which has not been flooded yet."""
    return create_app(servers.settings).test_client()


def test_a_change_is_kept_with_who_from_where_before_and_after(servers: Deployment) -> None:
    key = new_key(servers, {"role": "editor"})
    client = with_key(servers, key["key"])
    made = client.post("/api/v1/workflows", json={"name": "first", "definition": NOOP}).json
    asked = {"X-Request-ID": f"r-{uuid4()}", "User-Agent": "tests/1"}
    client.put(f"/api/v1/workflows/{made['id']}", json={"name": "second"}, headers=asked)
    client.delete(f"/api/v1/workflows/{made['id']}")
    created, updated, deleted = entries(servers.client, object_id=made["id"])
    assert [e["action"] for e in (created, updated, deleted)] == [
        "workflow.create", "workflow.update", "workflow.delete",
    ]  # fmt: skip
    assert (created["before"], created["after"]["name"], created["status"]) == (None, "first", 201)
    assert (updated["before"]["name"], updated["after"]["name"]) == ("first", "second")
    assert (deleted["before"]["name"], deleted["after"]) == ("second", None)
    for entry in (created, updated, deleted):
        assert (entry["actor_kind"], entry["actor_id"], entry["actor_name"]) == ("key", key["id"], "k")
        assert entry["object_kind"] == "workflow"
        assert entry["project_id"] is not None
        assert entry["address"] == "127.0.0.1"
    assert (updated["request_id"], updated["user_agent"]) == (asked["X-Request-ID"], "tests/1")


class Doer:
    """Does one thing after the other, and looks at each in the log."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.key = new_key(deployment, {"role": "admin"})
        self.client = with_key(deployment, self.key["key"])
        self.seen: set[str] = set()

    def __call__(self, action: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.client.open(f"/api/v1/{path}", method=method, json={} if body is None else body, **more)
        assert answer.status_code < 300, f"{action}: {answer.text}"
        (entry,) = entries(self.deployment.client, request_id=answer.headers["X-Request-ID"])
        rule = next(rule for rule in RULES.values() if rule.action == action)
        assert (entry["action"], entry["status"]) == (action, answer.status_code)
        assert (entry["actor_id"], entry["address"], entry["user_agent"][:8]) == (
            self.key["id"],
            "127.0.0.1",
            "Werkzeug",
        )
        before, after = entry["before"], entry["after"]
        if rule.does:
            assert after, f"{action}: what came of it"
        if rule.creates:
            assert (before, after["id"]) == (None, entry["object_id"])
        if rule.changes:
            assert before["id"] == entry["object_id"]
            assert after is None if method == "DELETE" and action != "key.revoke" else after["id"] == before["id"]
            assert after != before or action in self.seen, f"{action}: what has changed"
        self.seen.add(action)
        return answer.json if answer.data else None


def test_every_action_is_kept_with_who_from_where_before_and_after(deployment: Deployment) -> None:
    did, kind = Doer(deployment), f"kind-{uuid4()}"
    project = did("project.create", "POST", "projects", {"name": f"p-{uuid4()}"})
    did("project.update", "PUT", f"projects/{project['id']}", {"description": "new"})

    new = {"name": "w", "definition": NOOP, "project": project["name"]}
    imported = did("workflow.import", "POST", "workflows/import", new)["id"]
    original = did("workflow.create", "POST", "workflows", {**new, "is_template": True})["id"]
    did("workflow.instantiate", "POST", f"workflows/{original}/instantiate", {"name": "of it"})
    workflow = did("workflow.create", "POST", "workflows", new)["id"]
    did("workflow.clone", "POST", f"workflows/{workflow}/clone")
    did("workflow.update", "PUT", f"workflows/{workflow}", {"definition": DECIDED})
    did("workflow.restore", "POST", f"workflows/{workflow}/versions/1/restore")
    did("workflow.restore", "POST", f"workflows/{workflow}/versions/2/restore")
    for action in ("activate", "pause", "resume"):
        did(f"workflow.{action}", "POST", f"workflows/{workflow}/{action}")

    waiting = did("workflow.execute", "POST", f"workflows/{workflow}/execute")["id"]
    did("workflow.execute_many", "POST", f"workflows/{workflow}/execute/bulk", {"items": [{}, {}]})
    did("execution.signal", "POST", f"executions/{waiting}/signals", {"name": "n"})
    asked = waits(deployment, waiting)
    did("execution.pause", "POST", f"executions/{waiting}/pause")
    did("execution.resume", "POST", f"executions/{waiting}/resume")
    did("step_execution.decide", "POST", f"step-executions/{waits(deployment, waiting)}/decision", {"approved": False})
    assert deployment.ended(waiting)["status"] == "failed"
    did("step_execution.retry", "POST", f"step-executions/{asked}/retry")
    did("execution.cancel", "POST", f"executions/{waiting}/cancel")
    deployment.ended(waiting)
    did("execution.retry", "POST", f"executions/{waiting}/retry")
    did("execution.rerun", "POST", f"executions/{waiting}/rerun")
    did("execution.bulk", "POST", "executions/bulk", {"action": "cancel", "filter": {"workflow_id": workflow}})
    deployment.ended(waiting)
    did("execution.delete", "DELETE", f"executions/{waiting}")

    schedule = {"type": "schedule", "config": {"cron": "0 0 * * *"}}
    trigger = did("trigger.create", "POST", f"workflows/{workflow}/triggers", schedule)["id"]
    did("trigger.update", "PUT", f"triggers/{trigger}", {"is_enabled": False})
    did("trigger.fire", "POST", f"triggers/{trigger}/fire")
    past = {"from": "2026-01-01T12:00:00Z", "to": "2026-01-02T12:00:00Z"}
    did("trigger.backfill", "POST", f"triggers/{trigger}/backfill", past)
    did("trigger.delete", "DELETE", f"triggers/{trigger}")
    did("trigger.create", "POST", f"workflows/{workflow}/triggers", {"type": "event", "config": {"type": kind}})
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": kind}
    did("event.send", "POST", "events", event, content_type="application/cloudevents+json")

    template = did("step_template.create", "POST", "step-templates", {"name": kind, "step": {"type": "noop"}})["id"]
    did("step_template.update", "PUT", f"step-templates/{template}", {"description": "new"})
    did("step_template.delete", "DELETE", f"step-templates/{template}")
    did("step.test", "POST", "steps/test", {"type": "noop"})

    key = did("key.create", "POST", "keys", {"name": "k", "grants": [{"role": "viewer"}]})["id"]
    did("key.update", "PUT", f"keys/{key}", {"grants": [{"role": "editor"}]})
    did("key.revoke", "DELETE", f"keys/{key}")
    grant = did("grant.create", "POST", "grants", {"subject": f"x:{kind}", "role": "viewer"})["id"]
    did("grant.delete", "DELETE", f"grants/{grant}")
    secret = did("secret.create", "POST", "secrets", {"name": f"n_{uuid4().hex}", "value": "hush"})["id"]
    did("secret.update", "PUT", f"secrets/{secret}", {"description": "new"})
    did("secret.delete", "DELETE", f"secrets/{secret}")

    did("workflow.cancel", "POST", f"workflows/{workflow}/cancel")
    did("workflow.delete", "DELETE", f"workflows/{imported}")
    empty = did("project.create", "POST", "projects", {"name": f"p-{uuid4()}"})["id"]
    did("project.delete", "DELETE", f"projects/{empty}")
    assert did.seen == {rule.action for rule in RULES.values() if rule.action}


DECIDED = {"steps": [{"id": "ask", "type": "approval"}]}


def waits(deployment: Deployment, execution_id: str) -> str:
    """The id of its step, once that waits."""

    def one() -> Any:
        (step,) = deployment.execution(execution_id)["step_executions"]
        return step["id"] if step["status"] == "waiting" else None

    return str(wait_until(one))


def test_what_would_be_done_is_not_kept_as_done(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    assert servers.client.post(f"/api/v1/workflows/{workflow}/execute?dry_run=true", json={}).status_code == 200
    assert entries(servers.client, object_id=workflow, action="workflow.execute") == []


def test_of_many_executions_the_log_names_each_that_was_started(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    items = [{"idempotency_key": "once"}, {"idempotency_key": "once"}, *[{}] * 500]
    answer = servers.client.post(f"/api/v1/workflows/{workflow}/execute/bulk", json={"items": items}).json
    (entry,) = entries(servers.client, object_id=workflow, action="workflow.execute_many")
    assert entry["after"] == {"executions": [item["id"] for item in answer["items"] if item["is_new"]]}
    assert len(entry["after"]["executions"]) == 501


def test_an_answer_names_the_request_as_the_log_does(servers: Deployment) -> None:
    answer = servers.client.post("/api/v1/projects", json={"name": f"p-{uuid4()}"})
    (entry,) = entries(servers.client, request_id=answer.headers["X-Request-ID"])
    assert (entry["action"], entry["object_id"]) == ("project.create", answer.json["id"])
    odd = servers.client.get("/api/v1/me", headers={"X-Request-ID": "x" * 500})
    assert odd.headers["X-Request-ID"] != "x" * 500


def test_what_somebody_starts_is_kept_with_what_came_of_it(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    execution = servers.execute(workflow)
    servers.client.post(f"/api/v1/executions/{execution}/cancel")
    (started,) = entries(servers.client, object_id=workflow, action="workflow.execute")
    assert started["after"] == {"execution_id": execution}
    (cancelled,) = entries(servers.client, object_id=execution)
    assert (cancelled["before"]["status"], cancelled["after"]["status"]) == ("queued", "cancelled")
    assert "input" not in cancelled["before"]


def test_what_starts_is_kept_though_the_process_ends_before_it_answers(
    servers: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = servers.create(NOOP)

    def die(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(Service, "send", die)
    with pytest.raises(SystemExit):
        servers.client.post(f"/api/v1/workflows/{workflow}/execute", json={})
    (entry,) = entries(servers.client, object_id=workflow, action="workflow.execute")
    ((id,),) = servers.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=workflow)
    assert (entry["status"], entry["after"], entry["project_id"]) == (202, {"execution_id": id}, DEFAULT_PROJECT)


def test_what_is_started_twice_under_one_key_is_kept_as_it_was_answered(servers: Deployment) -> None:
    path, headers = f"/api/v1/workflows/{servers.create(NOOP)}/execute", {"Idempotency-Key": "once"}
    answers = [servers.client.post(path, json={}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    kept = [entries(servers.client, request_id=answer.headers["X-Request-ID"]) for answer in answers]
    assert [[(entry["status"], entry["after"]["execution_id"]) for entry in found] for found in kept] == [
        [(202, answers[0].json["id"])],
        [(200, answers[0].json["id"])],
    ]


def test_reading_and_what_came_to_nothing_is_not_kept(servers: Deployment) -> None:
    workflow = servers.create(NOOP)
    servers.client.get(f"/api/v1/workflows/{workflow}")
    servers.client.put(f"/api/v1/workflows/{workflow}", json={"name": 5})
    servers.client.post(f"/api/v1/workflows/{workflow}/resume")
    assert [entry["action"] for entry in entries(servers.client, object_id=workflow)] == ["workflow.create"]


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET action = 'nothing'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_the_database_refuses_to_change_the_log(servers: Deployment, statement: str) -> None:
    ((before,),) = servers.sql("SELECT count(*) FROM audit_log")
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        servers.sql(statement)
    assert servers.sql("SELECT count(*) FROM audit_log") == [(before,)]


def test_attempts_to_get_in_are_kept(servers: Deployment) -> None:
    mine, theirs = new_project(servers), new_project(servers)
    foreign = servers.client.post("/api/v1/workflows", json={"name": "w", "definition": NOOP, "project": theirs}).json
    key = new_key(servers, {"role": "viewer", "project": mine})
    revoked = new_key(servers, {"role": "admin"})
    servers.client.delete(f"/api/v1/keys/{revoked['id']}")
    client = stranger(servers)
    since = datetime.now(UTC).isoformat()
    as_key = {"Authorization": f"Bearer {key['key']}"}
    client.get("/api/v1/workflows")
    client.get("/api/v1/workflows", headers={"Authorization": "Bearer wrong"})
    client.get("/api/v1/workflows", headers={"Authorization": f"Bearer {revoked['key']}"})
    client.delete(f"/api/v1/workflows/{foreign['id']}", headers=as_key)
    client.post("/api/v1/workflows", json={"name": "w", "definition": NOOP}, headers=as_key)
    client.get(f"/api/v1/workflows/{uuid4()}", headers=as_key)  # there is no such thing: no attempt
    kept = entries(servers.client, since=since, denied="true")
    assert [(e["actor_kind"], e["action"], e["status"]) for e in kept] == [
        ("anonymous", "GET /api/v1/workflows", 401),
        ("anonymous", "GET /api/v1/workflows", 401),
        ("anonymous", "GET /api/v1/workflows", 401),
        ("key", "workflow.delete", 404),
        ("key", "workflow.create", 403),
    ]
    assert "revoked" in kept[2]["detail"]
    assert (kept[3]["object_id"], kept[3]["actor_id"]) == (foreign["id"], key["id"])
    assert "role editor" in kept[4]["detail"]


@pytest.mark.parametrize("path", ["/nowhere%00", "/api/v1/%00%ff", f"/{'x' * 5000}"])
def test_an_attempt_at_any_address_is_refused_and_kept(servers: Deployment, path: str) -> None:
    answer = stranger(servers).get(path)
    assert answer.status_code == 401, answer.text
    (entry,) = entries(servers.client, request_id=answer.headers["X-Request-ID"])
    assert entry["action"].startswith(f"GET {path[:5]}")


def test_nobody_floods_the_log(servers: Deployment) -> None:
    client = stranger(servers)
    ((before,),) = servers.sql("SELECT count(*) FROM audit_log")
    began = time.monotonic()
    for _ in range(200):
        assert client.get("/api/v1/me", headers={"Authorization": "Bearer wrong"}).status_code == 401
    ((after,),) = servers.sql("SELECT count(*) FROM audit_log")
    assert 10 <= after - before <= 11 + (time.monotonic() - began) / 10


def test_refusals_left_out_are_counted_in_the_next_that_is_kept() -> None:
    flood = recording.Flood(of_address=(2.0, 1000.0), of_all=(3.0, 1000.0))
    assert [flood.admit("a") for _ in range(4)] == [0, 0, None, None]
    assert flood.admit("b") == 2
    assert [flood.admit(name) for name in "cdef"] == [None] * 4


def test_secrets_are_not_in_the_log(servers: Deployment) -> None:
    secret = f"s3cret-{uuid4()}"
    workflow = servers.create(NOOP)
    headers = {"Authorization": f"Bearer {secret}", "X-Plain": "seen", "X-Key": "{{ secrets.k }}"}
    probe = {"http": {"url": f"https://user:{secret}@host.example/x", "headers": headers}, "expression": "true"}
    made = servers.client.post(f"/api/v1/workflows/{workflow}/triggers", json={"type": "condition", "config": probe})
    assert made.status_code == 201, made.text
    hook = {"path": f"/h/{uuid4()}", "secret": secret}
    hooked = servers.client.post(
        f"/api/v1/workflows/{workflow}/triggers", json={"type": "webhook", "config": hook, "name": "h"}
    )
    assert hooked.status_code == 201, hooked.text
    servers.client.put(f"/api/v1/triggers/{hooked.json['id']}", json={"config": {"secret": secret + "2"}})
    servers.client.put(f"/api/v1/workflows/{workflow}", json={"description": f"the key is {KEY}"})
    key = new_key(servers, {"role": "viewer"})["key"]
    ((kept,),) = servers.sql("SELECT string_agg(a::text, E'\\n') FROM audit_log a")
    for text in (secret, KEY, key):
        assert text not in kept
    (entry,) = entries(servers.client, object_id=made.json["id"])
    shown = entry["after"]["config"]["http"]
    assert shown["headers"] == {"Authorization": "***", "X-Plain": "seen", "X-Key": "{{ secrets.k }}"}
    assert shown["url"] == "https://user:***@host.example/x"


def test_an_administrator_of_a_project_reads_what_was_done_in_it(servers: Deployment) -> None:
    mine, theirs = new_project(servers), new_project(servers)
    ids = [
        servers.client.post("/api/v1/workflows", json={"name": "w", "definition": NOOP, "project": project}).json["id"]
        for project in (mine, theirs)
    ]
    client = with_key(servers, new_key(servers, {"role": "admin", "project": mine})["key"])
    assert {e["object_id"] for e in entries(client, action="workflow.create")} == {ids[0]}
    assert entries(client, object_id=ids[1]) == []
    assert client.get("/api/v1/audit", query_string={"project": theirs}).status_code == 422
    assert [e["object_id"] for e in entries(servers.client, project=theirs)][-1] == ids[1]


def test_an_administrator_of_a_project_reads_who_was_let_into_it(servers: Deployment) -> None:
    mine, theirs = new_project(servers), new_project(servers)
    client = with_key(servers, new_key(servers, {"role": "admin", "project": mine})["key"])
    made = []
    for project in (mine, theirs):
        granted = {"role": "viewer", "project": project}
        key = servers.client.post("/api/v1/keys", json={"name": "k", "grants": [granted]}).json["id"]
        grant = servers.client.post("/api/v1/grants", json={"subject": f"x:{uuid4()}", **granted}).json["id"]
        servers.client.delete(f"/api/v1/keys/{key}")
        servers.client.delete(f"/api/v1/grants/{grant}")
        made.append((key, grant))
    seen = [(entry["action"], entry["object_id"]) for entry in entries(client)]
    key, grant = made[0]
    assert seen[-4:] == [
        ("key.create", key), ("grant.create", grant), ("key.revoke", key), ("grant.delete", grant),
    ]  # fmt: skip
    assert not {object_id for _, object_id in seen} & set(made[1])


def test_what_one_call_does_in_several_projects_is_seen_by_each_administrator(servers: Deployment) -> None:
    projects = [new_project(servers) for _ in range(2)]
    kind = f"shipped-{uuid4()}"
    on_event = {**NOOP, "triggers": [{"type": "event", "config": {"type": kind}}]}
    workflows = [
        servers.client.post("/api/v1/workflows", json={"name": "w", "definition": on_event, "project": project}).json
        for project in projects
    ]
    for made in workflows:
        servers.client.post(f"/api/v1/workflows/{made['id']}/activate")
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": kind}
    sent = servers.client.post(
        "/api/v1/events", data=json.dumps(event), content_type="application/cloudevents+json"
    ).json["fired"]
    ids = [one["execution_id"] for one in sent]
    assert len(ids) == 2
    bulk = {"action": "cancel", "filter": {"ids": [*ids, str(uuid4())]}}
    assert servers.client.post("/api/v1/executions/bulk", json=bulk).json["done"] == 2
    of_project = dict(
        servers.sql(
            "SELECT e.id::text, p.name FROM executions e JOIN workflows w ON w.id = e.workflow_id "
            "JOIN projects p ON p.id = w.project_id WHERE e.id = ANY(%(ids)s::uuid[])",
            ids=ids,
        )
    )
    for project in projects:
        client = with_key(servers, new_key(servers, {"role": "admin", "project": project})["key"])
        (cancelled,) = entries(client, action="execution.bulk")
        assert cancelled["after"] == {"action": "cancel", "executions": [i for i in ids if of_project[i] == project]}
        (event_sent,) = entries(client, action="event.send")
        assert len(event_sent["after"]["fires"]) == 1


def test_a_step_that_is_tried_is_seen_in_its_project(deployment: Deployment) -> None:
    mine, theirs = new_project(deployment), new_project(deployment)
    editor = with_key(deployment, new_key(deployment, {"role": "editor", "project": mine})["key"])
    both = with_key(
        deployment, new_key(deployment, *({"role": "editor", "project": project} for project in (mine, theirs)))["key"]
    )
    tried = {"type": "noop"}
    assert editor.post("/api/v1/steps/test", json=tried).status_code == 200
    assert editor.post("/api/v1/steps/test", json={**tried, "project": theirs}).status_code == 422
    assert both.post("/api/v1/steps/test", json={**tried, "project": theirs}).status_code == 200
    for project in (mine, theirs):
        client = with_key(deployment, new_key(deployment, {"role": "admin", "project": project})["key"])
        (entry,) = entries(client, action="step.test", denied="false")
        assert entry["after"] == {"type": "noop", "config": {}, "status": "completed"}


def test_filters_and_pages_go_through_all_of_it_once(servers: Deployment) -> None:
    key = new_key(servers, {"role": "editor"})
    client = with_key(servers, key["key"])
    ids = [client.post("/api/v1/workflows", json={"name": f"{n}", "definition": NOOP}).json["id"] for n in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = servers.client.get("/api/v1/audit", query_string={"actor_id": key["id"], "limit": 2, **cursor}).json
        seen += [entry["object_id"] for entry in answer["items"]]
        if answer["next"] is None:
            break
        cursor = {"cursor": answer["next"]}
    assert seen == ids[::-1]
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert entries(servers.client, actor_id=key["id"], since=soon) == []
    assert len(entries(servers.client, actor_id=key["id"], until=soon)) == 5
    assert servers.client.get("/api/v1/audit?actr=x").status_code == 422


def test_the_export_has_every_line(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.resources import audit as resource

    monkeypatch.setattr(resource, "_AT_ONCE", 3)
    key = new_key(servers, {"role": "editor"})
    client = with_key(servers, key["key"])
    ids = [client.post("/api/v1/workflows", json={"name": f"{n}", "definition": NOOP}).json["id"] for n in range(7)]
    answer = servers.client.get("/api/v1/audit/export", query_string={"actor_id": key["id"]})
    assert answer.content_type.startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["object_id"] for line in lines] == ids
    assert lines == entries(servers.client, actor_id=key["id"])
