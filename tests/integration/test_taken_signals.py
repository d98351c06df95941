"""A signal that is there already is taken by the very statement that records its step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_execution import step, workflow
from test_inline_bodies import OneWorker, a_set, worker

from orchestrator.lifecycle import StepStatus
from orchestrator.store import Store, claims, new_id, records, recovery, signals
from orchestrator.store.claims import Claim
from orchestrator.store.records import Result, Surroundings
from orchestrator.store.session import Refused
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


def untaken(worker: OneWorker, execution_id: str) -> list[Any]:
    """The payloads of the signals that nobody has taken, the oldest first."""
    sql = "SELECT payload FROM signals WHERE execution_id = %(id)s::uuid AND taken_by IS NULL ORDER BY id"
    return [payload for (payload,) in worker.servers.sql(sql, id=execution_id)]


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
    assert untaken(worker, execution_id) == [4]
    rows = {row["path"]: row for row in execution["step_executions"]}
    assert [rows[path]["output"]["payload"] for path in "abc"] == [1, 2, 3]
    assert all(rows[path]["attempt"] == 1 for path in "abc")


def once_seen(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], object]) -> None:
    """`act` comes between a worker's look at a signal, whose id it gets, and the record of the step that takes it."""
    look = PendingSignals.next

    def look_and_act(self: PendingSignals, name: str) -> tuple[str, Any] | None:
        found = look(self, name)
        if found is not None:
            act(found[0])
        return found

    monkeypatch.setattr(PendingSignals, "next", look_and_act)


@pytest.fixture
def too_late(worker: OneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else takes each signal that is to be taken together with a result."""
    sql = "UPDATE signals SET taken_by = %(by)s::uuid WHERE id = %(id)s::uuid"
    once_seen(monkeypatch, lambda id: worker.servers.sql(sql, by=new_id(), id=id))


@pytest.mark.usefixtures("too_late")
def test_one_that_somebody_else_took_meanwhile_stays_theirs(worker: OneWorker) -> None:
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), "theirs", "ours")
    worker.perform(execution_id)
    rows = {row["path"]: row for row in worker.servers.execution(execution_id)["step_executions"]}
    assert rows["a"]["output"]["payload"] == "ours"
    assert (rows["a"]["attempt"], rows["b"]["status"]) == (1, "completed")
    assert untaken(worker, execution_id) == []


def test_one_stays_untaken_whose_step_was_cancelled_meanwhile(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(_id: str) -> None:
        assert worker.servers.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code < 300

    once_seen(monkeypatch, cancel)
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), 1)
    worker.perform(execution_id)
    assert worker.servers.statuses(execution_id) == {"a": "cancelled", "b": "cancelled"}
    assert untaken(worker, execution_id) == [1]


Recording = Callable[[Store, str, Claim, Result], object]


def advanced(store: Store, execution_id: str, claim: Claim, result: Result) -> bool:
    with records.ending(store, execution_id, claim, result, StepStatus.COMPLETED, ()) as recorded:
        return recorded is not None


RECORDINGS: dict[str, Recording] = {
    "and followed": lambda *given: records.complete_and_follow(*given, "b", new_id())[0],
    "and gone on": lambda *given: (
        records.complete_and_go_on(*given, Surroundings(("b",), ()), queues=["cpu"], worker_id=new_id()).recorded
    ),
    "and finished": lambda *given: records.complete_and_finish(*given)[0],
    "and advanced": advanced,
}


@pytest.fixture(params=RECORDINGS.values(), ids=RECORDINGS.keys())
def record(request: pytest.FixtureRequest) -> Recording:
    recording: Recording = request.param
    return recording


@pytest.mark.parametrize(("bytes", "read"), [(1, 1), (10_000, 2), (100_000, 3)])
def test_many_are_read_at_a_time_unless_they_are_large(worker: OneWorker, bytes: int, read: int) -> None:
    payloads = [None, "".join(map(chr, range(0x400, 0x2400))), 3]
    execution_id = started(worker, workflow(a_signal("a")), *payloads)
    found = signals.untaken(worker.servers.store, execution_id, "go", most=9, bytes=bytes)
    assert [signal["payload"] for _, signal in found] == payloads[:read]


def claimed_with_its_signal(worker: OneWorker) -> tuple[str, Claim, Result]:
    """An execution with two signals, its first step, and a result of that which has taken the first one."""
    store = worker.servers.store
    execution_id = started(worker, workflow(a_signal("a"), a_set("b", "a", v=1)), 1, 2)
    claimed = claims.claim(store, execution_id, "a", worker.process.lease.id)
    assert claimed is not None
    ((oldest, signal), *_) = signals.untaken(store, execution_id, "go", most=2, bytes=1_000)
    return execution_id, claimed[0], Result(output=signal, signals=(oldest,))


def test_one_is_taken_with_the_record_of_its_step(worker: OneWorker, record: Recording) -> None:
    execution_id, claim, result = claimed_with_its_signal(worker)
    assert record(worker.servers.store, execution_id, claim, result)
    assert untaken(worker, execution_id) == [2]


def test_none_is_taken_under_a_claim_that_is_lost(worker: OneWorker, record: Recording) -> None:
    execution_id, claim, result = claimed_with_its_signal(worker)
    with worker.servers.store.transaction() as connection:
        assert recovery.lose(connection, claim)
    assert not record(worker.servers.store, execution_id, claim, result)
    assert untaken(worker, execution_id) == [1, 2]


def test_nothing_is_recorded_with_one_that_somebody_has(worker: OneWorker, record: Recording) -> None:
    execution_id, claim, result = claimed_with_its_signal(worker)
    worker.servers.sql(
        "UPDATE signals SET taken_by = %(by)s::uuid WHERE id = %(id)s::uuid", by=new_id(), id=result.signals[0]
    )
    with pytest.raises(Refused):
        record(worker.servers.store, execution_id, claim, result)
    assert worker.servers.statuses(execution_id) == {"a": "running", "b": "pending"}
    assert worker.servers.execution(execution_id)["status"] == "running"


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
    assert (done.read_text().split(), untaken(worker, execution_id)) == (["1"], [2])


def test_one_is_found_behind_many_others_and_given_once(worker: OneWorker) -> None:
    definition = workflow(a_signal("a"))
    execution_id = started(worker, definition)
    with worker.servers.store.single() as connection:
        for name in (*["other"] * 30, "go", "go"):
            signals.insert(connection, execution_id, name, None)
    pending = PendingSignals(worker.servers.store, execution_id)
    found = [pending.next("go"), pending.next("go")]
    assert None not in found
    assert len({id for id, _ in filter(None, found)}) == 2


def test_a_step_that_fails_over_its_signal_leaves_it_for_a_retry(worker: OneWorker) -> None:
    fails = a_signal("a", output_mapping={"v": "{{ output.payload.there }}"})
    execution_id = started(worker, workflow(fails), {"here": 1})
    worker.perform(execution_id)
    assert worker.servers.execution(execution_id)["status"] == "failed"
    assert untaken(worker, execution_id) == [{"here": 1}]
