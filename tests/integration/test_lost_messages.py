"""Messages that the broker lost, and those that only wait: what reconcile makes of the lists of a real broker."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from deployment import Deployment, deployed
from kombu.exceptions import OperationalError

from orchestrator.engine import reconcile
from orchestrator.engine.plan import Message, Plan
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.plugins import load_catalogue
from orchestrator.store import new_id
from workers.broker import Broker
from workers.canvas import dispatch, look, trial
from workers.dispatch import send_all
from workers.transport import Connection

LONG_AGO = 600.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """No worker: what is sent stays in its list."""
    with deployed(tmp_path_factory.mktemp("messages")) as deployment:
        yield deployment


@pytest.fixture
def queues(stack: Deployment) -> Iterator[Queues]:
    queues = Queues(stack)
    queues.client.flushall()
    yield queues
    stack.sql("DELETE FROM executions")
    queues.client.close()


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of more than eight messages is a long one."""
    monkeypatch.setattr(reconcile, "_FIRST_MESSAGES", 8)
    monkeypatch.setattr(reconcile, "_FIRST_STEPS", 4)


class Queues:
    """Executions of one step each on the queue `cpu`, their messages, and a reconciler that looks at both."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        _ = deployment.client  # points the app at these servers
        self.client = redis.Redis.from_url(deployment.settings.broker.url)
        self.rung: list[tuple[str, str]] = []
        """(execution id, path) of what reconcile rang for."""
        self.reconciler = Reconciler(
            deployment.store,
            Programs(load_catalogue("sample_steps"), deployment.settings),
            deployment.settings,
            Broker(),
            self._send,
            holder=new_id(),
            host="here",
        )

    def _send(self, plan: Plan) -> None:
        self.rung += [(plan.execution_id, start) for message, *_ in plan.branches for start in message.starts]
        dispatch(plan)

    def look(self, times: int = 2) -> list[str]:
        """The executions that were rung for in so many looks."""
        self.rung.clear()
        for _ in range(times):
            self.reconciler.ring_lost_messages()
        return [execution_id for execution_id, _ in self.rung]

    def backlog(self, count: int, *, ago: float = LONG_AGO, **more: Any) -> list[str]:
        """Executions that were rung for one after the other, the first of them `ago` seconds ago."""
        workflow_id = self.deployment.create({"steps": [{"id": "a", "type": "noop"}]})
        ids = [self.deployment.execute(workflow_id, **more) for _ in range(count)]
        for at, execution_id in enumerate(ids):
            self.rung_ago(execution_id, ago - at / 100)
        return ids

    def rung_ago(self, execution_id: str, seconds: float) -> None:
        self.deployment.sql(
            "UPDATE step_executions SET rung_at = now() - %(seconds)s * interval '1 second' "
            "WHERE execution_id = %(id)s::uuid",
            seconds=seconds,
            id=execution_id,
        )

    def messages(self) -> list[tuple[str, bytes, str]]:
        """(list, message, execution id), the oldest of each list first."""
        found = []
        for key in sorted(self.client.scan_iter(_type="list")):
            for message in reversed(self.client.lrange(key, 0, -1)):
                (execution_id, *_), _, _ = json.loads(b64decode(json.loads(message)["body"]))
                found.append((key.decode(), message, execution_id))
        return found

    def lose(self, *execution_ids: str) -> None:
        for key, message, execution_id in self.messages():
            if execution_id in execution_ids:
                assert self.client.lrem(key, 1, message) == 1


def test_a_step_whose_message_was_lost_is_rung_for_again_once(queues: Queues):
    lost, kept = queues.backlog(2)
    queues.lose(lost)
    assert queues.look() == [lost]
    assert queues.look() == []
    assert sorted(one for *_, one in queues.messages()) == sorted([lost, kept])


def test_a_step_that_is_claimed_by_the_second_look_was_only_on_its_way(queues: Queues):
    (execution_id,) = queues.backlog(1)
    queues.lose(execution_id)  # a worker has taken it
    assert queues.look(times=1) == []
    assert queues.deployment.claim(execution_id, "a") is not None
    assert queues.look() == []


def test_a_step_that_was_rung_for_between_two_looks_has_its_time_anew(queues: Queues):
    (execution_id,) = queues.backlog(1)
    queues.lose(execution_id)
    assert queues.look(times=1) == []
    queues.rung_ago(execution_id, LONG_AGO / 2)  # by somebody else
    assert queues.look(times=1) == []
    assert queues.look(times=1) == [execution_id]


def test_a_message_that_may_not_have_been_sent_yet_is_not_lost(queues: Queues, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconcile, "_ON_ITS_WAY", LONG_AGO)
    (execution_id,) = queues.backlog(1, ago=LONG_AGO / 2)
    queues.lose(execution_id)
    assert queues.look() == []


@pytest.mark.usefixtures("short_looks")
def test_a_long_backlog_is_not_taken_for_lost_messages(queues: Queues):
    queues.backlog(40)
    assert queues.look(times=4) == []


@pytest.mark.usefixtures("short_looks")
def test_a_message_that_is_out_of_order_is_found_where_it_is(queues: Queues):
    """A worker has handed it back: the step waits for as long as before, the message is the newest."""
    first, *_ = queues.backlog(40)
    queues.lose(first)
    dispatch(Plan(first, 5, ((Message("cpu", ("a",)),),)))
    assert queues.look(times=4) == []


@pytest.mark.usefixtures("short_looks")
@pytest.mark.parametrize("which", [0, 3])
def test_a_message_that_was_lost_out_of_a_long_backlog_is_missed(queues: Queues, which: int):
    ids = queues.backlog(40)
    queues.lose(ids[which])
    assert queues.look() == [ids[which]]


@pytest.mark.usefixtures("short_looks")
def test_a_message_that_was_lost_in_the_middle_is_missed_when_its_turn_is_near(queues: Queues):
    ids = queues.backlog(40)
    queues.lose(ids[20])
    assert queues.look() == []
    queues.lose(*ids[:18])  # they are taken, and claimed
    for execution_id in ids[:18]:
        assert queues.deployment.claim(execution_id, "a") is not None
    assert queues.look() == [ids[20]]


def test_each_priority_has_a_list_of_its_own(queues: Queues):
    high, low = queues.backlog(2, priority=9), queues.backlog(2, priority=1)
    queues.lose(high[0], low[1])
    assert queues.look() == [high[0], low[1]]


def test_a_message_of_several_steps_is_for_each_of_them(queues: Queues):
    roots = [{"id": f"r{n}", "type": "noop"} for n in range(20)]
    join = {"id": "join", "type": "noop", "depends_on": [root["id"] for root in roots]}
    execution_id = queues.deployment.execute(queues.deployment.create({"steps": [*roots, join]}))
    assert len(queues.messages()) < 20
    queues.rung_ago(execution_id, LONG_AGO)
    assert queues.look() == []
    queues.client.flushall()
    assert sorted(queues.look()) == [execution_id] * 20


def test_a_message_with_a_priority_of_its_steps_own_is_found(queues: Queues):
    urgent = {"id": "a", "type": "noop", "priority": 8}
    execution_id = queues.deployment.execute(queues.deployment.create({"steps": [urgent]}))
    queues.rung_ago(execution_id, LONG_AGO)
    assert queues.look() == []


def test_messages_of_another_kind_are_for_no_step(queues: Queues):
    (execution_id,) = queues.backlog(1)
    queues.lose(execution_id)
    look("a trigger").apply_async()
    trial("a test", "cpu").apply_async()
    assert queues.look() == [execution_id]


def test_a_broker_that_lost_its_data_is_told_everything_again_once(queues: Queues):
    ids = queues.backlog(30)
    queues.client.flushall()
    assert sorted(queues.look()) == sorted(ids)
    assert queues.look(times=3) == []
    assert len(queues.messages()) == 30


def test_more_than_is_sent_at_a_time_is_sent_with_the_next_looks(queues: Queues, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconcile, "_RUNG", 8)
    ids = queues.backlog(20)
    queues.client.flushall()
    assert queues.look() == ids[:8]
    assert queues.look(times=1) == ids[8:16]
    assert queues.look(times=1) == ids[16:]


@pytest.mark.parametrize("how", ["paused", "not admitted"])
def test_what_may_not_run_is_not_rung_for(queues: Queues, how: str):
    (execution_id,) = queues.backlog(1)
    change = {"paused": "status = 'paused'", "not admitted": "admitted_at = NULL"}[how]
    queues.deployment.sql(f"UPDATE executions SET {change} WHERE id = %(id)s::uuid", id=execution_id)
    queues.client.flushall()
    assert queues.look() == []


def test_a_look_that_finds_the_broker_away_is_repeated_with_the_next_tick(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
):
    ids = queues.backlog(2)
    with monkeypatch.context() as patched:
        patched.setattr(queues.reconciler.broker, "_client", redis.Redis(port=1))
        queues.reconciler.tick(0.0)
    queues.client.flushall()
    queues.reconciler.tick(0.1)
    queues.reconciler.tick(1.7)
    assert sorted(execution_id for execution_id, _ in queues.rung) == sorted(ids)


@pytest.mark.parametrize("with_many", [False, True])
def test_what_lost_its_worker_goes_before_all_that_waits_at_its_priority(queues: Queues, with_many: bool):
    """Also in one round trip with others."""
    lost, *others = queues.backlog(4, priority=5)
    urgent = queues.backlog(2, priority=9)
    queues.lose(lost)  # a worker that has no lease any more has taken it
    assert queues.deployment.claim(lost, "a") is not None
    plans: list[Plan] = []
    queues.reconciler.send = plans.append if with_many else dispatch
    queues.reconciler.recover_orphans()
    send_all(plans)
    assert [one for *_, one in queues.messages()] == [*urgent, lost, *others]


def test_a_worker_looks_for_its_broker_steadily():
    pauses: list[float] = []
    connection = Connection("redis://127.0.0.1:1/0")
    with pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), max_retries=3)
    assert pauses == [1.0, 1.0, 1.0]
