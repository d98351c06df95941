"""The versions of a workflow, and changing it only as one has seen it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from deployment import KEY, Deployment
from flask.testing import FlaskClient
from test_execution import step, workflow

ONE, TWO = workflow(step("a", value=1)), workflow(step("a", value=2), step("b", needs="a"))


@pytest.fixture
def client(servers: Deployment) -> FlaskClient:
    """One that says nothing of versions by itself."""
    client = servers.client.application.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
    return client


@pytest.fixture
def address(servers: Deployment) -> str:
    """That of a workflow whose versions are ONE and TWO."""
    address = f"/api/v1/workflows/{servers.create(ONE)}"
    assert servers.client.put(address, json={"definition": TWO}).json["version"] == 2
    return address


def got(client: FlaskClient, address: str, status: int = 200, **query: Any) -> Any:
    answer = client.get(address, query_string=query)
    assert answer.status_code == status, answer.text
    return answer.json


# --- If-Match -------------------------------------------------------------------------------------------------


def test_every_answer_with_a_workflow_has_its_version_as_tag(client: FlaskClient) -> None:
    created = client.post("/api/v1/workflows", json={"name": "tagged", "definition": ONE})
    address = f"/api/v1/workflows/{created.json['id']}"
    changed = client.put(address, json={"definition": TWO}, headers={"If-Match": created.headers["ETag"]})
    activated = client.post(f"{address}/activate")
    tags = [answer.headers["ETag"] for answer in (created, changed, activated, client.get(address))]
    assert tags == ['"1"', '"2"', '"2"', '"2"']


@pytest.mark.parametrize("tag", ["*", '"2"', '"1", "2"'])
def test_what_was_seen_is_changed(client: FlaskClient, address: str, tag: str) -> None:
    answer = client.put(address, json={"definition": ONE}, headers={"If-Match": tag})
    assert (answer.status_code, answer.json["version"]) == (200, 3)


@pytest.mark.parametrize("tag", ['"1"', '"3"', 'W/"2"', "2x", '""', '"two"', '"99999999999999999999999"'])
def test_what_was_not_seen_stays(client: FlaskClient, address: str, tag: str) -> None:
    before = got(client, address)
    answer = client.put(address, json={"name": "other", "definition": ONE}, headers={"If-Match": tag})
    assert (answer.status_code, answer.content_type) == (412, "application/problem+json")
    assert "has version 2 by now" in answer.json["detail"]
    assert got(client, address) == before


def test_a_change_without_a_tag_is_told_how_to_get_one(client: FlaskClient, address: str) -> None:
    before = got(client, address)
    answer = client.put(address, json={"name": "other"})
    assert answer.status_code == 412
    (error,) = answer.json["errors"]
    assert error["path"] == "If-Match"
    assert "send the ETag" in error["message"]
    assert got(client, address) == before


def test_of_many_who_saw_the_same_one_changes_it(servers: Deployment) -> None:
    address = f"/api/v1/workflows/{servers.create(ONE)}"
    application = servers.client.application

    def change(value: int) -> int:
        client = application.test_client()
        headers = {"If-Match": '"1"', "Authorization": f"Bearer {KEY}"}
        return client.put(address, json={"definition": workflow(step("a", value=value))}, headers=headers).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(change, range(10, 26)))
    assert sorted(answers) == [200] + [412] * 15
    assert got(servers.client, address)["version"] == 2


# --- reading them ---------------------------------------------------------------------------------------------


def test_versions_are_listed_newest_first_page_by_page(client: FlaskClient, servers: Deployment) -> None:
    address = f"/api/v1/workflows/{servers.create(ONE)}"
    for value in range(2, 6):
        servers.client.put(address, json={"definition": workflow(step("a", value=value))})
    listed, cursor = [], None
    while True:
        page = got(client, f"{address}/versions", limit=2, **({"cursor": cursor} if cursor else {}))
        listed += [item["version"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert listed == [5, 4, 3, 2, 1]
    assert page["items"][0].keys() == {"workflow_id", "version", "restored_from", "created_at"}
    assert [item["version"] for item in got(client, f"{address}/versions", sort="version")["items"]] == [1, 2, 3, 4, 5]


def test_a_version_says_what_it_said(client: FlaskClient, address: str) -> None:
    first = got(client, f"{address}/versions/1")
    assert (first["definition"], first["resolved"], first["restored_from"]) == (ONE, None, None)
    assert got(client, f"{address}/versions/2")["definition"] == TWO


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "versions/3"),
        ("get", "versions/0"),
        ("get", "versions/99999999999999999999"),
        ("get", "versions/one"),
        ("get", "versions/1/diff/3"),
        ("get", "versions/3/diff/1"),
        ("post", "versions/3/restore"),
    ],
)
def test_a_version_that_is_not_there_is_not_found(client: FlaskClient, address: str, method: str, path: str) -> None:
    answer = client.open(f"{address}/{path}", method=method)
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")


def test_the_versions_of_no_workflow_are_not_found(client: FlaskClient) -> None:
    got(client, f"/api/v1/workflows/{uuid4()}/versions", 404)
    got(client, f"/api/v1/workflows/{uuid4()}/versions/1", 404)


def test_two_versions_are_compared(client: FlaskClient, address: str) -> None:
    forth, back = got(client, f"{address}/versions/1/diff/2"), got(client, f"{address}/versions/2/diff/1")
    assert (forth["old"], forth["new"], forth["resolved"]) == (1, 2, [])
    assert forth["changes"] == [
        {"kind": "changed", "path": "steps.a.config.value", "old": 1, "new": 2},
        {"kind": "added", "path": "steps.b", "old": None, "new": TWO["steps"][1]},
    ]
    assert [change["kind"] for change in back["changes"]] == ["changed", "removed"]
    assert got(client, f"{address}/versions/2/diff/2")["changes"] == []


def test_what_a_step_template_has_become_is_part_of_what_differs(client: FlaskClient, servers: Deployment) -> None:
    body = {"name": f"greet {uuid4()}", "step": {"type": "noop", "config": {"value": 1}}}
    template = client.post("/api/v1/step-templates", json=body).json
    using = {"steps": [{"id": "a", "uses": template["name"]}]}
    address = f"/api/v1/workflows/{servers.create(using)}"
    changed = {"step": {"type": "noop", "config": {"value": 2}}}
    client.put(f"/api/v1/step-templates/{template['id']}", json=changed)
    assert servers.client.put(address, json={"definition": using}).json["version"] == 2
    difference = got(client, f"{address}/versions/1/diff/2")
    assert difference["changes"] == []
    assert difference["resolved"] == [{"kind": "changed", "path": "steps.a.config.value", "old": 1, "new": 2}]
    # Going back takes the template as it was, whatever it is now.
    restored = client.post(f"{address}/versions/1/restore").json
    assert restored["version"] == 3
    assert got(client, f"{address}/versions/3")["resolved"] == got(client, f"{address}/versions/1")["resolved"]


# --- going back -----------------------------------------------------------------------------------------------


def test_a_version_is_restored_as_a_new_one_and_executions_keep_theirs(servers: Deployment, address: str) -> None:
    client = servers.client
    before = servers.execute(address.rpartition("/")[2])
    answer = client.post(f"{address}/versions/1/restore")
    assert (answer.status_code, answer.headers["ETag"], answer.json["version"]) == (200, '"3"', 3)
    assert answer.json["definition"] == ONE
    listed = got(client, f"{address}/versions")["items"]
    assert [item["restored_from"] for item in listed] == [1, None, None]
    after = servers.execute(address.rpartition("/")[2])
    assert [servers.execution(id)["version"] for id in (before, after)] == [2, 3]


def test_what_the_newest_says_is_not_said_again(client: FlaskClient, address: str) -> None:
    assert client.post(f"{address}/versions/2/restore").json["version"] == 2


def test_its_triggers_come_back_with_it(servers: Deployment) -> None:
    daily = {"type": "schedule", "name": "daily", "config": {"cron": "0 2 * * *"}}
    address = f"/api/v1/workflows/{servers.create({**ONE, 'triggers': [daily]})}"
    servers.client.put(address, json={"definition": ONE})
    assert got(servers.client, f"{address}/triggers")["items"] == []
    servers.client.post(f"{address}/versions/1/restore")
    assert [trigger["name"] for trigger in got(servers.client, f"{address}/triggers")["items"]] == ["daily"]
