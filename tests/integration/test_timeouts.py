"""A step's `timeout` bounds an attempt from its first claim to its end, however long of that it rests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployment import SOON, Deployment, wait_until
from test_control import call
from test_control_flow import approval, child_of, completed, loop, parallel, send, signal, waiting_step
from test_execution import rows_of, states_of, step, workflow
from test_store import at_rest as at_rest

from orchestrator.store import records, recovery
from orchestrator.store.claims import GRACE, Claim
from orchestrator.store.records import Result

NO_RETRY = {"max_attempts": 1}
ONCE_MORE = {"max_attempts": 2, "initial_delay": "10ms"}


def limited(resting: dict[str, Any], timeout: str = "300ms", **more: Any) -> dict[str, Any]:
    return {**resting, "timeout": timeout, "retry_policy": NO_RETRY, **more}


def wait(id: str, duration: str = "1h") -> dict[str, Any]:
    return {"id": id, "type": "wait", "config": {"duration": duration}}


def decide(deployment: Deployment, execution_id: str, path: str) -> None:
    id = waiting_step(deployment, execution_id, path)
    assert deployment.client.post(f"/api/v1/step-executions/{id}/decision", json={"approved": True}).status_code == 202


def pass_the_time_of(deployment: Deployment, execution_id: str, path: str) -> None:
    """As if the step's time had been up for as long as a reconciler takes to see to it."""
    moved = deployment.sql(
        "UPDATE step_executions SET deadline = now() WHERE execution_id = %(id)s::uuid AND path = %(path)s "
        "AND deadline IS NOT NULL RETURNING 1",
        id=execution_id,
        path=path,
    )
    assert moved


@pytest.mark.parametrize(
    "resting",
    [
        wait("x"),
        {**approval(), "id": "x"},
        signal("x", name="never"),
        loop("x", wait("inner"), items=[1, 2]),
        loop("x", wait("inner"), items=[1, 2], concurrency=1),
        parallel("x", left=[wait("inner")], right=[step("other")]),
    ],
    ids=["wait", "approval", "signal", "loop", "limited loop", "parallel"],
)
def test_an_attempt_that_rests_for_too_long_fails(deployment: Deployment, resting: dict[str, Any]):
    execution = deployment.run(workflow(limited(resting), step("after", needs="x")))
    row = rows_of(execution)["x"]
    assert (execution["status"], row["status"], row["error_kind"]) == ("failed", "failed", "timeout")
    assert states_of(execution)["after"] == "skipped"
    assert row["duration"] >= 0.3
    assert {row["status"] for row in execution["step_executions"] if "inner" in row["path"]} <= {"cancelled"}


def test_what_stands_in_the_bodies_of_bodies_is_cancelled_too(deployment: Deployment):
    nested = limited(loop("outer", loop("middle", approval(), items=[1]), items=[1]), "1h")
    execution_id = deployment.execute(deployment.create(workflow(nested)))
    waiting_step(deployment, execution_id, "outer[0].middle[0].ok")
    pass_the_time_of(deployment, execution_id, "outer")
    assert states_of(deployment.ended(execution_id)) == {
        "outer": "failed",
        "outer[0].middle": "cancelled",
        "outer[0].middle[0].ok": "cancelled",
    }


def test_dependents_go_on_after_a_timeout_that_is_tolerated(deployment: Deployment):
    definition = workflow(
        limited(loop("x", wait("inner"), items=[1]), on_error="continue"),
        step("after", needs="x", value="{{ steps.x.error.kind }}"),
        outputs={"kind": "{{ steps.after.output.result }}"},
    )
    assert completed(deployment.run(definition)) == {"kind": "timeout"}


def test_a_child_that_takes_too_long_is_cancelled_and_the_next_attempt_starts_another(deployment: Deployment):
    child = deployment.create(workflow(wait("long")))
    parent = {**child_of(child), "timeout": "1h", "retry_policy": ONCE_MORE}
    execution_id = deployment.execute(deployment.create(workflow(parent)))

    def children() -> list[Any]:
        return deployment.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=child)

    def the_time_of_its_wait_passes() -> None:
        waiting_step(deployment, execution_id, parent["id"])
        pass_the_time_of(deployment, execution_id, parent["id"])

    wait_until(children, what="a child")
    the_time_of_its_wait_passes()
    wait_until(lambda: len(children()) == 2, what="another child")
    the_time_of_its_wait_passes()
    execution = deployment.ended(execution_id)
    assert execution["status"] == "failed"
    assert rows_of(execution)[parent["id"]]["attempt"] == 2
    assert {deployment.ended(id)["status"] for (id,) in children()} == {"cancelled"}


def test_the_next_attempt_of_a_loop_keeps_what_completed_and_does_the_rest(deployment: Deployment, tmp_path: Path):
    file = tmp_path / "marks"
    rounds = loop(
        "each",
        step("first", "mark", file=str(file)),
        {**approval(), "id": "ok", "depends_on": ["first"]},
        step("last", needs="ok", value="{{ loop.item }}"),
        items=[10, 20, 30],
    )
    definition = workflow({**rounds, "timeout": "1h", "retry_policy": ONCE_MORE})
    execution_id = deployment.execute(deployment.create(definition))
    decide(deployment, execution_id, "each[1].ok")
    wait_until(lambda: deployment.statuses(execution_id).get("each[1].last") == "completed", what="the round")
    for index in (0, 2):
        waiting_step(deployment, execution_id, f"each[{index}].ok")
    pass_the_time_of(deployment, execution_id, "each")
    wait_until(lambda: rows_of(deployment.execution(execution_id))["each"]["attempt"] == 2, what="the second attempt")
    for index in (0, 2):
        decide(deployment, execution_id, f"each[{index}].ok")
    output = completed(deployment.ended(execution_id))["each"]
    assert [one["result"] for one in output["results"]] == [10, 20, 30]
    assert len(file.read_text().splitlines()) == 3


def test_a_signal_sent_after_the_timeout_is_left_for_others(deployment: Deployment):
    definition = workflow(
        limited(signal("first"), on_error="continue"),
        signal("second") | {"depends_on": ["first"]},
    )
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["second"] == "waiting", what="the second")
    assert send(deployment, execution_id, 7) == 202
    execution = deployment.ended(execution_id)
    assert states_of(execution) == {"first": "failed", "second": "completed"}


def test_the_time_of_an_approval_and_that_of_its_attempt_both_count(deployment: Deployment):
    asked = approval(timeout="100ms", default="approve")
    assert deployment.run(workflow(limited(asked, "1h")))["status"] == "completed"
    asked = approval(timeout="1h", default="approve")
    assert deployment.run(workflow(limited(asked)))["status"] == "failed"


def test_an_attempt_has_one_time_for_all_its_rests(deployment: Deployment):
    """A body's steps wake the loop between the rounds."""
    rounds = limited(loop("x", approval(), **{"while": "loop.index < 100"}), "1h")
    execution_id = deployment.execute(deployment.create(workflow(rounds)))
    ends = []
    for index in range(3):
        waiting_step(deployment, execution_id, f"x[{index}].ok")
        waiting_step(deployment, execution_id, "x")
        ends += deployment.sql(
            "SELECT deadline FROM step_executions WHERE execution_id = %(id)s::uuid AND path = 'x'", id=execution_id
        )
        decide(deployment, execution_id, f"x[{index}].ok")
    assert len(set(ends)) == 1
    waiting_step(deployment, execution_id, "x[3].ok")
    waiting_step(deployment, execution_id, "x")
    pass_the_time_of(deployment, execution_id, "x")
    assert rows_of(deployment.ended(execution_id))["x"]["error_kind"] == "timeout"


def test_each_attempt_has_the_whole_time(deployment: Deployment):
    resting = {**wait("x"), "timeout": "300ms", "retry_policy": ONCE_MORE}
    execution = deployment.run(workflow(resting))
    assert rows_of(execution)["x"]["attempt"] == 2
    ((seconds,),) = deployment.sql(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM step_executions "
        "WHERE execution_id = %(id)s::uuid",
        id=execution["id"],
    )
    assert seconds >= 0.29


def test_the_time_of_a_pause_does_not_count(deployment: Deployment):
    definition = workflow(limited({**approval(), "id": "ok"}, "1m"))
    execution_id = deployment.execute(deployment.create(definition))
    id = waiting_step(deployment, execution_id, "ok")
    before = deployment.sql("SELECT deadline FROM step_executions WHERE id = %(id)s::uuid", id=id)[0][0]
    call(deployment, execution_id, "pause")
    deployment.sql(
        "UPDATE executions SET paused_at = paused_at - interval '1 hour' WHERE id = %(e)s::uuid", e=execution_id
    )
    call(deployment, execution_id, "resume")
    after = deployment.sql("SELECT deadline FROM step_executions WHERE id = %(id)s::uuid", id=id)[0][0]
    assert (after - before).total_seconds() >= 3600
    decide(deployment, execution_id, "ok")
    assert deployment.ended(execution_id)["status"] == "completed"


# --- in the rows ---------------------------------------------------------------------------------------------


def a_step(at_rest: Deployment, timeout: str | None = "1h") -> str:
    return at_rest.execute(at_rest.create(workflow({**wait("x"), "timeout": timeout})))


def claimed(at_rest: Deployment, execution_id: str) -> Claim:
    found = at_rest.claim(execution_id, "x")
    assert found is not None
    return found[0]


def rested(at_rest: Deployment, claim: Claim, state: dict[str, int] | None = None, delay: float | None = None) -> None:
    with at_rest.store.single() as connection:
        assert records.rest(connection, claim, Result(), delay=delay, resumes=True, state=state)


def woken(at_rest: Deployment, execution_id: str) -> None:
    at_rest.sql(
        "UPDATE step_executions SET status = 'queued' WHERE execution_id = %(id)s::uuid AND status = 'waiting'",
        id=execution_id,
    )


def test_what_goes_on_has_what_is_left_of_its_time(at_rest: Deployment):
    execution_id = a_step(at_rest)
    rested(at_rest, claimed(at_rest, execution_id), {})
    at_rest.sql(
        "UPDATE step_executions SET deadline = deadline - interval '30 min' WHERE execution_id = %(id)s::uuid",
        id=execution_id,
    )
    woken(at_rest, execution_id)
    left = claimed(at_rest, execution_id).time_left
    assert left is not None
    assert 1700 < left <= 1800


def test_what_came_in_time_to_a_worker_that_did_not_has_a_moment_left(at_rest: Deployment):
    execution_id = a_step(at_rest)
    rested(at_rest, claimed(at_rest, execution_id), {"signal": 1})
    woken(at_rest, execution_id)
    pass_the_time_of(at_rest, execution_id, "x")
    left = claimed(at_rest, execution_id).time_left
    assert left is not None
    assert -SOON < left <= 0
    ((seconds,),) = at_rest.sql(
        "SELECT extract(epoch FROM deadline - started_at)::float8 FROM step_executions "
        "WHERE execution_id = %(id)s::uuid",
        id=execution_id,
    )
    assert seconds >= GRACE - 0.1  # reconcile does not end it meanwhile


def test_a_step_without_a_timeout_has_no_end_however_often_it_rests(at_rest: Deployment):
    execution_id = a_step(at_rest, None)
    rested(at_rest, claimed(at_rest, execution_id), {})
    woken(at_rest, execution_id)
    assert claimed(at_rest, execution_id).time_left is None


@pytest.mark.parametrize(("state", "keeps"), [({}, True), (None, False)], ids=["that had rested", "that begins anew"])
def test_a_step_that_lost_its_worker_keeps_its_time_if_it_goes_on(
    at_rest: Deployment, state: dict[str, int] | None, keeps: bool
):
    execution_id = a_step(at_rest)
    rested(at_rest, claimed(at_rest, execution_id), state)
    woken(at_rest, execution_id)
    claim = claimed(at_rest, execution_id)
    with at_rest.store.single() as connection:
        assert recovery.lose(connection, claim)
    ((deadline,),) = at_rest.sql(
        "SELECT deadline FROM step_executions WHERE execution_id = %(id)s::uuid", id=execution_id
    )
    assert (deadline is not None) is keeps


def test_a_reconciler_that_dies_over_an_expired_step_leaves_a_timeout_to_the_next(at_rest: Deployment):
    execution_id = a_step(at_rest)
    rested(at_rest, claimed(at_rest, execution_id), {"n": 1})
    pass_the_time_of(at_rest, execution_id, "x")
    with at_rest.store.single() as connection:
        assert [one.claim.path for one in recovery.expire(connection, 10) if one.execution_id == execution_id] == ["x"]
        (orphan,) = (one for one in recovery.orphans(connection, 1000) if one.execution_id == execution_id)
    assert not orphan.lost
    assert orphan.claim.state == {"n": 1}


def test_a_retry_that_waits_for_its_turn_has_no_time_to_lose(at_rest: Deployment):
    execution_id = a_step(at_rest)
    claim = claimed(at_rest, execution_id)
    with at_rest.store.single() as connection:
        assert records.rest(connection, claim, Result(), delay=3600, resumes=False)
        assert not [one for one in recovery.expire(connection, 1000) if one.execution_id == execution_id]
    assert at_rest.sql(
        "SELECT 1 FROM step_executions WHERE execution_id = %(id)s::uuid AND deadline IS NULL", id=execution_id
    )
