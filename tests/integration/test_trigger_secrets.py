"""Secrets of triggers that stand in definitions: shown to nobody, and still there when what was shown comes back."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment
from test_execution import step, workflow

WORKFLOWS = "/api/v1/workflows"
SECRET, OTHER = f"first-{uuid4()}", f"second-{uuid4()}"
FIELD = "definition.triggers[0].config.secret"


def hook(secret: str | None = SECRET, **more: Any) -> dict[str, Any]:
    config = {"path": f"/webhook/{uuid4()}"} | ({} if secret is None else {"secret": secret})
    return {"type": "webhook", "config": config, **more}


def with_hooks(*hooks: dict[str, Any], value: int = 1) -> dict[str, Any]:
    return {**workflow(step("a", value=value)), "triggers": list(hooks)}


def stored(servers: Deployment, workflow_id: str) -> tuple[list[str | None], list[str | None]]:
    """The secrets of the newest version and of the triggers themselves, in their order."""
    written = servers.sql(
        "SELECT definition FROM workflow_versions WHERE workflow_id = %(id)s::uuid ORDER BY version DESC LIMIT 1",
        id=workflow_id,
    )
    kept = servers.sql(
        "SELECT config->>'secret' FROM triggers WHERE workflow_id = %(id)s::uuid ORDER BY id", id=workflow_id
    )
    return [one["config"].get("secret") for one in written[0][0]["triggers"]], [secret for (secret,) in kept]


@pytest.fixture
def workflow_id(servers: Deployment) -> str:
    return servers.create(with_hooks(hook(name="hook"), hook(OTHER)))


def test_no_answer_shows_a_secret_of_a_trigger(servers: Deployment, workflow_id: str) -> None:
    address = f"{WORKFLOWS}/{workflow_id}"
    changed = servers.client.put(address, json={"definition": with_hooks(hook(OTHER, name="hook"), value=2)})
    answers = [
        changed,
        servers.client.get(address),
        servers.client.post(f"{address}/clone", json={}),
        servers.client.post(f"{address}/activate"),
        servers.client.get(f"{address}/versions"),
        servers.client.get(f"{address}/versions/1"),
        servers.client.get(f"{address}/versions/1/diff/2"),
        servers.client.post(f"{address}/versions/1/restore"),
        servers.client.get(f"{address}/export"),
        servers.client.get(f"{address}/triggers"),
        servers.client.get("/api/v1/audit"),
    ]
    for answer in answers:
        assert answer.status_code in (200, 201), answer.text
        assert SECRET not in answer.text
        assert OTHER not in answer.text
    assert answers[1].json["definition"]["triggers"][0]["config"]["secret"] == "***"
    assert answers[5].json["definition"]["triggers"][1]["config"]["secret"] == "***"


def test_a_resolved_version_shows_no_secret_either(servers: Deployment) -> None:
    name = f"t-{uuid4()}"
    made = servers.client.post("/api/v1/step-templates", json={"name": name, "step": {"type": "noop"}})
    assert made.status_code == 201, made.text
    definition = {"steps": [{"id": "a", "uses": name}], "triggers": [hook()]}
    shown = servers.client.get(f"{WORKFLOWS}/{servers.create(definition)}/versions/1")
    assert shown.json["resolved"]["triggers"][0]["config"]["secret"] == "***"
    assert SECRET not in shown.text


def test_what_was_shown_can_be_sent_back_and_nothing_has_changed(servers: Deployment, workflow_id: str) -> None:
    address = f"{WORKFLOWS}/{workflow_id}"
    shown = servers.client.get(address)
    for body in ({"definition": shown.json["definition"]}, shown.json["definition"]):
        answer = servers.client.put(address, json=body, headers={"If-Match": shown.headers["ETag"]})
        assert (answer.status_code, answer.json["version"]) == (200, 1), answer.text
    assert stored(servers, workflow_id) == ([SECRET, OTHER], [SECRET, OTHER])


def test_secrets_stay_with_their_triggers_wherever_these_stand(servers: Deployment, workflow_id: str) -> None:
    address = f"{WORKFLOWS}/{workflow_id}"
    first, second = servers.client.get(address).json["definition"]["triggers"]
    new = hook("third", name="new")
    answer = servers.client.put(address, json={"definition": with_hooks(new, second, first, value=2)})
    assert answer.json["version"] == 2, answer.text
    written, kept = stored(servers, workflow_id)
    assert written == ["third", OTHER, SECRET]
    assert sorted(map(str, kept)) == sorted([SECRET, OTHER, "third"])


def test_a_difference_says_that_a_secret_has_changed_and_not_to_what(servers: Deployment, workflow_id: str) -> None:
    address = f"{WORKFLOWS}/{workflow_id}"
    definition = servers.client.get(address).json["definition"]
    definition["triggers"][0]["config"]["secret"] = "third"
    assert servers.client.put(address, json={"definition": definition}).json["version"] == 2
    assert stored(servers, workflow_id)[0] == ["third", OTHER]
    found = servers.client.get(f"{address}/versions/1/diff/2").json["changes"]
    assert [(one["kind"], one["old"], one["new"]) for one in found] == [("changed", "***", "***")]
    assert found[0]["path"].endswith(".config.secret")


@pytest.mark.parametrize("named", ["unknown", None])
def test_a_mask_without_a_secret_behind_it_is_refused(servers: Deployment, workflow_id: str, named: str | None) -> None:
    address = f"{WORKFLOWS}/{workflow_id}"
    masks = hook("***") | ({"name": named} if named else {"type": "webhook", "name": "hook 2"})
    for answer in (
        servers.client.put(address, json={"definition": with_hooks(masks)}),
        servers.client.post(WORKFLOWS, json={"name": "x", "definition": with_hooks(masks)}),
    ):
        assert answer.status_code == 422, answer.text
        (error,) = answer.json["errors"]
        assert error["path"] == FIELD
        assert "write the secret out" in error["message"]
    added = servers.client.post(f"{address}/triggers", json={**masks, "name": "added"})
    assert (added.status_code, added.json["errors"][0]["path"]) == (422, "config.secret")
    assert stored(servers, workflow_id)[0] == [SECRET, OTHER]


def test_a_secret_that_is_replaced_at_the_same_time_does_not_come_back(
    servers: Deployment, workflow_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.resources import workflows as resource

    address = f"{WORKFLOWS}/{workflow_id}"
    shown = servers.client.get(address).json["definition"]
    fill = resource.unmasked_definition

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(resource, "unmasked_definition", fill)
        with_third = with_hooks(hook("third", name="hook"))
        other = servers.client.application.test_client()
        headers = {"Authorization": servers.client.environ_base["HTTP_AUTHORIZATION"], "If-Match": "*"}
        assert other.put(address, json={"definition": with_third}, headers=headers).status_code == 200
        return fill(*args)

    monkeypatch.setattr(resource, "unmasked_definition", overtaken)
    answer = servers.client.put(address, json={"definition": shown}, headers={"If-Match": "*"})
    assert answer.status_code == 412, answer.text
    assert stored(servers, workflow_id)[0] == ["third"]
