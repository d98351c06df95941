"""A trigger type of a plugin: it looks, and what it finds starts one execution however often it is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from deployment import Deployment
from test_execution import step, workflow

from beat.triggers import Every, Found, Looked, Timetable, TriggerType, hookimpl
from orchestrator.store import triggers
from workers import looking
from workers.process import WorkerProcess


class Letterbox(TriggerType):
    """A plugin of one type. Letters are numbered; `state` is how many have been taken out."""

    type: ClassVar[str] = "letterbox"
    looks: ClassVar[bool] = True

    def __init__(self) -> None:
        self.letters: list[Any] = []
        self.looked_from: list[Any] = []
        self.jammed = False

    @hookimpl
    def orchestrator_trigger_types(self) -> list[TriggerType]:
        return [self]

    def timetable(self, config: Mapping[str, Any], trigger_id: str) -> Timetable:
        return Timetable(Every(1))

    def look(self, config: Mapping[str, Any], state: Any) -> Looked:
        self.looked_from.append(state)
        if self.jammed:
            raise OSError("it is jammed")
        new = list(enumerate(self.letters))[state or 0 :]
        found = [Found(f"letter {number}", payload=letter, input=letter) for number, letter in new]
        return Looked(found, len(self.letters))


@pytest.fixture
def box() -> Letterbox:
    return Letterbox()


@pytest.fixture
def process(servers: Deployment, box: Letterbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    # A plugin of its own name for each test: what is loaded is remembered by that.
    name = f"letterbox_{id(box)}"
    monkeypatch.setitem(sys.modules, name, box)
    process = WorkerProcess(replace(servers.settings, plugins=f"sample_steps,{name}"), "looks@here")
    yield process
    process.close()


@pytest.fixture
def trigger_id(servers: Deployment) -> Iterator[str]:
    workflow_id = servers.create(workflow(step("a")))
    servers.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    with servers.store.single() as connection:
        id = triggers.insert(connection, workflow_id, type="letterbox", name="post", config={}, is_enabled=True)
    yield id
    servers.sql("DELETE FROM triggers WHERE id = %(id)s::uuid", id=id)


def fires(servers: Deployment, trigger_id: str) -> list[tuple[str, Any, str]]:
    return [
        tuple(row)
        for row in servers.sql(
            "SELECT f.slot, e.input, f.outcome FROM trigger_fires f LEFT JOIN executions e ON e.id = f.execution_id "
            "WHERE f.trigger_id = %(id)s::uuid ORDER BY f.id",
            id=trigger_id,
        )
    ]


def test_what_is_found_starts_an_execution_each_and_the_next_look_begins_after_it(
    servers: Deployment, process: WorkerProcess, box: Letterbox, trigger_id: str
) -> None:
    box.letters = [{"n": 0}, {"n": 1}]
    looking.look(process, trigger_id)
    looking.look(process, trigger_id)
    box.letters.append({"n": 2})
    looking.look(process, trigger_id)
    assert box.looked_from == [None, 2, 2]
    assert fires(servers, trigger_id) == [(f"letter {n}", {"n": n}, "started") for n in range(3)]
    shown = servers.client.get(f"/api/v1/triggers/{trigger_id}").json
    assert (shown["trigger_count"], shown["last_triggered"] is None) == (3, False)


def test_what_a_worker_died_over_is_found_again_and_starts_nothing_twice(
    servers: Deployment, process: WorkerProcess, box: Letterbox, trigger_id: str
) -> None:
    box.letters = [{"n": 0}]
    looking.look(process, trigger_id)
    servers.sql("UPDATE triggers SET state = NULL WHERE id = %(id)s::uuid", id=trigger_id)
    looking.look(process, trigger_id)
    assert box.looked_from == [None, None]
    assert fires(servers, trigger_id) == [("letter 0", {"n": 0}, "started")]


def test_a_look_that_raises_is_no_harm_and_is_taken_again(
    servers: Deployment, process: WorkerProcess, box: Letterbox, trigger_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    box.letters, box.jammed = [{"n": 0}], True
    looking.look(process, trigger_id)
    assert f"trigger {trigger_id}, of the type 'letterbox', could not look" in caplog.text
    box.jammed = False
    looking.look(process, trigger_id)
    assert fires(servers, trigger_id) == [("letter 0", {"n": 0}, "started")]


@pytest.mark.parametrize("asleep", ["UPDATE triggers SET is_enabled = false", "UPDATE workflows SET status = 'paused'"])
def test_nobody_looks_for_what_starts_nothing(
    servers: Deployment, process: WorkerProcess, box: Letterbox, trigger_id: str, asleep: str
) -> None:
    servers.sql(f"{asleep} WHERE {trigger_id!r} IN (SELECT id::text FROM triggers)")
    looking.look(process, trigger_id)
    assert box.looked_from == []
