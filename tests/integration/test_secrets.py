"""Secrets: who sees them, where they come from, and that they are nowhere to be found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from deployment import VAULT_KEY, Deployment, deployed
from test_access import Team, new_team, refused, with_key
from test_access import new_key as new_api_key
from test_execution import step, workflow

from orchestrator.access import DEFAULT_PROJECT
from orchestrator.cli import main
from orchestrator.config import environment_of
from orchestrator.errors import TemplateError
from orchestrator.vault import new_key
from workers import secrets as worker_secrets
from workers.secrets import SecretSource

CANARY = "c4n4ry-which-nobody-is-to-see"


@pytest.fixture(scope="module")
def team(servers: Deployment) -> Team:
    return new_team(servers)


@pytest.fixture(scope="module")
def others(servers: Deployment) -> Team:
    return new_team(servers)


def written(servers: Deployment, name: str, value: str, **scope: Any) -> dict[str, Any]:
    answer = servers.client.post("/api/v1/secrets", json={"name": name, "value": value, **scope})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json
    return made


def workflow_of(servers: Deployment, team: Team) -> str:
    body = {"name": "theirs", "definition": workflow(step("a")), "project": team.name}
    return str(servers.client.post("/api/v1/workflows", json=body).json["id"])


@pytest.fixture
def source(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> SecretSource:
    """What a worker has secrets from, which never keeps what it has read."""
    monkeypatch.setattr(worker_secrets, "FRESH", 0.0)
    return SecretSource(servers.settings, servers.store)


# --- scopes ------------------------------------------------------------------------------------------------


def test_the_narrowest_scope_has_the_word(servers: Deployment, team: Team, source: SecretSource):
    name = f"n_{uuid4().hex}"
    mine, beside = workflow_of(servers, team), workflow_of(servers, team)
    elsewhere = servers.create(workflow(step("a")))
    written(servers, name, "everybody's")
    written(servers, name, "the project's", project=team.name)
    written(servers, name, "the workflow's", workflow_id=mine)
    assert [source.of(id)[name] for id in (mine, beside, elsewhere)] == [
        "the workflow's", "the project's", "everybody's",
    ]  # fmt: skip
    assert [source.of_project(id)[name] for id in (team.id, DEFAULT_PROJECT)] == ["the project's", "everybody's"]


def test_a_secret_is_not_seen_outside_its_scope(servers: Deployment, team: Team, others: Team, source: SecretSource):
    name = f"n_{uuid4().hex}"
    written(servers, name, "hush", project=team.name)
    assert name in source.of(workflow_of(servers, team))
    assert name not in source.of(workflow_of(servers, others))


def test_a_secret_is_changed_and_removed_and_workers_know(servers: Deployment, source: SecretSource):
    made = written(servers, f"N_{uuid4().hex.upper()}", "first")
    assert made["name"] == made["name"].lower()
    assert source.of_project(DEFAULT_PROJECT)[made["name"].upper()] == "first"
    changed = servers.client.put(f"/api/v1/secrets/{made['id']}", json={"value": "second", "description": "for x"})
    assert (changed.status_code, changed.json["description"]) == (200, "for x")
    assert source.of_project(DEFAULT_PROJECT)[made["name"]] == "second"
    assert servers.client.delete(f"/api/v1/secrets/{made['id']}").status_code == 204
    assert made["name"] not in source.of_project(DEFAULT_PROJECT)


def test_no_answer_has_what_a_secret_is(servers: Deployment):
    made = written(servers, f"n_{uuid4().hex}", CANARY)
    path = f"/api/v1/secrets/{made['id']}"
    answers = [servers.client.get(path), servers.client.put(path, json={"value": CANARY + "2"})]
    answers += [servers.client.get("/api/v1/secrets"), servers.client.get("/api/v1/audit", query_string={"limit": 50})]
    for answer in answers:
        assert answer.status_code == 200
        assert CANARY not in answer.text
        assert "sealed" not in answer.text


def test_a_name_is_there_once_in_a_scope(servers: Deployment, team: Team):
    name = f"n_{uuid4().hex}"
    for scope in ({}, {"project": team.name}, {"workflow_id": workflow_of(servers, team)}):
        written(servers, name, "one", **scope)
        again = servers.client.post("/api/v1/secrets", json={"name": name.upper(), "value": "two", **scope})
        assert "PUT" in refused(again, 409)["detail"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"value": "x"}, "name"),
        ({"name": "a-b", "value": "x"}, "name"),
        ({"name": "a"}, "value"),
        ({"name": "a", "value": ""}, "value"),
        ({"name": "a", "value": "x" * 70_000}, "value"),
        ({"name": "a", "value": "x", "project": "no such project"}, "project"),
        ({"name": "a", "value": "x", "workflow_id": str(uuid4())}, "workflow_id"),
        ({"name": "a", "value": "x", "project": "default", "workflow_id": str(uuid4())}, "project"),
        ({"name": "a", "value": "x", "scope": "global"}, "scope"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_place(servers: Deployment, body: dict[str, Any], path: str):
    problems = refused(servers.client.post("/api/v1/secrets", json=body), 422)["errors"]
    assert path in {problem["path"] for problem in problems}


# --- who may -----------------------------------------------------------------------------------------------


def test_everybodys_secrets_are_for_administrators_to_write(servers: Deployment, team: Team):
    body = {"name": f"n_{uuid4().hex}", "value": "x"}
    assert refused(team.keys["admin"].post("/api/v1/secrets", json=body), 403)
    editor = with_key(servers, new_api_key(servers, {"role": "editor"})["key"])
    assert refused(editor.post("/api/v1/secrets", json=body), 403)
    made = written(servers, **body)
    path = f"/api/v1/secrets/{made['id']}"
    assert editor.get(path).status_code == 200
    assert refused(editor.put(path, json={"value": "y"}), 403)
    assert refused(editor.delete(path), 403)


def test_secrets_of_others_are_not_there(servers: Deployment, team: Team, others: Team):
    ours = written(servers, f"n_{uuid4().hex}", "x", project=team.name)
    theirs = written(servers, f"n_{uuid4().hex}", "x", workflow_id=workflow_of(servers, others))
    editor = team.keys["editor"]
    assert editor.get(f"/api/v1/secrets/{ours['id']}").status_code == 200
    for answer in (
        editor.get(f"/api/v1/secrets/{theirs['id']}"),
        editor.put(f"/api/v1/secrets/{theirs['id']}", json={"value": "y"}),
        editor.delete(f"/api/v1/secrets/{theirs['id']}"),
    ):
        refused(answer, 404)
    listed = editor.get("/api/v1/secrets", query_string={"limit": 200}).json["items"]
    assert {ours["id"]} <= {item["id"] for item in listed}
    assert theirs["id"] not in {item["id"] for item in listed}
    refused(editor.post("/api/v1/secrets", json={"name": "n", "value": "x", "workflow_id": theirs["workflow_id"]}), 422)


# --- backends ----------------------------------------------------------------------------------------------


def test_backends_have_the_word_in_their_order(servers: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = f"n_{uuid4().hex}"
    (tmp_path / name).write_text("from a file\n")
    (tmp_path / "..data").mkdir()
    monkeypatch.setenv(f"ORCHESTRATOR_SECRET_{name.upper()}", "from the environment")
    written(servers, name, "from the database")

    def first(*backends: str) -> str:
        vault = replace(servers.settings.vault, backends=backends, folder=str(tmp_path))
        return SecretSource(replace(servers.settings, vault=vault), servers.store).of_project(DEFAULT_PROJECT)[name]

    assert first("database", "files", "environment") == "from the database"
    assert first("environment", "files", "database") == "from the environment"
    assert first("files", "database") == "from a file"


# --- keys --------------------------------------------------------------------------------------------------


def rotated(deployment: Deployment, keys: str) -> Any:
    environment = environment_of(replace(deployment.settings, vault=replace(deployment.settings.vault, key=keys)))
    return CliRunner().invoke(main, ["secrets", "rotate"], env=environment)


def test_keys_are_rotated_while_secrets_stay_readable(tmp_path: Path):
    with deployed(tmp_path) as deployment:
        made = written(deployment, "token", "the secret")
        written(deployment, "other", "another")
        new = new_key()
        result = rotated(deployment, f"{new},{VAULT_KEY}")
        assert (result.exit_code, result.output.split()[0]) == (0, "2")
        ((key_id,),) = set(deployment.sql("SELECT key_id FROM secrets"))
        assert key_id != made["key_id"]
        settings = replace(deployment.settings, vault=replace(deployment.settings.vault, key=new))
        assert SecretSource(settings, deployment.store).of_project(DEFAULT_PROJECT)["token"] == "the secret"
        unreadable = SecretSource(deployment.settings, deployment.store).of_project(DEFAULT_PROJECT)
        with pytest.raises(TemplateError, match=f"'token' cannot be read.*{key_id}"):
            unreadable["token"]
        failed = rotated(deployment, new_key())
        assert failed.exit_code == 2
        assert "token" in failed.output


def test_without_a_key_nothing_is_written_and_the_answer_says_what_to_do(tmp_path: Path):
    def keyless(settings: Any) -> Any:
        return replace(settings, vault=replace(settings.vault, key=""))

    with deployed(tmp_path, adjusted=keyless) as deployment:
        answer = deployment.client.post("/api/v1/secrets", json={"name": "n", "value": "x"})
        assert "ORCHESTRATOR_VAULT_KEY" in refused(answer, 409)["detail"]
        assert deployment.sql("SELECT count(*) FROM secrets") == [(0,)]


# --- in steps ----------------------------------------------------------------------------------------------


def test_a_step_says_which_secret_is_not_there(deployment: Deployment):
    execution = deployment.run(workflow(step("a", value="{{ secrets.nobody_wrote_this }}")))
    assert execution["status"] == "failed"
    assert "nobody_wrote_this" in execution["error_message"]


def test_a_worker_uses_a_secret_that_was_written_just_now(deployment: Deployment):
    name = f"n_{uuid4().hex}"
    written(deployment, name, "1234567")
    execution = deployment.run(workflow(step("a", "set", values={"n": f"{{{{ secrets.{name} | length }}}}"})))
    assert execution["output"] == {"a": {"n": 7}}
