"""Events: from the API and from a stream, to every workflow that they are for, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import orjson
import pytest
from deployment import Deployment, deployed, wait_until

from orchestrator.config import EventsSettings, Settings
from orchestrator.engine.cloudevents import BATCH, STRUCTURED, Event
from orchestrator.store import triggers

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": "{{ input }}"}}]}
STREAM = "events-of-the-test"


def with_stream(settings: Settings) -> Settings:
    return replace(settings, events=EventsSettings(stream=STREAM))


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment that reads the stream; before its worker began, there was one event in it."""
    with deployed(tmp_path_factory.mktemp("events"), adjusted=with_stream) as own:
        own.first = Trigger(own, type="first.ever")  # type: ignore[attr-defined]
        redis(own).xadd(STREAM, {"type": "first.ever"})
        own.start_worker(pool="threads", concurrency=4)
        yield own


def redis(deployment: Deployment) -> Any:
    from workers.app import app

    deployment.client  # noqa: B018  (points the app at this deployment's broker)
    return app.backend.client


class Trigger:
    """An active workflow with one event trigger."""

    def __init__(self, deployment: Deployment, definition: dict[str, Any] = NOOP, **config: Any) -> None:
        self.deployment = deployment
        self.workflow_id = deployment.create(definition)
        made = deployment.client.post(
            f"/api/v1/workflows/{self.workflow_id}/triggers", json={"type": "event", "name": "e", "config": config}
        )
        assert made.status_code == 201, made.text
        self.id = made.json["id"]
        deployment.client.post(f"/api/v1/workflows/{self.workflow_id}/activate")

    def fires(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.deployment.client.get(f"/api/v1/triggers/{self.id}/fires").json["items"]
        return found

    def executions(self) -> list[str]:
        rows = self.deployment.sql("SELECT id::text FROM executions WHERE trigger_id = %(id)s::uuid", id=self.id)
        return [id for (id,) in rows]


def event(**more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": uuid4().hex, "source": "/shop", "type": "order.created", **more}


def own_type() -> str:
    return f"type.{uuid4().hex}"


def sent(deployment: Deployment, document: Any, kind: str = STRUCTURED) -> Any:
    return deployment.client.post("/api/v1/events", data=orjson.dumps(document), content_type=kind)


def fired(deployment: Deployment, document: Any, kind: str = STRUCTURED) -> list[dict[str, Any]]:
    answer = sent(deployment, document, kind)
    assert answer.status_code == 202, answer.text
    found: list[dict[str, Any]] = answer.json["fired"]
    return found


# --- matching ------------------------------------------------------------------------------------------------


def test_an_event_starts_every_workflow_that_it_is_for_and_no_other(deployment: Deployment) -> None:
    kind = own_type()
    exact, wild, filtered = (
        Trigger(deployment, type=kind),
        Trigger(deployment, type=f"{kind[:-4]}*", source="/sh*"),
        Trigger(deployment, type=kind, filter="event.data.amount > 100", mapping={"amount": "{{ event.data.amount }}"}),
    )
    for config in ({"type": "other"}, {"type": kind, "source": "/else"}, {"type": kind, "subject": "*x"}):
        Trigger(deployment, **config)
    Trigger(deployment, type=kind, filter="event.data.amount > 200")
    given = event(type=kind, data={"amount": 150})
    answer = fired(deployment, given)
    assert {item["trigger_id"] for item in answer} == {exact.id, wild.id, filtered.id}
    assert {(item["event_id"], item["outcome"], item["reason"]) for item in answer} == {(given["id"], "started", None)}
    started = {item["trigger_id"]: item["execution_id"] for item in answer}
    assert deployment.ended(started[exact.id])["input"] == {"event": given}
    assert deployment.ended(started[filtered.id])["output"] == {"only": {"amount": 150}}
    (fire,) = wild.fires()
    assert (fire["payload"], fire["slot"]) == (given, f"/shop {given['id']}")


def test_an_event_that_nobody_waits_for_starts_nothing(deployment: Deployment) -> None:
    assert fired(deployment, event(type=own_type())) == []


def test_a_disabled_trigger_is_not_fired_and_a_paused_workflow_says_why(deployment: Deployment) -> None:
    kind = own_type()
    off, paused = Trigger(deployment, type=kind), Trigger(deployment, type=kind)
    deployment.client.put(f"/api/v1/triggers/{off.id}", json={"is_enabled": False})
    deployment.client.post(f"/api/v1/workflows/{paused.workflow_id}/pause")
    (item,) = fired(deployment, event(type=kind))
    assert (item["trigger_id"], item["outcome"], item["execution_id"]) == (paused.id, "skipped", None)
    assert "paused" in item["reason"]


def test_a_filter_that_cannot_tell_is_a_failed_fire_with_the_reason(deployment: Deployment) -> None:
    kind = own_type()
    trigger = Trigger(deployment, type=kind, filter="event.data.amount > 100")
    (item,) = fired(deployment, event(type=kind))
    assert (item["outcome"], item["execution_id"]) == ("failed", None)
    assert "event.data" in item["reason"]
    assert [fire["outcome"] for fire in trigger.fires()] == ["failed"]


def test_the_triggers_of_a_type_are_found_by_an_index(servers: Deployment) -> None:
    workflow_id = servers.create(NOOP)
    servers.sql(
        "INSERT INTO triggers (id, workflow_id, type, name, config) SELECT gen_random_uuid(), %(id)s::uuid, 'event', "
        "'t' || n, jsonb_build_object('type', 'kind.' || n) FROM generate_series(1, 5000) n",
        id=workflow_id,
    )
    servers.sql("ANALYZE triggers")
    with servers.store.single() as connection:
        exact, patterns = triggers.for_events(connection, ["kind.7", "kind.8", "missing"])
        assert {kind: len(found) for kind, found in exact.items()} == {"kind.7": 1, "kind.8": 1}
        assert workflow_id not in {trigger.workflow_id for trigger in patterns}
    plan = servers.sql(
        "EXPLAIN SELECT id FROM triggers WHERE is_enabled AND type = 'event' AND strpos(config ->> 'type', '*') = 0 "
        "AND config ->> 'type' = ANY(ARRAY['kind.7', 'kind.8'])"
    )
    assert "ix_triggers_event" in str(plan)
    servers.client.delete(f"/api/v1/workflows/{workflow_id}")


# --- once ----------------------------------------------------------------------------------------------------


def test_an_event_that_is_sent_again_starts_nothing_again(deployment: Deployment) -> None:
    kind = own_type()
    trigger = Trigger(deployment, type=kind)
    given = event(type=kind)
    (first,), (second,) = fired(deployment, given), fired(deployment, given)
    assert (second["outcome"], second["execution_id"]) == ("duplicate", first["execution_id"])
    (other,) = fired(deployment, {**given, "source": "/another"})
    assert other["execution_id"] != first["execution_id"]
    assert len(trigger.executions()) == 2


def test_an_event_that_comes_many_times_at_once_is_one_execution(deployment: Deployment) -> None:
    kind = own_type()
    trigger = Trigger(deployment, type=kind)
    given = event(type=kind)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: fired(deployment, given), range(30)))
    assert {item["execution_id"] for answer in answers for item in answer} == set(trigger.executions())
    assert len(trigger.executions()) == 1


# --- the forms -----------------------------------------------------------------------------------------------


def test_a_batch_fires_for_each_of_its_events(deployment: Deployment) -> None:
    kind = own_type()
    trigger = Trigger(deployment, type=kind)
    given = [event(type=kind), event(type="nobody's"), event(type=kind)]
    assert [item["event_id"] for item in fired(deployment, given, BATCH)] == [given[0]["id"], given[2]["id"]]
    assert len(trigger.executions()) == 2
    assert fired(deployment, [], BATCH) == []


def test_an_event_in_binary_mode_is_taken(deployment: Deployment) -> None:
    kind = own_type()
    trigger = Trigger(deployment, type=kind)
    answer = deployment.client.post(
        "/api/v1/events",
        data=b'{"amount": 1}',
        content_type="application/json",
        headers={"ce-id": "1", "ce-source": "/shop", "ce-specversion": "1.0", "ce-type": kind},
    )
    assert answer.status_code == 202, answer.text
    assert trigger.fires()[0]["payload"]["data"] == {"amount": 1}


def test_what_is_wrong_with_events_is_said_all_at_once_and_nothing_is_started(deployment: Deployment) -> None:
    kind = own_type()
    trigger = Trigger(deployment, type=kind)
    answer = sent(deployment, [event(type=kind), {"id": ""}, event(time="soon")], BATCH)
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
    assert {item["path"] for item in answer.json["errors"]} == {
        "[1].id", "[1].source", "[1].type", "[1].specversion", "[2].time",
    }  # fmt: skip
    assert trigger.fires() == []


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (orjson.dumps(event()), "application/json", 400),
        (b"{", STRUCTURED, 400),
        (b"", STRUCTURED, 400),
        (orjson.dumps(event(data="x" * 1_100_000)), STRUCTURED, 413),
        (orjson.dumps(event(data="x\0")), STRUCTURED, 422),
        (b"x" * 4_400_000, STRUCTURED, 413),
    ],
)
def test_a_message_that_is_no_event_is_refused(deployment: Deployment, data: bytes, kind: str, status: int) -> None:
    answer = deployment.client.post("/api/v1/events", data=data, content_type=kind)
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")


# --- the stream ----------------------------------------------------------------------------------------------


def test_what_was_in_the_stream_before_anybody_read_it_is_taken(streaming: Deployment) -> None:
    first: Trigger = streaming.first  # type: ignore[attr-defined]
    wait_until(first.executions, what="the execution of the first event")


def test_an_event_of_the_stream_starts_what_it_triggers_once(streaming: Deployment) -> None:
    kind = own_type()
    trigger, last = Trigger(streaming, type=kind), Trigger(streaming, type=f"{kind}.last")
    given = event(type=kind, data={"amount": 1})
    for _ in range(3):
        redis(streaming).xadd(STREAM, {"event": orjson.dumps(given)})
    redis(streaming).xadd(STREAM, {"type": f"{kind}.last", "data": '{"a": 1}'})
    (execution_id,) = wait_until(last.executions, what="the last event")
    assert streaming.ended(execution_id)["input"]["event"]["data"] == {"a": 1}
    assert len(trigger.executions()) == 1
    assert streaming.ended(trigger.executions()[0])["output"] == {"only": {"event": given}}
    wait_until(lambda: redis(streaming).xpending(STREAM, "orchestrator")["pending"] == 0, what="acknowledgements")


def test_what_is_no_event_is_put_aside_with_the_reason(streaming: Deployment) -> None:
    id = redis(streaming).xadd(STREAM, {"event": '{"id": 5}'})
    rejected = f"{STREAM}:rejected"
    wait_until(lambda: redis(streaming).xlen(rejected), what="the rejected entry")
    ((_, fields),) = redis(streaming).xrange(rejected)
    assert fields[b"rejected_id"] == id
    assert b"id: must be a text" in fields[b"rejected_because"]
    assert b"source: is missing" in fields[b"rejected_because"]


def test_a_stream_that_was_lost_is_read_again(streaming: Deployment) -> None:
    trigger = Trigger(streaming, type=own_type())
    redis(streaming).delete(STREAM)
    redis(streaming).xadd(STREAM, {"event": orjson.dumps(event(type=_type_of(trigger)))})
    wait_until(trigger.executions, what="the execution")


def _type_of(trigger: Trigger) -> str:
    config = trigger.deployment.client.get(f"/api/v1/triggers/{trigger.id}").json["config"]
    return str(config["type"])


class Reader:
    """An EventStream over a stream of its own, whose events are kept here; the first `failures` times it fails."""

    def __init__(self, deployment: Deployment, stream: str, failures: int = 0) -> None:
        from workers.event_stream import EventStream

        self.taken: list[Event] = []
        self.failures = failures
        self.tried = threading.Semaphore(0)
        settings = replace(deployment.settings, events=EventsSettings(stream=stream))
        self.stream = EventStream(settings, "reader", self.take)

    def take(self, events: Sequence[Event]) -> None:
        self.tried.release()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the database is away")
        self.taken += events

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def test_events_whose_fires_could_not_be_kept_are_read_again(servers: Deployment) -> None:
    client, stream = redis(servers), own_type()
    with Reader(servers, stream, failures=1) as reader:
        for number in range(3):
            client.xadd(stream, {"type": "t", "id": str(number)})
        wait_until(lambda: len(reader.taken) == 3, what="the events")
        assert reader.failures == 0
        assert [item["id"] for item in reader.taken] == ["0", "1", "2"]
        wait_until(lambda: client.xpending(stream, "orchestrator")["pending"] == 0, what="acknowledgements")


def test_what_a_consumer_was_given_that_died_is_taken_over(servers: Deployment) -> None:
    client, stream = redis(servers), own_type()
    client.xgroup_create(stream, "orchestrator", id="0", mkstream=True)
    id = client.xadd(stream, {"type": "t", "id": "orphan"})
    client.xreadgroup("orchestrator", "the dead", {stream: ">"})
    client.xclaim(stream, "orchestrator", "the dead", 0, [id], idle=61_000)
    with Reader(servers, stream) as reader:
        wait_until(lambda: reader.taken, what="the orphan")
        assert [item["id"] for item in reader.taken] == ["orphan"]
        wait_until(lambda: client.xpending(stream, "orchestrator")["pending"] == 0, what="acknowledgements")


def test_what_another_consumer_is_still_at_is_left_to_it(servers: Deployment) -> None:
    client, stream = redis(servers), own_type()
    client.xgroup_create(stream, "orchestrator", id="0", mkstream=True)
    client.xadd(stream, {"type": "t", "id": "theirs"})
    client.xreadgroup("orchestrator", "the living", {stream: ">"})
    with Reader(servers, stream) as reader:
        client.xadd(stream, {"type": "t", "id": "ours"})
        wait_until(lambda: reader.taken, what="ours")
        assert [item["id"] for item in reader.taken] == ["ours"]
