"""A worker that goes on in another execution: into one that its step started, and back to the step that waited."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployment import Deployment, wait_until
from test_control_flow import child_of
from test_execution import step, workflow
from test_inline_bodies import OneWorker, a_set

from workers import runner
from workers.broker import Broker


@pytest.fixture
def worker(servers: Deployment) -> Iterator[OneWorker]:
    one = OneWorker(servers)
    yield one
    one.process.close()


def messages(servers: Deployment, *queues: str) -> int:
    """Those that wait at the broker, in the queues that every deployment has or in others."""
    assert servers.client  # points the app at these servers
    broker = Broker()
    try:
        state = broker.state(queues or ("control", "cpu", "io"))
    finally:
        broker.close()
    return sum(sum(by_priority) for by_priority in state.messages.values())


def test_a_worker_runs_a_child_and_comes_back_without_a_message(worker: OneWorker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "ONWARD_PATIENCE", 60.0)
    servers = worker.servers
    grandchild = servers.create(workflow(a_set("x", v="{{ input.n + 1 }}")))
    child = servers.create(workflow(child_of(grandchild, input={"n": "{{ input.n + 1 }}"})))
    before = messages(servers)
    execution_id = servers.execute(
        servers.create(workflow(child_of(child, input={"n": 1}), step("after", needs="child", value=1)))
    )
    assert messages(servers) == before + 1
    worker.process.run_steps(execution_id, ["child"], ())
    execution = servers.execution(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    inner = execution["step_executions"][0]["output"]["output"]["child"]
    assert inner["output"] == {"x": {"v": 3}}
    assert messages(servers) == before + 1


def test_a_child_that_the_worker_does_not_come_to_soon_is_rung_for(worker: OneWorker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "ONWARD_PATIENCE", 0.0)
    servers = worker.servers
    child = servers.create(workflow(a_set("x", v=1)))
    naps = step("busy", "nap", seconds=0.3)
    execution_id = servers.execute(servers.create(workflow(child_of(child, wait=False), naps)))
    before = messages(servers)
    worker.process.run_steps(execution_id, ["child"], ())
    wait_until(lambda: messages(servers) > before, what="the child's message")


def test_a_child_for_another_queue_is_rung_for(worker: OneWorker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "ONWARD_PATIENCE", 60.0)
    servers = worker.servers
    child = servers.create(workflow({**step("x"), "queue": "gpu"}))
    execution_id = servers.execute(servers.create(workflow(child_of(child))))
    worker.process.run_steps(execution_id, ["child"], ())
    wait_until(lambda: messages(servers, "gpu") > 0, what="the child's message")
    assert servers.statuses(execution_id) == {"child": "waiting"}


def test_what_one_success_lets_begin_does_not_wait_for_what_the_worker_has_beside_it(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner, "FORK_PATIENCE", 60.0)
    join = {**step("join", needs="left right"), "trigger_rule": "one_success"}
    left, right = step("left", needs="first"), step("right", needs="first")
    execution_id = worker.start(workflow(step("first"), left, right, join))
    worker.process.run_steps(execution_id, ["first"], ())
    rows = worker.servers.execution(execution_id)["step_executions"]
    assert [row["step_id"] for row in sorted(rows, key=lambda row: row["start_time"])].index("join") == 2


def test_a_worker_has_a_few_outputs_at_hand_and_reads_the_others(worker: OneWorker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "MOST_SEEN", 2)
    chain = [step("s0", value=7), *(step(f"s{number}", needs=f"s{number - 1}") for number in range(1, 6))]
    last = step("last", needs="s5", value="{{ steps.s0.output.result }}")
    execution_id = worker.start(workflow(*chain, last))
    lane = runner.Lane(worker.process, execution_id, ["s0"], frozenset())
    lane.claim_and_go()
    assert worker.servers.execution(execution_id)["output"] == {"last": {"result": 7}}
    assert len(lane.seen) <= 2
