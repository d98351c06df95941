"""A signal that is there already is taken by the very statement that records its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_execution import step, workflow
from test_inline_bodies import OneWorker, a_set, worker

from orchestrator.store import new_id, recovery, signals, steps
from orchestrator.store.session import Call, Refused
from orchestrator.store.steps import Claim
from workers.pending_signals import PendingSignals
from workers.runner import Lane

__all__ = ["worker"]  # a fixture


def a_signal(id: str, needs: str = "", **more: Any) -> dict[str, Any]:
    return step(id, "signal", needs, name="go") | more


def started(worker: OneWorker, definition: dict[str, Any], *payloads: Any) -> str:
    execution_id = worker.start(definition)
    for payload in payloads:
        body = {"name": "go", "payload": payload}
        assert worker.servers.client.post(f"/api/v1/executions/{execution_id}/signals", json=body).status_code < 300
    return execution_id


def taken(worker: OneWorker, execution_id: str) -> list[tuple[Any, str | None]]:
    """(payload, path of the step that has it) of each signal, the oldest first."""
    sql = """
        SELECT g.payload, s.path FROM signals g LEFT JOIN step_executions s ON s.id = g.taken_by
        WHERE g.execution_id = %(id)s::uuid ORDER BY g.id
    """
    return [(payload, path) for payload, path in worker.servers.sql(sql, id=execution_id)]


SHAPES = {
    "in a run": workflow(a_signal("a"), a_signal("b", "a"), a_signal("c", "b")),
    "the last of one run": workflow(a_signal("a"), a_signal("b", "a"), a_signal("c", "b"), a_set("d", "c", v=1)),
    "before a narrow fork": workflow(
        a_signal("a"), a_signal("b", "a"), a_signal("c", "b"), a_set("d", "c", v=1), a_set("e", "c", v=1)
    ),
    "before a wide fork that is joined": workflow(
        a_signal("a"), a_signal("b", "a"), a_signal("c", "b"),
        *(a_set(f"d{n}", "c", v=1) for n in range(20)),
        a_set("e", " ".join(f"d{n}" for n in range(20)), v=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("definition", SHAPES.values(), ids=SHAPES.keys())
def test_each_step_has_the_next_signal(worker: OneWorker, definition: dict[str, Any]) -> None:
    execution_id = started(worker, definition, 1, 2, 3, 4)
    worker.perform(execution_id)
    execution = worker.servers.execution(execution_id)
    assert execution["status"] == "completed"
    assert taken(worker, execution_id) == [(1, "a"), (2, "b"), (3, "c"), (4, None)]
    rows = {row["path"]: row for row in execution["step_executions"]}
    assert [rows[path]["output"]["payload"] for path in "abc"] == [1, 2, 3]
    assert all(rows[path]["attempt"] == 1 for path in "abc")


@pytest.fixture
def too_late(worker: OneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else takes each signal that is to be taken together with a result."""
    taking = signals.taking
    somebody = new_id()

    def taken_before(held: Claim, signal_id: str) -> Call:
        worker.servers.sql(
            "UPDATE signals SET taken_by = %(by)s::uuid WHERE id = %(id)s::uuid RETURNING 1", by=somebody, id=signal_id
        )
        return taking(held, signal_id)

    monkeypatch.setattr(signals, "taking", taken_before)


@pytest.mark.usefixtures("too_late")
def test_one_that_somebody_else_took_meanwhile_stays_theirs(worker: OneWorker) -> None:
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), "theirs", "ours")
    worker.perform(execution_id)
    rows = {row["path"]: row for row in worker.servers.execution(execution_id)["step_executions"]}
    assert rows["a"]["output"]["payload"] == "ours"
    assert (rows["a"]["attempt"], rows["b"]["status"]) == (1, "completed")
    assert taken(worker, execution_id) == [("theirs", None), ("ours", "a")]


def test_one_stays_untaken_whose_step_was_cancelled_meanwhile(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking = signals.taking

    def cancelled_before(held: Claim, signal_id: str) -> Call:
        assert worker.servers.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code < 300
        return taking(held, signal_id)

    monkeypatch.setattr(signals, "taking", cancelled_before)
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), 1)
    worker.perform(execution_id)
    assert worker.servers.statuses(execution_id) == {"a": "cancelled", "b": "cancelled"}
    assert taken(worker, execution_id) == [(1, None)]


def test_one_whose_claim_is_lost_before_its_record_is_the_next_attempts(worker: OneWorker) -> None:
    servers = worker.servers
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), 1, 2)
    claimed = steps.claim(servers.store, execution_id, "a", worker.process.lease.id)
    assert claimed is not None
    (oldest, *_) = signals.untaken(servers.store, execution_id, "go", 2)
    taking = signals.taking(claimed[0], oldest[0])
    servers.store.call(taking.routine, taking.params)
    with servers.store.transaction() as connection:
        assert recovery.lose(connection, claimed[0])
    with pytest.raises(Refused):
        servers.store.call(taking.routine, taking.params, [taking])
    worker.perform(execution_id)
    assert servers.execution(execution_id)["status"] == "completed"
    assert taken(worker, execution_id) == [(1, "a"), (2, None)]


@pytest.mark.usefixtures("too_late")
def test_what_was_not_recorded_is_not_remembered(worker: OneWorker) -> None:
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), "theirs")
    lane = Lane(worker.process, execution_id, ["a"], frozenset())
    lane.claim_and_go()
    assert worker.servers.statuses(execution_id)["a"] == "waiting"
    assert lane.seen == {}


@pytest.mark.usefixtures("too_late")
def test_a_step_that_does_more_has_taken_its_signal_before_that(worker: OneWorker, tmp_path: Path) -> None:
    """Else it might do it for a signal that is not its own, and again for the next."""
    done = tmp_path / "done"
    execution_id = started(worker, workflow(step("a", "act_on_signal", name="go", file=str(done))), 1, 2)
    worker.perform(execution_id)
    assert (done.read_text().split(), taken(worker, execution_id)) == (["1"], [(1, "a"), (2, None)])


def test_one_is_found_behind_many_others_and_given_once(worker: OneWorker) -> None:
    definition = workflow(a_signal("a"))
    execution_id = started(worker, definition)
    with worker.servers.store.single() as connection:
        for name in (*["other"] * 30, "go", "go"):
            signals.insert(connection, execution_id, name, None)
    untaken = PendingSignals(worker.servers.store, execution_id)
    found = [untaken.next("go"), untaken.next("go")]
    assert None not in found
    assert len({id for id, _ in filter(None, found)}) == 2


def test_a_step_that_fails_over_its_signal_leaves_it_for_a_retry(worker: OneWorker) -> None:
    fails = a_signal("a", output_mapping={"v": "{{ output.payload.there }}"})
    execution_id = started(worker, workflow(fails), {"here": 1})
    worker.perform(execution_id)
    assert worker.servers.execution(execution_id)["status"] == "failed"
    assert taken(worker, execution_id) == [({"here": 1}, None)]
