"""The database goes away between a step and its record: what was performed is recorded when it is back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from test_execution import step, workflow
from test_inline_bodies import OneWorker, worker

from orchestrator.store import Store, records
from workers import runner
from workers.attempt import Attempt

__all__ = ["worker"]  # a fixture


CutOff = Callable[[], None]


@pytest.fixture
def cut_off(worker: OneWorker) -> CutOff:
    """Ends every connection that the worker has."""
    engine, pids = worker.process.store.engine, set[int]()
    sa.event.listen(engine, "connect", lambda connection, _: pids.add(connection.info.backend_pid))
    engine.dispose()  # those that it has already are not among them

    def end() -> None:
        worker.servers.sql("SELECT pg_terminate_backend(pid) FROM unnest(%(pids)s) AS pid", pids=list(pids))

    return end


@pytest.fixture
def cut_off_after_performing(cut_off: CutOff, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a step has been performed, its worker loses all connections."""
    perform = Attempt.perform

    def perform_and_cut_off(self: Attempt) -> Any:
        outcome = perform(self)
        cut_off()
        return outcome

    monkeypatch.setattr(Attempt, "perform", perform_and_cut_off)


def marks(worker: OneWorker, execution_id: str, file: Path) -> list[str]:
    """The paths of what was performed."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return [path for execution, path, _ in lines if execution == execution_id]


SHAPES: dict[str, Callable[[str], dict[str, Any]]] = {
    "alone": lambda file: workflow(step("a", "mark", file=file)),
    "in a row": lambda file: workflow(step("a", "mark", file=file), step("b", "mark", "a", file=file)),
    "before a fork": lambda file: workflow(
        step("a", "mark", file=file), step("b", "mark", "a", file=file), step("c", "mark", "a", file=file)
    ),
}


@pytest.mark.usefixtures("cut_off_after_performing")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_each_step_is_performed_and_recorded_once(
    worker: OneWorker, tmp_path: Path, shape: Callable[[str], dict[str, Any]]
) -> None:
    file = tmp_path / "marks"
    execution = worker.run(shape(str(file)))
    assert execution["status"] == "completed"
    assert sorted(marks(worker, execution["id"], file)) == sorted(row["path"] for row in execution["step_executions"])
    rows = worker.servers.sql(
        "SELECT attempt, losses FROM step_executions WHERE execution_id = %(id)s::uuid", id=execution["id"]
    )
    assert {tuple(row) for row in rows} == {(1, 0)}


@pytest.mark.usefixtures("cut_off_after_performing")
def test_a_body_that_was_performed_in_one_go_is_recorded_once(worker: OneWorker) -> None:
    inside = {"id": "one", "type": "set", "config": {"values": {"n": "{{ loop.index }}"}}}
    execution = worker.run(workflow({"id": "each", "type": "loop", "config": {"items": [1, 2, 3], "steps": [inside]}}))
    assert (execution["status"], execution["output"]["each"]["count"]) == ("completed", 3)
    assert len(execution["step_executions"]) == 4


def test_what_was_recorded_although_no_answer_came_is_not_recorded_again(
    worker: OneWorker, cut_off: CutOff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "marks"
    call = Store.call
    lost = []

    def call_and_lose(self: Store, routine: Any, *given: Any) -> Any:
        rows = call(self, routine, *given)
        if routine is records._COMPLETE_AND_FINISH_ROUTINE and not lost:
            lost.append(routine)
            cut_off()
            return call(self, routine, *given)  # which finds no connection: the answer to the first is nowhere
        return rows

    monkeypatch.setattr(Store, "call", call_and_lose)
    execution = worker.run(workflow(step("a", "mark", file=str(file))))
    assert lost
    assert execution["status"] == "completed"
    assert marks(worker, execution["id"], file) == ["a"]


@pytest.mark.usefixtures("cut_off_after_performing")
def test_a_database_that_stays_away_leaves_the_step_to_reconcile(
    worker: OneWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "AWAY_PATIENCE", 0.0)
    execution_id = worker.start(workflow(step("a", "mark", file=str(tmp_path / "marks"))))
    worker.process.run_steps(execution_id, ["a"], ())
    sql = "SELECT status, worker_id FROM step_executions WHERE execution_id = %(id)s::uuid"
    assert [tuple(row) for row in worker.servers.sql(sql, id=execution_id)] == [("running", None)]
