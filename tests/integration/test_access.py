"""Who may do what: keys, roles, projects, and every endpoint of the service."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from deployment import KEY, SOON, Deployment, wait_until
from flask import Flask
from flask.testing import FlaskClient
from limits.strategies import SlidingWindowCounterRateLimiter

from api import believed, create_app
from api.access import RULES
from api.auth import Authenticator
from api.believed import KEPT
from orchestrator.config import ApiSettings, BrokerSettings
from orchestrator.errors import ConfigurationError
from orchestrator.store import access

T = TypeVar("T")
NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": 1}}]}
ROLES = ("viewer", "operator", "editor", "admin")

# endpoint, the least role, and where: in the object's project, in some project, in all of them.
TABLE = """
GET    /api/v1/workflows                                              viewer    some
POST   /api/v1/workflows                                              editor    some
GET    /api/v1/workflows/{workflow_id}                                viewer    own
PUT    /api/v1/workflows/{workflow_id}                                editor    own
DELETE /api/v1/workflows/{workflow_id}                                editor    own
GET    /api/v1/workflows/{workflow_id}/status                         viewer    own
POST   /api/v1/workflows/{workflow_id}/activate                       operator  own
POST   /api/v1/workflows/{workflow_id}/pause                          operator  own
POST   /api/v1/workflows/{workflow_id}/resume                         operator  own
POST   /api/v1/workflows/{workflow_id}/cancel                         editor    own
POST   /api/v1/workflows/{workflow_id}/execute                        operator  own
POST   /api/v1/workflows/{workflow_id}/execute/bulk                   operator  own
POST   /api/v1/workflows/{workflow_id}/instantiate                    editor    own
POST   /api/v1/workflows/{workflow_id}/clone                          editor    own
GET    /api/v1/workflows/{workflow_id}/export                         viewer    own
POST   /api/v1/workflows/import                                       editor    some
GET    /api/v1/workflows/{workflow_id}/versions                       viewer    own
GET    /api/v1/workflows/{workflow_id}/versions/{version}             viewer    own
GET    /api/v1/workflows/{workflow_id}/versions/{old}/diff/{new}      viewer    own
POST   /api/v1/workflows/{workflow_id}/versions/{version}/restore     editor    own
GET    /api/v1/workflows/{workflow_id}/triggers                       viewer    own
POST   /api/v1/workflows/{workflow_id}/triggers                       editor    own
GET    /api/v1/triggers/{trigger_id}                                  viewer    own
PUT    /api/v1/triggers/{trigger_id}                                  editor    own
DELETE /api/v1/triggers/{trigger_id}                                  editor    own
GET    /api/v1/triggers/{trigger_id}/fires                            viewer    own
GET    /api/v1/triggers/{trigger_id}/preview                          viewer    own
POST   /api/v1/triggers/{trigger_id}/fire                             operator  own
POST   /api/v1/triggers/{trigger_id}/backfill                         operator  own
GET    /api/v1/step-templates                                         viewer    some
POST   /api/v1/step-templates                                         editor    all
GET    /api/v1/step-templates/{step_template_id}                      viewer    some
PUT    /api/v1/step-templates/{step_template_id}                      editor    all
DELETE /api/v1/step-templates/{step_template_id}                      editor    all
POST   /api/v1/steps/test                                             editor    some
GET    /api/v1/executions                                             viewer    some
POST   /api/v1/executions/bulk                                        operator  some
GET    /api/v1/executions/{execution_id}                              viewer    own
DELETE /api/v1/executions/{execution_id}                              editor    own
GET    /api/v1/executions/{execution_id}/logs                         viewer    own
GET    /api/v1/executions/{execution_id}/steps/{path}/output          viewer    own
GET    /api/v1/executions/{execution_id}/events                       viewer    own
GET    /api/v1/events/stream                                          viewer    some
GET    /api/v1/executions/{execution_id}/why                          viewer    own
POST   /api/v1/executions/{execution_id}/pause                        operator  own
POST   /api/v1/executions/{execution_id}/resume                       operator  own
POST   /api/v1/executions/{execution_id}/cancel                       operator  own
POST   /api/v1/executions/{execution_id}/retry                        operator  own
POST   /api/v1/executions/{execution_id}/rerun                        operator  own
POST   /api/v1/executions/{execution_id}/signals                      operator  own
GET    /api/v1/step-executions/{step_execution_id}                    viewer    own
GET    /api/v1/step-executions/{step_execution_id}/output             viewer    own
GET    /api/v1/step-executions/{step_execution_id}/why                viewer    own
POST   /api/v1/step-executions/{step_execution_id}/retry              operator  own
POST   /api/v1/step-executions/{step_execution_id}/decision           operator  own
POST   /api/v1/events                                                 operator  some
GET    /api/v1/scheduler/status                                       viewer    all
GET    /api/v1/schema                                                 nobody    some
GET    /api/v1/me                                                     nobody    some
GET    /api/v1/projects                                               viewer    some
POST   /api/v1/projects                                               admin     all
GET    /api/v1/projects/{project_id}                                  viewer    own
PUT    /api/v1/projects/{project_id}                                  admin     own
DELETE /api/v1/projects/{project_id}                                  admin     all
GET    /api/v1/keys                                                   admin     some
POST   /api/v1/keys                                                   admin     some
GET    /api/v1/keys/{key_id}                                          admin     some
PUT    /api/v1/keys/{key_id}                                          admin     some
DELETE /api/v1/keys/{key_id}                                          admin     some
GET    /api/v1/grants                                                 admin     some
POST   /api/v1/grants                                                 admin     some
GET    /api/v1/workflows/{workflow_id}/stats                          viewer    own
GET    /api/v1/stats                                                  viewer    some
GET    /metrics                                                       viewer    all
GET    /api/v1/secrets                                                editor    some
POST   /api/v1/secrets                                                editor    some
GET    /api/v1/secrets/{secret_id}                                    editor    own
PUT    /api/v1/secrets/{secret_id}                                    editor    own
DELETE /api/v1/secrets/{secret_id}                                    editor    own
GET    /api/v1/grants/{grant_id}                                      admin     some
DELETE /api/v1/grants/{grant_id}                                      admin     some
GET    /api/v1/audit                                                  admin     some
GET    /api/v1/audit/export                                           admin     some
GET    /health                                                        open
GET    /docs                                                          open
GET    /docs/                                                         open
GET    /docs/assets/{name}                                            open
GET    /openapi.json                                                  open
GET    /webhook/{path}                                                open
POST   /webhook/{path}                                                open
PUT    /webhook/{path}                                                open
PATCH  /webhook/{path}                                                open
DELETE /webhook/{path}                                                open
"""
ENDPOINTS = [tuple(line.split()) for line in TABLE.strip().splitlines()]
GUARDED = [row for row in ENDPOINTS if row[2] != "open"]
DENIED = (401, 403, 404, 405)


def refused(answer: Any, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    assert answer.json["status"] == status
    return answer.json


@dataclass(frozen=True)
class Team:
    """A project with a key for each role in it."""

    name: str
    id: str
    keys: dict[str, FlaskClient]


def with_key(servers: Deployment, key: str) -> FlaskClient:
    return with_key_at(servers.client.application, key)


def with_key_at(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    client.environ_base["HTTP_IF_MATCH"] = "*"
    return client


def new_key(servers: Deployment, *grants: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = servers.client.post("/api/v1/keys", json={"name": f"key {uuid4()}", "grants": list(grants), **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json
    return made


def new_team(servers: Deployment) -> Team:
    project = servers.client.post("/api/v1/projects", json={"name": f"team-{uuid4()}"}).json
    name = project["name"]
    keys = {role: with_key(servers, new_key(servers, {"role": role, "project": name})["key"]) for role in ROLES}
    return Team(name, project["id"], keys)


@pytest.fixture(scope="module")
def team(servers: Deployment) -> Team:
    return new_team(servers)


@pytest.fixture(scope="module")
def others(servers: Deployment) -> Team:
    return new_team(servers)


@pytest.fixture(scope="module")
def everywhere(servers: Deployment) -> dict[str, FlaskClient]:
    return {role: with_key(servers, new_key(servers, {"role": role})["key"]) for role in ROLES}


def world(servers: Deployment, team: Team) -> dict[str, str]:
    """One of everything, in the team's project; what stands in a URL by its name."""
    admin = servers.client
    workflow = admin.post(
        "/api/v1/workflows", json={"name": "theirs", "definition": NOOP, "project": team.name, "is_template": True}
    ).json["id"]
    running = admin.post("/api/v1/workflows", json={"name": "runs", "definition": NOOP, "project": team.name}).json[
        "id"
    ]
    execution = admin.post(f"/api/v1/workflows/{running}/execute", json={}).json
    trigger = admin.post(
        f"/api/v1/workflows/{workflow}/triggers", json={"type": "schedule", "config": {"cron": "0 0 1 1 *"}}
    )
    assert trigger.status_code == 201, trigger.text
    template = admin.post("/api/v1/step-templates", json={"name": f"t {uuid4()}", "step": {"type": "noop"}})
    assert template.status_code == 201, template.text
    grant = admin.post("/api/v1/grants", json={"subject": f"x:{uuid4()}", "role": "viewer", "project": team.name})
    return {
        "workflow_id": workflow,
        "execution_id": execution["id"],
        "step_execution_id": execution["step_executions"][0]["id"],
        "path": execution["step_executions"][0]["path"],
        "trigger_id": trigger.json["id"],
        "step_template_id": template.json["id"],
        "project_id": team.id,
        "key_id": new_key(servers, {"role": "viewer", "project": team.name})["id"],
        "grant_id": grant.json["id"],
        "secret_id": admin.post(
            "/api/v1/secrets", json={"name": f"s_{uuid4().hex}", "value": "hush", "project": team.name}
        ).json["id"],
        "version": "1",
        "old": "1",
        "new": "1",
    }


def body_for(method: str, path: str, team: Team) -> dict[str, Any] | None:
    if method == "GET":
        return None
    bodies: dict[str, dict[str, Any]] = {
        "/api/v1/workflows": {"name": "new", "definition": NOOP, "project": team.name},
        "/api/v1/workflows/import": {"name": "new", "definition": NOOP, "project": team.name},
        "/api/v1/workflows/{workflow_id}/instantiate": {"name": "new", "project": team.name},
        "/api/v1/keys": {"name": "new", "grants": [{"role": "admin", "project": team.name}]},
        "/api/v1/keys/{key_id}": {"grants": [{"role": "operator", "project": team.name}]},
        "/api/v1/grants": {"subject": f"x:{uuid4()}", "role": "viewer", "project": team.name},
        "/api/v1/executions/bulk": {"action": "cancel", "filter": {"ids": [str(uuid4())]}},
        "/api/v1/projects": {"name": f"new-{uuid4()}"},
        "/api/v1/secrets": {"name": f"s_{uuid4().hex}", "value": "hush", "project": team.name},
    }
    return bodies.get(path, {})


def shown(servers: Deployment, things: dict[str, str]) -> list[Any]:
    paths = ["workflows", "executions", "triggers", "step-templates", "projects", "keys", "grants", "secrets"]
    kinds = ["workflow", "execution", "trigger", "step_template", "project", "key", "grant", "secret"]
    return [
        servers.client.get(f"/api/v1/{path}/{things[f'{kind}_id']}").json
        for path, kind in zip(paths, kinds, strict=True)
    ]


# --- every endpoint ----------------------------------------------------------------------------------------


def test_every_endpoint_of_the_service_is_on_the_table_and_has_a_rule(servers: Deployment) -> None:
    routes = {
        (method, rule.rule)
        for rule in servers.client.application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert {f"{method} {path}" for method, path in routes} == set(RULES)
    plain = {(method, re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", path)) for method, path in routes}
    assert {(method, path) for method, path, *_ in ENDPOINTS} == plain


@pytest.mark.parametrize(("method", "path", "least", "where"), GUARDED, ids=lambda part: str(part))
def test_an_endpoint_asks_for_its_role(
    servers: Deployment,
    team: Team,
    others: Team,
    everywhere: dict[str, FlaskClient],
    method: str,
    path: str,
    least: str,
    where: str,
) -> None:
    things = world(servers, team)

    def call(client: FlaskClient) -> Any:
        return client.open(path.format(**things), method=method, json=body_for(method, path, team))

    before = shown(servers, things)
    refused(call(servers.client.application.test_client()), 401)
    if "_id}" in path and "step_template_id" not in path and where != "all":
        # A key of others with the highest role sees what it sees of a thing that is not there.
        answer = refused(call(others.keys["admin"]), 404)
        there, things = things, {**things, **{name: str(uuid4()) for name in things if name.endswith("_id")}}
        missing = refused(call(others.keys["admin"]), 404)
        assert re.sub(r"[0-9a-f-]{36}", "", answer["detail"]) == re.sub(r"[0-9a-f-]{36}", "", missing["detail"])
        things = there
    if where == "all":
        assert refused(call(team.keys["admin"]), 403)["role"] == least
    keys = everywhere if where == "all" else team.keys
    enough = [role for role in ROLES if least == "nobody" or ROLES.index(role) >= ROLES.index(least)]
    for role in ROLES:
        if role not in enough:
            said = refused(call(keys[role]), 403)
            assert said["role"] == least
            assert f"role {least}" in said["detail"]
    assert shown(servers, things) == before
    for role in enough:
        if method == "DELETE":
            things = world(servers, new_team(servers) if path.endswith("{project_id}") else team)
        answer = call(keys[role])
        assert answer.status_code not in DENIED, (role, answer.text)
        assert answer.status_code < 500, (role, answer.text)


def test_a_role_in_another_project_opens_nothing_of_this_one(servers: Deployment, team: Team, others: Team) -> None:
    grants = {"role": "viewer", "project": team.name}, {"role": "admin", "project": others.name}
    client = with_key(servers, new_key(servers, *grants)["key"])
    things = world(servers, team)
    before = shown(servers, things)
    of_one = [(method, path) for method, path, least, where in GUARDED if least != "viewer" and "_id}" in path]
    for method, path in of_one:
        answer = client.open(path.format(**things), method=method, json=body_for(method, path, team))
        # Keys and grants of a project are shown to its administrators alone.
        refused(answer, 404 if path.startswith(("/api/v1/keys", "/api/v1/grants")) else 403)
    assert shown(servers, things) == before


def test_an_endpoint_without_a_rule_is_closed_even_to_the_admin_key(servers: Deployment) -> None:
    app = create_app(servers.settings)
    app.add_url_rule("/api/v1/forgotten", "forgotten", lambda: "open")
    answer = app.test_client().get("/api/v1/forgotten", headers={"Authorization": f"Bearer {KEY}"})
    assert "api/access.py" in refused(answer, 403)["detail"]


# --- projects ----------------------------------------------------------------------------------------------


def test_lists_show_what_one_may_see(servers: Deployment, team: Team, others: Team) -> None:
    mine, theirs = world(servers, team), world(servers, others)
    for path, kind in (("workflows", "workflow"), ("executions", "execution")):
        seen = {item["id"] for item in team.keys["viewer"].get(f"/api/v1/{path}?limit=200").json["items"]}
        assert mine[f"{kind}_id"] in seen
        assert theirs[f"{kind}_id"] not in seen
    for path, kind in (("keys", "key"), ("grants", "grant"), ("projects", "project")):
        seen = {item["id"] for item in team.keys["admin"].get(f"/api/v1/{path}?limit=200").json["items"]}
        assert mine[f"{kind}_id"] in seen
        assert theirs[f"{kind}_id"] not in seen
    filtered = team.keys["viewer"].get(f"/api/v1/executions?workflow_id={theirs['workflow_id']}")
    assert filtered.json["items"] == []


def test_a_bulk_call_reaches_only_into_the_callers_projects(servers: Deployment, team: Team, others: Team) -> None:
    mine, theirs = world(servers, team)["execution_id"], world(servers, others)["execution_id"]
    call = {"action": "cancel", "filter": {"ids": [mine, theirs]}}
    answer = team.keys["operator"].post("/api/v1/executions/bulk", json=call).json
    assert (answer["matched"], answer["done"]) == (1, 1)
    assert [(one["id"], one["state"]) for one in answer["refused"]] == [(theirs, None)]
    assert servers.execution(theirs)["status"] == "queued"
    delete = {"action": "delete", "filter": {"ids": [mine]}}
    assert refused(team.keys["operator"].post("/api/v1/executions/bulk", json=delete), 403)["role"] == "editor"
    assert team.keys["editor"].post("/api/v1/executions/bulk", json=delete).json["done"] == 1


def test_an_event_starts_only_what_its_sender_may_start(servers: Deployment, team: Team, others: Team) -> None:
    kind = f"com.example.{uuid4()}"
    started = {}
    for side in (team, others):
        definition = {**NOOP, "triggers": [{"type": "event", "config": {"type": kind}}]}
        body = {"name": "on event", "definition": definition, "project": side.name}
        started[side.name] = side.keys["editor"].post("/api/v1/workflows", json=body).json["id"]
        side.keys["operator"].post(f"/api/v1/workflows/{started[side.name]}/activate")
    event = {"specversion": "1.0", "id": str(uuid4()), "source": "/tests", "type": kind}
    sent = team.keys["operator"].post("/api/v1/events", json=event, content_type="application/cloudevents+json")
    assert sent.status_code == 202, sent.text
    assert len(sent.json["fired"]) == 1
    listed = others.keys["viewer"].get(f"/api/v1/executions?workflow_id={started[others.name]}")
    assert listed.json["items"] == []


def test_a_new_workflow_belongs_to_the_project_that_its_author_has(servers: Deployment, team: Team) -> None:
    made = team.keys["editor"].post("/api/v1/workflows", json={"name": "w", "definition": NOOP})
    assert made.json["project"] == team.name
    assert made.json["owner_id"] == team.keys["editor"].get("/api/v1/me").json["id"]
    assert servers.client.post("/api/v1/workflows", json={"name": "w", "definition": NOOP}).json["project"] == "default"


def test_a_workflow_is_not_moved_where_one_may_not_write(servers: Deployment, team: Team, others: Team) -> None:
    workflow = world(servers, team)["workflow_id"]
    answer = team.keys["admin"].put(f"/api/v1/workflows/{workflow}", json={"project": others.name})
    assert refused(answer, 422)["errors"][0]["path"] == "project"
    both = with_key(
        servers,
        new_key(servers, {"role": "editor", "project": team.name}, {"role": "viewer", "project": others.name})["key"],
    )
    answer = both.put(f"/api/v1/workflows/{workflow}", json={"project": others.name})
    assert refused(answer, 403)["role"] == "editor"
    moved = servers.client.put(f"/api/v1/workflows/{workflow}", json={"project": others.name})
    assert moved.json["project"] == others.name
    refused(team.keys["admin"].get(f"/api/v1/workflows/{workflow}"), 404)


def test_a_project_with_workflows_stays(servers: Deployment) -> None:
    team = new_team(servers)
    workflow = team.keys["editor"].post("/api/v1/workflows", json={"name": "w", "definition": NOOP}).json["id"]
    refused(servers.client.delete(f"/api/v1/projects/{team.id}"), 409)
    servers.client.delete(f"/api/v1/workflows/{workflow}")
    assert servers.client.delete(f"/api/v1/projects/{team.id}").status_code == 204


def test_a_workflow_step_starts_nothing_in_another_project(deployment: Deployment) -> None:
    theirs = deployment.create(NOOP, name=f"theirs {uuid4()}")
    project = deployment.client.post("/api/v1/projects", json={"name": f"p-{uuid4()}"}).json["name"]
    calling = {"steps": [{"id": "call", "type": "workflow", "config": {"workflow": theirs}}]}
    body = {"name": "calls", "definition": calling, "project": project}
    caller = deployment.client.post("/api/v1/workflows", json=body).json["id"]
    ended = deployment.ended(deployment.execute(caller))
    assert ended["status"] == "failed"
    assert f"there is no workflow {theirs}" in ended["error_message"]


def test_a_workflow_given_to_another_project_is_closed_to_the_former_within_seconds(
    servers: Deployment, team: Team, others: Team
) -> None:
    body = {"name": f"w {uuid4()}", "definition": NOOP, "project": team.name}
    path = f"/api/v1/workflows/{servers.client.post('/api/v1/workflows', json=body).json['id']}"
    elsewhere = with_key_at(
        create_app(servers.settings), new_key(servers, {"role": "viewer", "project": team.name})["key"]
    )
    assert elsewhere.get(path).status_code == team.keys["viewer"].get(path).status_code == 200
    refused(others.keys["viewer"].get(path), 404)
    assert servers.client.put(path, json={"project": others.name}).status_code == 200
    refused(team.keys["viewer"].get(path), 404)
    wait_until(lambda: elsewhere.get(path).status_code == 404, KEPT + SOON)
    assert others.keys["viewer"].get(path).status_code == 200


def test_where_a_thing_belongs_is_asked_once_in_a_while(
    servers: Deployment, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(believed, "KEPT", 3600.0)
    body = {"name": f"w {uuid4()}", "definition": NOOP, "project": team.name}
    path = f"/api/v1/workflows/{servers.client.post('/api/v1/workflows', json=body).json['id']}"
    assert team.keys["viewer"].get(path).status_code == 200
    monkeypatch.setattr(access, "project_of", lambda *_: pytest.fail("asked the database"))
    for _ in range(100):
        assert team.keys["viewer"].get(path).status_code == 200


# --- keys --------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_kept_as_a_digest(servers: Deployment) -> None:
    made = new_key(servers, {"role": "viewer"})
    key = made["key"]
    assert key.startswith(made["prefix"])
    assert len(key) - len(made["prefix"]) >= 35
    ((row,),) = servers.sql("SELECT to_jsonb(k)::text FROM api_keys k WHERE id = %(id)s::uuid", id=made["id"])
    assert key not in row
    for answer in (servers.client.get(f"/api/v1/keys/{made['id']}"), servers.client.get("/api/v1/keys?limit=200")):
        assert key not in answer.text
        assert "digest" not in answer.text
    assert with_key(servers, key).get("/api/v1/me").json["grants"] == [{"role": "viewer", "project": None}]


def test_a_revoked_key_opens_nothing_within_seconds_in_any_process(servers: Deployment) -> None:
    made = new_key(servers, {"role": "admin"})
    elsewhere = create_app(servers.settings).test_client()
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert elsewhere.get("/api/v1/me", headers=headers).status_code == 200
    assert servers.client.delete(f"/api/v1/keys/{made['id']}").status_code == 204
    wait_until(lambda: elsewhere.get("/api/v1/me", headers=headers).status_code == 401, KEPT + SOON)
    assert "revoked" in refused(elsewhere.get("/api/v1/me", headers=headers), 401)["detail"]
    refused(servers.client.put(f"/api/v1/keys/{made['id']}", json={"name": "again"}), 409)
    assert servers.client.get(f"/api/v1/keys/{made['id']}").json["revoked_at"]


def test_a_key_ends_when_it_expires_and_not_when_it_is_forgotten(
    servers: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(believed, "KEPT", 3600.0)
    made = new_key(servers, {"role": "viewer"}, expires_at=(datetime.now(UTC) + timedelta(seconds=5)).isoformat())
    client = with_key(servers, made["key"])
    assert client.get("/api/v1/me").status_code == 200
    wait_until(lambda: client.get("/api/v1/me").status_code == 401)
    assert datetime.now(UTC) >= datetime.fromisoformat(made["expires_at"])
    assert "expired" in refused(client.get("/api/v1/me"), 401)["detail"]
    past = {"name": "k", "grants": [{"role": "viewer"}], "expires_at": "2020-01-01T00:00:00Z"}
    assert refused(servers.client.post("/api/v1/keys", json=past), 422)["errors"][0]["path"] == "expires_at"


def test_the_last_use_is_written_at_most_once_a_minute(servers: Deployment) -> None:
    made = new_key(servers, {"role": "viewer"})

    def used() -> Any:
        # Each asks anew, as a process does that has forgotten the key.
        authenticate = Authenticator(servers.settings, servers.store)
        authenticate(f"Bearer {made['key']}")
        ((at,),) = servers.sql("SELECT last_used_at FROM api_keys WHERE id = %(id)s::uuid", id=made["id"])
        return at

    assert made["last_used_at"] is None
    first = used()
    assert used() == first
    servers.sql(
        "UPDATE api_keys SET last_used_at = now() - interval '2 minutes' WHERE id = %(id)s::uuid", id=made["id"]
    )
    assert used() > first - timedelta(seconds=1)


def test_a_known_key_costs_no_statement(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(believed, "KEPT", 3600.0)
    made = new_key(servers, {"role": "viewer"})
    authenticate = Authenticator(servers.settings, servers.store)
    authenticate(f"Bearer {made['key']}")
    monkeypatch.setattr(access, "find_key", lambda *_: pytest.fail("asked the database"))
    for _ in range(100):
        assert authenticate(f"Bearer {made['key']}").id == made["id"]


def test_no_key_gives_more_than_its_holder_has(servers: Deployment, team: Team, others: Team) -> None:
    wider = [{"role": "viewer"}], [{"role": "viewer", "project": team.name}, {"role": "viewer"}]
    for grants in wider:
        answer = team.keys["admin"].post("/api/v1/keys", json={"name": "k", "grants": grants})
        assert refused(answer, 403)["role"] == "admin"
    foreign = [{"role": "viewer", "project": others.name}]
    answer = team.keys["admin"].post("/api/v1/keys", json={"name": "k", "grants": foreign})
    assert refused(answer, 422)["errors"][0]["path"] == "grants[0].project"
    both = new_key(servers, {"role": "viewer", "project": team.name}, {"role": "viewer", "project": others.name})
    refused(team.keys["admin"].get(f"/api/v1/keys/{both['id']}"), 404)
    refused(team.keys["admin"].delete(f"/api/v1/keys/{both['id']}"), 404)
    assert with_key(servers, both["key"]).get("/api/v1/me").status_code == 200


def test_what_a_key_may_do_changes_with_its_grants(servers: Deployment, team: Team) -> None:
    made = new_key(servers, {"role": "viewer", "project": team.name})
    client = with_key(servers, made["key"])
    workflow = world(servers, team)["workflow_id"]
    refused(client.put(f"/api/v1/workflows/{workflow}", json={"description": "new"}), 403)
    changed = servers.client.put(
        f"/api/v1/keys/{made['id']}", json={"grants": [{"role": "editor", "project": team.name}]}
    )
    assert changed.json["grants"] == [{"role": "editor", "project": team.name}]
    wait_until(lambda: client.put(f"/api/v1/workflows/{workflow}", json={"description": "new"}).status_code == 200)


@pytest.mark.parametrize("body", [
    {}, {"name": "k"}, {"name": "", "grants": [{"role": "viewer"}]}, {"name": "k", "grants": []},
    {"name": "k", "grants": [{"role": "king"}]}, {"name": "k", "grants": [{"role": "viewer", "x": 1}]},
    {"name": "k", "grants": [{"role": "viewer"}, {"role": "admin"}]}, {"name": "k\0", "grants": [{"role": "viewer"}]},
    {"name": "k", "grants": [{"role": "viewer", "project": "nowhere"}]}, {"name": 5, "grants": "all"},
    {"name": "k", "grants": [{"role": "viewer"}], "rate_limit": -1},
    {"name": "k", "grants": [{"role": "viewer"}], "max_body": "1MB"},
    {"name": "k", "grants": [{"role": "viewer"}], "expires_at": "tomorrow"},
    {"name": "k", "grants": [{"role": "viewer"}], "key": "my-own"},
])  # fmt: skip
def test_a_key_that_makes_no_sense_is_not_made(servers: Deployment, body: dict[str, Any]) -> None:
    ((before,),) = servers.sql("SELECT count(*) FROM api_keys")
    refused(servers.client.post("/api/v1/keys", json=body), 422)
    assert servers.sql("SELECT count(*) FROM api_keys") == [(before,)]


def test_what_is_almost_a_key_opens_nothing(servers: Deployment) -> None:
    key = new_key(servers, {"role": "viewer"})["key"]
    for wrong in (key[:-1], key + "x", key.swapcase(), key[4:], f"ork_{'A' * 43}", key.replace("_", "-", 1)):
        refused(with_key(servers, wrong).get("/api/v1/me"), 401)


def test_there_is_no_service_without_a_key(servers: Deployment, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="ORCHESTRATOR_ADMIN_KEY"):
        create_app(replace(servers.settings, admin_key="", data_dir=str(tmp_path)))


# --- limits, headers, other sites --------------------------------------------------------------------------


def within_a_minute(ask: Callable[[], T]) -> T:
    """What came of it. Requests are counted by the minutes of the clock: if another one began, it is asked again."""
    while True:
        began = time.time() // 60
        came = ask()
        if time.time() // 60 == began:
            return came


def test_a_caller_who_asks_too_often_is_told_when_to_ask_again_by_every_process(servers: Deployment) -> None:
    apps = [servers.client.application, create_app(servers.settings)]

    def asked() -> list[Any]:
        key = new_key(servers, {"role": "viewer"}, rate_limit=3)["key"]
        headers = {"Authorization": f"Bearer {key}"}
        return [apps[n % 2].test_client().get("/api/v1/me", headers=headers) for n in range(4)]

    answers = within_a_minute(asked)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert "3 requests" in refused(answers[-1], 429)["detail"]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 120
    other = new_key(servers, {"role": "viewer"})["key"]
    assert with_key(servers, other).get("/api/v1/me").status_code == 200


def test_what_a_process_counts_ahead_is_little(servers: Deployment) -> None:
    apps = [servers.client.application, create_app(servers.settings)]

    def allowed(callers: int) -> int:
        key = new_key(servers, {"role": "viewer"}, rate_limit=400)["key"]
        clients = [with_key_at(app, key) for app in apps[:callers]]
        statuses = [clients[n % callers].get("/api/v1/me").status_code for n in range(410)]
        assert set(statuses) == {200, 429}
        return statuses.count(200)

    # Of 400, two are counted at a time: by one process all are made, by two all but what one has left.
    assert within_a_minute(lambda: allowed(1)) == 400
    assert within_a_minute(lambda: allowed(2)) in (399, 400)


def test_what_is_counted_ahead_takes_one_look_at_redis(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    client = with_key(servers, new_key(servers, {"role": "viewer"}, rate_limit=10_000)["key"])
    hits = []
    hit = SlidingWindowCounterRateLimiter.hit
    monkeypatch.setattr(
        SlidingWindowCounterRateLimiter, "hit", lambda *given, **more: [hits.append(more), hit(*given, **more)][1]
    )
    for _ in range(101):
        assert client.get("/api/v1/me").status_code == 200
    assert hits == [{"cost": 50}] * 3


def test_the_settings_limit_every_caller_but_the_admin_key(servers: Deployment) -> None:
    strict = create_app(replace(servers.settings, api=ApiSettings(rate_limit=2))).test_client()

    def asked(key: str) -> list[int]:
        headers = {"Authorization": f"Bearer {key}"}
        return [strict.get("/api/v1/me", headers=headers).status_code for _ in range(3)]

    assert asked(KEY) == [200] * 3
    assert asked(new_key(servers, {"role": "viewer"}, rate_limit=0)["key"]) == [200] * 3
    assert within_a_minute(lambda: asked(new_key(servers, {"role": "viewer"})["key"])) == [200, 200, 429]


def test_a_redis_that_is_away_limits_nobody(servers: Deployment) -> None:
    nowhere = replace(
        servers.settings, broker=BrokerSettings(url="redis://127.0.0.1:1/0"), api=ApiSettings(rate_limit=1)
    )
    client = create_app(nowhere).test_client()
    headers = {"Authorization": f"Bearer {new_key(servers, {'role': 'viewer'})['key']}"}
    assert [client.get("/api/v1/me", headers=headers).status_code for _ in range(3)] == [200] * 3


def test_a_body_is_as_large_as_its_key_allows(servers: Deployment) -> None:
    client = with_key(servers, new_key(servers, {"role": "editor"}, max_body=1000)["key"])
    small = {"name": "w", "definition": NOOP}
    assert client.post("/api/v1/workflows", json=small).status_code == 201
    answer = client.post("/api/v1/workflows", json={**small, "description": "x" * 1000})
    assert "1,000 bytes" in refused(answer, 413)["detail"]


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/api/v1/me", "/nowhere"])
def test_every_answer_tells_browsers_to_keep_and_frame_nothing(servers: Deployment, path: str) -> None:
    headers = servers.client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "no-store" in headers["Cache-Control"]
    assert "Strict-Transport-Security" not in headers


def test_behind_tls_the_proxy_says_who_calls(servers: Deployment) -> None:
    client = create_app(replace(servers.settings, api=ApiSettings(behind_tls=True))).test_client()
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "Authorization": f"Bearer {KEY}"}
    answer = client.post("/api/v1/projects", json={"name": f"p-{uuid4()}"}, headers=forwarded)
    assert "Strict-Transport-Security" in answer.headers
    where = servers.sql("SELECT address FROM audit_log WHERE object_id = %(id)s", id=answer.json["id"])
    assert where == [("203.0.113.7",)]
    direct = servers.client.post("/api/v1/projects", json={"name": f"p-{uuid4()}"}, headers=forwarded)
    where = servers.sql("SELECT address FROM audit_log WHERE object_id = %(id)s", id=direct.json["id"])
    assert where == [("127.0.0.1",)]


def test_other_sites_may_call_only_if_the_settings_name_them(servers: Deployment) -> None:
    ask = {"Origin": "https://ops.example", "Access-Control-Request-Method": "POST"}
    closed = servers.client.application.test_client().options("/api/v1/workflows", headers=ask)
    assert closed.status_code == 401
    assert "Access-Control-Allow-Origin" not in closed.headers
    settings = replace(servers.settings, api=ApiSettings(cors_origins=("https://ops.example",)))
    client = create_app(settings).test_client()
    asked = client.options("/api/v1/workflows", headers={**ask, "Access-Control-Request-Headers": "authorization"})
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == "https://ops.example"
    assert "authorization" in asked.headers["Access-Control-Allow-Headers"].lower()
    answer = client.get("/api/v1/me", headers={"Origin": "https://ops.example", "Authorization": f"Bearer {KEY}"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://ops.example"
    refused(client.get("/api/v1/workflows", headers={"Origin": "https://ops.example"}), 401)
    elsewhere = client.get("/api/v1/me", headers={"Origin": "https://evil.example", "Authorization": f"Bearer {KEY}"})
    assert "Access-Control-Allow-Origin" not in elsewhere.headers


@pytest.mark.parametrize(
    ("host", "api", "is_fine"),
    [
        ("0.0.0.0", ApiSettings(), False),
        ("::", ApiSettings(), False),
        ("10.0.0.1", ApiSettings(), False),
        ("127.0.0.1.example.com", ApiSettings(), False),
        ("0.0.0.0", ApiSettings(behind_tls=True), True),
        ("0.0.0.0", ApiSettings(insecure=True), True),
        ("[::1]", ApiSettings(), True),
        ("localhost", ApiSettings(), True),
        ("127.0.0.2", ApiSettings(), True),
    ],
)
def test_no_process_listens_beyond_loopback_without_tls(
    servers: Deployment, host: str, api: ApiSettings, is_fine: bool
) -> None:
    settings = replace(servers.settings, host=host, api=api)
    if is_fine:
        create_app(settings)
    else:
        with pytest.raises(ConfigurationError, match="behind-tls"):
            create_app(settings)
