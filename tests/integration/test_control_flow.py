"""Bodies, endings, undoing, waiting for others: what the definition language can say beyond a graph of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, wait_until
from test_execution import rows_of, states_of, step, workflow

from orchestrator.engine.plan import Message, Plan


def body(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"steps": list(steps)}


def loop(id: str, *steps: dict[str, Any], needs: str = "", **config: Any) -> dict[str, Any]:
    return {"id": id, "type": "loop", "depends_on": needs.split(), "config": {**config, **body(*steps)}}


def parallel(id: str, needs: str = "", fail_fast: bool = True, **branches: list[dict[str, Any]]) -> dict[str, Any]:
    config = {"branches": branches, "fail_fast": fail_fast}
    return {"id": id, "type": "parallel", "depends_on": needs.split(), "config": config}


def completed(execution: dict[str, Any]) -> Any:
    assert execution["status"] == "completed", execution["error_message"]
    return execution["output"]


# --- loop ----------------------------------------------------------------------------------------------------


def test_a_loop_keeps_the_order_of_its_items(deployment: Deployment):
    definition = workflow(
        loop("each", step("double", value="{{ loop.item * 2 }}"), items="{{ input.numbers }}"),
        step("after", needs="each", value="{{ steps.each.output.results | length }}"),
        outputs={"results": "{{ steps.each.output.results }}", "n": "{{ steps.after.output.result }}"},
    )
    output = completed(deployment.run(definition, {"numbers": [3, 1, 2]}))
    assert output == {"results": [{"result": 6}, {"result": 2}, {"result": 4}], "n": 3}


def test_a_loop_of_many_items_does_each_once(deployment: Deployment):
    definition = workflow(
        loop("each", step("one", value="{{ loop.index }}"), items="{{ range(1000) | list }}"),
        outputs={"count": "{{ steps.each.output.count }}", "last": "{{ steps.each.output.results[999] }}"},
    )
    execution = deployment.run(definition, seconds=200)
    assert completed(execution) == {"count": 1000, "last": {"result": 999}}
    assert {row["attempt"] for row in execution["step_executions"]} == {1}
    assert len(execution["step_executions"]) == 1001


def test_a_loop_over_nothing_is_done_at_once(deployment: Deployment):
    execution = deployment.run(workflow(loop("each", step("one"), items=[])))
    assert completed(execution)["each"] == {"count": 0, "succeeded": 0, "failed": 0, "errors": [], "results": []}


def test_the_steps_of_a_round_follow_each_other_and_see_what_is_around_them(deployment: Deployment):
    definition = workflow(
        step("base", value=100),
        loop(
            "each",
            step("first", value="{{ loop.item + steps.base.output.result }}"),
            step("second", needs="first", value="{{ steps.first.output.result + loop.index }}"),
            needs="base",
            items=[1, 2],
        ),
    )
    output = completed(deployment.run(definition))["each"]
    assert output["results"] == [{"result": 101}, {"result": 103}]


def test_loops_nest(deployment: Deployment):
    inner = loop("inner", step("cell", value="{{ loop.parent.item * 10 + loop.item }}"), items=[1, 2])
    definition = workflow(
        loop("outer", inner, items=[1, 2, 3]),
        outputs={"cells": "{{ steps.outer.output.results | map(attribute='results') | list }}"},
    )
    execution = deployment.run(definition)
    assert completed(execution) == {
        "cells": [[{"result": 11}, {"result": 12}], [{"result": 21}, {"result": 22}], [{"result": 31}, {"result": 32}]]
    }
    assert "outer[2].inner[1].cell" in states_of(execution)


def test_no_more_rounds_than_the_concurrency_run_at_a_time(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    definition = workflow(loop("each", step("held", "gate", file=str(gate)), items=[1, 2, 3, 4], concurrency=2))
    execution_id = deployment.execute(deployment.create(definition))
    held = {"each": "waiting", "each[0].held": "running", "each[1].held": "running"}
    rest = {"each[2].held": "pending", "each[3].held": "pending"}
    wait_until(lambda: deployment.statuses(execution_id) == held | rest, what="two rounds, and two that wait")
    gate.touch()
    assert completed(deployment.ended(execution_id))["each"]["count"] == 4


def test_what_came_in_one_message_with_a_long_step_does_not_wait_for_it(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    one = step("one", "gate", file=f"{{{{ '{gate}' if loop.index == 0 else '{tmp_path}' }}}}")
    execution_id = deployment.execute(deployment.create(workflow(loop("each", one, items="{{ range(200) | list }}"))))

    def held() -> list[str]:
        return [path for path, status in deployment.statuses(execution_id).items() if status != "completed"]

    wait_until(lambda: held() == ["each", "each[0].one"], what="the end of all others")
    gate.touch()
    execution = deployment.ended(execution_id)
    assert completed(execution)["each"]["count"] == 200
    by_reconcile = deployment.sql(
        "SELECT s.path FROM step_executions s JOIN step_executions h ON h.path = 'each[0].one' "
        "AND h.execution_id = s.execution_id WHERE s.execution_id = %(id)s::uuid AND s.path <> 'each' "
        "AND s.rung_at > h.started_at",
        id=execution_id,
    )
    assert by_reconcile == []


def test_a_limited_loop_goes_on_as_its_rounds_end(deployment: Deployment):
    definition = workflow(
        loop(
            "each",
            step("a", value="{{ loop.item }}"),
            step("b", needs="a", value="{{ steps.a.output.result }}"),
            items="{{ range(40) | list }}",
            concurrency=3,
        )
    )
    output = completed(deployment.run(definition))["each"]
    assert [one["result"] for one in output["results"]] == list(range(40))


def test_the_first_item_that_fails_ends_the_loop(deployment: Deployment):
    definition = workflow(
        loop(
            "each",
            step("one", "fail", message="item {{ loop.item }}", until_attempt="{{ loop.item }}"),
            items=[1, 9, 1],
            concurrency=1,
        ),
        step("after", needs="each"),
    )
    execution = deployment.run(definition)
    assert execution["status"] == "failed"
    assert execution["error_message"] == "step each (loop) failed: item 1: step one (fail) failed: item 9"
    assert states_of(execution) == {
        "each": "failed", "after": "skipped",
        "each[0].one": "completed", "each[1].one": "failed", "each[2].one": "cancelled",
    }  # fmt: skip


def test_a_loop_that_tolerates_failures_says_which_they_were(deployment: Deployment):
    definition = workflow(
        loop(
            "each",
            step("one", "fail", message="no {{ loop.item }}", until_attempt="{{ loop.item }}"),
            items=[1, 9, 1],
            on_item_error="continue",
        )
    )
    output = completed(deployment.run(definition))["each"]
    assert (output["succeeded"], output["failed"]) == (2, 1)
    assert output["results"] == [{"result": 1}, None, {"result": 1}]
    assert output["errors"] == [{"index": 1, "step": "one", "type": "fail", "kind": "asked", "message": "no 9"}]


def test_a_while_loop_sees_its_last_round(deployment: Deployment):
    definition = workflow(
        loop(
            "grow",
            step("next", value="{{ (loop.last.result if loop.last else 1) * 2 }}"),
            **{"while": "loop.last is none or loop.last.result < 50"},
        ),
        outputs={"all": "{{ steps.grow.output.results | map(attribute='result') | list }}"},
    )
    assert completed(deployment.run(definition)) == {"all": [2, 4, 8, 16, 32, 64]}


def test_a_while_loop_sees_the_steps_of_its_last_round(deployment: Deployment):
    definition = workflow(
        loop(
            "pages",
            step("fetch", value="{{ loop.index }}"),
            **{"while": "loop.index == 0 or steps.fetch.output.result < 3"},
        ),
    )
    assert completed(deployment.run(definition))["pages"]["count"] == 4


@pytest.mark.parametrize("type", ["noop", "set"])
def test_a_while_loop_has_the_results_of_all_its_rounds(deployment: Deployment, type: str):
    config = {"value": "{{ loop.index }}"} if type == "noop" else {"values": {"result": "{{ loop.index }}"}}
    rounds = loop("each", {"id": "one", "type": type, "config": config}, **{"while": "loop.index < 30"})
    output = completed(deployment.run(workflow(rounds)))["each"]
    assert [one["result"] for one in output["results"]] == list(range(30))


def test_a_while_loop_that_is_retried_goes_on_after_the_rounds_that_completed(deployment: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    rounds = loop(
        "each",
        step("first", "mark", file=str(marks)),
        step("second", "fail", needs="first", retry_policy={"max_attempts": 1})
        | {"when": "loop.index == 3 and variables.fails"},
        **{"while": "loop.index < 5"},
    )
    execution_id = deployment.execute(deployment.create(workflow(rounds, variables={"fails": True})))
    assert deployment.ended(execution_id)["status"] == "failed"
    deployment.sql("UPDATE executions SET input = '{\"fails\": false}' WHERE id = %(id)s::uuid", id=execution_id)
    assert deployment.client.post(f"/api/v1/executions/{execution_id}/retry").status_code == 200
    assert completed(deployment.ended(execution_id))["each"]["count"] == 5
    marked = [line.split()[1] for line in marks.read_text().splitlines()]
    assert marked == [f"each[{index}].first" for index in range(5)]


def test_a_while_loop_without_an_end_fails_at_its_limit(deployment: Deployment):
    definition = workflow(loop("for_ever", step("one"), max_iterations=3, **{"while": "true"}))
    execution = deployment.run(definition)
    assert execution["status"] == "failed"
    assert "still true after 3 rounds" in execution["error_message"]


def test_what_is_no_list_is_refused_by_name(deployment: Deployment):
    execution = deployment.run(workflow(loop("each", step("one"), items="{{ input.n }}")), {"n": 5})
    assert execution["error_message"] == "step each (loop) failed: `items` must be a list or a mapping, not int"


# --- parallel ------------------------------------------------------------------------------------------------


def test_branches_run_side_by_side_and_give_their_outputs(deployment: Deployment):
    definition = workflow(
        parallel(
            "fork",
            left=[step("l1", value=1), step("l2", needs="l1", value="{{ steps.l1.output.result + 1 }}")],
            right=[step("r1", "io_noop", value=7), step("r2", value=8)],
        )
    )
    execution = deployment.run(definition)
    assert completed(execution)["fork"] == {"left": {"result": 2}, "right": {"r1": {"result": 7}, "r2": {"result": 8}}}
    assert "fork.left.l2" in states_of(execution)


def test_a_branch_that_fails_ends_the_others(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    definition = workflow(
        parallel(
            "fork", good=[step("slow", "gate", file=str(gate)), step("next", needs="slow")], bad=[step("boom", "fail")]
        )
    )
    execution = deployment.run(definition)
    gate.touch()
    assert (
        execution["error_message"] == "step fork (parallel) failed: branch bad: step boom (fail) failed: asked to fail"
    )
    states = states_of(execution)
    assert states["fork.good.next"] == "cancelled"
    assert states["fork.good.slow"] == "cancelled"


def test_without_fail_fast_the_other_branches_run_to_their_end(deployment: Deployment):
    definition = workflow(
        parallel("fork", fail_fast=False, good=[step("a"), step("b", needs="a")], bad=[step("boom", "fail")])
    )
    execution = deployment.run(definition)
    assert execution["status"] == "failed"
    assert states_of(execution)["fork.good.b"] == "completed"
    assert rows_of(execution)["fork"]["output"] == {"good": {"result": None}, "bad": None}


# --- when, trigger rules, variables ---------------------------------------------------------------------------


def test_a_step_whose_when_is_not_true_is_skipped_and_so_is_what_hangs_on_it(deployment: Deployment):
    definition = workflow(
        step("a", value=1),
        {**step("b", needs="a"), "when": "steps.a.output.result > 1"},
        {**step("c", needs="a"), "when": "{{ steps.a.output.result == 1 }}"},
        step("d", needs="b"),
        step("e", needs="b c"),
    )
    execution = deployment.run(definition)
    assert execution["status"] == "completed"
    assert states_of(execution) == {
        "a": "completed",
        "b": "skipped",
        "c": "completed",
        "d": "skipped",
        "e": "completed",
    }
    assert rows_of(execution)["b"]["error_message"] == "`when` is not true: steps.a.output.result > 1"


@pytest.mark.parametrize(
    ("rule", "dependencies", "state"),
    [
        ("all_done", ("fail", "noop"), "completed"),
        ("all_done", ("off", "off"), "completed"),
        ("one_failed", ("fail", "noop"), "completed"),
        ("one_failed", ("noop", "noop"), "skipped"),
        ("one_success", ("fail", "noop"), "completed"),
        ("one_success", ("fail", "off"), "skipped"),
        ("none_failed", ("off", "off"), "completed"),
        ("none_failed", ("fail", "noop"), "skipped"),
        ("all_success", ("off", "noop"), "completed"),
        ("all_success", ("fail", "noop"), "skipped"),
    ],
)
def test_a_trigger_rule_decides(deployment: Deployment, rule: str, dependencies: tuple[str, str], state: str):
    def dependency(id: str, kind: str) -> dict[str, Any]:
        return {**step(id, "noop" if kind == "off" else kind), **({"when": "false"} if kind == "off" else {})}

    a, b = (dependency(id, kind) for id, kind in zip("ab", dependencies, strict=True))
    execution = deployment.run(workflow(a, b, {**step("c", needs="a b"), "trigger_rule": rule}))
    assert states_of(execution)["c"] == state
    assert execution["status"] == ("failed" if "fail" in dependencies else "completed")


def test_one_success_does_not_wait_for_the_others(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    definition = workflow(
        step("quick"),
        step("slow", "gate", file=str(gate)),
        {**step("c", needs="quick slow"), "trigger_rule": "one_success"},
    )
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(
        lambda: deployment.statuses(execution_id) == {"quick": "completed", "slow": "running", "c": "completed"},
        what="c, which one success lets run",
    )
    gate.touch()
    assert deployment.ended(execution_id)["status"] == "completed"


def test_outputs_are_mapped_into_variables_for_what_comes_after(deployment: Deployment):
    definition = workflow(
        {**step("a", value=5), "output_mapping": {"total": "{{ output.result }}"}},
        {**step("b", needs="a", value="{{ variables.total + 1 }}"), "output_mapping": {"total": "{{ output.result }}"}},
        step("c", needs="b", value="{{ variables.total }}"),
        step("d", value="{{ variables.total }}"),
        variables={"total": 0},
        outputs={
            "c": "{{ steps.c.output.result }}",
            "d": "{{ steps.d.output.result }}",
            "total": "{{ variables.total }}",
        },
    )
    assert completed(deployment.run(definition)) == {"c": 6, "d": 0, "total": 6}


def test_an_input_field_takes_the_place_of_the_variable_of_its_name(deployment: Deployment):
    definition = workflow(
        step("a", value="{{ variables.region }} {{ variables.size }}"), variables={"region": "eu", "size": 3}
    )
    workflow_id = deployment.create(definition)
    execution = deployment.ended(deployment.execute(workflow_id, {"region": "us", "other": 1}))
    assert completed(execution) == {"a": {"result": "us 3"}}


def test_a_cached_result_is_taken_instead_of_doing_it_again(deployment: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    cached = {**step("a", "mark", file=str(marks)), "cache": {"key": "{{ input.k }}", "ttl": "1h"}}
    workflow_id = deployment.create(workflow(cached, step("b", needs="a", value="{{ steps.a.output.result }}")))
    for key in ("x", "x", "y"):
        execution = deployment.ended(deployment.execute(workflow_id, {"k": key}))
        assert completed(execution) == {"b": {"result": "a"}}
    assert len(marks.read_text().splitlines()) == 2


def test_inputs_are_checked_all_at_once_and_defaults_filled_in(deployment: Deployment):
    schema = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "n": {"type": "integer", "default": 3}},
        "additionalProperties": False,
    }
    workflow_id = deployment.create(workflow(step("a", value="{{ input.n }}"), inputs=schema))
    answer = deployment.client.post(
        f"/api/v1/workflows/{workflow_id}/execute", json={"input": {"name": 1, "n": "x", "z": 0}}
    )
    assert answer.status_code == 422
    assert {problem["path"] for problem in answer.json["errors"]} == {"input", "input.name", "input.n"}
    execution = deployment.ended(deployment.execute(workflow_id, {"name": "ok"}))
    assert completed(execution) == {"a": {"result": 3}}


# --- endings -------------------------------------------------------------------------------------------------


def test_finally_runs_after_a_success_and_after_a_failure(deployment: Deployment):
    def definition(kind: str) -> dict[str, Any]:
        return {
            **workflow(step("a", kind)),
            "finally": [step("tidy", value="{{ execution.status }}: {{ execution.error | default('', true) }}")],
            "on_failure": [step("alarm", value="{{ execution.error }}")],
        }

    good = deployment.run(definition("noop"))
    assert (good["status"], states_of(good)) == ("completed", {"a": "completed", "finally.tidy": "completed"})
    assert rows_of(good)["finally.tidy"]["output"] == {"result": "completed: "}
    bad = deployment.run(definition("fail"))
    assert bad["status"] == "failed"
    assert bad["error_message"] == "step a (fail) failed: asked to fail"
    assert states_of(bad) == {"a": "failed", "on_failure.alarm": "completed", "finally.tidy": "completed"}
    assert rows_of(bad)["on_failure.alarm"]["output"] == {"result": "step a (fail) failed: asked to fail"}


def test_a_failure_in_finally_fails_what_had_completed(deployment: Deployment):
    execution = deployment.run({**workflow(step("a")), "finally": [step("tidy", "fail")]})
    assert execution["status"] == "failed"
    assert execution["error_message"] == "step finally.tidy (fail) failed: asked to fail"


def test_what_completed_is_undone_in_reverse_order(deployment: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"

    def undoable(id: str, needs: str = "") -> dict[str, Any]:
        undo = {"type": "mark", "config": {"file": str(marks)}}
        return {**step(id, needs=needs, value=id), "compensate": undo}

    definition = workflow(
        undoable("a"),
        undoable("b", "a"),
        loop("each", undoable("c"), items=[1, 2], needs="b", concurrency=1),
        step("boom", "fail", needs="each"),
        undoable("never", "boom"),
    )
    execution = deployment.run(definition)
    assert execution["error_message"] == "step boom (fail) failed: asked to fail"
    order = [line.split()[1] for line in marks.read_text().splitlines()]
    assert order == ["compensate.each[1].c", "compensate.each[0].c", "compensate.b", "compensate.a"]


def test_an_undoing_knows_what_its_step_did_and_its_failure_keeps_no_other_from_it(deployment: Deployment):
    undo_a = {"type": "noop", "config": {"value": "{{ steps.a.output.result }} refunded"}}
    undo_b = {"type": "fail"}
    definition = workflow(
        {**step("a", value="order 7"), "compensate": undo_a},
        {**step("b", needs="a"), "compensate": undo_b},
        step("boom", "fail", needs="b"),
    )
    execution = deployment.run(definition)
    rows = rows_of(execution)
    assert rows["compensate.b"]["status"] == "failed"
    assert rows["compensate.a"]["output"] == {"result": "order 7 refunded"}
    assert execution["error_message"] == "step boom (fail) failed: asked to fail"


def test_what_is_to_be_undone_is_written_down_before_the_first_of_it_is(deployment: Deployment):
    """So that each end finds the next without a look at all that completed."""
    undo = {"type": "approval"}
    definition = workflow(
        {**step("a"), "compensate": undo},
        {**step("b", needs="a"), "compensate": undo},
        step("boom", "fail", needs="b", retry_policy={"max_attempts": 1}),
    )
    execution_id = deployment.execute(deployment.create(definition))
    first = waiting_step(deployment, execution_id, "compensate.b")
    statuses = deployment.statuses(execution_id)
    assert statuses["compensate.a"] == "pending"
    answer = deployment.client.post(f"/api/v1/step-executions/{first}/decision", json={"approved": True})
    assert answer.status_code == 202
    waiting_step(deployment, execution_id, "compensate.a")
    assert deployment.statuses(execution_id)["compensate.b"] == "completed"


def test_an_execution_whose_time_is_up_is_undone_too(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    definition = workflow(
        {**step("a"), "compensate": {"type": "noop", "config": {"value": "undone"}}},
        step("held", "gate", needs="a", file=str(gate)),
        timeout="1h",
    )
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "running", what="the step at the gate")
    deployment.pass_its_time(execution_id)
    execution = deployment.ended(execution_id)
    gate.touch()
    assert execution["status"] == "failed"
    assert rows_of(execution)["compensate.a"]["output"] == {"result": "undone"}


# --- waiting -------------------------------------------------------------------------------------------------


def test_a_wait_holds_no_worker_and_ends_in_time(deployment: Deployment):
    definition = workflow({"id": "w", "type": "wait", "config": {"duration": "300ms"}}, step("after", needs="w"))
    execution = deployment.run(definition)
    assert execution["status"] == "completed"
    assert rows_of(execution)["w"]["output"]["waited"] >= 0.3
    assert rows_of(execution)["w"]["attempt"] == 1


def test_a_moment_that_has_passed_is_not_waited_for(deployment: Deployment):
    definition = workflow({"id": "w", "type": "wait", "config": {"until": "2020-01-01T00:00:00+01:00"}})
    execution = deployment.run(definition)
    assert rows_of(execution)["w"]["output"]["until"] == "2019-12-31T23:00:00+00:00"


def waiting_step(deployment: Deployment, execution_id: str, path: str) -> str:
    wait_until(lambda: deployment.statuses(execution_id).get(path) == "waiting", what=f"{path} to wait")
    return str(rows_of(deployment.execution(execution_id))[path]["id"])


def approval(**config: Any) -> dict[str, Any]:
    return {"id": "ok", "type": "approval", "config": config}


def test_an_approval_waits_for_a_decision(deployment: Deployment):
    execution_id = deployment.execute(deployment.create(workflow(approval(), step("after", needs="ok"))))
    step_id = waiting_step(deployment, execution_id, "ok")
    body = {"approved": True, "comment": "fine", "by": "ana"}
    answer = deployment.client.post(f"/api/v1/step-executions/{step_id}/decision", json=body)
    assert answer.status_code == 202, answer.text
    execution = deployment.ended(execution_id)
    output = rows_of(execution)["ok"]["output"]
    assert execution["status"] == "completed"
    assert (output["approved"], output["comment"], output["by"]) == (True, "fine", "ana")
    again = deployment.client.post(f"/api/v1/step-executions/{step_id}/decision", json=body)
    assert (again.status_code, again.json["output"]) == (202, output)
    other = deployment.client.post(f"/api/v1/step-executions/{step_id}/decision", json={**body, "approved": False})
    assert (other.status_code, other.json["state"]) == (409, "completed")


def test_a_rejection_fails_the_step_unless_it_is_told_to_go_on(deployment: Deployment):
    for on_reject, status in (("fail", "failed"), ("continue", "completed")):
        execution_id = deployment.execute(deployment.create(workflow(approval(on_reject=on_reject))))
        step_id = waiting_step(deployment, execution_id, "ok")
        deployment.client.post(
            f"/api/v1/step-executions/{step_id}/decision", json={"approved": False, "comment": "too dear", "by": "bo"}
        )
        execution = deployment.ended(execution_id)
        assert execution["status"] == status
        if status == "failed":
            assert execution["error_message"] == "step ok (approval) failed: rejected by bo: too dear"


def test_an_approval_takes_its_default_when_nobody_decides(deployment: Deployment):
    execution = deployment.run(workflow(approval(timeout="200ms", default="approve")))
    assert rows_of(execution)["ok"]["output"]["approved"] is True
    late = deployment.run(workflow(approval(timeout="200ms")))
    assert late["error_message"] == "step ok (approval) failed: nobody decided in time, and there is no default"


def signal(id: str, **config: Any) -> dict[str, Any]:
    return {"id": id, "type": "signal", "config": {"name": "paid", **config}}


def send(deployment: Deployment, execution_id: str, payload: Any) -> int:
    answer = deployment.client.post(
        f"/api/v1/executions/{execution_id}/signals", json={"name": "paid", "payload": payload}
    )
    return answer.status_code


def test_a_signal_wakes_the_step_that_waits_for_it(deployment: Deployment):
    execution_id = deployment.execute(deployment.create(workflow(signal("got"))))
    waiting_step(deployment, execution_id, "got")
    assert send(deployment, execution_id, {"sum": 3}) == 202
    execution = deployment.ended(execution_id)
    assert rows_of(execution)["got"]["output"]["payload"] == {"sum": 3}
    assert send(deployment, execution_id, {}) == 409


def test_signals_that_come_early_are_kept_and_each_is_taken_once(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    first, second = signal("first"), {**signal("second"), "depends_on": ["first"]}
    first["depends_on"] = ["held"]
    definition = workflow(step("held", "gate", file=str(gate)), first, second)
    execution_id = deployment.execute(deployment.create(definition))
    for number in (1, 2):
        assert send(deployment, execution_id, number) == 202
    gate.touch()
    rows = rows_of(deployment.ended(execution_id))
    assert [rows[id]["output"]["payload"] for id in ("first", "second")] == [1, 2]


def test_a_signal_that_does_not_come_is_given_up(deployment: Deployment):
    execution = deployment.run(workflow(signal("got", timeout="200ms", default="none")))
    assert rows_of(execution)["got"]["output"] == {"payload": "none", "sent_at": None}


# --- other workflows -----------------------------------------------------------------------------------------


def child_of(workflow_id: str, **config: Any) -> dict[str, Any]:
    return {"id": "child", "type": "workflow", "config": {"workflow": workflow_id, **config}}


def test_a_workflow_runs_as_a_step_of_another(deployment: Deployment):
    child = deployment.create(
        workflow(step("x", value="{{ input.n + 1 }}"), outputs={"y": "{{ steps.x.output.result }}"})
    )
    definition = workflow(
        child_of(child, input={"n": 4}), step("after", needs="child", value="{{ steps.child.output.output.y }}")
    )
    execution = deployment.run(definition)
    assert completed(execution) == {"after": {"result": 5}}


def test_the_failure_of_a_child_is_the_failure_of_its_step(deployment: Deployment):
    child = deployment.create(workflow(step("x", "fail")), name="the child")
    execution = deployment.run(workflow(child_of("the child")))
    assert execution["status"] == "failed"
    assert "step x (fail) failed: asked to fail" in execution["error_message"]
    assert rows_of(execution)["child"]["error_kind"] == "workflow"
    assert child


def test_a_child_ends_with_its_parent(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    child = deployment.create(workflow(step("held", "gate", file=str(gate)), step("next", needs="held")))
    execution_id = deployment.execute(deployment.create(workflow(child_of(child), timeout="1h")))
    children = "SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid AND status = 'running'"
    ((child_id,),) = wait_until(lambda: deployment.sql(children, id=child), what="the child")
    deployment.pass_its_time(execution_id)
    assert deployment.ended(execution_id)["status"] == "failed"
    assert deployment.ended(child_id)["status"] == "cancelled"
    gate.touch()


def test_a_workflow_that_starts_itself_comes_to_an_end(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("x")))
    recursive = {"definition": workflow(child_of(workflow_id))}
    assert deployment.client.put(f"/api/v1/workflows/{workflow_id}", json=recursive).status_code == 200
    execution = deployment.ended(deployment.execute(workflow_id))
    assert execution["status"] == "failed"
    assert "10 levels deep" in execution["error_message"]


# --- queues and priorities -----------------------------------------------------------------------------------


def test_a_step_waits_for_a_worker_of_the_queue_it_names(deployment: Deployment):
    definition = workflow(step("a"), {**step("b", needs="a"), "queue": "gpu"}, step("c", needs="b"))
    execution_id = deployment.execute(deployment.create(definition))
    queued = {"a": "completed", "b": "queued", "c": "pending"}
    wait_until(lambda: deployment.statuses(execution_id) == queued, what="b, which nobody serves yet")
    worker = deployment.start_worker("gpu", concurrency=1)
    assert deployment.ended(execution_id)["status"] == "completed"
    deployment.stop_worker(worker)


def test_a_step_goes_out_with_a_priority_of_its_own(deployment: Deployment):
    assert deployment.client  # points the app at this deployment
    from workers.canvas import canvas

    branches = ((Message("cpu", ("urgent",), 9),), (Message("cpu", ("usual",)),))
    urgent, usual = canvas(Plan("the-execution", 5, branches)).tasks
    assert (urgent.options["priority"], usual.options["priority"]) == (0, 4)  # on Redis 0 comes first
