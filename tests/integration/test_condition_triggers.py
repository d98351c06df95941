"""Conditions: what workers see when they look, and what its becoming true starts, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import orjson
import pytest
from deployment import PATIENCE, Deployment, deployed, wait_until

from orchestrator.config import ConnectionSettings, Settings
from orchestrator.store.session import to_json
from workers.dispatch import send_look

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": "{{ input }}"}}]}
SECRET = "s3cr3t-of-the-probe"


class Gauge:
    """A server whose answers the test decides on; what it was asked is kept."""

    def __init__(self) -> None:
        self.status, self.value = 200, 0
        self.asked: list[dict[str, str]] = []
        self.hold = threading.Event()
        self.hold.set()
        gauge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gauge.asked.append(dict(self.headers))
                gauge.hold.wait(PATIENCE)
                body = orjson.dumps({"value": gauge.value})
                self.send_response(gauge.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):  # who asked may have gone
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/gauge"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def gauge() -> Iterator[Gauge]:
    gauge = Gauge()
    yield gauge
    gauge.close()


def with_own_database(settings: Settings) -> Settings:
    return replace(settings, connections={"own": ConnectionSettings(url=settings.database.url)})


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose worker knows a secret, and its own database as a connection."""
    with (
        pytest.MonkeyPatch.context() as patch,
        deployed(tmp_path_factory.mktemp("conditions"), adjusted=with_own_database) as own,
    ):
        patch.setenv("ORCHESTRATOR_SECRET_TOKEN", SECRET)
        own.start_worker(pool="threads", concurrency=10)
        yield own


class Condition:
    """An active workflow with one condition that is looked at when the test says; unless told otherwise, that is
    `value > 10` of the gauge."""

    def __init__(
        self, deployment: Deployment, gauge: Gauge | None = None, *, active: bool = True, **config: Any
    ) -> None:
        self.deployment = deployment
        self.workflow_id = deployment.create(NOOP)
        config = {"expression": "output.body.value > 10", "interval": "7d", **config}
        if gauge is not None:
            config = {"http": {"url": gauge.url}, **config}
        made = deployment.client.post(
            f"/api/v1/workflows/{self.workflow_id}/triggers",
            json={"type": "condition", "name": uuid4().hex, "config": config},
        )
        assert made.status_code == 201, made.text
        self.id = made.json["id"]
        if active:
            deployment.client.post(f"/api/v1/workflows/{self.workflow_id}/activate")

    @property
    def state(self) -> dict[str, Any]:
        ((state,),) = self.deployment.sql("SELECT state FROM triggers WHERE id = %(id)s::uuid", id=self.id)
        return state or {}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.deployment.sql(
            "UPDATE triggers SET state = %(state)s::jsonb WHERE id = %(id)s::uuid", id=self.id, state=to_json(state)
        )

    def look(self) -> dict[str, Any]:
        """What is known after a look, which is taken now, as if the last one were long ago."""
        if self.state:
            self.state = {**self.state, "checked_at": None}
        send_look(self.id)
        return wait_until(lambda: self.state if self.state.get("checked_at") else None, what="a look")  # type: ignore[return-value]

    def fired(self, count: int = 1) -> list[str]:
        """Its executions, the oldest first, once there are so many and it is known of the last."""
        wait_until(lambda: len(self.executions()) == count and self.state["fired"], what=f"execution {count}")
        return self.executions()

    def executions(self) -> list[str]:
        rows = self.deployment.sql(
            "SELECT id::text FROM executions WHERE trigger_id = %(id)s::uuid ORDER BY id", id=self.id
        )
        return [id for (id,) in rows]

    def fires(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.deployment.client.get(f"/api/v1/triggers/{self.id}/fires").json["items"]
        return found


def test_it_is_looked_at_as_often_as_it_says(looking: Deployment, gauge: Gauge) -> None:
    condition = Condition(looking, gauge, interval="1s")
    wait_until(lambda: len(gauge.asked) >= 3, what="three looks")
    gauge.value = 11
    (execution_id,) = condition.fired()
    assert looking.ended(execution_id)["status"] == "completed"
    looking.client.put(f"/api/v1/triggers/{condition.id}", json={"is_enabled": False})


def test_its_becoming_true_starts_one_execution_and_again_only_after_it_was_false(
    looking: Deployment, gauge: Gauge
) -> None:
    condition = Condition(looking, gauge)
    assert condition.look()["value"] is False
    gauge.value = 11
    condition.look()
    (first,) = condition.fired()
    condition.look()
    assert condition.executions() == [first]
    (fire,) = condition.fires()
    assert (fire["outcome"], fire["slot"]) == ("started", condition.state["since"])
    shown = looking.execution(first)["input"]
    assert (shown["output"]["body"], shown["error"], shown["since"]) == ({"value": 11}, None, fire["slot"])
    gauge.value = 0
    condition.look()
    gauge.value = 12
    condition.look()
    assert condition.fired(2)[0] == first


def test_it_must_stay_true_for_as_long_as_it_says(looking: Deployment, gauge: Gauge) -> None:
    gauge.value = 11
    condition = Condition(looking, gauge, **{"for": "1h"})
    condition.look()
    state = condition.look()
    assert (state["value"], state["fired"], condition.executions()) == (True, False, [])
    earlier = (datetime.fromisoformat(state["since"]) - timedelta(hours=1)).isoformat()
    condition.state = {**state, "since": earlier}
    condition.look()
    (execution_id,) = condition.fired()
    assert looking.execution(execution_id)["input"]["since"] == earlier


def test_many_looks_at_once_start_one_execution(looking: Deployment, gauge: Gauge) -> None:
    condition = Condition(looking, gauge)
    gauge.value = 11
    gauge.hold.clear()
    for _ in range(8):
        send_look(condition.id)
    wait_until(lambda: len(gauge.asked) == 8, what="all of them at the same time")
    gauge.hold.set()
    condition.fired()
    condition.look()
    assert len(condition.executions()) == 1
    asked = len(gauge.asked)
    send_look(condition.id)  # right after a look there is nothing new to see
    Condition(looking, gauge).look()
    wait_until(lambda: len(gauge.asked) > asked, what="the other's look")
    assert len(gauge.asked) == asked + 1


@pytest.mark.parametrize("value", [11, 0])
def test_an_edge_that_a_worker_died_over_is_fired_by_the_next_look(
    looking: Deployment, gauge: Gauge, value: int
) -> None:
    condition = Condition(looking, gauge)
    gauge.value = value
    since = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    condition.state = {"value": True, "since": since, "seen_at": since, "fired": False, "checked_at": since}
    condition.look()
    wait_until(condition.executions, what="the execution")
    assert [fire["slot"] for fire in condition.fires()] == [since]
    wait_until(lambda: condition.state["fired"] is (value > 10), what="that it has fired")


def test_an_edge_that_was_fired_by_a_worker_that_died_is_not_fired_again(looking: Deployment, gauge: Gauge) -> None:
    gauge.value = 11
    condition = Condition(looking, gauge)
    condition.look()
    (execution_id,) = condition.fired()
    condition.state = {**condition.state, "fired": False}
    condition.look()
    assert condition.fired() == [execution_id]


def test_a_look_that_finds_nothing_out_says_why_and_changes_nothing(looking: Deployment, gauge: Gauge) -> None:
    gauge.value = 11
    condition = Condition(looking, gauge)
    condition.look()
    condition.fired()
    before = condition.state
    gauge.close()
    state = condition.look()
    assert "127.0.0.1" in state["error"]
    assert {**state, "error": None, "checked_at": None} == {**before, "checked_at": None}


def test_an_expression_that_cannot_be_evaluated_is_kept_as_the_error(looking: Deployment, gauge: Gauge) -> None:
    state = Condition(looking, gauge, expression="output.body.missing > 1").look()
    assert "output.body.missing" in state["error"]
    assert state["value"] is False


def test_a_failing_probe_can_be_what_it_waits_for(looking: Deployment, gauge: Gauge) -> None:
    condition = Condition(looking, gauge, expression="error is not none or output.status_code >= 500")
    gauge.status = 503
    condition.look()
    (first,) = condition.fired()
    assert looking.execution(first)["input"]["output"]["status_code"] == 503
    gauge.status = 200
    assert condition.look()["value"] is False
    gauge.close()
    condition.look()
    assert looking.execution(condition.fired(2)[1])["input"]["error"]["kind"] == "connection"


def test_a_probe_that_never_answers_ends_before_the_next_look(looking: Deployment, gauge: Gauge) -> None:
    gauge.hold.clear()
    condition = Condition(looking, gauge, interval="1s")
    state = wait_until(lambda: condition.state if condition.state.get("error") else None, what="the end of a look")
    assert "did not end within 0.9" in str(state)
    looking.client.put(f"/api/v1/triggers/{condition.id}", json={"is_enabled": False})


def test_a_query_is_looked_at_as_well(looking: Deployment) -> None:
    looking.sql("CREATE TABLE backlog (n int)")
    query = {"connection": "own", "sql": "SELECT count(*) AS n FROM backlog WHERE n > :low", "params": {"low": 2}}
    mapping = {"waiting": "{{ output.rows[0].n }}", "since": "{{ since }}"}
    condition = Condition(looking, database=query, expression="output.rows[0].n > 0", mapping=mapping)
    assert condition.look()["value"] is False
    looking.sql("INSERT INTO backlog VALUES (1), (3)")
    condition.look()
    (execution_id,) = condition.fired()
    assert looking.execution(execution_id)["input"] == {"waiting": 1, "since": condition.state["since"]}


def test_a_probe_is_made_with_the_secrets_of_its_workflow(looking: Deployment, gauge: Gauge) -> None:
    condition = Condition(looking, http={"url": gauge.url, "headers": {"X-Token": "{{ secrets.of_one }}"}})
    secret = {"name": "of_one", "value": SECRET, "workflow_id": condition.workflow_id}
    assert looking.client.post("/api/v1/secrets", json=secret).status_code == 201
    condition.look()
    assert gauge.asked[-1]["X-Token"] == SECRET


def test_a_probe_is_made_with_secrets_that_are_nowhere_to_be_read(looking: Deployment, gauge: Gauge) -> None:
    gauge.value = 11
    condition = Condition(looking, http={"url": gauge.url, "headers": {"X-Token": "{{ secrets.token }}"}})
    condition.look()
    condition.fired()
    assert gauge.asked[0]["X-Token"] == SECRET
    rows = looking.sql(
        "SELECT t::text, f::text FROM triggers t JOIN trigger_fires f ON f.trigger_id = t.id WHERE t.id = %(id)s::uuid",
        id=condition.id,
    )
    assert rows
    assert SECRET not in str(rows)


def test_a_mapping_that_fails_is_a_failed_fire_with_the_reason(looking: Deployment, gauge: Gauge) -> None:
    gauge.value = 11
    condition = Condition(looking, gauge, mapping={"a": "{{ output.body.missing }}"})
    condition.look()
    wait_until(lambda: condition.state["fired"], what="the fire")
    condition.look()
    (fire,) = condition.fires()
    assert (fire["outcome"], fire["execution_id"]) == ("failed", None)
    assert "output.body.missing" in fire["reason"]


def test_another_expression_begins_anew(looking: Deployment, gauge: Gauge) -> None:
    gauge.value = 11
    condition = Condition(looking, gauge)
    condition.look()
    (first,) = condition.fired()
    config = {"http": {"url": gauge.url}, "expression": "output.body.value > 5", "interval": "1h"}
    looking.client.put(f"/api/v1/triggers/{condition.id}", json={"config": config})
    assert condition.state == {}
    condition.look()
    assert condition.fired(2)[0] == first


def test_what_could_start_nothing_is_not_looked_at(looking: Deployment, gauge: Gauge) -> None:
    draft, off, last = Condition(looking, gauge, active=False), Condition(looking, gauge), Condition(looking, gauge)
    looking.client.put(f"/api/v1/triggers/{off.id}", json={"is_enabled": False})
    for id in (draft.id, off.id, str(uuid4())):
        send_look(id)
    last.look()
    assert len(gauge.asked) == 1
    assert (draft.state, off.state) == ({}, {})
