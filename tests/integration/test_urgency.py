"""When worker slots are short, what is urgent is done first: at the broker, and between the steps of what runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment, deployed, wait_until
from test_execution import step, workflow


@pytest.fixture(scope="module")
def one_slot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Places for all, and a worker that performs one step at a time."""
    with deployed(tmp_path_factory.mktemp("urgency")) as deployment:
        deployment.start_worker("control,cpu,io", concurrency=1)
        yield deployment


def held(deployment: Deployment, gate: Path, priority: int) -> str:
    """An execution that has the slot until the gate opens."""
    definition = workflow(step("held", "gate", file=str(gate)), step("after", needs="held"))
    execution_id = deployment.execute(deployment.create(definition), priority=priority)
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "running", what="the step at the gate")
    return execution_id


def order(deployment: Deployment, ids: list[str]) -> list[str]:
    """The executions as they began."""
    for execution_id in ids:
        assert deployment.ended(execution_id)["status"] == "completed"
    rows = deployment.sql(
        "SELECT id::text FROM executions WHERE id = ANY(%(ids)s::uuid[]) ORDER BY started_at", ids=ids
    )
    return [id for (id,) in rows]


def test_of_what_waits_for_a_slot_the_most_urgent_begins_first_whatever_its_queue(one_slot: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    held(one_slot, gate, priority=5)
    cpu, io = (one_slot.create(workflow(step("a", kind))) for kind in ("noop", "io_noop"))
    ids = {priority: one_slot.execute((cpu, io)[priority % 2], priority=priority) for priority in (0, 3, 5, 2, 9, 8, 1)}
    wait_until(lambda: waiting(one_slot) == len(ids), what="the messages")
    gate.touch()
    assert order(one_slot, list(ids.values())) == [ids[priority] for priority in sorted(ids, reverse=True)]


def waiting(deployment: Deployment) -> int:
    """Messages at the broker."""
    queues = deployment.client.get("/api/v1/scheduler/status").json["queues"]
    return sum(queue["depth"] for queue in queues)


def test_a_long_run_gives_way_between_two_of_its_steps_to_what_is_more_urgent(one_slot: Deployment):
    """It goes on without a message for five seconds at most (INLINE_BUDGET in workers/runner.py)."""
    naps = [step(f"s{number}", "nap", needs=f"s{number - 1}" * (number > 0), seconds=0.2) for number in range(300)]
    long = one_slot.execute(one_slot.create(workflow(*naps)), priority=1)
    wait_until(lambda: one_slot.statuses(long)["s1"] == "running", what="the long run")
    urgent = one_slot.execute(one_slot.create(workflow(step("a"))), priority=9)
    assert one_slot.ended(urgent)["status"] == "completed"
    assert one_slot.execution(long)["status"] == "running"
    one_slot.client.post(f"/api/v1/executions/{long}/cancel")
