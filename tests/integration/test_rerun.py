"""Executions that are done again: what is kept of the original, what is done anew, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, wait_until
from test_execution import rows_of, states_of, step, workflow

from orchestrator.engine.advance import Failure, end_failed_attempt
from orchestrator.engine.programs import Programs
from orchestrator.lifecycle import StepStatus
from orchestrator.plugins import load_catalogue
from orchestrator.store import bodies
from orchestrator.store.step_rows import StepRow

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


def mark(id: str, marks: Path, needs: str = "", **more: Any) -> dict[str, Any]:
    return step(id, "mark", needs, file=str(marks), **more)


def performed(marks: Path) -> list[str]:
    """The steps in the order in which they were performed, and of which execution."""
    return [line.split()[1] for line in marks.read_text().splitlines()]


def again(deployment: Deployment, execution_id: str, status: int = 202, **wanted: Any) -> Any:
    answer = deployment.client.post(f"/api/v1/executions/{execution_id}/rerun", json=wanted)
    assert answer.status_code == status, answer.text
    return answer.json


def done_again(deployment: Deployment, execution_id: str, **wanted: Any) -> Any:
    return deployment.ended(again(deployment, execution_id, **wanted)["id"])


def problem(answer: Any) -> tuple[str, str]:
    (found,) = answer["errors"]
    return found["path"], found["message"]


# --- the whole ------------------------------------------------------------------------------------------------


def test_an_execution_is_done_again_with_the_same_input(deployment: Deployment, marks: Path):
    definition = workflow(mark("a", marks), step("b", needs="a", value="{{ input.n + 1 }}"))
    first = deployment.ended(deployment.execute(deployment.create(definition), {"n": 1}, priority=7))
    second = done_again(deployment, first["id"])
    assert (second["status"], second["output"]) == ("completed", {"b": {"result": 2}})
    assert (second["rerun_of"], second["input"], second["priority"]) == (first["id"], {"n": 1}, 7)
    assert performed(marks) == ["a", "a"]
    assert first["rerun_of"] is None


def test_its_lineage_is_shown_and_found(deployment: Deployment):
    first = deployment.run(workflow(step("a")))
    ids = [done_again(deployment, first["id"])["id"] for _ in range(2)]
    shown = deployment.client.get(f"/api/v1/executions/{ids[0]}").json
    assert shown["rerun_of"] == first["id"]
    found = deployment.client.get(f"/api/v1/executions?rerun_of={first['id']}").json["items"]
    assert [execution["id"] for execution in found] == ids[::-1]


def test_input_version_and_priority_may_be_others(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("a", value="{{ input.n }}")))
    first = deployment.ended(deployment.execute(workflow_id, {"n": 1}))
    newer = workflow(step("a", value="{{ input.n * 100 }}"))
    assert deployment.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": newer}).status_code == 200
    second = done_again(deployment, first["id"], input={"n": 5}, version=2, priority=9)
    assert (second["output"], second["version"], second["priority"]) == ({"a": {"result": 500}}, 2, 9)
    unchanged = done_again(deployment, first["id"])
    assert (unchanged["output"], unchanged["version"]) == ({"a": {"result": 1}}, 1)


def test_a_repeated_call_with_a_key_is_one_execution(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"))))
    address, headers = f"/api/v1/executions/{execution_id}/rerun", {"Idempotency-Key": "once"}
    first, second = (servers.client.post(address, json={}, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json["id"] == second.json["id"]
    assert first.headers["Location"].endswith(f"/api/v1/executions/{first.json['id']}")


def test_what_a_trigger_brought_is_there_again(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("a", value="{{ trigger.payload.x }}")))
    execution_id = deployment.execute(workflow_id)
    deployment.ended(execution_id)
    deployment.sql(
        "UPDATE executions SET trigger_id = %(trigger)s::uuid, "
        "trigger_data = '{\"id\": \"t\", \"payload\": {\"x\": 42}}' WHERE id = %(id)s::uuid",
        trigger=NOBODY, id=execution_id,
    )  # fmt: skip
    second = done_again(deployment, execution_id)
    assert (second["output"], str(second["trigger_id"])) == ({"a": {"result": 42}}, NOBODY)


# --- from a step on -------------------------------------------------------------------------------------------


def test_from_a_step_on_what_stands_before_is_kept(deployment: Deployment, marks: Path):
    definition = workflow(
        mark("a", marks),
        mark("b", marks, "a"),
        mark("beside", marks, "a"),
        mark("c", marks, "b"),
        step("d", needs="c beside", value="{{ [steps.a.output.result, steps.beside.output.result, input.x] }}"),
    )
    first = deployment.ended(deployment.execute(deployment.create(definition), {"x": 1}))
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="b", input={"x": 2})
    assert second["status"] == "completed"
    assert second["output"] == {"d": {"result": ["a", "beside", 2]}}
    assert performed(marks) == ["b", "c"]
    before, after = rows_of(first), rows_of(second)
    assert {path: row["attempt"] for path, row in after.items()} == {"a": 0, "b": 1, "beside": 0, "c": 1, "d": 1}
    assert after["a"]["output"] == before["a"]["output"]
    assert after["a"]["end_time"] == before["a"]["end_time"]


def test_a_failed_execution_goes_on_with_another_version(deployment: Deployment, marks: Path):
    workflow_id = deployment.create(workflow(mark("a", marks), step("b", "fail", "a"), step("c", needs="b")))
    first = deployment.ended(deployment.execute(workflow_id))
    assert first["status"] == "failed"
    better = workflow(mark("a", marks), step("b", needs="a", value=1), step("c", needs="b", value=2), step("new"))
    deployment.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": better})
    second = done_again(deployment, first["id"], from_step="b", version=2)
    assert second["status"] == "completed", second["error_message"]
    assert states_of(second) == dict.fromkeys(("a", "b", "c", "new"), "completed")
    assert performed(marks) == ["a"]


def test_a_branch_that_was_not_taken_stays_untaken(deployment: Deployment, marks: Path):
    choose = {
        "id": "choose",
        "type": "condition",
        "config": {"expression": "{{ true }}", "then": ["yes"], "else": ["no"]},
    }
    definition = workflow(
        choose,
        mark("yes", marks, "choose"),
        mark("no", marks, "choose"),
        mark("after_no", marks, "no"),
        step("join", needs="yes after_no"),
        {**step("never", needs="choose"), "when": "{{ false }}"},
    )
    first = deployment.run(definition)
    assert first["status"] == "completed", first["error_message"]
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="join")
    assert states_of(second) == states_of(first)
    assert not marks.exists()
    third = done_again(deployment, first["id"], from_step="choose")
    assert states_of(third) == states_of(first)
    assert performed(marks) == ["yes"]


def test_a_step_in_a_branch_that_was_not_taken_ends_the_rerun(deployment: Deployment, marks: Path):
    choose = {"id": "choose", "type": "condition", "config": {"expression": "{{ false }}", "then": ["yes"]}}
    definition = workflow(choose, mark("yes", marks, "choose"), mark("more", marks, "yes"))
    first = deployment.run(definition)
    second = done_again(deployment, first["id"], from_step="more")
    assert (second["status"], states_of(second)["more"]) == ("completed", "skipped")
    third = done_again(deployment, first["id"], from_step="yes")
    assert (third["status"], performed(marks)) == ("completed", ["yes", "more"])


def test_what_depends_on_a_step_that_failed_is_done_again_with_it(deployment: Deployment, marks: Path):
    definition = workflow(
        step("bad", "fail"),
        {**mark("whatever", marks, "bad"), "trigger_rule": "all_done"},
        mark("other", marks),
        step("tolerated", "fail", on_error="continue"),
        mark("last", marks, "other tolerated"),
    )
    first = deployment.run(definition)
    assert first["status"] == "failed"
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="last")
    assert sorted(performed(marks)) == ["last", "whatever"]
    assert rows_of(second)["tolerated"]["attempt"] == 0
    assert rows_of(second)["tolerated"]["error_kind"] == "asked"
    assert second["error_message"] == first["error_message"]


def test_variables_and_the_output_of_a_loop_are_kept(deployment: Deployment, marks: Path):
    loop = {"id": "each", "type": "loop", "config": {"items": [1, 2], "steps": [mark("inner", marks)]}}
    definition = workflow(
        {**loop, "output_mapping": {"rounds": "{{ output.count }}"}},
        mark("mid", marks, "each"),
        step("end", needs="mid", value="{{ [variables.rounds, steps.each.output.count] }}"),
        variables={"rounds": 0},
    )
    first = deployment.run(definition)
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="mid")
    assert second["output"] == {"end": {"result": [2, 2]}}
    assert performed(marks) == ["mid"]
    assert set(states_of(second)) == {"each", "mid", "end"}
    third = done_again(deployment, first["id"], from_step="each")
    assert third["output"] == first["output"]
    assert set(states_of(third)) == {"each", "each[0].inner", "each[1].inner", "mid", "end"}


def test_a_rerun_undoes_only_what_it_did_itself(deployment: Deployment, marks: Path):
    undo = {"type": "mark", "config": {"file": str(marks)}}
    definition = workflow(
        {**step("a"), "compensate": undo},
        {**step("b", needs="a"), "compensate": undo},
        step("c", "fail", "b", until_attempt=1),
    )
    workflow_id = deployment.create(definition)
    first = deployment.ended(deployment.execute(workflow_id))
    assert first["status"] == "completed"
    worse = {**definition, "steps": [*definition["steps"][:2], step("c", "fail", "b")]}
    deployment.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": worse})
    second = done_again(deployment, first["id"], from_step="b", version=2)
    assert second["status"] == "failed"
    assert performed(marks) == ["compensate.b"]


def test_what_was_undone_is_not_kept(deployment: Deployment, marks: Path):
    definition = workflow(
        {**step("a"), "compensate": {"type": "noop"}}, step("b", "fail", "a"), step("z", needs="b"), step("own")
    )
    first = deployment.run(definition)
    refusal = again(deployment, first["id"], 409, from_step="b")
    assert "undone by their compensate: a" in refusal["detail"]
    assert refusal["state"] == "failed"
    assert done_again(deployment, first["id"], from_step="a")["status"] == "failed"
    assert done_again(deployment, first["id"])["status"] == "failed"


def test_a_rerun_of_a_rerun_keeps_what_that_kept(deployment: Deployment, marks: Path):
    definition = workflow(mark("a", marks), mark("b", marks, "a"), mark("c", marks, "b"))
    first = deployment.run(definition)
    second = done_again(deployment, first["id"], from_step="b")
    third = done_again(deployment, second["id"], from_step="c")
    assert third["rerun_of"] == second["id"]
    assert performed(marks) == ["a", "b", "c", "b", "c", "c"]


def test_what_runs_at_the_end_runs_again(deployment: Deployment, marks: Path):
    definition = workflow(step("a"), step("b", needs="a"), **{"finally": [mark("tidy", marks)]})
    first = deployment.run(definition)
    second = done_again(deployment, first["id"], from_step="b")
    assert second["status"] == "completed"
    assert performed(marks) == ["finally.tidy"] * 2


# --- from within a body ---------------------------------------------------------------------------------------


def failing_in_round_one(marks: Path, ok: Path, **more: Any) -> dict[str, Any]:
    """A loop of three rounds; in the second the step `two` fails until `ok` is there."""
    source = f"import json, os, sys; sys.exit(json.load(sys.stdin)['n'] == 1 and not os.path.exists({str(ok)!r}))"
    body = [
        mark("one", marks),
        {**step("two", "script", needs="one", source=source), "input_mapping": {"n": "{{ loop.item }}"}},
        mark("three", marks, "two"),
    ]
    loop = {"id": "each", "type": "loop", "config": {"items": [0, 1, 2], "steps": body, **more}}
    return workflow(mark("before", marks), {**loop, "depends_on": ["before"]}, mark("after", marks, "each"))


@pytest.mark.parametrize("more", [{}, {"concurrency": 1}, {"on_item_error": "continue"}], ids=str)
def test_from_a_step_in_a_round_the_other_rounds_are_kept(
    deployment: Deployment, marks: Path, tmp_path: Path, more: dict[str, Any]
):
    first = deployment.run(failing_in_round_one(marks, tmp_path / "ok", **{"on_item_error": "fail", **more}))
    assert rows_of(first)["each[1].two"]["status"] == "failed"
    (tmp_path / "ok").touch()
    whole = {path for path, row in rows_of(first).items() if row["status"] == "completed" and path.startswith("each[")}
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="each[1].two")
    assert second["status"] == "completed", second["error_message"]
    assert set(states_of(second).values()) == {"completed"}
    after = rows_of(second)
    assert {path for path, row in after.items() if row["attempt"] == 0} == {"before", *whole}
    assert after["each[1].one"]["output"] == rows_of(first)["each[1].one"]["output"]
    results = [round["result"] for round in after["each"]["output"]["results"]]
    assert results == [f"each[{n}].three" for n in range(3)]
    assert "each[1].three" in performed(marks)
    assert "each[1].one" not in performed(marks)


def test_from_a_step_in_a_round_that_completed_the_rest_of_it_is_done_again(
    deployment: Deployment, marks: Path, tmp_path: Path
):
    (tmp_path / "ok").touch()
    first = deployment.run(failing_in_round_one(marks, tmp_path / "ok"))
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="each[2].two")
    assert performed(marks) == ["each[2].three", "after"]
    assert second["output"] == first["output"]
    third = done_again(deployment, second["id"], from_step="each[0].three")
    assert third["output"] == first["output"]
    assert performed(marks) == ["each[2].three", "after", "each[0].three", "after"]


def test_from_a_step_in_a_branch_in_a_round_both_are_gone_on_with(deployment: Deployment, marks: Path):
    fork = {
        "id": "fork",
        "type": "parallel",
        "config": {"branches": {"left": [mark("l", marks), mark("m", marks, "l")], "right": [mark("r", marks)]}},
    }
    loop = {"id": "each", "type": "loop", "config": {"items": [1, 2], "steps": [mark("x", marks), fork]}}
    first = deployment.run(workflow(loop))
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="each[1].fork.left.m")
    assert performed(marks) == ["each[1].fork.left.m"]
    assert second["output"] == first["output"]
    assert rows_of(second)["each[0].fork"]["attempt"] == 0
    assert rows_of(second)["each[1].fork.right.r"]["attempt"] == 0
    marks.unlink()
    done_again(deployment, first["id"], from_step="each[0].fork")
    assert sorted(performed(marks)) == [f"each[0].fork.{path}" for path in ("left.l", "left.m", "right.r")]


def over(items: Any, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "each", "type": "loop", "config": {"items": items, "steps": list(steps), **more}}


def until(condition: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"id": "until", "type": "loop", "config": {"while": condition, "steps": list(steps)}}


def newer(deployment: Deployment, workflow_id: str, definition: dict[str, Any]) -> int:
    answer = deployment.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": definition})
    assert answer.status_code == 200, answer.text
    return int(answer.json["version"])


@pytest.mark.parametrize("more", [{}, {"concurrency": 1}], ids=str)
def test_with_other_input_the_rounds_of_the_same_items_are_kept(
    deployment: Deployment, marks: Path, more: dict[str, Any]
):
    body = (mark("a", marks), step("b", needs="a", value="{{ [loop.item, input.x] }}"))
    workflow_id = deployment.create(workflow(over("{{ input.items }}", *body, **more)))
    first = deployment.ended(deployment.execute(workflow_id, {"items": [1, 2, 3, 4], "x": 1}))
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="each[2].b", input={"items": [1, 20, 3, 4, 5], "x": 2})
    assert second["status"] == "completed", second["error_message"]
    assert sorted(performed(marks)) == ["each[1].a", "each[4].a"]
    results = [one["result"] for one in second["output"]["each"]["results"]]
    assert results == [[1, 1], [20, 2], [3, 2], [4, 1], [5, 2]]
    third = done_again(deployment, second["id"], from_step="each[0].b", input={"items": [1], "x": 3})
    assert [one["result"] for one in third["output"]["each"]["results"]] == [[1, 3]]
    assert sorted(performed(marks)) == ["each[1].a", "each[4].a"]


def test_with_another_version_the_bodies_are_its_own(deployment: Deployment, marks: Path):
    def definition(*body: dict[str, Any], **branches: Any) -> dict[str, Any]:
        fork = {"id": "fork", "type": "parallel", "config": {"branches": branches}, "depends_on": ["each"]}
        return workflow(over([1, 2], *body), fork)

    a, left = mark("a", marks), [mark("l", marks), mark("m", marks, "l")]
    workflow_id = deployment.create(definition(a, mark("b", marks, "a"), left=left, right=[mark("r", marks)]))
    first = deployment.ended(deployment.execute(workflow_id))
    marks.unlink()
    body = (a, mark("new", marks), mark("b", marks, "a new"), mark("c", marks, "b"))
    version = newer(deployment, workflow_id, definition(*body, left=left, other=[mark("o", marks)]))
    second = done_again(deployment, first["id"], from_step="fork.left.m", version=version)
    assert second["status"] == "completed", second["error_message"]
    assert sorted(performed(marks)) == ["fork.left.m", "fork.other.o"]
    assert second["output"]["fork"].keys() == {"left", "other"}
    marks.unlink()
    third = done_again(deployment, first["id"], from_step="each[1].c", version=version)
    assert third["status"] == "completed", third["error_message"]
    again_in_each = [f"each[{n}].{id}" for n in (0, 1) for id in ("b", "c", "new")]
    assert sorted(performed(marks)) == [*again_in_each, "fork.left.l", "fork.left.m", "fork.other.o"]


def test_a_round_in_a_round_is_the_same_if_both_items_are(deployment: Deployment, marks: Path):
    inner = {"id": "inner", "type": "loop", "config": {
        "items": "{{ loop.item.list }}",
        "steps": [mark("x", marks), step("y", needs="x", value="{{ [loop.parent.item.name, loop.item] }}")],
    }}  # fmt: skip
    workflow_id = deployment.create(workflow(over("{{ input.all }}", inner)))
    one, two = {"name": "one", "list": [1, 2]}, {"name": "two", "list": [1, 2]}
    first = deployment.ended(deployment.execute(workflow_id, {"all": [one, two]}))
    marks.unlink()
    longer = {"all": [one, {**two, "list": [1, 3, 4]}]}
    second = done_again(deployment, first["id"], from_step="each[1].inner[1].y", input=longer)
    assert second["status"] == "completed", second["error_message"]
    # The item around them is another one, whatever it is that they saw of it.
    assert sorted(performed(marks)) == [f"each[1].inner[{n}].x" for n in range(3)]
    results = [one["result"] for one in second["output"]["each"]["results"][1]["results"]]
    assert results == [["two", 1], ["two", 3], ["two", 4]]


def test_from_a_round_of_a_while_on_those_before_it_are_kept(deployment: Deployment, marks: Path):
    body = (mark("a", marks), step("b", needs="a", value="{{ [loop.index, loop.last, input.x] }}"))
    condition = "{{ loop.index < input.n and (loop.index == 0 or steps.b.output.result[0] == loop.index - 1) }}"
    workflow_id = deployment.create(workflow(until(condition, *body), step("z", needs="until")))
    first = deployment.ended(deployment.execute(workflow_id, {"n": 3, "x": 1}))
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="until[1].b")
    assert second["output"] == first["output"]
    assert performed(marks) == ["until[2].a"]
    assert rows_of(second)["until[0].b"]["attempt"] == 0
    third = done_again(deployment, first["id"], from_step="until[2].a", input={"n": 4, "x": 2})
    assert third["status"] == "completed", third["error_message"]
    assert performed(marks) == ["until[2].a", "until[2].a", "until[3].a"]
    results = [one["result"] for one in rows_of(third)["until"]["output"]["results"]]
    assert results[:2] == [[0, None, 1], [1, {"result": [0, None, 1]}, 1]]
    assert results[3] == [3, {"result": results[2]}, 2]
    # One that there was not, but would be.
    fourth = done_again(deployment, first["id"], from_step="until[3].a", input={"n": 4, "x": 2})
    assert len(rows_of(fourth)["until"]["output"]["results"]) == 4
    assert performed(marks)[3:] == ["until[3].a"]
    for from_step, n in (("until[2].a", 2), ("until[3].a", 3), ("until[5].a", 9)):
        path, message = problem(again(deployment, first["id"], 422, from_step=from_step, input={"n": n, "x": 2}))
        assert (path, message.endswith("start from 'until'")) == ("from_step", True), message
    assert "has no step 'until[3].a'" in problem(again(deployment, first["id"], 422, from_step="until[3].a"))[1]


def test_a_failed_round_of_a_while_that_went_on_is_kept_as_it_was(deployment: Deployment, marks: Path):
    check = {**mark("a", marks), "input_mapping": {"n": "{{ loop.index }}"}}
    fails = {**step("b", "fail", needs="a"), "when": "{{ loop.index == 0 }}"}
    loop = until("{{ loop.index < 2 }}", check, fails, mark("c", marks, "a b"))
    loop["config"]["on_item_error"] = "continue"
    first = deployment.run(workflow(loop))
    assert states_of(first) | {"until[0].b": "failed", "until[0].c": "cancelled"} == states_of(first)
    marks.unlink()
    second = done_again(deployment, first["id"], from_step="until[1].c")
    assert performed(marks) == ["until[1].c"]
    assert second["output"] == first["output"]
    assert rows_of(second)["until[0].b"]["error_kind"] == "asked"


def test_a_step_in_a_body_that_will_not_be_there_is_refused(deployment: Deployment, marks: Path):
    items = over("{{ input.items }}", mark("a", marks), mark("b", marks, "a"))
    workflow_id = deployment.create(workflow(items))
    first = deployment.ended(deployment.execute(workflow_id, {"items": [1, 2]}))["id"]

    def refusal(**wanted: Any) -> str:
        path, message = problem(again(deployment, first, 422, **wanted))
        assert path == ("version" if "lacks" in message else "from_step")
        return message

    assert "has no step 'each[9].b'" in refusal(from_step="each[9].b")
    fewer = refusal(from_step="each[1].b", input={"items": [1]})
    assert "there is no 'each[1]' to go on with; start from 'each'" in fewer
    assert "must be a list" in refusal(from_step="each[1].b", input={"items": 5})
    assert "cannot be told" in refusal(from_step="each[1].b", input={})
    assert "has no step 'each[1].c'; did you mean" in refusal(from_step="each[1].c")
    assert "has no step 'each.left.b'" in refusal(from_step="each.left.b")
    less = newer(deployment, workflow_id, workflow(over("{{ input.items }}", mark("b", marks))))
    assert "has no step 'each[1].a'" in refusal(from_step="each[1].a", version=less)
    assert "lacks steps whose results would be kept: each[0].a" in refusal(from_step="each[1].b", version=less)
    hidden = newer(
        deployment, workflow_id, workflow({**items, "config": {**items["config"], "items": "{{ secrets.x }}"}})
    )
    assert "depend on secrets" in refusal(from_step="each[1].b", version=hidden)
    plain = newer(deployment, workflow_id, workflow(mark("each", marks)))
    assert "has no step 'each[1].b'" in refusal(from_step="each[1].b", version=plain)


def test_a_body_is_gone_on_with_only_if_what_it_waits_for_is_kept(deployment: Deployment, marks: Path):
    late = {**over([1], mark("a", marks)), "depends_on": ["bad"], "trigger_rule": "all_done"}
    first = deployment.run(workflow(step("bad", "fail"), late))
    assert "did not come to a good end" in problem(again(deployment, first["id"], 422, from_step="each[0].a"))[1]


def test_a_step_whose_result_is_cached_leaves_nothing_to_do_in_its_body(deployment: Deployment, marks: Path):
    cached = {**over([1, 2], mark("a", marks)), "cache": {"key": "k", "ttl": "1h"}}
    first = deployment.run(workflow(cached))
    second = done_again(deployment, first["id"], from_step="each[1].a")
    assert (second["status"], second["output"]) == ("completed", first["output"])
    assert states_of(second)["each[1].a"] == "cancelled"
    assert len(performed(marks)) == 2


def test_of_a_body_undone_steps_are_not_kept(deployment: Deployment, marks: Path):
    body = [{**mark("a", marks), "compensate": {"type": "noop"}}, step("b", "fail", "a")]
    first = deployment.run(workflow({"id": "each", "type": "loop", "config": {"items": [1], "steps": body}}))
    refusal = again(deployment, first["id"], 409, from_step="each[0].b")
    assert "undone by their compensate: each[0].a" in refusal["detail"]


def test_a_step_that_fails_before_it_comes_to_its_bodies_leaves_nothing_to_do_in_them(servers: Deployment):
    loop = {"id": "each", "type": "loop", "config": {"items": [1], "steps": [step("a")]}}
    execution_id = servers.execute(servers.create(workflow(loop)))
    row = StepRow("each[0].a", "a", "each[0]", "each", "noop", "cpu", StepStatus.PENDING, 1, None, None)
    with servers.store.single() as connection:
        bodies.insert(connection, execution_id, [row])
    claimed = servers.claim(execution_id, "each")
    assert claimed is not None
    held, facts = claimed
    program = Programs(load_catalogue("sample_steps"), servers.settings).get(
        servers.store, facts.workflow_id, facts.version
    )
    failure = Failure("config", "no list", retryable=False)
    assert end_failed_attempt(servers.store, program, execution_id, held, failure).ended
    assert servers.statuses(execution_id) == {"each": "failed", "each[0].a": "cancelled"}


# --- refusals -------------------------------------------------------------------------------------------------


def test_it_waits_for_a_place_like_any_other(servers: Deployment):
    workflow_id = servers.create({**workflow(step("a")), "max_concurrent": 1})
    first = servers.execute(workflow_id)
    waits = again(servers, first)
    (row,) = servers.sql("SELECT admitted_at, held FROM executions WHERE id = %(id)s::uuid", id=waits["id"])
    assert (row.admitted_at, row.held) == (None, True)
    servers.client.post(f"/api/v1/executions/{first}/cancel")

    def admitted() -> bool:
        return bool(
            servers.sql("SELECT 1 FROM executions WHERE id = %(id)s::uuid AND admitted_at IS NOT NULL", id=waits["id"])
        )

    wait_until(admitted, what="its place")


def test_a_step_that_is_not_there_is_told_with_what_is(servers: Deployment):
    loop = {"id": "each", "type": "loop", "config": {"items": [1], "steps": [step("inner")]}}
    execution_id = servers.execute(servers.create(workflow(step("fetch"), loop)))
    assert problem(again(servers, execution_id, 422, from_step="fetsh")) == (
        "from_step", "version 1 has no step 'fetsh'; did you mean 'fetch'?",
    )  # fmt: skip
    assert "its steps are fetch, each" in problem(again(servers, execution_id, 422, from_step="finally.x"))[1]
    assert problem(again(servers, execution_id, 422, version=3)) == (
        "version", "the workflow has no version 3; its newest is 1",
    )  # fmt: skip


def test_a_version_without_the_steps_to_keep_is_refused(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("a"), step("b", needs="a"), step("c", needs="b")))
    first = deployment.ended(deployment.execute(workflow_id))
    deployment.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": workflow(step("b"), step("d"))})
    refusal = again(deployment, first["id"], 422, from_step="b", version=2)
    assert problem(refusal)[1].startswith("version 2 lacks steps whose results would be kept: a;")
    assert done_again(deployment, first["id"], version=2)["status"] == "completed"


def test_an_execution_that_lives_is_done_again_only_as_a_whole(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"), step("b", needs="a"))))
    assert again(servers, execution_id, 409, from_step="b")["state"] == "queued"
    assert again(servers, execution_id)["status"] == "queued"


@pytest.mark.parametrize("status", ["paused", "cancelled", "completed", "failed"])
def test_nothing_is_done_again_of_a_workflow_that_starts_nothing(servers: Deployment, status: str):
    workflow_id = servers.create(workflow(step("a")))
    execution_id = servers.execute(workflow_id)
    servers.sql("UPDATE workflows SET status = %(status)s WHERE id = %(id)s::uuid", status=status, id=workflow_id)
    assert again(servers, execution_id, 409)["state"] == status


def test_bad_requests_are_told_all_at_once(servers: Deployment):
    execution_id = servers.execute(
        servers.create(
            workflow(step("a"), inputs={"required": ["n"]}),
        ),
        {"n": 1},
    )
    wrong = again(servers, execution_id, 422, from_step="", version="2", priority=10, colour="red", input=[])
    assert {found["path"] for found in wrong["errors"]} == {"from_step", "version", "priority", "colour", "input"}
    assert problem(again(servers, execution_id, 422, input={}))[0] == "input"
    again(servers, NOBODY, 404)
