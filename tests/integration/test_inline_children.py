"""An execution that only computes is performed by the step that starts it, and looks like any other."""

from __future__ import annotations

from typing import Any

import pytest
from test_control_flow import loop
from test_execution import step, workflow
from test_inline_bodies import BODIES, OneWorker, a_condition, a_set, compared, worker

from orchestrator.store import inline_executions
from orchestrator.store.session import Call

__all__ = ["worker"]  # a fixture

CHILDREN = {
    "a chain": workflow(a_set("a", v="{{ input.n }}"), a_set("b", "a", v="{{ steps.a.output.v + 1 }}")),
    "outputs": workflow(
        a_set("a", v=1, output_mapping={"got": "{{ output.v }}"}),
        a_set("b", v="{{ input.with_default }}"),
        outputs={"x": "{{ steps.b.output.v }}", "y": "{{ variables.got }}", "z": "{{ variables.given }}"},
        variables={"given": "a variable"},
        inputs={"type": "object", "properties": {"with_default": {"default": "a default"}}},
    ),
    "a branch not taken": workflow(
        a_condition("which", expression="{{ input.n > 5 }}", then="yes", **{"else": "no"}),
        a_set("yes", "which", v=1),
        a_set("no", "which", v=0),
        outputs={"yes": "{{ steps.yes.status }}", "no": "{{ steps.no.output.v }}"},
    ),
    "bodies": workflow(*BODIES["a body in a body"]),
}
STARTED, WHOLE = "started", "whole"


def calls(child: str, times: int = 2, **more: Any) -> dict[str, Any]:
    """Steps that start it, one after the other: the first time this process does not know it yet."""
    config = {"workflow": child, "input": {"n": "{{ input.n }}"}}
    return workflow(*(step(f"s{n}", "workflow", f"s{n - 1}" if n else "", **config) for n in range(times)), **more)


def run(worker: OneWorker, definition: dict[str, Any]) -> dict[str, Any]:
    """An execution and all that it starts, to its end."""
    execution_id = worker.start(definition)
    perform(worker, execution_id)
    return worker.servers.execution(execution_id)


def perform(worker: OneWorker, execution_id: str) -> None:
    queued = """
        SELECT s.execution_id::text, s.path FROM step_executions s JOIN executions e ON e.id = s.execution_id
        WHERE s.status = 'queued' AND (e.id = %(id)s::uuid OR e.parent_step_id IN (
            SELECT p.id FROM step_executions p WHERE p.execution_id = %(id)s::uuid))
    """
    while rows := worker.servers.sql(queued, id=execution_id):
        for id, path in rows:
            worker.process.run_steps(id, [path], ())


def children(worker: OneWorker, execution: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The executions that it started and how, in their order."""
    sql = """
        SELECT e.id::text, NOT EXISTS (
            SELECT FROM step_executions s WHERE s.execution_id = e.id AND rung_at IS NOT NULL)
        FROM executions e JOIN step_executions p ON p.id = e.parent_step_id WHERE p.execution_id = %(id)s::uuid
        ORDER BY e.id
    """
    rows = worker.servers.sql(sql, id=execution["id"])
    return [(WHOLE if is_whole else STARTED, worker.servers.execution(id)) for id, is_whole in rows]


def counted(worker: OneWorker, workflow_id: str) -> dict[str, Any]:
    stats = worker.servers.client.get(f"/api/v1/workflows/{workflow_id}/stats").json
    return {"counts": stats["counts"], "steps": [(s["step_id"], s["completed"], s["skipped"]) for s in stats["steps"]]}


@pytest.mark.parametrize("definition", CHILDREN.values(), ids=CHILDREN.keys())
def test_an_execution_performed_whole_leaves_what_another_leaves(worker: OneWorker, definition: dict[str, Any]) -> None:
    child = worker.servers.create(definition, "child")
    execution = run(worker, calls(child))
    assert execution["status"] == "completed"
    (one, usual), (other, whole) = children(worker, execution)
    assert (one, other) == (STARTED, WHOLE)
    assert compared(whole) == compared(usual)
    differing = {key for key in whole if key not in ("step_executions", "output") and whole[key] != usual[key]}
    assert differing <= {"id", "created_at", "start_time", "end_time", "duration", "idempotency_key", "parent"} | {
        key for key in whole if "parent" in key
    }
    outputs = [row["output"] for row in execution["step_executions"]]
    assert [one["output"] for one in outputs] == [usual["output"], whole["output"]]
    assert {one["execution_id"] for one in outputs} == {usual["id"], whole["id"]}


def test_an_execution_performed_whole_may_have_no_input(worker: OneWorker) -> None:
    child = worker.servers.create(workflow(a_set("a", v=1)), "child")
    steps = [step(f"s{n}", "workflow", f"s{n - 1}" if n else "", workflow=child, input=None) for n in range(2)]
    (one, usual), (other, whole) = children(worker, run(worker, workflow(*steps)))
    assert (one, other) == (STARTED, WHOLE)
    assert whole["input"] is usual["input"] is None


def test_its_times_lie_within_those_of_its_step_and_its_steps_within_it(worker: OneWorker) -> None:
    child = worker.servers.create(CHILDREN["a chain"], "child")
    execution = run(worker, calls(child, times=3))
    for call, (how, made) in list(zip(execution["step_executions"], children(worker, execution), strict=True))[1:]:
        assert how == WHOLE
        moments = [moment for row in made["step_executions"] for moment in (row["start_time"], row["end_time"])]
        around = [call["start_time"], made["start_time"], *moments, made["end_time"], call["end_time"]]
        assert around == sorted(around)


def test_it_counts_in_the_statistics_as_another_does(worker: OneWorker) -> None:
    child = worker.servers.create(CHILDREN["a branch not taken"], "child")
    run(worker, calls(child, times=1))
    once = counted(worker, child)
    run(worker, calls(child, times=1))
    assert counted(worker, child) == {
        "counts": {status: 2 * number for status, number in once["counts"].items()},
        "steps": [(id, 2 * completed, 2 * skipped) for id, completed, skipped in once["steps"]],
    }


@pytest.mark.parametrize(
    "definition",
    [
        workflow(a_set("a", v="{{ 6 // (input.n - 3) }}")),
        workflow(a_set("a", v=1), step("b", value=2)),
        workflow(a_set("a", v=1), outputs={"x": "{{ steps.a.output.nothing }}"}),
        {**workflow(a_set("a", v=1)), "finally": [a_set("b", v=2)]},
        workflow(a_set("a", v=1), max_concurrent=1),
        workflow(loop("each", step("b", value=2), items=[1])),
    ],
    ids=["fails", "does something", "outputs fail", "has an ending", "has a limit", "does something inside"],
)
def test_one_that_is_more_than_computing_is_started_like_any_other(
    worker: OneWorker, definition: dict[str, Any]
) -> None:
    child = worker.servers.create(definition, "child")
    first, second = (run(worker, calls(child, times=1, variables={"turn": turn})) for turn in (1, 2))
    ((_, usual),), ((how, other),) = children(worker, first), children(worker, second)
    assert how == STARTED
    assert compared(other) == compared(usual)
    assert [row["error_message"] for row in second["step_executions"]] == [
        (row["error_message"] or "").replace(usual["id"], other["id"]) or None for row in first["step_executions"]
    ]


def test_a_new_version_is_the_one_that_is_performed(worker: OneWorker) -> None:
    child = worker.servers.create(workflow(a_set("a", v=1)), "child")
    run(worker, calls(child))
    change = {"definition": workflow(a_set("a", v=2))}
    assert worker.servers.client.put(f"/api/v1/workflows/{child}", json=change).status_code == 200
    found = children(worker, run(worker, calls(child)))
    assert [(how, one["version"], one["output"]) for how, one in found] == [
        (STARTED, 2, {"a": {"v": 2}}), (WHOLE, 2, {"a": {"v": 2}}),
    ]  # fmt: skip


def test_one_of_a_paused_workflow_or_of_another_project_is_not_performed(worker: OneWorker) -> None:
    child = worker.servers.create(workflow(a_set("a", v=1)), "child")
    run(worker, calls(child))
    worker.servers.sql("UPDATE workflows SET status = 'paused' WHERE id = %(id)s::uuid RETURNING 1", id=child)
    refused = run(worker, calls(child, times=1))
    assert "is paused and cannot be executed" in refused["error_message"]
    project = worker.servers.client.post("/api/v1/projects", json={"name": "elsewhere"}).json["id"]
    worker.servers.sql(
        "UPDATE workflows SET status = 'active', project_id = %(project)s::uuid WHERE id = %(id)s::uuid RETURNING 1",
        id=child,
        project=project,
    )
    refused = run(worker, calls(child, times=1))
    assert f"there is no workflow {child}" in refused["error_message"]
    assert children(worker, refused) == []


def test_nothing_is_left_of_one_whose_step_was_cancelled_meanwhile(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    insertion = inline_executions.insertion

    def cancelled_before(*given: Any, **more: Any) -> Call:
        assert worker.servers.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code < 300
        return insertion(*given, **more)

    child = worker.servers.create(workflow(a_set("a", v=1)), "child")
    run(worker, calls(child))
    monkeypatch.setattr(inline_executions, "insertion", cancelled_before)
    execution_id = worker.start(calls(child, times=1))
    perform(worker, execution_id)
    assert worker.servers.statuses(execution_id) == {"s0": "cancelled"}
    assert children(worker, {"id": execution_id}) == []


@pytest.mark.parametrize("resumes", [False, True], ids=["lost", "handed on"])
def test_whoever_takes_a_step_on_finds_the_execution_that_the_one_before_has_made(
    worker: OneWorker, resumes: bool
) -> None:
    child = worker.servers.create(workflow(a_set("a", v=1)), "child")
    execution_id = worker.start(calls(child, times=1))
    perform(worker, execution_id)
    ((how, made),) = children(worker, {"id": execution_id})
    assert how == STARTED
    # As if the worker had died, or been stopped, before it could record anything of the step. What is handed on is the
    # same attempt; and this process knows the child by now.
    worker.servers.sql(
        "UPDATE step_executions SET status = 'queued', output = NULL, state = NULL, finished_at = NULL, "
        "resumes = %(resumes)s WHERE execution_id = %(id)s::uuid RETURNING 1",
        id=execution_id,
        resumes=resumes,
    )
    worker.servers.sql(
        "UPDATE executions SET status = 'running', output = NULL, finished_at = NULL "
        "WHERE id = %(id)s::uuid RETURNING 1",
        id=execution_id,
    )
    perform(worker, execution_id)
    execution = worker.servers.execution(execution_id)
    assert execution["status"] == "completed"
    assert [row["output"]["execution_id"] for row in execution["step_executions"]] == [made["id"]]
    assert [one["id"] for _, one in children(worker, execution)] == [made["id"]]
