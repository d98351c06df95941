"""Limits that are never exceeded, and the order in which those that wait are let in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, deployed, wait_until
from test_execution import step, workflow

from orchestrator.store import admission, executions, recovery
from orchestrator.store.admission import Admitted


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two executions at a time, and no worker."""
    with deployed(tmp_path_factory.mktemp("admission"), max_concurrent=2) as deployment:
        yield deployment


@pytest.fixture
def two_places(stack: Deployment) -> Deployment:
    stack.sql("DELETE FROM workflows")
    return stack


def admitted(deployment: Deployment) -> set[str]:
    rows = deployment.sql("SELECT id::text FROM executions WHERE admitted_at IS NOT NULL AND finished_at IS NULL")
    return {id for (id,) in rows}


def end(deployment: Deployment, execution_id: str) -> list[str]:
    """End an execution as a worker does; those that are let in for it, in their order."""
    with deployment.store.single() as connection:
        assert executions.fail(connection, execution_id, "over")
        freed = admission.freed(connection, execution_id)
    return [] if freed is None else let_in(deployment, freed.keys)


def let_in(deployment: Deployment, keys: tuple[str, ...] = ()) -> list[str]:
    places = deployment.settings.scheduler.max_concurrent
    return [one.execution_id for one in admission.admit(deployment.store, places, keys)]


SINGLE = workflow(step("a"))


def test_no_more_run_than_there_are_places(two_places: Deployment):
    workflow_id = two_places.create(SINGLE)
    first, second, third = (two_places.execute(workflow_id) for _ in range(3))
    assert admitted(two_places) == {first, second}
    assert let_in(two_places) == []
    assert end(two_places, first) == [third]
    assert end(two_places, second) == []


def test_a_step_of_one_that_waits_is_not_claimed_nor_rung_for(two_places: Deployment):

    workflow_id = two_places.create(SINGLE)
    *_, waiting = (two_places.execute(workflow_id) for _ in range(3))
    assert two_places.claim(waiting, "a") is None
    with two_places.store.single() as connection:
        unclaimed = recovery.unclaimed(connection, older_than=0, limit=100)
    assert unclaimed
    assert waiting not in {step.execution_id for step in unclaimed}


def test_the_most_urgent_comes_first_and_then_the_oldest(two_places: Deployment):
    workflow_id = two_places.create(SINGLE)
    running = [two_places.execute(workflow_id) for _ in range(2)]
    low, usual, also_usual, high = (two_places.execute(workflow_id, priority=priority) for priority in (1, 5, 5, 9))
    order = []
    while running:
        order += (let := end(two_places, running.pop(0)))
        running += let
    assert order == [high, usual, also_usual, low]


def test_a_workflow_that_comes_late_gets_every_second_place(two_places: Deployment):
    many, few = two_places.create(SINGLE, "many"), two_places.create(SINGLE, "few")
    running = [two_places.execute(many) for _ in range(2)]
    flood = [two_places.execute(many) for _ in range(10)]
    running += end(two_places, running.pop(0))  # the first of the flood
    late = [two_places.execute(few) for _ in range(3)]
    order = []
    while len(order) < 8:
        order += (let := end(two_places, running.pop(0)))
        running += let
    assert [("few" if id in late else "many") for id in order[:6]].count("few") == 3
    assert [id for id in order if id in flood] == flood[1 : 1 + sum(id in flood for id in order)]


def test_a_workflows_own_limit_holds_it_back_and_nobody_else(two_places: Deployment):
    limited = two_places.create({**SINGLE, "max_concurrent": 1}, "limited")
    free = two_places.create(SINGLE, "free")
    first, second = (two_places.execute(limited) for _ in range(2))
    other = two_places.execute(free)
    assert admitted(two_places) == {first, other}
    assert end(two_places, other) == []
    assert end(two_places, first) == [second]


def test_a_key_is_made_of_the_input(two_places: Deployment):
    keyed = two_places.create({**SINGLE, "concurrency": {"key": "{{ input.customer }}", "limit": 1}})
    a1, a2, b1 = (two_places.execute(keyed, {"customer": customer}) for customer in ("a", "a", "b"))
    assert admitted(two_places) == {a1, b1}
    assert end(two_places, b1) == []
    assert end(two_places, a1) == [a2]
    answer = two_places.client.post(f"/api/v1/workflows/{keyed}/execute", json={"input": {}})
    assert answer.status_code == 422
    assert "makes no concurrency key" in answer.json["errors"][0]["message"]


def test_those_that_are_held_do_not_stand_in_the_way(two_places: Deployment):
    limited, free = two_places.create({**SINGLE, "max_concurrent": 1}, "limited"), two_places.create(SINGLE, "free")
    first, other = two_places.execute(limited), two_places.execute(free)
    held = [two_places.execute(limited) for _ in range(5)]
    waiting = two_places.execute(free)
    assert end(two_places, other) == [waiting]
    assert end(two_places, first) == [held[0]]


def test_one_that_is_just_being_ended_is_passed_over(two_places: Deployment):
    workflow_id = two_places.create(SINGLE)
    first, second, going, waiting = (two_places.execute(workflow_id) for _ in range(4))
    with two_places.store.transaction() as connection:
        assert executions.cancel(connection, going, "while somebody admits")
        assert end(two_places, first) == [waiting]
    assert admitted(two_places) == {second, waiting}
    assert two_places.sql("SELECT id::text FROM executions WHERE status = 'cancelled' AND admitted_at IS NULL") == [
        (going,)
    ]


def test_an_end_that_let_nobody_in_is_made_good_by_reconcile(two_places: Deployment):
    from orchestrator.engine.admission import admit_all

    limited = two_places.create({**SINGLE, "max_concurrent": 1})
    first, second, third = (two_places.execute(limited) for _ in range(3))
    with two_places.store.single() as connection:
        assert executions.fail(connection, first, "its worker died after this")
    (plan,) = admit_all(two_places.store, two_places.settings)
    assert plan.execution_id == second
    assert admit_all(two_places.store, two_places.settings) == []
    assert third not in admitted(two_places)


def test_what_is_paused_or_cancelled_while_it_waits_is_not_let_in(two_places: Deployment):
    workflow_id = two_places.create(SINGLE)
    first, _, paused, cancelled, last = (two_places.execute(workflow_id) for _ in range(5))
    assert two_places.client.post(f"/api/v1/executions/{paused}/pause").status_code == 200
    assert two_places.client.post(f"/api/v1/executions/{cancelled}/cancel").status_code == 200
    assert end(two_places, first) == [last]
    assert two_places.client.post(f"/api/v1/executions/{paused}/resume").json["status"] == "queued"
    assert end(two_places, last) == [paused]


def test_many_that_start_at_once_never_exceed_the_limit(two_places: Deployment):
    workflow_id = two_places.create(SINGLE)
    barrier = threading.Barrier(8)

    def start() -> None:
        client = two_places.client.application.test_client()
        barrier.wait()
        for _ in range(5):
            answer = client.post(
                f"/api/v1/workflows/{workflow_id}/execute",
                json={},
                headers={"Authorization": two_places.client.environ_base["HTTP_AUTHORIZATION"]},
            )
            assert answer.status_code == 202

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(two_places.sql("SELECT FROM executions")) == 40
    assert len(admitted(two_places)) == 2


# --- with workers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("working"), max_concurrent=3) as deployment:
        deployment.start_worker("control,cpu", concurrency=4)
        deployment.start_worker("io", pool="threads", concurrency=10)
        yield deployment


def most_at_a_time(marks: Path) -> int:
    """Of the lines `+` and `-` in their order."""
    most = now = 0
    for line in marks.read_text().splitlines():
        now += 1 if line == "+" else -1
        most = max(most, now)
    return most


def test_a_backlog_drains_without_ever_exceeding_the_limit(working: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    source = f"echo + >> {marks}; sleep 0.02; echo - >> {marks}"
    script = {"id": "a", "type": "script", "config": {"runtime": "bash", "source": source}}
    workflow_id = working.create({**workflow(script), "max_concurrent": 2})
    ids = [working.execute(workflow_id) for _ in range(12)]
    for execution_id in ids:
        assert working.ended(execution_id)["status"] == "completed"
    assert most_at_a_time(marks) <= 2


def test_a_long_backlog_drains_to_its_end(working: Deployment):
    fork = workflow(step("a"), step("b", needs="a"), step("c", "io_noop", needs="a"), step("d", needs="b c"))
    single, forked = working.create(SINGLE, "single"), working.create(fork, "forked")
    ids = [working.execute(single if n % 3 else forked) for n in range(150)]

    def all_done() -> bool:
        ((left,),) = working.sql(
            "SELECT count(*) FROM executions WHERE id = ANY(%(ids)s::uuid[]) AND finished_at IS NULL", ids=ids
        )
        return bool(left == 0)

    wait_until(all_done, what="the backlog to drain")
    assert working.sql("SELECT FROM executions WHERE status <> 'completed'") == []


def test_those_that_wait_for_a_child_do_not_keep_it_from_running(working: Deployment):
    child = working.create(SINGLE, "child")
    parent = {"id": "child", "type": "workflow", "config": {"workflow": child}}
    workflow_id = working.create(workflow(parent), "parent")
    ids = [working.execute(workflow_id) for _ in range(9)]
    for execution_id in ids:
        assert working.ended(execution_id)["status"] == "completed"


def test_an_admitted_step_says_where_it_belongs(two_places: Deployment):
    workflow_id = two_places.create(workflow(step("a"), step("b", "io_noop")))
    first, _, third = (two_places.execute(workflow_id, priority=7) for _ in range(3))
    with two_places.store.single() as connection:
        executions.fail(connection, first, "over")
    let: list[Any] = sorted(admission.admit(two_places.store, 2), key=lambda one: one.path)
    assert let == [Admitted(third, "a", "cpu", 7), Admitted(third, "b", "io", 7)]
