"""Bodies that only compute are performed in one go; what there is to see is what it would have been otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from deployment import Deployment
from test_control_flow import loop, parallel
from test_execution import step, workflow

from orchestrator.lifecycle import EXECUTION_TERMINAL
from orchestrator.store import bodies, claims, recovery
from orchestrator.store.session import Call
from workers import attempt, inline, prepared
from workers.process import WorkerProcess
from workers.runner import Lane

Row = dict[str, Any]
NOT_COMPARED = {"id", "execution_id", "start_time", "end_time", "duration"}


class OneWorker:
    """This very process as the only worker."""

    def __init__(self, servers: Deployment) -> None:
        self.servers = servers
        self.process = WorkerProcess(replace(servers.settings, plugins="sample_steps"), "in@process")

    def start(self, definition: dict[str, Any]) -> str:
        return self.servers.execute(self.servers.create(definition), {"n": 3})

    def perform(self, execution_id: str) -> None:
        """Whatever is queued of it, until nothing is."""
        while queued := self.servers.sql(
            "SELECT path FROM step_executions WHERE execution_id = %(id)s::uuid AND status = 'queued'", id=execution_id
        ):
            self.process.run_steps(execution_id, [path for (path,) in queued], ())

    def run(self, definition: dict[str, Any]) -> dict[str, Any]:
        execution_id = self.start(definition)
        self.perform(execution_id)
        execution = self.servers.execution(execution_id)
        assert execution["status"] in EXECUTION_TERMINAL
        return execution

    def rung(self, execution_id: str) -> set[str]:
        """The steps inside others that were queued at some time."""
        sql = (
            "SELECT path FROM step_executions WHERE execution_id = %(id)s::uuid AND container IS NOT NULL "
            "AND worker_id IS NOT NULL AND rung_at IS NOT NULL"
        )
        return {path for (path,) in self.servers.sql(sql, id=execution_id)}


@pytest.fixture
def worker(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneWorker]:
    monkeypatch.setattr(inline, "MOST_SECONDS", 60)  # or what is shown would depend on how fast this machine is
    one = OneWorker(servers)
    yield one
    one.process.close()


@pytest.fixture
def step_by_step(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The same, but no body is taken for one that only computes."""

    def run(definition: dict[str, Any]) -> dict[str, Any]:
        with monkeypatch.context() as patched:
            patched.setattr(prepared, "has_pure_bodies", lambda step, catalogue: False)
            one = OneWorker(servers)
            try:
                return one.run(definition)
            finally:
                one.process.close()

    return run


def a_set(id: str, needs: str = "", **more: Any) -> dict[str, Any]:
    own = {key: more.pop(key) for key in ("when", "output_mapping", "trigger_rule", "on_error") if key in more}
    return step(id, "set", needs, values=more) | own


def a_condition(id: str, needs: str = "", **config: Any) -> dict[str, Any]:
    return step(id, "condition", needs, **config)


BODIES = {
    "items": [loop("each", a_set("one", v="{{ loop.item + input.n }}"), items="{{ range(4) | list }}")],
    "several last steps": [loop("each", a_set("a", v=1), a_set("b", v="{{ loop.index }}"), items=[7, 8])],
    "branches": [
        parallel("fork", left=[a_set("l", v=1), a_set("l2", "l", v="{{ steps.l.output.v }}")], right=[a_set("r", v=2)])
    ],
    "a branch not taken": [
        loop(
            "each",
            a_condition("which", expression="{{ loop.item > 1 }}", then="yes", **{"else": "no"}),
            a_set("yes", "which", v=1),
            a_set("no", "which", v=0),
            a_set("after_no", "no", v="{{ steps.no.output.v }}"),
            a_set("joined", "yes no", v=2),
            items=[1, 2],
        )
    ],
    "a join that one lets begin": [
        parallel("fork", only=[a_set("a", v=1), a_set("b", v=2), a_set("j", "a b", v=3, trigger_rule="one_success")])
    ],
    "when": [
        parallel("fork", a=[a_set("x", v=1, when="{{ input.n > 5 }}"), a_set("y", "x", v=2)], b=[a_set("z", v=3)])
    ],
    "variables": [
        loop("each", a_set("m", v="{{ loop.item }}", output_mapping={"got": "{{ output.v }}"}),
             a_set("u", "m", v="{{ variables.got }}"), items=[5, 6]),
    ],
    "a body in a body": [
        loop(
            "outer",
            a_set("first", v="{{ loop.item }}"),
            parallel(
                "fork",
                needs="first",
                p=[a_set("p1", v="{{ steps.first.output.v }}")],
                q=[loop("inner", a_set("i", v="{{ loop.item }} of {{ loop.parent.item }}"), items=["a", "b"])],
            ),
            a_set("last", "fork", v="{{ steps.fork.output.q.results }}"),
            items=[1, 2],
        )
    ],
    "while": [
        {
            "id": "until",
            "type": "loop",
            "config": {
                "while": "{{ loop.index < 3 and (loop.index == 0 or loop.last.v < 2) }}",
                "steps": [a_set("n", v="{{ loop.index }}")],
            },
        }
    ],
    "what follows sees it": [
        loop("each", a_set("one", v="{{ loop.item }}"), items=[1, 2]),
        a_set("after", "each", v="{{ steps.each.output.results }}"),
    ],
}  # fmt: skip


def compared(execution: dict[str, Any]) -> tuple[Any, ...]:
    rows = [
        {key: value for key, value in row.items() if key not in NOT_COMPARED} for row in execution["step_executions"]
    ]
    by_path = sorted(rows, key=lambda row: str(row["path"]))
    return execution["status"], execution["output"], execution["error_message"], by_path


@pytest.mark.parametrize("definition", BODIES.values(), ids=BODIES.keys())
def test_a_body_in_one_go_leaves_what_it_would_leave_step_by_step(
    worker: OneWorker, step_by_step: Callable[..., dict[str, Any]], definition: list[dict[str, Any]]
):
    usual, at_once = step_by_step(workflow(*definition)), worker.run(workflow(*definition))
    assert worker.rung(usual["id"])
    assert not worker.rung(at_once["id"])
    assert at_once["status"] == "completed"
    assert compared(at_once) == compared(usual)


def test_times_in_such_a_body_lie_within_its_containers(worker: OneWorker):
    rows = {row["path"]: row for row in worker.run(workflow(*BODIES["items"]))["step_executions"]}
    each = rows.pop("each")
    assert each["start_time"] <= min(row["start_time"] for row in rows.values())
    assert max(row["end_time"] for row in rows.values()) <= each["end_time"]
    assert all(row["start_time"] <= row["end_time"] for row in rows.values())


@pytest.mark.parametrize(
    "definition",
    [
        loop("each", a_set("one", v="{{ 6 // loop.item }}"), items=[3, 0, 2], on_item_error="continue"),
        loop("each", a_set("one", v="{{ 6 // loop.item }}"), items=[3, 0, 2]),
        loop("each", a_set("one", v=1), step("two", needs="one", value=2), items=[1, 2]),
        loop(
            "each",
            a_set("one", v=1),
            {"id": "w", "type": "wait", "config": {"duration": 0}},
            items=[1, 2],
            collect=False,
        ),
    ],
    ids=["a failure that is tolerated", "a failure", "a step that does something", "a step that waits"],
)
def test_a_body_that_is_more_than_computing_runs_as_any_other(
    worker: OneWorker, step_by_step: Callable[..., dict[str, Any]], definition: dict[str, Any]
):
    usual, here = step_by_step(workflow(definition)), worker.run(workflow(definition))
    assert worker.rung(here["id"])
    assert (here["status"], here["output"], here["error_message"]) == (
        usual["status"], usual["output"], usual["error_message"],
    )  # fmt: skip


@pytest.mark.parametrize("body", ["items", "a body in a body"])
@pytest.mark.parametrize(("limit", "most"), [("MOST_ROWS", 3), ("MOST_WRITTEN", 100), ("MOST_SECONDS", -1.0)])
def test_a_body_that_is_much_work_is_spread_over_the_workers(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch, body: str, limit: str, most: float
):
    monkeypatch.setattr(inline, limit, most)
    execution = worker.run(workflow(*BODIES[body]))
    assert execution["status"] == "completed"
    assert worker.rung(execution["id"])


def test_a_body_is_not_recorded_under_a_claim_that_was_taken_away(worker: OneWorker, monkeypatch: pytest.MonkeyPatch):
    insertion = bodies.insertion_of_ended

    def cancelled_before(*given: Any) -> Call:
        assert worker.servers.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code < 300
        return insertion(*given)

    monkeypatch.setattr(bodies, "insertion_of_ended", cancelled_before)
    execution_id = worker.start(workflow(*BODIES["items"]))
    worker.perform(execution_id)
    assert worker.servers.statuses(execution_id) == {"each": "cancelled"}


def test_a_while_that_was_begun_the_long_way_has_the_results_of_all_its_rounds(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
):
    in_one_go, times = attempt.perform_body, []

    def too_long_at_first(*given: Any) -> Any:
        times.append(1)
        return in_one_go(*given) if len(times) > 1 else None

    monkeypatch.setattr(attempt, "perform_body", too_long_at_first)
    rounds = loop("each", a_set("one", v="{{ loop.index }}"), **{"while": "loop.index < 5"})
    execution = worker.run(workflow(rounds))
    each = next(row for row in execution["step_executions"] if row["path"] == "each")
    assert times
    assert [one["v"] for one in each["output"]["results"]] == list(range(5))


def test_a_worker_that_dies_over_a_body_leaves_all_of_it_to_the_next(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
):
    class Died(BaseException):
        pass

    def dies(*_: Any) -> None:
        raise Died

    execution_id = worker.start(workflow(*BODIES["a body in a body"]))
    with monkeypatch.context() as patched:
        patched.setattr(Lane, "_completed", dies)
        with pytest.raises(Died):
            worker.perform(execution_id)
    assert worker.servers.statuses(execution_id) == {"outer": "running"}
    ((id, token),) = worker.servers.sql(
        "SELECT id::text, claim_token::text FROM step_executions WHERE execution_id = %(id)s::uuid AND path = 'outer'",
        id=execution_id,
    )
    with worker.servers.store.single() as connection:
        assert recovery.lose(connection, claims.Claim(id, "outer", 1, 0, token))
    worker.perform(execution_id)
    execution = worker.servers.execution(execution_id)
    assert execution["status"] == "completed"
    after = {row["path"]: row for row in execution["step_executions"]}
    assert len(after) > 10
    assert [one["v"] for one in after["outer"]["output"]["results"]] == [
        [{"v": "a of 1"}, {"v": "b of 1"}], [{"v": "a of 2"}, {"v": "b of 2"}],
    ]  # fmt: skip
