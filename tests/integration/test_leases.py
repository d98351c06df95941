"""A process whose lease was given to the dead while it stood still: it takes nothing on that would be lost at once."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from test_execution import step, workflow
from test_inline_bodies import OneWorker, worker

from workers import process

__all__ = ["worker"]  # a fixture


def lapse(worker: OneWorker) -> str:
    """Its lease is taken away, without a word to it."""
    id = worker.process.lease.id
    assert worker.servers.sql("DELETE FROM worker_processes WHERE id = %(id)s::uuid RETURNING 1", id=id) == [(1,)]
    return id


def state(worker: OneWorker, execution_id: str) -> list[Any]:
    sql = "SELECT status, attempt, losses FROM step_executions WHERE execution_id = %(id)s::uuid"
    return [tuple(row) for row in worker.servers.sql(sql, id=execution_id)]


def test_a_process_that_stood_still_has_a_lease_anew_before_it_claims(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution_id = worker.start(workflow(step("a")))
    lapsed = lapse(worker)
    stood_still = worker.servers.settings.scheduler.lease
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + stood_still))
    worker.process.run_steps(execution_id, ["a"], ())
    assert worker.process.lease.id != lapsed
    assert state(worker, execution_id) == [("completed", 1, 0)]


def test_a_process_that_does_not_know_yet_leaves_the_step_as_it_is(worker: OneWorker) -> None:
    execution_id = worker.start(workflow(step("a")))
    lapse(worker)
    worker.process.run_steps(execution_id, ["a"], ())
    assert state(worker, execution_id) == [("queued", 0, 0)]
