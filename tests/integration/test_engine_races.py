"""What happens in between: deaths at bad moments, locks held in the other order, calls that come while work is under
way. Where an order of events matters, the test takes the part of a worker itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from deployment import PATIENCE, Deployment, deployed, wait_until
from test_control import call, held
from test_control_flow import child_of, completed, loop, parallel
from test_execution import rows_of, states_of, step, workflow
from test_inline_bodies import BODIES, OneWorker, a_set, worker
from test_inline_children import children, perform

from orchestrator.engine import bodies as engine_bodies
from orchestrator.engine.admission import admit_all
from orchestrator.engine.advance import End, advance, begin_body, end_early
from orchestrator.engine.bodies import Scope, Spawn
from orchestrator.engine.control import retry_step
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.start import start_execution
from orchestrator.engine.waiting import send_signal
from orchestrator.lifecycle import ExecutionStatus, StepStatus
from orchestrator.plugins import load_catalogue
from orchestrator.store import admission, bodies, executions, new_id, records, recovery, signals, steps
from orchestrator.store.claims import Claim
from orchestrator.store.executions import Parent
from orchestrator.store.records import Result
from orchestrator.store.recovery import Ring
from orchestrator.store.session import run
from orchestrator.store.step_rows import StepRow
from workers.runner import Lane

__all__ = ["worker"]  # a fixture


class Hand:
    """A worker whose every move the test decides."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.store = deployment.store
        self.programs = Programs(load_catalogue("sample_steps"), deployment.settings)

    def claim(self, execution_id: str, path: str) -> Claim:
        claimed = self.deployment.claim(execution_id, path)
        assert claimed is not None, f"{path} was not to be had"
        return claimed[0]

    def program(self, execution_id: str) -> Program:
        ((workflow_id, version),) = self.deployment.sql(
            "SELECT workflow_id::text, version FROM executions WHERE id = %(id)s::uuid", id=execution_id
        )
        return self.programs.get(self.store, workflow_id, version)

    def spawn(self, execution_id: str, held: Claim, ring: Callable[[Any], None] = lambda plan: None, **how: Any) -> Any:
        """Begin the body of the loop `held`, over ten items."""
        program = self.program(execution_id)
        scopes = [Scope(index, {"index": index, "item": index}) for index in range(10)]
        return begin_body(
            self.store, program, execution_id, held, None, Spawn(scopes, state={}, **how), ring, worker=None
        )


@pytest.fixture
def hand(servers: Deployment) -> Hand:
    return Hand(servers)


@pytest.fixture
def chunks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_bodies, "CHUNK", 4)


def a_loop(deployment: Deployment, *more: dict[str, Any], **config: Any) -> str:
    definition = workflow(loop("each", step("one"), items="{{ range(10) | list }}", **config), *more)
    return deployment.execute(deployment.create(definition))


def waits_for_a_lock(deployment: Deployment) -> bool:
    return bool(deployment.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


class Died(Exception):
    pass


# --- bodies --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chunks_of_four")
def test_a_loop_that_lost_its_worker_while_it_began_is_begun_again(hand: Hand):
    def die(_: Any) -> None:
        raise Died

    execution_id = a_loop(hand.deployment)
    first = hand.claim(execution_id, "each")
    with pytest.raises(Died):
        hand.spawn(execution_id, first, die)
    with hand.store.single() as connection:
        assert recovery.lose(connection, first)
    again = hand.claim(execution_id, "each")
    assert again.state["own"] is None  # or the type would take what is there for all there is to be
    hand.spawn(execution_id, again)
    assert len(hand.deployment.statuses(execution_id)) == 11


@pytest.mark.usefixtures("chunks_of_four")
def test_a_limited_loop_goes_on_whose_first_rounds_ended_before_its_last_were_there(hand: Hand):
    def at_once(_: Any) -> None:
        """The rounds that were begun have ended, each without one that could follow."""
        hand.deployment.sql(
            "UPDATE step_executions SET status = 'completed', finished_at = now() "
            "WHERE execution_id = %(id)s::uuid AND container = 'each'",
            id=execution_id,
        )

    execution_id = a_loop(hand.deployment, {"id": "other", "type": "approval", "config": {}}, concurrency=2)
    hand.spawn(execution_id, hand.claim(execution_id, "each"), at_once, concurrency=2)
    inner = [status for path, status in hand.deployment.statuses(execution_id).items() if path.startswith("each[")]
    assert sorted(inner) == ["completed"] * 4 + ["pending"] * 4 + ["queued"] * 2


@pytest.mark.usefixtures("chunks_of_four")
def test_a_failure_ends_the_rounds_too_that_were_on_their_way(hand: Hand):
    def fail_one(_: Any) -> None:
        if calls:
            return
        calls.append(1)
        failing = hand.claim(execution_id, "each[1].one")
        failed = End("each[1].one", failing, Result(), StepStatus.FAILED)
        advance(hand.store, hand.program(execution_id), execution_id, failed)

    calls: list[int] = []
    execution_id = a_loop(hand.deployment)
    hand.spawn(execution_id, hand.claim(execution_id, "each"), fail_one)
    found = hand.deployment.statuses(execution_id)
    assert found.pop("each[1].one") == "failed"
    assert found.pop("each") == "queued"
    assert set(found.values()) == {"cancelled"}


def test_rounds_that_were_being_inserted_are_cancelled_with_the_others(hand: Hand):
    execution_id = a_loop(hand.deployment)
    container = hand.claim(execution_id, "each")
    row = StepRow("each[0].one", "one", "each[0]", "each", "noop", "cpu", StepStatus.QUEUED, 1, None, None)
    with ThreadPoolExecutor(1) as pool, hand.store.transaction() as connection:
        assert bodies.insert(connection, execution_id, [row], held=container)
        cancelled = pool.submit(
            end_early, hand.store, hand.programs, execution_id, ExecutionStatus.CANCELLED, "by a user"
        )
        wait_until(lambda: waits_for_a_lock(hand.deployment), what="the cancellation at the lock")
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN")
        assert cancelled.result(PATIENCE).counted
    assert hand.deployment.statuses(execution_id) == {"each": "cancelled", "each[0].one": "cancelled"}


def test_a_retried_loop_of_single_steps_goes_on_at_once(deployment: Deployment, tmp_path: Path):
    """Its rounds that had not ended have all to begin anew; nothing else is live that would let the next begin."""
    ok = tmp_path / "ok"
    source = f"import json, os, sys; sys.exit(json.load(sys.stdin)['n'] == 2 and not os.path.exists({str(ok)!r}))"
    one = {**step("one", "script", source=source), "input_mapping": {"n": "{{ loop.item }}"}}
    approval = {"id": "asked", "type": "approval", "config": {}}
    definition = workflow(loop("each", one, items=[1, 2, 3], concurrency=1), approval)
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["each"] == "failed", what="the failure")
    ok.touch()
    step_id = rows_of(deployment.execution(execution_id))["each[1].one"]["id"]
    answer = deployment.client.post(f"/api/v1/step-executions/{step_id}/retry")
    assert answer.status_code == 200, answer.text
    wait_until(lambda: deployment.statuses(execution_id)["each"] == "completed", what="the loop")
    each = rows_of(deployment.execution(execution_id))["each"]["output"]
    assert (each["succeeded"], [one["exit_code"] for one in each["results"]]) == (3, [0, 0, 0])
    call(deployment, execution_id, "cancel")


def test_a_limit_holds_for_the_rounds_that_are_done_again(deployment: Deployment, tmp_path: Path):
    """All of them are partly done, so that each could go on at once."""
    ok, marks, held = tmp_path / "ok", tmp_path / "marks", tmp_path / "held"
    source = f"""
import json, os, sys, time
if not os.path.exists({str(ok)!r}):
    if json.load(sys.stdin)["n"] == 6:
        open({str(held)!r}, "w").close()
        time.sleep(300)
    sys.exit(1)
for sign in "+-":
    print(sign, file=open({str(marks)!r}, "a"))
    time.sleep(0.1)
"""
    two = {**step("two", "script", needs="one", source=source), "input_mapping": {"n": "{{ loop.item }}"}}
    body = [step("one"), two, step("three", needs="two")]
    each = loop("each", *body, items=list(range(8)), concurrency=1, on_item_error="continue")
    execution_id = deployment.execute(deployment.create(workflow(each)))
    wait_until(held.exists, what="six failures, and the one that is to be cancelled")
    call(deployment, execution_id, "cancel")
    ok.touch()
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert (execution["status"], rows_of(execution)["each"]["output"]["succeeded"]) == ("completed", 8)
    assert marks.read_text().split() == ["+", "-"] * 8


def test_rounds_that_are_retried_one_by_one_wait_for_those_at_work_behind_them(hand: Hand):
    execution_id = a_loop(hand.deployment, concurrency=2, on_item_error="continue")
    hand.spawn(execution_id, hand.claim(execution_id, "each"), concurrency=2, stops_on_failure=False)
    for item in range(6):
        path = f"each[{item}].one"
        failed = End(path, hand.claim(execution_id, path), Result(), StepStatus.FAILED)
        advance(hand.store, hand.program(execution_id), execution_id, failed)
    ids = {path: row["id"] for path, row in rows_of(hand.deployment.execution(execution_id)).items()}

    def at_work() -> set[str]:
        found = hand.deployment.statuses(execution_id)
        return {path for path, status in found.items() if path != "each" and status in ("queued", "running")}

    assert at_work() == {"each[6].one", "each[7].one"}
    for item in range(6):
        retry_step(hand.store, hand.programs, ids[f"each[{item}].one"])
        assert at_work() == {"each[6].one", "each[7].one"}
    done = End("each[6].one", hand.claim(execution_id, "each[6].one"))
    advance(hand.store, hand.program(execution_id), execution_id, done)
    assert at_work() == {"each[0].one", "each[7].one"}


# --- messages ------------------------------------------------------------------------------------------------


def test_a_step_is_rung_for_with_its_own_priority_whoever_rings(hand: Hand):
    urgent, inner = {**step("a"), "priority": 9}, {**step("inner"), "priority": 7}
    definition = workflow(urgent, step("b"), loop("each", inner, items=[1]))
    execution_id = hand.deployment.execute(hand.deployment.create(definition))
    hand.spawn(execution_id, hand.claim(execution_id, "each"))

    def priorities(rings: Iterable[Ring]) -> dict[str, int]:
        return {ring.path: ring.priority for ring in rings if ring.execution_id == execution_id}

    with hand.store.single() as connection:
        everything = {"a": 9, "b": 5, **{f"each[{index}].inner": 7 for index in range(10)}}
        assert priorities(recovery.queued(connection, execution_id)) == everything
        unclaimed = recovery.unclaimed(connection, older_than=-1.0, limit=100_000)
        assert priorities(recovery.ring_again(connection, unclaimed)) == everything
        assert records.rest(connection, hand.claim(execution_id, "a"), Result(), delay=0, resumes=False)
        assert priorities(recovery.wake_due(connection, 100_000)) == {"a": 9}
        assert priorities(recovery.hand_on(connection, [hand.claim(execution_id, "a")])) == {"a": 9}


def test_a_step_of_an_execution_that_is_let_in_is_rung_for_with_its_own_priority(single_place: Deployment):
    single_place.execute(single_place.create(SINGLE))
    waiting = single_place.execute(single_place.create(workflow({**step("a"), "priority": 8}, step("b"))))
    single_place.sql("UPDATE executions SET status = 'failed', finished_at = now() WHERE admitted_at IS NOT NULL")
    plans = admit_all(single_place.store, single_place.settings)
    assert [plan.execution_id for plan in plans] == [waiting, waiting]
    assert {plan.branches[0][0].starts: plan.priority for plan in plans} == {("a",): 8, ("b",): 5}


# --- templates -----------------------------------------------------------------------------------------------


def test_a_worker_does_not_remember_a_step_as_it_was_before_it_ended(deployment: Deployment, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    seen = "{{ steps.slow.status }}"
    definition = workflow(
        step("slow", "gate", file=str(first)),
        step("quick"),
        {**step("early", needs="slow quick", value=seen), "trigger_rule": "one_success"},
        step("then", "gate", needs="early", file=str(second)),
        step("late", needs="slow then", value=seen),
    )
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["then"] == "running", what="the worker of early at its gate")
    first.touch()
    wait_until(lambda: deployment.statuses(execution_id)["slow"] == "completed", what="the end of slow")
    second.touch()
    rows = rows_of(deployment.ended(execution_id))
    assert rows["early"]["output"]["result"] in ("queued", "running")
    assert rows["late"]["output"]["result"] == "completed"


def test_variables_reach_what_runs_at_the_end(deployment: Deployment):
    mapped = {**step("a", value=7), "output_mapping": {"n": "{{ output.result }}"}}
    undone = {**step("b", needs="a"), "compensate": {"type": "noop", "config": {"value": "{{ variables.n }}"}}}
    definition = workflow(
        mapped,
        undone,
        step("boom", "fail", needs="b"),
        variables={"n": 0},
        on_failure=[step("alarm", value="{{ variables.n }}")],
        **{"finally": [step("tidy", value="{{ variables.n }}")]},
    )
    rows = rows_of(deployment.run(definition))
    assert [rows[path]["output"] for path in ("compensate.b", "on_failure.alarm", "finally.tidy")] == [
        {"result": 7}
    ] * 3


def test_loops_nest_at_the_end_too(deployment: Deployment):
    inner = loop("inner", step("cell", value="{{ loop['parent'].item * 10 + loop.item }}"), items=[1, 2])
    definition = workflow(step("a"), **{"finally": [loop("outer", inner, items=[3])]})
    rows = rows_of(deployment.run(definition))
    assert rows["finally.outer[0].inner[1].cell"]["output"] == {"result": 32}


def test_what_runs_at_the_end_has_the_time_that_the_whole_had(deployment: Deployment, tmp_path: Path):
    first, last = tmp_path / "first", tmp_path / "last"
    tidy = step("z", "gate", file=str(last))
    execution_id = held(deployment, first, timeout="1h", **{"finally": [tidy]})
    deployment.sql(
        "UPDATE executions SET deadline = now() + interval '10 min' WHERE id = %(id)s::uuid", id=execution_id
    )
    first.touch()
    wait_until(lambda: deployment.statuses(execution_id).get("finally.z") == "running", what="what runs at the end")
    later = "SELECT deadline > now() + interval '30 min' FROM executions WHERE id = %(id)s::uuid"
    assert deployment.sql(later, id=execution_id) == [(True,)]
    last.touch()
    assert deployment.ended(execution_id)["status"] == "completed"


# --- timers --------------------------------------------------------------------------------------------------


def test_timers_of_what_is_paused_keep_no_others_from_going_off(servers: Deployment):
    servers.sql("DELETE FROM executions")  # those of other tests have timers, too
    paused = servers.execute(servers.create(workflow(*(step(f"s{n}") for n in range(5)))))
    other = servers.execute(servers.create(workflow(step("a"))))
    call(servers, paused, "pause")
    rest = "UPDATE step_executions SET status = 'waiting', next_attempt_at = now() - interval '1 h' WHERE execution_id"
    servers.sql(f"{rest} = %(id)s::uuid", id=paused)
    servers.sql(f"{rest} = %(id)s::uuid", id=other)
    servers.sql(
        "UPDATE step_executions SET next_attempt_at = now() - interval '1 m' WHERE execution_id = %(id)s::uuid",
        id=other,
    )
    with servers.store.single() as connection:
        assert [ring.execution_id for ring in recovery.wake_due(connection, 5)] == [other]
        # Or reconcile would not come to rest as long as the pause lasts.
        assert recovery.seconds_to_next_timer(connection) is None
    call(servers, paused, "cancel")


# --- pause, cancel, retry ------------------------------------------------------------------------------------


def test_what_runs_at_the_end_does_not_begin_while_paused(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    execution_id = held(deployment, gate, **{"finally": [step("tidy")]})
    call(deployment, execution_id, "pause")
    gate.touch()
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "completed", what="the step at the gate")
    assert deployment.execution(execution_id)["status"] == "paused"
    assert "finally.tidy" not in deployment.statuses(execution_id)
    call(deployment, execution_id, "resume")
    execution = deployment.ended(execution_id)
    assert states_of(execution) == {"held": "completed", "finally.tidy": "completed"}
    assert execution["status"] == "completed"


def test_what_fails_while_paused_fails_when_it_is_resumed(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    source = f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 1"
    execution_id = deployment.execute(
        deployment.create(workflow(step("held", "script", runtime="bash", source=source)))
    )
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "running", what="the step at the gate")
    call(deployment, execution_id, "pause")
    gate.touch()
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "failed", what="the step at the gate")
    assert deployment.execution(execution_id)["status"] == "paused"
    call(deployment, execution_id, "resume")
    assert deployment.ended(execution_id)["status"] == "failed"


def test_a_retry_retries_the_child_that_failed(deployment: Deployment, tmp_path: Path):
    marks, ok = tmp_path / "marks", tmp_path / "ok"
    check = f"import os, sys; sys.exit(not os.path.exists({str(ok)!r}))"
    child = deployment.create(
        workflow(step("once", "mark", file=str(marks)), step("check", "script", needs="once", source=check))
    )
    execution_id = deployment.execute(deployment.create(workflow(child_of(child), step("after", needs="child"))))
    assert deployment.ended(execution_id)["status"] == "failed"
    ok.touch()
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    assert len(marks.read_text().splitlines()) == 1  # what completed in the child is kept


def test_a_retry_starts_another_child_if_the_first_was_undone(deployment: Deployment, tmp_path: Path):
    marks, ok = tmp_path / "marks", tmp_path / "ok"
    check = f"import os, sys; sys.exit(not os.path.exists({str(ok)!r}))"
    once = {**step("once", "mark", file=str(marks)), "compensate": {"type": "noop"}}
    child = deployment.create(workflow(once, step("check", "script", needs="once", source=check)))
    execution_id = deployment.execute(deployment.create(workflow(child_of(child))))
    first = deployment.ended(execution_id)
    assert first["status"] == "failed"
    ok.touch()
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    assert len(marks.read_text().splitlines()) == 2


def test_a_child_is_ended_whose_step_was_forgotten_with_what_ran_at_the_end(worker: OneWorker, hand: Hand):
    child = worker.servers.create(workflow({"id": "asked", "type": "approval", "config": {}}), "child")
    definition = {**workflow(step("a", "fail")), "finally": [child_of(child)]}
    parent = worker.servers.execute(worker.servers.create(definition, "parent"))
    perform(worker, parent)
    ((_, started),) = children(worker, {"id": parent})
    assert worker.servers.statuses(started["id"]) == {"asked": "waiting"}
    end_early(hand.store, hand.programs, parent, ExecutionStatus.FAILED, "its time was up")
    call(worker.servers, parent, "retry")
    with hand.store.single() as connection:
        assert started["id"] in executions.abandoned(connection, 1000)
    for execution_id in (parent, started["id"]):
        call(worker.servers, execution_id, "cancel")


def test_a_child_is_retried_by_way_of_its_parent(deployment: Deployment):
    child = deployment.create(workflow(step("x", "fail")))
    execution = deployment.run(workflow(child_of(child)))
    ((child_id,),) = deployment.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=child)
    refusal = call(deployment, child_id, "retry", 409)
    assert execution["id"] in refusal["detail"]


def test_a_step_that_is_retried_takes_those_along_that_were_cancelled_for_it(deployment: Deployment, tmp_path: Path):
    ok = tmp_path / "ok"
    source = f"import os, sys; sys.exit(not os.path.exists({str(ok)!r}))"
    gate = tmp_path / "gate"
    definition = workflow(
        parallel("fork", left=[step("l", "gate", file=str(gate))], right=[step("r", "script", source=source)])
    )
    execution_id = deployment.execute(deployment.create(definition))
    execution = deployment.ended(execution_id)
    assert states_of(execution) == {"fork": "failed", "fork.left.l": "cancelled", "fork.right.r": "failed"}
    ok.touch()
    gate.touch()
    step_id = rows_of(execution)["fork.right.r"]["id"]
    assert deployment.client.post(f"/api/v1/step-executions/{step_id}/retry").status_code == 200
    output = completed(deployment.ended(execution_id))
    assert output["fork"]["left"] == {"result": True}


def test_what_was_cancelled_is_not_completed_by_the_retry_of_one_step(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    execution_id = held(deployment, gate, step("next", needs="held"), step("other", "gate", file=str(gate)))
    call(deployment, execution_id, "cancel")
    gate.touch()
    step_id = rows_of(deployment.execution(execution_id))["held"]["id"]
    assert deployment.client.post(f"/api/v1/step-executions/{step_id}/retry").status_code == 200
    execution = deployment.ended(execution_id)
    assert states_of(execution) == {"held": "completed", "next": "completed", "other": "cancelled"}
    assert execution["status"] == "cancelled"


# --- admission -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One execution at a time, and no worker."""
    with deployed(tmp_path_factory.mktemp("one_place"), max_concurrent=1) as deployment:
        yield deployment


@pytest.fixture
def single_place(one_place: Deployment) -> Deployment:
    one_place.sql("DELETE FROM workflows")
    return one_place


def end(deployment: Deployment, execution_id: str) -> list[str]:
    """End an execution as a worker does; those that are let in for it."""
    with deployment.store.single() as connection:
        assert executions.fail(connection, execution_id, "over")
        freed = admission.freed(connection, execution_id)
    if freed is None:
        return []
    let = admission.admit(deployment.store, deployment.settings.scheduler.max_concurrent, freed.keys)
    return [one.execution_id for one in let]


SINGLE = workflow(step("a"))


def test_an_execution_that_is_retried_waits_for_a_place(single_place: Deployment):
    workflow_id = single_place.create(SINGLE)
    first = single_place.execute(workflow_id)
    call(single_place, first, "cancel")
    second = single_place.execute(workflow_id)
    assert call(single_place, first, "retry")["status"] == "queued"
    assert single_place.claim(first, "a") is None
    call(single_place, first, "pause")
    assert call(single_place, first, "resume")["status"] == "queued"
    assert end(single_place, second) == [first]
    assert single_place.claim(first, "a") is not None


def test_an_execution_that_is_retried_begins_at_once_if_there_is_a_place(single_place: Deployment):
    first = single_place.execute(single_place.create(SINGLE))
    call(single_place, first, "cancel")
    call(single_place, first, "retry")
    assert single_place.claim(first, "a") is not None


def test_a_retry_heeds_the_limits_of_the_workflow(single_place: Deployment):
    limited = single_place.create({**SINGLE, "concurrency": {"key": "{{ input.k }}", "limit": 1}})
    first = single_place.execute(limited, {"k": 1})
    call(single_place, first, "cancel")
    second = single_place.execute(limited, {"k": 1})
    call(single_place, first, "retry")
    assert single_place.claim(first, "a") is None
    assert end(single_place, second) == [first]


@pytest.mark.parametrize("ending", ["finally", "on_failure"])
def test_what_is_cancelled_while_it_waits_for_a_place_ends(single_place: Deployment, ending: str):
    workflow_id = single_place.create({**SINGLE, ending: [step("tidy")]})
    single_place.execute(workflow_id)
    waiting = single_place.execute(workflow_id)
    assert call(single_place, waiting, "cancel")["status"] == "cancelled"
    assert single_place.statuses(waiting) == {"a": "cancelled"}  # what has not begun needs no end


def a_parent_that_failed(worker: OneWorker, *beside: dict[str, Any], **limits: Any) -> tuple[str, str]:
    """An execution and the one that it started, which runs under `limits` and whose first attempt failed."""
    child = worker.servers.create(workflow(step("x", "fail", until_attempt=2), **limits), "child")
    parent = worker.servers.execute(worker.servers.create(workflow(child_of(child), *beside), "parent"))
    perform(worker, parent)
    assert worker.servers.statuses(parent)["child"] == "failed"
    ((_, started),) = children(worker, {"id": parent})
    return parent, started["id"]


@pytest.mark.parametrize("limits", [{}, {"max_concurrent": 2}, {"rate_limit": {"limit": 9, "per": "1h"}}], ids=str)
def test_a_child_that_is_retried_does_not_begin_before_its_parent_has_a_place(
    single_place: Deployment, limits: dict[str, Any]
):
    worker = OneWorker(single_place)
    with closing(worker.process):
        parent, child = a_parent_that_failed(worker, **limits)
        other = single_place.execute(single_place.create(SINGLE))
        assert call(single_place, parent, "retry")["status"] == "queued"
        assert single_place.claim(child, "x") is None
        why = single_place.client.get(f"/api/v1/executions/{child}/why").json
        assert (why["reason"], why["facts"]["execution_id"]) == ("waiting_for_dependencies", parent)
        assert admit_all(single_place.store, single_place.settings) == []
        with single_place.store.single() as connection:
            assert admission.keys_with_room(connection, 10) == []
        assert end(single_place, other) == [parent]
        worker.process.run_steps(parent, ["child"], ())
        admit_all(single_place.store, single_place.settings)
        perform(worker, parent)
        assert single_place.execution(parent)["status"] == "completed"


def test_a_child_that_is_retried_while_its_parent_is_paused_goes_on_with_it(worker: OneWorker):
    parent, child = a_parent_that_failed(worker, {"id": "asked", "type": "approval", "config": {}})
    call(worker.servers, parent, "pause")
    step_id = rows_of(worker.servers.execution(parent))["child"]["id"]
    assert worker.servers.client.post(f"/api/v1/step-executions/{step_id}/retry").status_code == 200
    assert worker.servers.claim(child, "x") is None
    call(worker.servers, parent, "resume")
    perform(worker, parent)
    assert worker.servers.statuses(parent) == {"child": "completed", "asked": "waiting"}
    call(worker.servers, parent, "cancel")


def test_a_child_that_is_retried_before_its_step_has_seen_it_fail_begins_when_that_looks(worker: OneWorker):
    child = worker.servers.create(workflow(step("x", "fail", until_attempt=2)), "child")
    parent = worker.servers.execute(worker.servers.create(workflow(child_of(child)), "parent"))
    worker.process.run_steps(parent, ["child"], ())
    ((_, started),) = children(worker, {"id": parent})
    call(worker.servers, parent, "pause")
    call(worker.servers, started["id"], "resume")
    worker.process.run_steps(started["id"], ["x"], ())
    assert worker.servers.statuses(parent) == {"child": "queued"}
    call(worker.servers, started["id"], "retry")
    call(worker.servers, parent, "resume")
    for execution_id, path in ((parent, "child"), (started["id"], "x"), (parent, "child")):
        worker.process.run_steps(execution_id, [path], ())
    assert worker.servers.execution(parent)["status"] == "completed"


def test_a_child_that_its_own_limit_held_back_needs_no_place(single_place: Deployment):
    child = single_place.create({**SINGLE, "max_concurrent": 1}, "child")
    parent = single_place.execute(single_place.create(workflow(child_of(child), step("b")), "parent"))
    hand = Hand(single_place)
    ids = [
        start_execution(
            hand.store, hand.programs, child, {}, parent=Parent(hand.claim(parent, path).id, 0)
        ).execution_id
        for path in ("child", "b")
    ]
    assert end(single_place, ids[0]) == [ids[1]]


def test_one_that_another_limit_holds_back_does_not_stand_in_the_way(tmp_path: Path):
    with deployed(tmp_path, max_concurrent=100) as many:
        keyed = {**SINGLE, "max_concurrent": 2, "concurrency": {"key": "{{ input.k }}", "limit": 1}}
        workflow_id = many.create(keyed)
        a1, b1, a2, c1 = (many.execute(workflow_id, {"k": key}) for key in "abac")
        assert a1
        assert end(many, b1) == [c1]
        with many.store.single() as connection:
            assert admission.keys_with_room(connection, 10) == []
        assert admit_all(many.store, many.settings) == []
        assert end(many, a1) == [a2]


# --- locks ---------------------------------------------------------------------------------------------------


def test_who_is_let_in_and_who_looks_for_forgotten_rate_limits_do_not_lock_each_other_out(hand: Hand):
    limited = hand.deployment.create(workflow(step("a"), rate_limit={"limit": 1, "per": "1h", "key": "{{ input.k }}"}))
    for key in (*range(9), *range(9)):
        hand.deployment.execute(limited, {"k": key})
    mine = "FROM rate_looks WHERE key LIKE %(which)s"
    which = f"workflow:{limited}:%"
    keys = [key for (key,) in hand.deployment.sql(f"SELECT key {mine} ORDER BY key", which=which)]
    hand.deployment.sql(f"DELETE {mine}", which=which)

    def look() -> None:
        with hand.store.single() as connection:
            admission.look_at_forgotten(connection)

    with ThreadPoolExecutor(1) as thread:
        with hand.store.transaction() as connection:
            run(connection, f"SELECT {admission.LOCK}")
            insert = "INSERT INTO rate_looks VALUES (%(key)s, now()) ON CONFLICT (key) DO UPDATE SET at = now()"
            run(connection, insert, {"key": keys[4]})
            looked = thread.submit(look)
            wait_until(lambda: waits_for_a_lock(hand.deployment), what="who looks")
            for key in keys:
                run(connection, insert, {"key": key})
        looked.result()
    assert len(keys) == len(hand.deployment.sql(f"SELECT 1 {mine}", which=which)) == 9


def ended_while(deployment: Deployment, execution_id: str, move: Callable[[], Any]) -> Any:
    """What a worker's `move` led to that was made while somebody who held the execution's row cancelled it."""
    outcome: list[Any] = []

    def moved() -> None:
        try:
            outcome.append(move())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=moved)
    with deployment.store.transaction() as connection:
        assert executions.lock(connection, execution_id) is not None
        thread.start()
        wait_until(lambda: outcome or waits_for_a_lock(deployment), what="the worker at the lock")
        steps.cancel_all(connection, execution_id)
        executions.cancel(connection, execution_id, "by a user")
    thread.join(PATIENCE)
    return outcome[0]


def test_a_first_claim_and_a_cancellation_do_not_lock_each_other_out(hand: Hand):
    execution_id = hand.deployment.execute(hand.deployment.create(SINGLE))
    outcome = ended_while(hand.deployment, execution_id, lambda: hand.deployment.claim(execution_id, "a"))
    assert outcome is None


def test_a_last_record_and_a_cancellation_do_not_lock_each_other_out(hand: Hand):
    execution_id = hand.deployment.execute(hand.deployment.create(SINGLE))
    claim = hand.claim(execution_id, "a")
    outcome = ended_while(
        hand.deployment, execution_id, lambda: records.complete_and_finish(hand.store, execution_id, claim, Result())
    )
    assert outcome == (False, False, None)


@pytest.mark.parametrize("more", [(), (a_set("left", "each", v=1), a_set("right", "each", v=2))], ids=["end", "fork"])
def test_the_record_of_a_whole_body_and_a_cancellation_do_not_lock_each_other_out(
    worker: OneWorker, more: tuple[dict[str, Any], ...]
):
    execution_id = worker.start(workflow(*BODIES["items"], *more))
    lane = Lane(worker.process, execution_id, ["each"], frozenset())
    claim = lane.claim_next()
    assert ended_while(worker.servers, execution_id, lambda: lane.go(claim)) is None
    assert set(worker.servers.statuses(execution_id).values()) == {"cancelled"}


def test_a_worker_that_goes_on_does_not_wait_for_a_step_that_is_being_cancelled(hand: Hand):
    execution_id = hand.deployment.execute(hand.deployment.create(workflow(step("b"), step("a", needs="b"))))
    claim = hand.claim(execution_id, "b")
    lock = "SELECT FROM step_executions WHERE execution_id = %(id)s::uuid AND path = 'a' FOR UPDATE"
    with ThreadPoolExecutor(1) as pool, hand.store.transaction() as connection:
        connection.exec_driver_sql(lock, {"id": execution_id})
        followed = pool.submit(records.complete_and_follow, hand.store, execution_id, claim, Result(), "a", new_id())
        assert followed.result(PATIENCE) == (True, None)


def test_a_step_that_somebody_holds_is_rung_for_later(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"), step("b"))))
    lock = "SELECT FROM step_executions WHERE execution_id = %(id)s::uuid AND path = 'a' FOR UPDATE"
    with servers.store.transaction() as connection, servers.store.single() as other:
        connection.exec_driver_sql(lock, {"id": execution_id})
        rung = recovery.ring_again(other, recovery.unclaimed(other, older_than=0, limit=1000))
    assert [ring.path for ring in rung if ring.execution_id == execution_id] == ["b"]


# --- secrets -------------------------------------------------------------------------------------------------


def test_secrets_are_masked_in_items_and_in_the_input_of_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORCHESTRATOR_SECRET_TOKEN", "hidden-from-all")
    with deployed(tmp_path) as deployment:
        deployment.start_worker()
        child = deployment.create(workflow(step("x")))
        definition = workflow(
            loop("each", step("one", value="{{ loop.item }}"), items=["{{ secrets.token }}"]),
            child_of(child, input={"t": "{{ secrets.token }}"}),
        )
        assert deployment.run(definition)["status"] == "completed"
        for table in ("executions", "step_executions"):
            rows = deployment.sql(f"SELECT to_jsonb(t)::text FROM {table} t")
            assert not [row for (row,) in rows if "hidden-from-all" in row]


# --- signals -------------------------------------------------------------------------------------------------


def two_that_ask(hand: Hand) -> tuple[str, Claim, Claim]:
    asks = [{"id": id, "type": "signal", "config": {"name": "paid"}} for id in ("first", "second")]
    execution_id = hand.deployment.execute(hand.deployment.create(workflow(*asks)))
    return execution_id, hand.claim(execution_id, "first"), hand.claim(execution_id, "second")


def send(hand: Hand, execution_id: str, payload: Any) -> None:
    send_signal(hand.store, hand.programs, execution_id, "paid", payload)


def test_a_signal_that_a_lost_worker_took_is_its_steps(hand: Hand):
    execution_id, first, second = two_that_ask(hand)
    send(hand, execution_id, 1)
    assert signals.take(hand.store, execution_id, first, "paid")["payload"] == 1
    assert signals.take(hand.store, execution_id, second, "paid") is None
    with hand.store.single() as connection:
        assert recovery.lose(connection, first)
    send(hand, execution_id, 2)
    again = hand.claim(execution_id, "first")
    assert signals.take(hand.store, execution_id, again, "paid")["payload"] == 1
    assert signals.take(hand.store, execution_id, second, "paid")["payload"] == 2


def test_no_signal_is_taken_under_a_claim_that_is_not_held_any_more(hand: Hand):
    execution_id, first, second = two_that_ask(hand)
    send(hand, execution_id, 1)
    with hand.store.single() as connection:
        assert recovery.lose(connection, first)
    assert signals.take(hand.store, execution_id, first, "paid") is None
    assert signals.take(hand.store, execution_id, second, "paid")["payload"] == 1
