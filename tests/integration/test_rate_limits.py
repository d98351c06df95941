"""Rate limits: as many executions of a workflow, and steps that use a connection, begin in any window of time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deployment import KEY, Deployment, deployed, wait_until
from test_admission import end
from test_execution import step, workflow

from orchestrator.config import HostSettings, RateLimit
from orchestrator.engine.admission import admit_all, keep_rates, seconds_to_next_turn
from orchestrator.store import rate_line, rates
from orchestrator.store.rates import Rate

SINGLE = workflow(step("a"))


def limited(limit: int, per: str = "1h", **more: Any) -> dict[str, Any]:
    return {**SINGLE, "rate_limit": {"limit": limit, "per": per, **more}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """No worker, and places enough."""
    with deployed(tmp_path_factory.mktemp("rates")) as deployment:
        yield deployment


@pytest.fixture
def idle(stack: Deployment) -> Deployment:
    stack.sql("DELETE FROM workflows")
    stack.sql("DELETE FROM rate_uses")
    stack.sql("DELETE FROM rate_looks")
    return stack


def admitted(deployment: Deployment) -> set[str]:
    return {id for (id,) in deployment.sql("SELECT id::text FROM executions WHERE admitted_at IS NOT NULL")}


def let_in(deployment: Deployment) -> list[str]:
    """As reconcile does."""
    return [plan.execution_id for plan in admit_all(deployment.store, deployment.settings)]


def age_uses(deployment: Deployment, seconds: float, of: str = "%") -> None:
    """What has been used, and is to be looked at, under the keys that are like `of`."""
    deployment.sql(
        "UPDATE rate_uses SET used_at = used_at - %(by)s * interval '1 second', "
        "expires_at = expires_at - %(by)s * interval '1 second' WHERE key LIKE %(of)s",
        by=seconds,
        of=of,
    )
    deployment.sql(
        "UPDATE rate_looks SET at = at - %(by)s * interval '1 second' WHERE key LIKE %(of)s", by=seconds, of=of
    )


def keep_house(deployment: Deployment) -> None:
    """As reconcile does every five seconds."""
    with deployment.store.single() as connection:
        keep_rates(connection, 1000)


def most_in_any_window(moments: list[int], seconds: float) -> int:
    """`moments` in microseconds."""
    window = round(seconds * 1_000_000)
    return max(sum(first <= moment < first + window for moment in moments) for first in moments)


def why(deployment: Deployment, execution_id: str) -> dict[str, Any]:
    answer = deployment.client.get(f"/api/v1/executions/{execution_id}/why")
    assert answer.status_code == 200, answer.text
    return dict(answer.json)


# --- of a workflow -------------------------------------------------------------------------------------------


def test_as_many_begin_as_the_limit_says_and_the_others_in_the_next_window(idle: Deployment):
    workflow_id = idle.create(limited(2))
    first, second, third, fourth, fifth = (idle.execute(workflow_id) for _ in range(5))
    assert admitted(idle) == {first, second}
    assert let_in(idle) == []
    age_uses(idle, 3600)
    assert let_in(idle) == [third, fourth]
    assert let_in(idle) == []
    age_uses(idle, 3600)
    assert let_in(idle) == [fifth]


def test_each_use_comes_free_by_itself(idle: Deployment):
    workflow_id = idle.create(limited(2))
    idle.execute(workflow_id)
    age_uses(idle, 1800)
    idle.execute(workflow_id)
    third, fourth = (idle.execute(workflow_id) for _ in range(2))
    age_uses(idle, 1800)
    assert let_in(idle) == [third]
    age_uses(idle, 1800)
    assert let_in(idle) == [fourth]


def test_two_keys_do_not_disturb_each_other(idle: Deployment):
    workflow_id = idle.create(limited(1, key="{{ input.customer }}"))
    a1, a2, b1, b2 = (idle.execute(workflow_id, {"customer": customer}) for customer in ("a", "a", "b", "b"))
    assert admitted(idle) == {a1, b1}
    age_uses(idle, 3600, of="%:b")
    assert let_in(idle) == [b2]
    assert a2 not in admitted(idle)


def test_two_workflows_do_not_disturb_each_other_nor_those_without_a_limit(idle: Deployment):
    ids = [idle.create(definition) for definition in (limited(1), limited(1), SINGLE)]
    executions = {idle.execute(id) for id in ids for _ in range(3)}
    assert len(admitted(idle) & executions) == 1 + 1 + 3


def test_the_most_urgent_is_let_in_first_and_nobody_overtakes_those_that_wait(idle: Deployment):
    workflow_id = idle.create(limited(1))
    idle.execute(workflow_id)
    usual = idle.execute(workflow_id)
    urgent = idle.execute(workflow_id, priority=9)
    age_uses(idle, 3600)
    late = idle.execute(workflow_id, priority=9)  # the window is open, but two wait already
    assert late not in admitted(idle)
    order = []
    for _ in range(3):
        order += let_in(idle)
        age_uses(idle, 3600)
    assert order == [urgent, late, usual]


def test_what_is_cancelled_while_it_waits_takes_no_use(idle: Deployment):
    workflow_id = idle.create(limited(1))
    idle.execute(workflow_id)
    going, next_one = (idle.execute(workflow_id) for _ in range(2))
    assert idle.client.post(f"/api/v1/executions/{going}/cancel").status_code == 200
    age_uses(idle, 3600)
    assert let_in(idle) == [next_one]


def test_what_is_cancelled_after_it_began_keeps_its_use_for_its_window_and_no_longer(idle: Deployment):
    workflow_id = idle.create(limited(1))
    for _ in range(3):
        running = idle.execute(workflow_id)
        assert running in admitted(idle)
        assert idle.client.post(f"/api/v1/executions/{running}/cancel").status_code == 200
        waiting = idle.execute(workflow_id)
        assert waiting not in admitted(idle)
        assert idle.client.post(f"/api/v1/executions/{waiting}/cancel").status_code == 200
        age_uses(idle, 3600)
    with idle.store.single() as connection:
        rates.purge(connection, 100)
    assert idle.sql("SELECT FROM rate_uses") == []


def test_a_retry_is_a_beginning_like_any_other(idle: Deployment):
    workflow_id = idle.create(limited(1))
    first = idle.execute(workflow_id)
    assert end(idle, first) == []
    assert idle.client.post(f"/api/v1/executions/{first}/retry").status_code == 200
    assert why(idle, first)["reason"] == "rate_limited"
    age_uses(idle, 3600)
    assert let_in(idle) == [first]


def test_a_paused_one_keeps_nobody_waiting_and_is_let_in_when_it_is_resumed(idle: Deployment):
    workflow_id = idle.create(limited(1))
    idle.execute(workflow_id)
    paused, behind = (idle.execute(workflow_id) for _ in range(2))
    assert idle.client.post(f"/api/v1/executions/{paused}/pause").status_code == 200
    age_uses(idle, 3600)
    assert let_in(idle) == [behind]
    assert idle.client.post(f"/api/v1/executions/{paused}/resume").status_code == 200
    assert let_in(idle) == []
    keep_house(idle)
    age_uses(idle, 3600)
    assert let_in(idle) == [paused]


def test_a_use_is_not_taken_for_an_execution_that_is_there_already(idle: Deployment):
    workflow_id = idle.create(limited(2))
    ids = {
        idle.client.post(
            f"/api/v1/workflows/{workflow_id}/execute", json={}, headers={"Idempotency-Key": "the same"}
        ).json["id"]
        for _ in range(5)
    }
    assert len(ids) == 1
    assert len(idle.sql("SELECT FROM rate_uses")) == 1


def test_both_kinds_of_limits_hold_together(idle: Deployment):
    workflow_id = idle.create({**limited(2), "max_concurrent": 1})
    first, second, third, fourth = (idle.execute(workflow_id) for _ in range(4))
    assert admitted(idle) == {first}
    assert end(idle, first) == [second]
    assert end(idle, second) == []
    assert let_in(idle) == []
    age_uses(idle, 3600)
    assert let_in(idle) == [third]
    assert let_in(idle) == []
    assert end(idle, third) == [fourth]


def test_those_that_are_started_by_one_call_are_counted_one_by_one(idle: Deployment):
    workflow_id = idle.create(limited(3))
    body = {"items": [{"input": {}} for _ in range(10)]}
    assert idle.client.post(f"/api/v1/workflows/{workflow_id}/execute/bulk", json=body).status_code == 200
    assert len(idle.sql("SELECT FROM executions")) == 10
    assert len(admitted(idle)) == 3


def test_one_that_is_done_again_is_a_beginning_like_any_other(idle: Deployment):
    workflow_id = idle.create(limited(1))
    first = idle.execute(workflow_id)
    assert end(idle, first) == []
    again = idle.client.post(f"/api/v1/executions/{first}/rerun", json={}).json["id"]
    assert again not in admitted(idle)
    assert why(idle, again)["reason"] == "rate_limited"
    age_uses(idle, 3600)
    assert let_in(idle) == [again]


def test_those_that_wait_for_a_place_leave_uses_to_nobody_before_their_turn(tmp_path: Path):
    with deployed(tmp_path, max_concurrent=1) as single:
        free, workflow_id = single.create(SINGLE, "free"), single.create(limited(1))
        running = single.execute(free)
        first, second = (single.execute(workflow_id) for _ in range(2))
        assert end(single, running) == [first]
        assert why(single, second)["reason"] == "limit_reached"
        assert end(single, first) == []  # it has the next place, and no use
        assert why(single, second)["reason"] == "rate_limited"
        other = single.execute(free)
        assert other in admitted(single)
        age_uses(single, 3600)
        assert let_in(single) == []  # it waits for a place again
        assert why(single, second)["reason"] == "limit_reached"
        assert end(single, other) == [second]


def test_when_the_next_is_let_in_is_known_without_looking_again_and_again(idle: Deployment):
    def seconds() -> float | None:
        with idle.store.single() as connection:
            return seconds_to_next_turn(connection)

    workflow_id = idle.create(limited(1))
    idle.execute(workflow_id)
    assert seconds() is None
    idle.execute(workflow_id)
    age_uses(idle, 3000)
    due = seconds()
    assert due is not None
    assert 590 < due <= 600


def test_keys_without_number_are_looked_at_a_bounded_number_at_a_time_and_only_when_one_is_due(idle: Deployment):
    workflow_id = idle.create(limited(1, key="{{ input.key }}"))
    items = [{"input": {"key": str(n // 2)}} for n in range(300)]
    answer = idle.client.post(f"/api/v1/workflows/{workflow_id}/execute/bulk", json={"items": items})
    assert answer.json["started"] == 300
    assert len(admitted(idle)) == 150
    assert let_in(idle) == []
    age_uses(idle, 3600)
    assert [len(let_in(idle)) for _ in range(3)] == [100, 50, 0]
    assert idle.sql("SELECT FROM rate_looks") == []


def test_behind_one_with_a_long_window_that_is_gone_another_does_not_wait_for_that(idle: Deployment):
    workflow_id = idle.create(limited(1, "1d"))
    idle.execute(workflow_id)
    first = idle.execute(workflow_id)
    idle.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": limited(1, "10m")})
    second = idle.execute(workflow_id)
    age_uses(idle, 600)
    assert let_in(idle) == []  # they are let in in their order
    idle.client.post(f"/api/v1/executions/{first}/cancel")
    age_uses(idle, 300)
    assert let_in(idle) == [second]


def test_why_names_the_rate_limit_and_when_each_is_let_in(idle: Deployment):
    workflow_id = idle.create(limited(2))
    began = datetime.now(UTC)
    for _ in range(2):
        idle.execute(workflow_id)
    waiting = [idle.execute(workflow_id) for _ in range(5)]
    for ahead, execution_id in enumerate(waiting):
        reason = why(idle, execution_id)
        assert reason["reason"] == "rate_limited"
        let_in_at = datetime.fromisoformat(reason["facts"].pop("let_in_at"))
        assert timedelta(0) <= let_in_at - began - (1 + ahead // 2) * timedelta(hours=1) < timedelta(seconds=30)
        facts = {"limit_of": "workflow", "key": workflow_id, "limit": 2, "per": 3600.0, "ahead": ahead}
        assert reason["facts"] == facts
    keyed = idle.create(limited(1, key="{{ input.customer }}"))
    _, held = (idle.execute(keyed, {"customer": "acme"}) for _ in range(2))
    assert why(idle, held)["facts"].items() >= {"limit_of": "key", "key": "acme"}.items()
    assert "the key 'acme'" in why(idle, held)["detail"]


def test_an_input_that_makes_no_key_is_refused(idle: Deployment):
    workflow_id = idle.create(limited(1, key="{{ input.customer }}"))
    answer = idle.client.post(f"/api/v1/workflows/{workflow_id}/execute", json={"input": {}})
    assert answer.status_code == 422
    assert "makes no rate limit key" in answer.json["errors"][0]["message"]


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"limit": 0, "per": "1m"}, "rate_limit.limit"),
        ({"limit": 1.5, "per": "1m"}, "rate_limit.limit"),
        ({"limit": True, "per": "1m"}, "rate_limit.limit"),
        ({"per": "1m"}, "rate_limit.limit"),
        ({"limit": 1}, "rate_limit.per"),
        ({"limit": 1, "per": "1ms"}, "rate_limit.per"),
        ({"limit": 1, "per": "soon"}, "rate_limit.per"),
        ({"limit": 1, "per": "1m", "key": "{{ steps.a.output }}"}, "rate_limit.key"),
        ({"limit": 1, "per": "1m", "kye": "x"}, "rate_limit.kye"),
        ("10 per minute", "rate_limit"),
    ],
)
def test_what_is_no_rate_limit_is_refused_with_its_path(idle: Deployment, wrong: Any, path: str):
    body = {"name": "w", "definition": {**SINGLE, "rate_limit": wrong}}
    answer = idle.client.post("/api/v1/workflows", json=body)
    assert answer.status_code == 422
    assert [error["path"].removeprefix("definition.") for error in answer.json["errors"]] == [path]


def test_many_that_start_at_once_never_exceed_the_limit(idle: Deployment):
    workflow_id = idle.create(limited(7))
    barrier = threading.Barrier(20)

    def start() -> None:
        client = idle.client.application.test_client()
        barrier.wait()
        for _ in range(3):
            headers = {"Authorization": f"Bearer {KEY}"}
            assert client.post(f"/api/v1/workflows/{workflow_id}/execute", json={}, headers=headers).status_code == 202

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(idle.sql("SELECT FROM executions")) == 60
    assert len(admitted(idle)) == 7


# --- of a connection -----------------------------------------------------------------------------------------


RATE = Rate("connections.x", 2, 3600.0)


def in_line(deployment: Deployment, rate: Rate) -> str:
    """A step that has come to the line and rests there."""
    execution_id = deployment.execute(deployment.create(SINGLE))
    ((id,),) = deployment.sql("SELECT id::text FROM step_executions WHERE execution_id = %(id)s", id=execution_id)
    assert not rate_line.take(deployment.store, rate, id)
    deployment.sql("UPDATE step_executions SET status = 'waiting', awaits = 'rate' WHERE id = %(id)s", id=id)
    return id


def gone_for_good(deployment: Deployment, id: str) -> None:
    sql = "UPDATE step_executions SET status = 'cancelled', finished_at = now(), awaits = NULL WHERE id = %(id)s"
    deployment.sql(sql, id=id)


def test_a_line_moves_on_in_its_order_and_without_those_that_are_gone(idle: Deployment):
    idle.sql("DELETE FROM rate_line")
    for _ in range(2):
        assert rate_line.take(idle.store, RATE, "00000000-0000-7000-8000-000000000000")
    first, gone, third, fourth = (in_line(idle, RATE) for _ in range(4))
    gone_for_good(idle, gone)
    assert let_in(idle) == []
    age_uses(idle, 3600)
    assert not rate_line.take(idle.store, RATE, fourth)  # two are before it
    with idle.store.single() as connection:
        woken = {ring.execution_id for ring in rate_line.wake(connection)}
    sql = "SELECT execution_id::text FROM step_executions WHERE id = ANY(%(ids)s::uuid[])"
    expected = idle.sql(sql, ids=[first, third])
    assert woken == {id for (id,) in expected}
    newcomer = "00000000-0000-7000-8000-000000000001"
    assert not rate_line.take(idle.store, RATE, newcomer, joins=False)
    assert rate_line.take(idle.store, RATE, third)
    assert rate_line.take(idle.store, RATE, first)
    assert not rate_line.take(idle.store, RATE, fourth)


def test_those_whose_worker_does_not_come_keep_nobody_waiting(idle: Deployment):
    idle.sql("DELETE FROM rate_line")
    one = Rate("connections.y", 1, 3600.0)
    assert rate_line.take(idle.store, one, "00000000-0000-7000-8000-000000000000")
    in_line(idle, one)
    age_uses(idle, 3600)
    with idle.store.single() as connection:
        assert len(rate_line.wake(connection)) == 1
        assert rate_line.wake(connection) == []
    newcomer = "00000000-0000-7000-8000-000000000001"
    assert not rate_line.take(idle.store, one, newcomer, joins=False)
    idle.sql("UPDATE step_executions SET rung_at = now() - interval '1 minute' WHERE status = 'queued'")
    assert rate_line.take(idle.store, one, newcomer, joins=False)


def test_what_has_ended_leaves_the_line(idle: Deployment):
    idle.sql("DELETE FROM rate_line")
    for _ in range(2):
        assert rate_line.take(idle.store, RATE, "00000000-0000-7000-8000-000000000000")
    waiting = in_line(idle, RATE)
    ended = in_line(idle, RATE)
    gone_for_good(idle, ended)
    with idle.store.single() as connection:
        rate_line.purge(connection)
    assert idle.sql("SELECT step_execution_id::text FROM rate_line") == [(waiting,)]


def test_a_setting_is_a_rate_limit_or_is_refused():
    from orchestrator.config import environment_of, load_settings
    from orchestrator.errors import ConfigurationError

    environment = {
        "ORCHESTRATOR_CONNECTIONS": '{"main": {"url": "sqlite://", "rate_limit": {"limit": 5, "per": "1m"}}}',
        "ORCHESTRATOR_HOSTS": '{"api.example.com": {"rate_limit": {"limit": 2, "per": 1}}}',
        "ORCHESTRATOR_LLM_RATE_LIMIT": '{"limit": 3, "per": "10s"}',
    }
    settings = load_settings(environment)
    assert settings.connections["main"].rate_limit == RateLimit(5, 60.0)
    assert settings.hosts["api.example.com"].rate_limit == RateLimit(2, 1.0)
    assert settings.llm.rate_limit == RateLimit(3, 10.0)
    again = load_settings(environment_of(settings))
    assert (again.connections, again.hosts, again.llm) == (settings.connections, settings.hosts, settings.llm)
    for wrong in ('{"limit": 0, "per": 1}', '{"limit": 1}', '"10/m"', '{"limit": 1, "per": "2d"}'):
        with pytest.raises(ConfigurationError, match=r"ORCHESTRATOR_HOSTS\.a\.rate_limit: "):
            load_settings({"ORCHESTRATOR_HOSTS": f'{{"a": {{"rate_limit": {wrong}}}}}'})


# --- with workers --------------------------------------------------------------------------------------------


class _OtherSide(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.calls = 0
        self.may_answer = threading.Event()

    def step(self, host: str = "127.0.0.1", path: str = "/", **more: Any) -> dict[str, Any]:
        return {"id": "a", "type": "http", "config": {"url": f"http://{host}:{self.server_port}{path}"}, **more}


class _Answer(BaseHTTPRequestHandler):
    server: _OtherSide

    def do_GET(self) -> None:
        self.server.calls += 1
        if self.path == "/later":
            self.server.may_answer.wait(60)
        with suppress(OSError):  # whoever asked may be dead
            self.send_response(503 if self.path == "/fails" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_side() -> Iterator[_OtherSide]:
    server = _OtherSide()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    thread.join()
    server.server_close()


_MOST, _PER = 4, 1.0
MICROSECONDS = "(extract(epoch FROM {}) * 1000000)::bigint"
_HOSTS = {"127.0.0.1": HostSettings(RateLimit(_MOST, _PER)), "localhost": HostSettings(RateLimit(1, 3600.0))}


@contextmanager
def limited_hosts(folder: Path) -> Iterator[Deployment]:
    with deployed(folder, adjusted=lambda settings: replace(settings, hosts=_HOSTS)) as deployment:
        # Uses are forgotten when their window is over.
        deployment.sql("CREATE TABLE seen AS SELECT * FROM rate_uses")
        deployment.sql(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO seen SELECT new.*; RETURN new; END $$"
        )
        deployment.sql("CREATE TRIGGER see AFTER INSERT ON rate_uses FOR EACH ROW EXECUTE FUNCTION see()")
        yield deployment


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with limited_hosts(tmp_path_factory.mktemp("working")) as deployment:
        deployment.start_worker("control,cpu,io", concurrency=2)
        deployment.start_worker("io", pool="threads", concurrency=10)
        yield deployment


def seen(deployment: Deployment, key: str) -> list[int]:
    rows = deployment.sql(f"SELECT {MICROSECONDS.format('used_at')} FROM seen WHERE key = %(key)s", key=key)
    return [moment for (moment,) in rows]


def test_no_window_has_more_beginnings_than_the_limit_while_workers_work(working: Deployment):
    workflow_id = working.create(limited(5, "500ms"))
    ids = [working.execute(workflow_id) for _ in range(23)]
    for execution_id in ids:
        assert working.ended(execution_id)["status"] == "completed"
    rows = working.sql(
        f"SELECT {MICROSECONDS.format('admitted_at')} FROM executions WHERE workflow_id = %(id)s", id=workflow_id
    )
    moments = [moment for (moment,) in rows]
    assert most_in_any_window(moments, 0.5) <= 5
    assert sorted(moments) == sorted(seen(working, f"workflow:{workflow_id}"))


def test_executions_that_steps_wait_for_are_limited_like_any_others(working: Deployment):
    child = working.create(limited(2, "500ms"), "child")
    parent = {"id": "child", "type": "workflow", "config": {"workflow": child}}
    workflow_id = working.create(workflow(parent), "parent")
    ids = [working.execute(workflow_id) for _ in range(5)]
    for execution_id in ids:
        assert working.ended(execution_id)["status"] == "completed"
    moments = seen(working, f"workflow:{child}")
    assert len(moments) == 5
    assert most_in_any_window(moments, 0.5) <= 2


def test_a_connection_is_used_as_often_as_its_limit_says_by_all_workers_together(
    working: Deployment, other_side: _OtherSide
):
    workflow_id = working.create(workflow(other_side.step()))
    ids = [working.execute(workflow_id) for _ in range(18)]
    for execution_id in ids:
        assert working.ended(execution_id)["status"] == "completed"
    assert other_side.calls == 18
    moments = seen(working, "hosts.127.0.0.1")
    assert len(moments) == 18
    assert most_in_any_window(moments, _PER) <= _MOST
    attempts = working.sql(
        "SELECT DISTINCT attempt FROM step_executions s JOIN executions e ON e.id = s.execution_id "
        "WHERE e.workflow_id = %(id)s",
        id=workflow_id,
    )
    assert attempts == [(1,)]  # resting is not trying
    assert working.sql("SELECT FROM rate_line") == []


def test_each_attempt_takes_a_use(working: Deployment, other_side: _OtherSide):
    before = len(seen(working, "hosts.127.0.0.1"))
    retry = {"max_attempts": 3, "initial_delay": 0, "max_delay": 0}
    ended = working.run(workflow(other_side.step(path="/fails", retry_policy=retry)))
    assert ended["status"] == "failed"
    assert other_side.calls == 3
    assert len(seen(working, "hosts.127.0.0.1")) == before + 3


def test_a_step_that_rests_for_its_connection_holds_no_slot_and_says_why(working: Deployment, other_side: _OtherSide):
    workflow_id = working.create(workflow(other_side.step("localhost", timeout="1h")))
    assert working.ended(working.execute(workflow_id))["status"] == "completed"
    waiting = working.execute(workflow_id)
    wait_until(lambda: working.statuses(waiting) == {"a": "waiting"}, what="the step to rest")
    reason = why(working, waiting)
    assert reason["reason"] == "rate_limited"
    expected = {"limit_of": "connection", "key": "hosts.localhost", "limit": 1, "per": 3600.0, "ahead": 0}
    assert reason["facts"].items() >= expected.items()
    assert reason["facts"]["step"]["path"] == "a"
    ((holds,),) = working.sql(
        "SELECT worker_id IS NOT NULL AND status = 'running' FROM step_executions WHERE execution_id = %(id)s",
        id=waiting,
    )
    assert not holds
    # Its own time does not pass meanwhile.
    assert working.sql("SELECT deadline FROM step_executions WHERE execution_id = %(id)s", id=waiting) == [(None,)]
    age_uses(working, 3600)
    assert working.ended(waiting)["status"] == "completed"


def test_a_trial_takes_a_use_and_does_not_wait_for_one(working: Deployment, other_side: _OtherSide):
    age_uses(working, 3600)
    body = {"type": "http", "config": other_side.step("localhost")["config"]}
    first, second = (working.client.post("/api/v1/steps/test", json=body).json for _ in range(2))
    assert (first["status"], second["status"]) == ("completed", "waiting")
    assert second["waits_for"] == {"until": None, "awaits": "rate"}
    assert working.sql("SELECT FROM rate_line") == []


def test_the_uses_of_a_worker_that_died_come_free_with_their_time(tmp_path: Path, other_side: _OtherSide):
    with limited_hosts(tmp_path) as own:
        doomed = own.start_worker("control,cpu,io", pool="threads", concurrency=10)
        workflow_id = own.create(workflow(other_side.step(path="/later")))
        ids = [own.execute(workflow_id) for _ in range(_MOST + 2)]
        wait_until(lambda: other_side.calls >= _MOST, what="as many calls as the limit allows")
        own.kill_worker(doomed)
        other_side.may_answer.set()
        own.start_worker("control,cpu,io", pool="threads", concurrency=10)
        for execution_id in ids:
            assert own.ended(execution_id)["status"] == "completed"
        assert most_in_any_window(seen(own, "hosts.127.0.0.1"), _PER) <= _MOST
        wait_until(lambda: own.sql("SELECT FROM rate_uses") == [], what="the uses to be forgotten")
        assert own.sql("SELECT FROM rate_line") == []
