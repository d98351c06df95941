"""What runs at an execution's end, when the messages for it are lost or whoever was to go on dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployment import Deployment
from test_engine_races import Hand
from test_execution import step, workflow
from test_store import Bench, end_everything

from orchestrator.engine.advance import Advance, End, advance
from orchestrator.lifecycle import StepStatus
from orchestrator.store.records import Result

FAILED = Result(error_kind="asked", error_message="asked to fail")


@pytest.fixture
def bench(servers: Deployment) -> Iterator[Bench]:
    end_everything(servers)
    servers.sql("DELETE FROM duties")
    _ = servers.client  # points the app at these servers
    yield Bench(servers)
    end_everything(servers)


@pytest.fixture
def hand(servers: Deployment) -> Hand:
    return Hand(servers)


def with_endings(servers: Deployment) -> str:
    undone = {**step("a"), "compensate": {"type": "noop"}}
    definition = workflow(undone, step("b", needs="a"), **{"on_failure": [step("alarm")], "finally": [step("tidy")]})
    return servers.execute(servers.create(definition))


def ended(hand: Hand, execution_id: str, path: str, status: StepStatus = StepStatus.COMPLETED) -> Advance:
    """A worker takes a step, comes to its end, and dies before it sends what follows."""
    result = FAILED if status is StepStatus.FAILED else Result(None, {})
    end = End(path, hand.claim(execution_id, path), result, status)
    return advance(hand.store, hand.program(execution_id), execution_id, end)


def rung_again(servers: Deployment, bench: Bench, execution_id: str) -> list[tuple[str, ...]]:
    servers.sql("UPDATE step_executions SET rung_at = rung_at - interval '1 minute' WHERE status = 'queued'")
    bench.sent.clear()
    for _ in range(2):  # it is lost that is missing twice
        bench.reconciler.ring_lost_messages()
    return [starts for id, _, starts in bench.rung if id == execution_id]


def test_each_part_of_an_end_whose_message_was_lost_is_rung_for_again(servers: Deployment, hand: Hand, bench: Bench):
    execution_id = with_endings(servers)
    ended(hand, execution_id, "a")
    failed = ended(hand, execution_id, "b", StepStatus.FAILED)
    for path in ("compensate.a", "on_failure.alarm", "finally.tidy"):
        assert (failed.ended, servers.execution(execution_id)["status"]) == (False, "running")
        assert rung_again(servers, bench, execution_id) == [(path,)]
        failed = ended(hand, execution_id, path)
    assert failed.ended
    execution = servers.execution(execution_id)
    assert (execution["status"], execution["error_message"]) == ("failed", "step b (noop) failed: asked to fail")


def test_an_end_that_nobody_went_on_with_is_gone_on_with_part_by_part(servers: Deployment, hand: Hand, bench: Bench):
    execution_id = with_endings(servers)
    ended(hand, execution_id, "a")
    died_over(servers, hand, execution_id, "b", StepStatus.FAILED)
    for path in ("compensate.a", "on_failure.alarm", "finally.tidy"):
        bench.sent.clear()
        bench.reconciler.restart_stalled()
        assert [starts for _, _, starts in bench.rung] == [(path,)]
        died_over(servers, hand, execution_id, path)
    bench.reconciler.restart_stalled()
    execution = servers.execution(execution_id)
    assert (execution["status"], execution["error_message"]) == ("failed", "step b (noop) failed: asked to fail")


def died_over(
    servers: Deployment, hand: Hand, execution_id: str, path: str, status: StepStatus = StepStatus.COMPLETED
) -> None:
    """A worker records the end of a step, and dies before the look at what follows."""
    hand.claim(execution_id, path)
    servers.sql(
        "UPDATE step_executions SET status = %(status)s, finished_at = now(), claim_token = NULL, worker_id = NULL, "
        "error_kind = %(kind)s, error_message = %(message)s WHERE execution_id = %(id)s::uuid AND path = %(path)s",
        id=execution_id, path=path, status=status, kind=FAILED.error_kind, message=FAILED.error_message,
    )  # fmt: skip
