"""Many executions of a workflow started by one call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from deployment import PATIENCE, Deployment, deployed, watched
from test_execution import step, workflow

TYPED = {
    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    **workflow(step("a", value="{{ input.n }}"), step("b", needs="a")),
}


def started(deployment: Deployment, workflow_id: str, *items: dict[str, Any], status: int = 200) -> Any:
    answer = deployment.client.post(f"/api/v1/workflows/{workflow_id}/execute/bulk", json={"items": items})
    assert answer.status_code == status, answer.text
    return answer.json


def count(deployment: Deployment, workflow_id: str) -> int:
    ((found,),) = deployment.sql("SELECT count(*) FROM executions WHERE workflow_id = %(id)s::uuid", id=workflow_id)
    return int(found)


def test_each_input_has_its_execution_and_they_all_end(deployment: Deployment) -> None:
    workflow_id = deployment.create(TYPED)
    answer = started(deployment, workflow_id, *({"input": {"n": n}, "priority": n % 10} for n in range(30)))
    assert (answer["started"], answer["existing"], answer["refused"]) == (30, 0, 0)
    for n, item in enumerate(answer["items"]):
        assert (item["is_new"], item["detail"], item["errors"]) == (True, None, [])
        execution = deployment.ended(item["id"])
        assert (execution["status"], execution["input"], execution["priority"]) == ("completed", {"n": n}, n % 10)


def test_those_that_fork_and_join_end_too(deployment: Deployment) -> None:
    wide = [step(f"s{n}", needs="first") for n in range(30)]
    join = {**step("last"), "depends_on": [one["id"] for one in wide]}
    workflow_id = deployment.create(workflow(step("first"), *wide, join))
    for item in started(deployment, workflow_id, {}, {}, {})["items"]:
        assert deployment.ended(item["id"])["status"] == "completed"
    forked = deployment.create(workflow(*({**one, "depends_on": []} for one in wide), join))
    for item in started(deployment, forked, {}, {}, {})["items"]:
        assert deployment.ended(item["id"])["status"] == "completed"


def test_what_is_wrong_with_one_input_keeps_no_other_back(servers: Deployment) -> None:
    workflow_id = servers.create(TYPED)
    large = {"n": 1, "text": "x" * (servers.settings.executor.max_payload + 1)}
    answer = started(servers, workflow_id, *({"input": given} for given in ({"n": 1}, {"n": "1"}, {}, large, {"n": 5})))
    assert (answer["started"], answer["refused"]) == (2, 3)
    assert [item["id"] is None for item in answer["items"]] == [False, True, True, True, False]
    assert [[error["path"] for error in item["errors"]] for item in answer["items"]] == [
        [], ["input.n"], ["input"], ["input"], [],
    ]  # fmt: skip
    assert count(servers, workflow_id) == 2


def test_a_key_starts_one_execution_within_a_call_and_across_calls(servers: Deployment) -> None:
    workflow_id = servers.create(TYPED)
    single = servers.client.post(
        f"/api/v1/workflows/{workflow_id}/execute", json={"input": {"n": 0}}, headers={"Idempotency-Key": "zero"}
    ).json["id"]
    items = [{"input": {"n": n}, "idempotency_key": key} for n, key in enumerate(("zero", "one", "two", "one"))]
    first, second = started(servers, workflow_id, *items), started(servers, workflow_id, *items)
    ids = [item["id"] for item in first["items"]]
    assert ids[0] == single
    assert ids[1] == ids[3]
    assert [item["is_new"] for item in first["items"]] == [False, True, True, False]
    assert (first["started"], first["existing"], second["started"], second["existing"]) == (2, 2, 0, 4)
    assert [item["id"] for item in second["items"]] == ids
    assert count(servers, workflow_id) == 3


def test_a_workflow_that_starts_nothing_starts_none_of_them(servers: Deployment) -> None:
    workflow_id = servers.create(TYPED)
    servers.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    servers.client.post(f"/api/v1/workflows/{workflow_id}/pause")
    assert started(servers, workflow_id, {"input": {"n": 1}}, status=409)["state"] == "paused"
    started(servers, str(uuid4()), {"input": {"n": 1}}, status=404)
    assert count(servers, workflow_id) == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("items", {}),
        ("items", {"items": []}),
        ("items", {"items": [{}] * 1001}),
        ("items", {"items": {}}),
        ("items[1]", {"items": [{}, []]}),
        ("items[1].priority", {"items": [{}, {"priority": 10}]}),
        ("items[0].idempotency_key", {"items": [{"idempotency_key": ""}]}),
        ("items[0].inputs", {"items": [{"inputs": {}}]}),
        ("more", {"items": [{}], "more": 1}),
    ],
)
def test_a_call_of_the_wrong_shape_starts_nothing(servers: Deployment, path: str, body: Any) -> None:
    workflow_id = servers.create(workflow(step("a")))
    answer = servers.client.post(f"/api/v1/workflows/{workflow_id}/execute/bulk", json=body)
    assert answer.status_code == 422
    assert path in [error["path"] for error in answer.json["errors"]]
    assert count(servers, workflow_id) == 0


def test_a_version_saved_meanwhile_is_the_one_they_have(servers: Deployment) -> None:
    workflow_id = servers.create(workflow(step("a")))
    started(servers, workflow_id, {})  # from now on this process knows its version
    servers.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": workflow(step("b"))})
    (item,) = started(servers, workflow_id, {})["items"]
    assert servers.execution(item["id"])["version"] == 2


def test_its_limits_hold_for_them_as_for_any_other(servers: Deployment) -> None:
    workflow_id = servers.create({"max_concurrent": 2, **workflow(step("a"))})
    started(servers, workflow_id, *[{}] * 5)
    ((admitted,),) = servers.sql(
        "SELECT count(*) FROM executions WHERE workflow_id = %(id)s::uuid AND admitted_at IS NOT NULL", id=workflow_id
    )
    assert admitted == 2


def test_a_thousand_take_a_few_statements_and_a_few_trips_to_the_broker(servers: Deployment) -> None:
    workflow_id = servers.create(workflow(step("a"), step("b", needs="a")))
    calls = broker_calls(servers)
    with watched(servers.client.application.extensions["orchestrator"].store.engine) as statements:
        answer = started(servers, workflow_id, *[{"input": {"n": n}} for n in range(1000)])
    assert answer["started"] == 1000
    assert len({item["id"] for item in answer["items"]}) == count(servers, workflow_id) == 1000
    assert len(statements) < 20
    made = broker_calls(servers)
    assert made["lpush"] - calls["lpush"] == 1000
    assert made["reads"] - calls["reads"] < 200  # the server reads some 16 KB at a time


def broker_calls(servers: Deployment) -> dict[str, int]:
    """Messages put into queues, and how often the server has read from a connection, which may bring many."""
    import redis

    with redis.Redis.from_url(servers.settings.broker.url) as client:
        pushed = client.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"]
        return {"lpush": pushed, "reads": client.info("stats")["total_reads_processed"]}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Deployment]:
    with deployed(tmp_path) as alone:
        yield alone


def test_without_a_broker_they_are_stored_and_answered_for_soon(alone: Deployment) -> None:
    workflow_id = alone.create(workflow(step("a")))
    alone.execute(workflow_id)  # a connection that is about to be lost
    assert alone.servers.valkey is not None
    alone.servers.valkey.kill()
    began = monotonic()
    answer = started(alone, workflow_id, *[{}] * 300)
    assert (answer["started"], count(alone, workflow_id)) == (300, 301)
    assert monotonic() - began < PATIENCE
