"""What operators look at: the scheduler's state, a workflow as a whole, and for each reason why something does not
run, that it is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from deployment import SOON, Deployment, deployed, wait_until
from test_control_flow import loop, parallel
from test_execution import step, workflow

from orchestrator.config import environment_of
from orchestrator.engine.advance import End, advance, begin_body, replan
from orchestrator.engine.bodies import Scope, Spawn
from orchestrator.engine.overview import BrokerState
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.why import Why, why_step
from orchestrator.plugins import load_catalogue
from orchestrator.store import claims, executions, new_id, records, steps, triggers, workers
from orchestrator.store.records import Result

NEVER = {"max_attempts": 3, "initial_delay": "1h", "max_delay": "1h"}


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two executions at a time, and no worker."""
    with deployed(tmp_path_factory.mktemp("idle"), max_concurrent=2) as deployment:
        yield deployment


@pytest.fixture
def stack(idle: Deployment) -> Deployment:
    idle.sql("DELETE FROM workflows")
    idle.sql("DELETE FROM worker_processes")
    return idle


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One worker process, for cpu steps only."""
    with deployed(tmp_path_factory.mktemp("single")) as deployment:
        deployment.start_worker("control,cpu", concurrency=1)
        yield deployment


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A gate that is open at the end, whatever happens."""
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """What a test started goes on in no other one."""
    yield
    while _started:
        deployment, execution_id = _started.pop()
        deployment.client.post(f"/api/v1/executions/{execution_id}/cancel")


_started: list[tuple[Deployment, str]] = []


def read(deployment: Deployment, path: str) -> Any:
    answer = deployment.client.get(f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json


def why(deployment: Deployment, execution_id: str, path: str | None = None) -> Any:
    """Of an execution, or of its step `path`."""
    if path is None:
        return told(read(deployment, f"executions/{execution_id}/why"))
    return told(read(deployment, f"step-executions/{step_id(deployment, execution_id, path)}/why"))


def told(reason: Any) -> Any:
    assert reason.keys() == {"reason", "detail", "facts", "since"}
    assert reason["reason"] in {str(word) for word in Why}
    assert reason["detail"]
    return reason


def step_id(deployment: Deployment, execution_id: str, path: str) -> str:
    ((id,),) = deployment.sql(
        "SELECT id::text FROM step_executions WHERE execution_id = %(id)s::uuid AND path = %(path)s",
        id=execution_id,
        path=path,
    )
    return str(id)


def started(deployment: Deployment, *parts: dict[str, Any], **keys: Any) -> str:
    execution_id = deployment.execute(deployment.create(workflow(*parts, **keys)))
    _started.append((deployment, execution_id))
    return execution_id


def comes_to(deployment: Deployment, execution_id: str, path: str, status: str) -> None:
    wait_until(
        lambda: deployment.statuses(execution_id).get(path) == status, what=f"{path} of {execution_id} to be {status}"
    )


def leased(deployment: Deployment, *queues: str, slots: int = 1, node: str = "w@test") -> str:
    return deployment.leased(node=node, queues=queues, slots=slots)


def claimed(deployment: Deployment, execution_id: str, path: str, worker: str) -> claims.Claim:
    found = claims.claim(deployment.store, execution_id, path, worker)
    assert found is not None
    return found[0]


# --- why: places ---------------------------------------------------------------------------------------------


def test_limit_reached_says_how_many_run_and_how_many_come_first(stack: Deployment):
    workflow_id = stack.create(workflow(step("a")))
    _, _, first, second = (stack.execute(workflow_id) for _ in range(4))
    urgent = stack.execute(workflow_id, priority=9)
    for waiting, ahead in ((urgent, 0), (first, 1), (second, 2)):
        for reason in (why(stack, waiting), why(stack, waiting, "a")):
            assert reason["reason"] == "limit_reached"
            assert reason["facts"] == {"running": 2, "max_concurrent": 2, "ahead": ahead}
            assert reason["since"] == stack.client.get(f"/api/v1/executions/{waiting}").json["created_at"]


def test_held_by_limit_names_the_executions_that_hold_it(stack: Deployment):
    workflow_id = stack.create(workflow(step("a"), max_concurrent=1))
    running, _, held = (stack.execute(workflow_id) for _ in range(3))
    reason = why(stack, held)
    assert reason["reason"] == "held_by_limit"
    assert reason["facts"] == {
        "limit_of": "workflow", "key": workflow_id, "limit": 1, "executions": [running], "ahead": 1,
    }  # fmt: skip


def test_held_by_a_key_says_which(stack: Deployment):
    concurrency = {"key": "{{ input.customer }}", "limit": 1}
    workflow_id = stack.create(workflow(step("a"), concurrency=concurrency))
    running, held = (stack.execute(workflow_id, {"customer": "acme"}) for _ in range(2))
    reason = why(stack, held, "a")
    assert reason["facts"] == {"limit_of": "key", "key": "acme", "limit": 1, "executions": [running], "ahead": 0}
    assert "'acme'" in reason["detail"]


def test_paused_is_told_of_the_execution_and_of_what_waits_in_it(stack: Deployment):
    execution_id = started(stack, step("a"), step("b", needs="a"))
    stack.client.post(f"/api/v1/executions/{execution_id}/pause")
    for reason in (why(stack, execution_id), why(stack, execution_id, "a"), why(stack, execution_id, "b")):
        assert reason["reason"] == "paused"
        assert reason["since"]
        assert reason["facts"] == {"execution_id": execution_id}


# --- why: queued ---------------------------------------------------------------------------------------------


def test_no_worker_names_the_queue_and_those_that_are_served(stack: Deployment):
    leased(stack, "cpu", "control")
    execution_id = started(stack, step("a", "io_noop"))
    for reason in (why(stack, execution_id), why(stack, execution_id, "a")):
        assert reason["reason"] == "no_worker"
        assert "-Q io" in reason["detail"]
        facts = {"queue": "io", "workers": 1, "served": ["control", "cpu"]}
        assert reason["facts"].items() >= facts.items()
    assert why(stack, execution_id)["facts"]["step"]["path"] == "a"


def test_a_worker_whose_lease_lapsed_serves_no_queue(stack: Deployment):
    leased(stack, "cpu")
    execution_id = started(stack, step("a"))
    assert why(stack, execution_id)["reason"] == "message_on_its_way"
    stack.sql("UPDATE worker_processes SET seen_at = now() - interval '1 minute'")
    assert why(stack, execution_id)["reason"] == "no_worker"


def test_a_worker_of_an_older_release_may_serve_any_queue(stack: Deployment):
    with stack.store.single() as connection:
        workers.register(connection, new_id(), node="old@test", host="elsewhere", pid=1, born=0)
    assert why(stack, started(stack, step("a")))["reason"] == "message_on_its_way"


def test_busy_says_what_the_workers_do_and_how_many_come_first(single: Deployment, gate: Path):
    held = started(single, step("held", "gate", file=str(gate)))
    comes_to(single, held, "held", "running")
    first, second = (started(single, step("a")) for _ in range(2))
    reason = why(single, second)
    assert reason["reason"] == "busy"
    facts = reason["facts"]
    assert (facts["queue"], facts["workers"], facts["ahead"], facts["messages"]) == ("cpu", 1, 1, 2)
    (performed,) = facts["performing"]
    assert performed.pop("seconds") > 0
    assert performed.pop("node").startswith("w0@")
    assert performed == {"execution_id": held, "path": "held", "type": "gate"}
    gate.touch()
    single.ended(first)
    single.ended(second)


def test_a_worker_with_a_free_slot_is_not_busy(stack: Deployment):
    worker = leased(stack, "cpu", slots=2)
    execution_id = started(stack, step("a"), step("b"), step("c"))
    claimed(stack, execution_id, "a", worker)
    assert why(stack, execution_id, "c")["reason"] == "message_on_its_way"
    claimed(stack, execution_id, "b", worker)
    assert why(stack, execution_id, "c")["reason"] == "busy"


def test_a_message_is_on_its_way_for_five_seconds_and_then_late(stack: Deployment):
    leased(stack, "cpu")
    execution_id = started(stack, step("a"))
    assert why(stack, execution_id, "a")["reason"] == "message_on_its_way"
    stack.sql("UPDATE step_executions SET rung_at = now() - interval '20 s'")
    reason = why(stack, execution_id, "a")
    assert reason["reason"] == "message_late"
    assert re.search(r"\b2\d s ago", reason["detail"])
    assert "nobody reconciles" in reason["detail"]


# --- why: waiting --------------------------------------------------------------------------------------------


def test_retry_at_says_which_attempt_failed_and_how(deployment: Deployment):
    execution_id = started(deployment, step("a", "fail", message="no luck", retry_policy=NEVER))
    comes_to(deployment, execution_id, "a", "waiting")
    reason = why(deployment, execution_id)
    assert reason["reason"] == "retry_at"
    facts = {"attempt": 1, "max_attempts": 3, "kind": "asked", "message": "no luck", "overdue_seconds": 0}
    assert reason["facts"].items() >= facts.items()
    assert "attempt 1 of 3 failed (asked: no luck)" in reason["detail"]
    due = datetime.fromisoformat(reason["facts"]["next_attempt_at"])
    assert timedelta(minutes=50) < due - datetime.now(UTC) < timedelta(minutes=70)


def test_a_timer_that_nobody_fires_is_told_to_be_overdue(stack: Deployment):
    execution_id = started(stack, step("a"))
    held = claimed(stack, execution_id, "a", leased(stack, "cpu"))
    with stack.store.single() as connection:
        assert records.rest(connection, held, Result(), delay=-90, resumes=True)
    reason = why(stack, execution_id)
    assert reason["reason"] == "waiting_for_time"
    assert reason["facts"]["overdue_seconds"] > 89
    assert "nobody reconciles" in reason["detail"]
    assert read(stack, "scheduler/status")["timers"]["overdue_seconds"] > 89


def test_waiting_for_time_says_until_when(deployment: Deployment):
    execution_id = started(deployment, {"id": "a", "type": "wait", "config": {"until": "2031-01-01T08:00:00+01:00"}})
    comes_to(deployment, execution_id, "a", "waiting")
    reason = why(deployment, execution_id, "a")
    assert reason["reason"] == "waiting_for_time"
    assert reason["facts"]["next_attempt_at"].startswith("2031-01-01T07:00:00")


def test_waiting_for_approval_says_how_to_decide_and_until_when(deployment: Deployment):
    execution_id = started(deployment, {"id": "a", "type": "approval", "config": {"timeout": "1h"}})
    comes_to(deployment, execution_id, "a", "waiting")
    reason = why(deployment, execution_id)
    assert reason["reason"] == "waiting_for_approval"
    assert f"POST /api/v1/step-executions/{step_id(deployment, execution_id, 'a')}/decision" in reason["detail"]
    assert reason["since"] < reason["facts"]["next_attempt_at"]


def test_waiting_for_signal_says_which(deployment: Deployment):
    execution_id = started(deployment, {"id": "a", "type": "signal", "config": {"name": "paid"}})
    comes_to(deployment, execution_id, "a", "waiting")
    reason = why(deployment, execution_id, "a")
    assert reason["reason"] == "waiting_for_signal"
    assert reason["facts"] == {"name": "paid", "next_attempt_at": None}


def test_waiting_for_child_says_which_and_how_it_is(deployment: Deployment, gate: Path):
    child = deployment.create(workflow(step("held", "gate", file=str(gate))))
    execution_id = started(deployment, {"id": "a", "type": "workflow", "config": {"workflow": child}})
    comes_to(deployment, execution_id, "a", "waiting")
    ((child_execution,),) = deployment.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=child)
    comes_to(deployment, child_execution, "held", "running")
    reason = why(deployment, execution_id)
    assert reason["reason"] == "waiting_for_child"
    assert reason["facts"].items() >= {"execution_id": child_execution, "status": "running"}.items()


def test_waiting_for_body_says_how_many_rounds_have_ended(deployment: Deployment, gate: Path):
    quick_or_held = step("b", "gate", file="{{ loop.item }}")
    execution_id = started(deployment, loop("a", quick_or_held, items=["/", "/", str(gate)]))
    comes_to(deployment, execution_id, "a[2].b", "running")
    comes_to(deployment, execution_id, "a[0].b", "completed")
    comes_to(deployment, execution_id, "a[1].b", "completed")
    reason = why(deployment, execution_id, "a")
    assert reason["reason"] == "waiting_for_body"
    assert reason["facts"] == {"ended": 2, "of": 3}
    assert "2 of its 3 rounds" in reason["detail"]
    assert why(deployment, execution_id)["reason"] == "running"


def test_of_a_body_that_waits_the_execution_tells_what_for(deployment: Deployment):
    branch = [{"id": "paid", "type": "signal", "config": {"name": "paid"}}]
    execution_id = started(deployment, parallel("fork", left=branch, right=[step("b")]))
    comes_to(deployment, execution_id, "fork.left.paid", "waiting")
    comes_to(deployment, execution_id, "fork.right.b", "completed")
    assert "1 of its 2 branches" in why(deployment, execution_id, "fork")["detail"]
    reason = why(deployment, execution_id)
    assert reason["reason"] == "waiting_for_signal"
    assert reason["facts"]["step"]["path"] == "fork.left.paid"
    assert reason["detail"].startswith("step fork.left.paid: ")


def test_waiting_for_turn_is_told_of_a_round_that_may_not_begin(deployment: Deployment, gate: Path):
    execution_id = started(deployment, loop("a", step("b", "gate", file=str(gate)), items=[1, 2], concurrency=1))
    comes_to(deployment, execution_id, "a[0].b", "running")
    reason = why(deployment, execution_id, "a[1].b")
    assert reason["reason"] == "waiting_for_turn"
    assert reason["facts"] == {"container": "a", "concurrency": 1}


def test_waiting_for_dependencies_says_which_and_how_they_are(deployment: Deployment, gate: Path):
    execution_id = started(
        deployment, step("a"), step("b", "gate", file=str(gate)), step("c", needs="a b"), step("d", needs="c")
    )
    comes_to(deployment, execution_id, "a", "completed")
    comes_to(deployment, execution_id, "b", "running")
    reason = why(deployment, execution_id, "c")
    assert reason["reason"] == "waiting_for_dependencies"
    assert reason["facts"] == {
        "trigger_rule": "all_success",
        "dependencies": [{"path": "a", "status": "completed"}, {"path": "b", "status": "running"}],
    }
    assert reason["detail"] == "it waits for b (running)"
    began = datetime.fromisoformat(read(deployment, f"executions/{execution_id}")["created_at"])
    assert abs(datetime.fromisoformat(reason["since"]) - began) < timedelta(seconds=SOON)
    assert why(deployment, execution_id, "d")["detail"] == "it waits for c (pending)"


def test_what_is_about_to_go_on_is_told_to_be_advancing(stack: Deployment):
    execution_id = started(stack, step("a"), step("b", "io_noop", needs="a"))
    held = claimed(stack, execution_id, "a", leased(stack, "cpu"))
    with records.ending(stack.store, execution_id, held, Result(), steps.StepStatus.COMPLETED, ["b"]):
        pass  # its worker died here
    assert why(stack, execution_id)["reason"] == "advancing"
    assert why(stack, execution_id, "b")["reason"] == "advancing"
    replan(stack.store, Programs(load_catalogue("sample_steps"), stack.settings), execution_id)
    assert why(stack, execution_id, "b")["reason"] == "no_worker"


# --- why: what runs, and what has ended ------------------------------------------------------------------------


def test_running_says_where_and_since_when(single: Deployment, gate: Path):
    execution_id = started(single, step("held", "gate", file=str(gate)))
    comes_to(single, execution_id, "held", "running")
    reason = why(single, execution_id, "held")
    assert reason["reason"] == "running"
    assert reason["facts"]["node"].startswith("w0@")
    assert reason["facts"]["attempt"] == 1
    whole = why(single, execution_id)
    assert whole["reason"] == "running"
    assert [one["path"] for one in whole["facts"]["steps"]] == ["held"]
    assert whole["since"] == reason["since"]


def test_a_step_that_lost_its_worker_is_told_to_have(stack: Deployment):
    execution_id = started(stack, step("a"))
    assert stack.claim(execution_id, "a") is not None
    reason = why(stack, execution_id, "a")
    assert reason["reason"] == "running"
    assert "gone" in reason["detail"]


def test_what_has_ended_says_how(deployment: Deployment):
    execution_id = started(deployment, step("a", "fail", message="no luck"), step("b", needs="a"), step("c"))
    deployment.ended(execution_id)
    whole = why(deployment, execution_id)
    assert (whole["reason"], whole["since"]) == ("failed", read(deployment, f"executions/{execution_id}")["end_time"])
    assert "no luck" in whole["detail"]
    assert why(deployment, execution_id, "a")["reason"] == "failed"
    assert why(deployment, execution_id, "a")["facts"] == {"attempt": 1, "kind": "asked", "message": "no luck"}
    skipped = why(deployment, execution_id, "b")
    assert skipped["reason"] == "skipped"
    assert skipped["facts"]["message"] in skipped["detail"]
    assert why(deployment, execution_id, "c")["reason"] == "completed"
    assert why(deployment, execution_id, "c")["detail"] == "it completed"


def test_what_was_cancelled_says_by_whom(stack: Deployment):
    execution_id = started(stack, step("a"))
    stack.client.post(f"/api/v1/executions/{execution_id}/cancel")
    whole = why(stack, execution_id)
    assert (whole["reason"], whole["facts"]["message"]) == ("cancelled", "cancelled by a user")
    assert why(stack, execution_id, "a")["reason"] == "cancelled"


# --- why: all of them ------------------------------------------------------------------------------------------

Scene = tuple[str, str | None]
"""An execution, and a step of it to ask of."""


def runs(stack: Deployment) -> tuple[str, claims.Claim]:
    """Of two steps that follow each other, the first is performed by the only worker."""
    execution_id = started(stack, step("a"), step("b", needs="a"))
    return execution_id, claimed(stack, execution_id, "a", leased(stack, "cpu"))


def ends(stack: Deployment, status: steps.StepStatus, path: str = "a") -> Scene:
    execution_id, held = runs(stack)
    program = program_of(stack, execution_id)
    advance(stack.store, program, execution_id, End("a", held, Result(error_kind="odd", error_message="odd"), status))
    return execution_id, path


def program_of(stack: Deployment, execution_id: str) -> Program:
    shown = stack.execution(execution_id)
    programs = Programs(load_catalogue("sample_steps"), stack.settings)
    return programs.get(stack.store, str(shown["workflow_id"]), shown["version"])


def rests(stack: Deployment, awaits: str | None, **how: Any) -> Scene:
    execution_id, held = runs(stack)
    with stack.store.single() as connection:
        resumes = how.pop("resumes", True)
        assert records.rest(connection, held, Result(), awaits=awaits, resumes=resumes, **{"delay": None, **how})
    return execution_id, "a"


def third_of(stack: Deployment, **keys: Any) -> tuple[str, str]:
    """(a workflow, the third of its executions)."""
    workflow_id = stack.create(workflow(step("a"), **keys))
    assert stack.client.post(f"/api/v1/workflows/{workflow_id}/activate").status_code == 200
    return workflow_id, [stack.execute(workflow_id) for _ in range(3)][-1]


def with_its_workflow_paused(stack: Deployment) -> Scene:
    workflow_id, execution_id = third_of(stack)
    assert stack.client.post(f"/api/v1/workflows/{workflow_id}/pause").status_code == 200
    return execution_id, None


def paused(stack: Deployment) -> Scene:
    execution_id = started(stack, step("a"))
    assert stack.client.post(f"/api/v1/executions/{execution_id}/pause").status_code == 200
    return execution_id, "a"


def cancelled(stack: Deployment) -> Scene:
    execution_id = started(stack, step("a"))
    assert stack.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code == 200
    return execution_id, None


def behind_another(stack: Deployment) -> Scene:
    runs(stack)
    return started(stack, step("a")), "a"


def on_its_way(stack: Deployment, seconds: int) -> Scene:
    leased(stack, "cpu")
    execution_id = started(stack, step("a"))
    stack.sql("UPDATE step_executions SET rung_at = now() - %(ago)s * interval '1 s'", ago=seconds)
    return execution_id, "a"


def in_a_later_round(stack: Deployment) -> Scene:
    execution_id = started(stack, loop("each", step("x"), items=[1, 2], concurrency=1))
    held = claimed(stack, execution_id, "each", leased(stack, "control"))
    spawn = Spawn([Scope(n, {"index": n, "item": n}) for n in range(2)], {}, concurrency=1)
    begin_body(
        stack.store, program_of(stack, execution_id), execution_id, held, None, spawn, lambda plan: None, worker=None
    )
    return execution_id, "each[1].x"


def between_two(stack: Deployment) -> Scene:
    execution_id, held = runs(stack)
    with records.ending(stack.store, execution_id, held, Result(), steps.StepStatus.COMPLETED, ["b"]):
        pass  # its worker died here
    return execution_id, "b"


COMPLETED, FAILED = steps.StepStatus.COMPLETED, steps.StepStatus.FAILED
SCENES: dict[Why, Callable[[Deployment], Scene]] = {
    Why.RUNNING: lambda stack: (runs(stack)[0], "a"),
    Why.COMPLETED: lambda stack: ends(stack, COMPLETED),
    Why.FAILED: lambda stack: ends(stack, FAILED),
    Why.SKIPPED: lambda stack: ends(stack, FAILED, "b"),
    Why.CANCELLED: cancelled,
    Why.PAUSED: paused,
    Why.WORKFLOW_PAUSED: with_its_workflow_paused,
    Why.LIMIT_REACHED: lambda stack: (third_of(stack)[1], "a"),
    Why.HELD_BY_LIMIT: lambda stack: (third_of(stack, max_concurrent=1)[1], "a"),
    Why.RATE_LIMITED: lambda stack: (third_of(stack, rate_limit={"limit": 1, "per": "1h"})[1], "a"),
    Why.NO_WORKER: lambda stack: (started(stack, step("a")), "a"),
    Why.BUSY: behind_another,
    Why.BROKER_UNREACHABLE: lambda stack: on_its_way(stack, 0),
    Why.MESSAGE_ON_ITS_WAY: lambda stack: on_its_way(stack, 0),
    Why.MESSAGE_LATE: lambda stack: on_its_way(stack, 20),
    Why.RETRY_AT: lambda stack: rests(stack, None, delay=60, resumes=False),
    Why.WAITING_FOR_TIME: lambda stack: rests(stack, None, delay=60),
    Why.WAITING_FOR_APPROVAL: lambda stack: rests(stack, "decision"),
    Why.WAITING_FOR_SIGNAL: lambda stack: rests(stack, "signal:paid"),
    Why.WAITING_FOR_CHILD: lambda stack: rests(stack, "child", state={"execution_id": str(uuid4())}),
    Why.WAITING_FOR_BODY: lambda stack: (in_a_later_round(stack)[0], "each"),
    Why.WAITING_FOR_TURN: in_a_later_round,
    Why.WAITING_FOR_DEPENDENCIES: lambda stack: (started(stack, step("a"), step("b", needs="a")), "b"),
    Why.ADVANCING: between_two,
}


@pytest.mark.parametrize("reason", Why)
def test_each_reason_is_told_of_what_it_keeps_from_running(stack: Deployment, reason: Why):
    execution_id, path = SCENES[reason](stack)
    answer = away(stack, execution_id, "a") if reason is Why.BROKER_UNREACHABLE else why(stack, execution_id, path)
    assert answer["reason"] == reason
    is_over = reason in {Why.RUNNING, Why.COMPLETED, Why.FAILED, Why.SKIPPED, Why.CANCELLED}
    assert is_over or answer["facts"] or reason is Why.ADVANCING, "what follows from nothing says nothing"


def away(stack: Deployment, execution_id: str, path: str) -> dict[str, Any]:
    """As the API would tell it, were the broker away."""

    def look(_queues: Sequence[str]) -> BrokerState:
        raise OSError

    programs = Programs(load_catalogue("sample_steps"), stack.settings)
    return asdict(why_step(stack.store, programs, look, step_id(stack, execution_id, path)))


def test_one_that_there_is_room_for_is_about_to_be_let_in(stack: Deployment):
    _, execution_id = third_of(stack)
    stack.sql("DELETE FROM executions WHERE admitted_at IS NOT NULL")
    assert why(stack, execution_id)["reason"] == "advancing"
    _, held = third_of(stack, max_concurrent=1)
    stack.sql("DELETE FROM executions WHERE admitted_at IS NOT NULL")
    assert why(stack, held)["facts"]["ahead"] == 1
    stack.sql("DELETE FROM executions WHERE id <> %(id)s::uuid", id=held)
    assert why(stack, held)["reason"] == "advancing"


@pytest.mark.parametrize("path", ["executions/{}/why", "step-executions/{}/why", "workflows/{}/status"])
def test_what_there_is_not_is_not_found(stack: Deployment, path: str):
    answer = stack.client.get(f"/api/v1/{path.format(uuid4())}")
    assert answer.status_code == 404
    assert answer.content_type == "application/problem+json"


# --- the scheduler ---------------------------------------------------------------------------------------------


def test_workers_say_what_they_serve_and_what_they_do(single: Deployment, gate: Path):
    execution_id = started(single, step("held", "gate", file=str(gate)))
    comes_to(single, execution_id, "held", "running")
    (worker,) = read(single, "scheduler/status")["workers"]
    assert (worker["queues"], worker["slots"]) == (["control", "cpu"], 1)
    assert worker["seen_seconds"] < single.settings.scheduler.lease
    (performed,) = worker["steps"]
    assert performed.pop("seconds") >= 0
    assert performed == {"execution_id": execution_id, "path": "held", "type": "gate"}


def test_a_worker_of_threads_has_a_slot_for_each(deployment: Deployment):
    shown = read(deployment, "scheduler/status")["workers"]
    assert [(one["queues"], one["slots"]) for one in shown if "io" in one["queues"]] == [(["io"], 10)]


def test_queues_say_what_waits_in_them(single: Deployment, gate: Path):
    held = started(single, step("held", "gate", file=str(gate)))
    comes_to(single, held, "held", "running")
    waiting = [started(single, step("a")) for _ in range(2)]
    started(single, step("a", "io_noop"))
    queues = {queue.pop("name"): queue for queue in read(single, "scheduler/status")["queues"]}
    assert 0 <= queues["cpu"].pop("oldest_seconds") < 10
    assert queues["cpu"] == {"depth": 2, "waiting": 2, "workers": 1}
    assert queues["io"].pop("oldest_seconds") is not None
    assert queues["io"] == {"depth": 1, "waiting": 1, "workers": 0}
    assert queues["control"] == {"depth": 0, "waiting": 0, "oldest_seconds": None, "workers": 1}
    gate.touch()
    for execution_id in waiting:
        single.ended(execution_id)


def test_executions_are_counted_by_what_they_wait_for(stack: Deployment):
    limited = stack.create(workflow(step("a"), max_concurrent=1))
    free = stack.create(workflow(step("a")))
    for workflow_id in (limited, limited, free, free, free):
        stack.execute(workflow_id)
    shown = read(stack, "scheduler/status")["executions"]
    assert shown == {"running": 2, "queued": 2, "held": 1, "max_concurrent": 2}


def test_an_idle_scheduler_has_nothing_due_and_nobody_who_reconciles(stack: Deployment):
    shown = read(stack, "scheduler/status")
    assert shown["broker"] == "ok"
    assert shown["workers"] == []
    assert shown["timers"] == {"next_due": None, "overdue_seconds": 0}
    assert shown["reconciler"] == {"holder": None, "kept_seconds_ago": None}
    assert shown["beat"] == {"holder": None, "ttl_seconds": None}


def test_timers_and_schedules_say_what_is_late(stack: Deployment):
    workflow_id = stack.create(workflow(step("a")))
    with stack.store.single() as connection:
        trigger = triggers.insert(connection, workflow_id, type="schedule", name="t", config={}, is_enabled=True)
    assert read(stack, "scheduler/status")["schedules"] == {"next_due": None, "lag_seconds": 0}
    stack.sql("UPDATE triggers SET next_slot = now() - interval '30 s' WHERE id = %(id)s::uuid", id=trigger)
    schedules = read(stack, "scheduler/status")["schedules"]
    assert schedules["next_due"]
    assert 30 <= schedules["lag_seconds"] < 60


def test_a_timer_of_a_paused_execution_is_not_late(stack: Deployment):
    execution_id = started(stack, step("a"))
    held = claimed(stack, execution_id, "a", leased(stack, "cpu"))
    with stack.store.single() as connection:
        assert records.rest(connection, held, Result(), delay=-90, resumes=True)
    stack.client.post(f"/api/v1/executions/{execution_id}/pause")
    assert read(stack, "scheduler/status")["timers"] == {"next_due": None, "overdue_seconds": 0}


def test_the_reconciler_is_named(deployment: Deployment):
    shown = read(deployment, "scheduler/status")["reconciler"]
    assert shown["holder"]
    assert shown["kept_seconds_ago"] < 10


def test_the_clock_is_seen_while_it_holds_its_lock(idle: Deployment):
    command = [
        sys.executable, "-m", "celery", "-A", "beat", "beat", "-S", "redbeat.RedBeatScheduler", "--pidfile=",
    ]  # fmt: skip
    environment = os.environ | environment_of(idle.settings)
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as clock:
        try:
            beat = wait_until(
                lambda: (shown := read(idle, "scheduler/status")["beat"])["holder"] and shown, what="the clock"
            )
        finally:
            clock.terminate()
    assert 0 < beat["ttl_seconds"] <= 60


def test_without_a_broker_the_rest_is_still_told(tmp_path: Path):
    with deployed(tmp_path) as own:
        execution_id = started(own, step("a"))
        leased(own, "cpu")
        assert own.servers.valkey is not None
        own.servers.valkey.kill()
        shown = read(own, "scheduler/status")
        assert (shown["broker"], shown["beat"]) == ("unreachable", None)
        (queue,) = shown["queues"]
        assert (queue["name"], queue["depth"], queue["waiting"]) == ("cpu", None, 1)
        reason = why(own, execution_id)
        assert reason["reason"] == "broker_unreachable"
        assert reason["facts"]["messages"] is None


def test_a_broker_that_never_answers_keeps_nobody_waiting_for_long(idle: Deployment):
    valkey = idle.servers.valkey
    assert valkey is not None
    valkey.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert read(idle, "scheduler/status")["broker"] == "unreachable"
        assert time.monotonic() - began < SOON
    finally:
        valkey.signal(signal.SIGCONT)


# --- a workflow ------------------------------------------------------------------------------------------------


def test_a_workflows_status_sums_up_its_executions(stack: Deployment):
    workflow_id = stack.create(workflow(step("a")), "mine")
    shown = read(stack, f"workflows/{workflow_id}/status")
    assert shown == {
        "id": workflow_id, "name": "mine", "status": "draft", "version": 1, "running": 0, "queued": 0,
        "last_execution": None, "success_rate": None, "execution_count": 0,
    }  # fmt: skip
    first, second, third, last = (stack.execute(workflow_id) for _ in range(4))
    with stack.store.single() as connection:
        executions.fail(connection, first, "over")
        executions.finish(connection, second, {})
    stack.sql("UPDATE executions SET status = 'running', admitted_at = now() WHERE id = %(id)s::uuid", id=third)
    shown = read(stack, f"workflows/{workflow_id}/status")
    assert (shown["running"], shown["queued"], shown["execution_count"]) == (1, 1, 4)
    assert shown["success_rate"] == 0.5
    assert shown["last_execution"]["id"] == last
    assert shown["last_execution"]["status"] == "queued"
