"""Whole executions on real servers and real workers: what runs, in which order, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.canvas import Signature, _chain, _chord, group
from deployment import Deployment, wait_until

from orchestrator.engine.plan import Message, Plan


def step(id: str, type: str = "noop", needs: str = "", **more: Any) -> dict[str, Any]:
    """A step that depends on the ids in `needs`; `config` fields are the keywords the step itself lacks."""
    own = {key: more.pop(key) for key in ("retry_policy", "timeout", "on_error", "input_mapping") if key in more}
    return {"id": id, "type": type, "depends_on": needs.split(), "config": more, **own}


def workflow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"steps": list(steps), **more}


def states_of(execution: dict[str, Any]) -> dict[str, str]:
    return {row["path"]: row["status"] for row in execution["step_executions"]}


def rows_of(execution: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in execution["step_executions"]}


def assert_completed(execution: dict[str, Any]) -> None:
    """Everything is done, and each step was done once."""
    assert execution["status"] == "completed", execution["error_message"]
    assert {row["status"] for row in execution["step_executions"]} == {"completed"}
    assert {row["attempt"] for row in execution["step_executions"]} == {1}


@pytest.fixture
def open_gates(tmp_path: Path) -> Iterator[Path]:
    """A folder of gate files; whatever happens, no gate stays shut behind a test."""
    yield tmp_path
    for name in ("gate", "other"):
        (tmp_path / name).touch()


# --- shapes ------------------------------------------------------------------------------------------------


def test_a_chain_runs_to_its_end(deployment: Deployment):
    steps = [step("s0", value=0)]
    steps += [
        step(f"s{n}", needs=f"s{n - 1}", value=f"{{{{ steps.s{n - 1}.output.result + 1 }}}}") for n in range(1, 10)
    ]
    execution = deployment.run(workflow(*steps))
    assert_completed(execution)
    assert execution["output"] == {"s9": {"result": 9}}


def test_a_diamond_joins_both_branches(deployment: Deployment):
    execution = deployment.run(
        workflow(
            step("a", value=1),
            step("b", needs="a", value="{{ steps.a.output.result + 1 }}"),
            step("c", needs="a", value="{{ steps.a.output.result + 2 }}"),
            step("d", needs="b c", value="{{ steps.b.output.result * steps.c.output.result }}"),
        )
    )
    assert_completed(execution)
    assert execution["output"] == {"d": {"result": 6}}


def test_a_step_starts_when_its_own_dependencies_are_done(deployment: Deployment, open_gates: Path):
    gate = open_gates / "gate"
    definition = workflow(step("a"), step("b", "gate", file=str(gate)), step("c", needs="a"), step("d", needs="a b"))
    execution_id = deployment.execute(deployment.create(definition))
    held = {"a": "completed", "b": "running", "c": "completed", "d": "pending"}
    wait_until(lambda: deployment.statuses(execution_id) == held, what="c, which b does not hold up")
    gate.touch()
    assert_completed(deployment.ended(execution_id))


@pytest.mark.parametrize("type", ["noop", "io_noop", "set"])
def test_a_fan_out_of_a_hundred_meets_in_one_join(deployment: Deployment, type: str):
    config = {"values": {"result": 1}} if type == "set" else {"value": 1}
    names = [f"s{n}" for n in range(100)]
    total = ", ".join(f"steps.{name}.output.result" for name in names)
    execution = deployment.run(
        workflow(
            step("a"),
            *(step(name, type, "a", **config) for name in names),
            step("z", needs=" ".join(names), value=f"{{{{ [{total}] | sum }}}}"),
        )
    )
    assert_completed(execution)
    assert execution["output"] == {"z": {"result": 100}}


def test_a_run_goes_from_queue_to_queue(deployment: Deployment):
    execution = deployment.run(
        workflow(
            step("a", value=1),
            step("b", "io_noop", "a", value="{{ steps.a.output.result + 1 }}"),
            step("c", needs="b", value="{{ steps.b.output.result + 1 }}"),
            step("d", "io_noop", "c", value="{{ steps.c.output.result + 1 }}"),
        )
    )
    assert_completed(execution)
    assert execution["output"] == {"d": {"result": 4}}


def test_a_fan_out_of_chains_over_queues_meets_in_one_join(deployment: Deployment):
    links = [
        link
        for n in range(6)
        for link in (
            step(f"x{n}", needs="a"),
            step(f"y{n}", "io_noop", f"x{n}"),
            step(f"z{n}", needs=f"y{n}"),
        )
    ]
    execution = deployment.run(
        workflow(step("a"), *links, step("end", needs=" ".join(f"z{n}" for n in range(6)), value="met"))
    )
    assert_completed(execution)
    assert execution["output"] == {"end": {"result": "met"}}


def test_several_roots_and_several_sinks_are_one_execution(deployment: Deployment):
    execution = deployment.run(workflow(step("a", value=1), step("b", "io_noop", value=2), step("c", value=3)))
    assert_completed(execution)
    assert execution["output"] == {"a": {"result": 1}, "b": {"result": 2}, "c": {"result": 3}}


def test_an_execution_of_one_step_has_its_output(deployment: Deployment):
    execution = deployment.run(workflow(step("only", value={"k": [1, None]})))
    assert_completed(execution)
    assert execution["output"] == {"only": {"k": [1, None]}}
    assert execution["start_time"] <= execution["end_time"]


# --- conditions --------------------------------------------------------------------------------------------


def branching(expression: str) -> dict[str, Any]:
    return workflow(
        {
            "id": "which",
            "type": "condition",
            "config": {"expression": expression, "then": ["yes"], "else": ["no"]},
        },
        step("yes", needs="which"),
        step("no", needs="which"),
        step("after_no", needs="no"),
        step("join", needs="yes after_no", value="joined"),
    )


@pytest.mark.parametrize(
    ("taken", "done", "skipped"),
    [(True, {"yes"}, {"no", "after_no"}), (False, {"no", "after_no"}, {"yes"})],
)
def test_the_branch_not_taken_is_skipped_and_the_join_still_runs(
    deployment: Deployment, taken: bool, done: set[str], skipped: set[str]
):
    execution = deployment.ended(
        deployment.execute(deployment.create(branching("{{ input.taken }}")), {"taken": taken})
    )
    assert execution["status"] == "completed"
    states = states_of(execution)
    assert {id for id, status in states.items() if status == "completed"} == done | {"which", "join"}
    assert {id for id, status in states.items() if status == "skipped"} == skipped
    assert execution["output"] == {"join": {"result": "joined"}}


def test_a_step_that_only_a_skipped_branch_leads_to_is_skipped_too(deployment: Deployment):
    definition = workflow(
        {"id": "which", "type": "condition", "config": {"expression": "{{ false }}", "then": ["yes"]}},
        step("yes", needs="which"),
        step("then_more", needs="yes"),
    )
    execution = deployment.run(definition)
    assert execution["status"] == "completed"
    assert states_of(execution) == {"which": "completed", "yes": "skipped", "then_more": "skipped"}
    assert execution["output"] == {}


# --- failures and retries ----------------------------------------------------------------------------------


def make_due(deployment: Deployment, execution_id: str) -> None:
    """As if the backoff had passed."""
    deployment.sql(
        "UPDATE step_executions SET next_attempt_at = clock_timestamp() "
        "WHERE execution_id = %(id)s::uuid AND status = 'waiting'",
        id=execution_id,
    )


def waiting(deployment: Deployment, execution_id: str, attempt: int) -> dict[str, Any]:
    """The step `a`, as it rests after its attempt number `attempt`, with the seconds it is to rest."""

    def look() -> dict[str, Any] | None:
        row = rows_of(deployment.execution(execution_id))["a"]
        return row if (row["status"], row["attempt"]) == ("waiting", attempt) else None

    row = wait_until(look, what=f"the rest after attempt {attempt}")
    ((rest,),) = deployment.sql(
        "SELECT extract(epoch FROM next_attempt_at - started_at)::float8 FROM step_executions WHERE id = %(id)s::uuid",
        id=row["id"],
    )
    return {**row, "rest": rest}


def test_a_failed_attempt_rests_in_its_row_until_it_is_due(deployment: Deployment):
    policy = {"max_attempts": 3, "initial_delay": 1000, "backoff_factor": 3, "max_delay": 100000}
    definition = workflow(step("a", "fail", until_attempt=3, retry_policy=policy), step("b", needs="a"))
    execution_id = deployment.execute(deployment.create(definition))

    first = waiting(deployment, execution_id, attempt=1)
    assert first["error_kind"] == "asked"
    assert 1000 <= first["rest"] < 1100
    assert deployment.execution(execution_id)["status"] == "running"
    make_due(deployment, execution_id)
    second = waiting(deployment, execution_id, attempt=2)
    assert 3000 <= second["rest"] < 3100
    make_due(deployment, execution_id)

    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed"
    row = rows_of(execution)["a"]
    assert (row["attempt"], row["output"]) == (3, {"result": 3})
    assert (row["error_kind"], row["next_attempt_at"]) == (None, None)
    assert states_of(execution) == {"a": "completed", "b": "completed"}


def test_a_step_fails_when_its_attempts_are_used_up(deployment: Deployment):
    policy = {"max_attempts": 2, "initial_delay": 0}
    execution = deployment.run(workflow(step("a", "fail", retry_policy=policy), step("b", needs="a")))
    assert execution["status"] == "failed"
    assert execution["error_message"] == "step a (fail) failed: asked to fail"
    assert states_of(execution) == {"a": "failed", "b": "skipped"}
    assert rows_of(execution)["a"]["attempt"] == 2


def test_a_kind_of_failure_that_the_policy_does_not_name_is_not_tried_again(deployment: Deployment):
    policy = {"max_attempts": 5, "initial_delay": 0, "retry_on": ["timeout"]}
    execution = deployment.run(workflow(step("a", "fail", retry_policy=policy)))
    assert execution["status"] == "failed"
    assert rows_of(execution)["a"]["attempt"] == 1


def test_an_error_that_is_to_be_continued_is_seen_by_what_follows(deployment: Deployment):
    execution = deployment.run(
        workflow(
            step("a", "fail", message="no luck", on_error="continue"),
            step("b", needs="a", value="{{ steps.a.status }}: {{ steps.a.error.message }}"),
        )
    )
    assert execution["status"] == "completed"
    assert states_of(execution) == {"a": "failed", "b": "completed"}
    assert execution["output"] == {"b": {"result": "failed: no luck"}}


def test_a_failure_skips_what_waits_for_it_and_the_other_branches_finish(deployment: Deployment):
    execution = deployment.run(
        workflow(
            step("a"),
            step("b", "fail", "a"),
            step("b2", needs="b"),
            step("c", "io_noop", "a"),
            step("c2", needs="c"),
            step("d", needs="b2 c2"),
        )
    )
    assert execution["status"] == "failed"
    assert states_of(execution) == {
        "a": "completed",
        "b": "failed",
        "b2": "skipped",
        "c": "completed",
        "c2": "completed",
        "d": "skipped",
    }


def test_failures_in_a_wide_fan_out_leave_the_others_alone(deployment: Deployment):
    middle = [step(f"s{n}", "fail" if n % 7 == 0 else "noop", "a", on_error="continue") for n in range(50)]
    join = step("z", needs=" ".join(one["id"] for one in middle))
    execution = deployment.run(workflow(step("a"), *middle, join))
    assert execution["status"] == "completed"
    expected = {f"s{n}": "failed" if n % 7 == 0 else "completed" for n in range(50)}
    assert states_of(execution) == {"a": "completed", "z": "completed", **expected}


def test_a_template_that_cannot_be_rendered_fails_the_step_at_once(deployment: Deployment):
    policy = {"max_attempts": 5, "initial_delay": 0}
    definition = workflow(step("a", value="{{ input.missing }}", retry_policy=policy))
    execution = deployment.run(definition)
    assert execution["status"] == "failed"
    row = rows_of(execution)["a"]
    assert (row["error_kind"], row["attempt"]) == ("template", 1)


def test_an_unknown_step_type_fails_the_step_with_what_to_do(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("a"), step("b", needs="a")))
    # A version that another release accepted, which had a plugin this one lacks.
    deployment.sql(
        "INSERT INTO workflow_versions (workflow_id, version, definition) VALUES (%(id)s::uuid, 2, "
        """'{"steps": [{"id": "a", "type": "noop"}, {"id": "b", "type": "strange", "depends_on": ["a"]}]}')""",
        id=workflow_id,
    )
    deployment.sql("UPDATE workflows SET version = 2 WHERE id = %(id)s::uuid", id=workflow_id)
    execution = deployment.ended(deployment.execute(workflow_id))
    assert execution["status"] == "failed"
    row = rows_of(execution)["b"]
    assert (row["status"], row["error_kind"]) == ("failed", "config")
    assert "does not know the step type 'strange'" in row["error_message"]


# --- time --------------------------------------------------------------------------------------------------


def test_a_step_is_ended_when_its_time_is_up(deployment: Deployment):
    execution = deployment.run(
        workflow(step("a", "nap", seconds=60, timeout=0.3, on_error="continue"), step("b", needs="a"))
    )
    assert execution["status"] == "completed"
    row = rows_of(execution)["a"]
    assert (row["status"], row["error_kind"]) == ("failed", "timeout")


def test_an_execution_is_ended_when_its_time_is_up(deployment: Deployment, open_gates: Path):
    gate = open_gates / "gate"
    definition = workflow(step("a"), step("b", "gate", "a", file=str(gate)), step("c", needs="b"), timeout="1h")
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["b"] == "running", what="the step at the gate")
    deployment.pass_its_time(execution_id)
    execution = deployment.ended(execution_id)
    assert execution["status"] == "failed"
    states = states_of(execution)
    assert states["a"] == "completed"
    assert states["b"] in ("cancelled", "failed")
    assert states["c"] in ("cancelled", "skipped")


# --- data --------------------------------------------------------------------------------------------------


def test_outputs_of_the_definition_are_the_output_of_the_execution(deployment: Deployment):
    definition = workflow(
        step("a", value="{{ input.n * variables.factor }}"),
        step("b", "set", "a", values={"doubled": "{{ steps.a.output.result * 2 }}"}),
        variables={"factor": 10},
        outputs={"answer": "{{ steps.b.output.doubled }}", "said": "it is {{ steps.a.output.result }}"},
    )
    execution = deployment.run(definition, {"n": 3})
    assert_completed(execution)
    assert execution["output"] == {"answer": 60, "said": "it is 30"}


def test_outputs_that_cannot_be_rendered_fail_the_execution(deployment: Deployment):
    execution = deployment.run(workflow(step("a"), outputs={"answer": "{{ steps.a.output.missing }}"}))
    assert execution["status"] == "failed"
    assert execution["error_message"].startswith("outputs: ")
    assert states_of(execution) == {"a": "completed"}


def test_templates_read_steps_of_other_runs_and_far_upstream(deployment: Deployment):
    execution = deployment.run(
        workflow(
            step("a", value={"n": 1}),
            step("b", "io_noop", "a"),
            step("c", needs="a"),
            step("d", "io_noop", "b c"),
            step("e", needs="d", value="{{ steps.a.output }}"),
        )
    )
    assert_completed(execution)
    assert execution["output"] == {"e": {"n": 1}}


def test_the_input_that_a_step_was_given_is_kept(deployment: Deployment):
    execution = deployment.run(workflow(step("a", value="{{ input.name }}")), {"name": "Zoë"})
    assert rows_of(execution)["a"]["input"] == {"value": "Zoë"}


def test_the_same_idempotency_key_is_the_same_execution(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("a")))
    answers = [
        deployment.client.post(
            f"/api/v1/workflows/{workflow_id}/execute",
            json={"input": {"n": n}},
            headers={"Idempotency-Key": "once"},
        )
        for n in (1, 2)
    ]
    assert answers[0].json["id"] == answers[1].json["id"]
    execution = deployment.ended(answers[0].json["id"])
    assert_completed(execution)
    assert execution["input"] == {"n": 1}
    ((count,),) = deployment.sql("SELECT count(*) FROM executions WHERE workflow_id = %(id)s::uuid", id=workflow_id)
    assert count == 1


def test_each_step_is_performed_once(deployment: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    middle = [step(f"s{n}", "mark", "a", file=str(marks)) for n in range(30)]
    execution = deployment.run(
        workflow(
            step("a", "mark", file=str(marks)),
            *middle,
            step("z", "mark", " ".join(one["id"] for one in middle), file=str(marks)),
        )
    )
    assert_completed(execution)
    performed = [line.split()[1] for line in marks.read_text().splitlines()]
    assert sorted(performed) == sorted(states_of(execution))
    assert (performed[0], performed[-1]) == ("a", "z")


# --- the canvas --------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(deployment: Deployment) -> Any:
    """workers.canvas.canvas; imported late, since the app reads its settings at import."""
    assert deployment.client
    from workers.canvas import canvas

    return canvas


def planned(*branches: tuple[Message, ...], join: Message | None = None) -> Plan:
    return Plan("the-id", 7, branches, join)


A, B, C = Message("cpu", ("a",)), Message("io", ("b",)), Message("cpu", ("c", "d"))


def leaves(signature: Signature) -> list[Signature]:
    if isinstance(signature, _chord):
        return [
            *leaves(signature.tasks if isinstance(signature.tasks, group) else group(signature.tasks)),
            signature.body,
        ]
    if isinstance(signature, (group, _chain)):
        return [leaf for part in signature.tasks for leaf in leaves(part)]
    return [signature]


def test_a_single_message_is_a_single_task(drawn: Any):
    task = drawn(planned((C,)))
    assert (task.task, list(task.args)) == ("run_steps", ["the-id", ["c", "d"]])
    assert (task.options["queue"], task.options["priority"]) == ("cpu", 2)


def test_messages_in_a_row_are_a_chain_in_which_each_link_rings_for_the_next(drawn: Any):
    chain = drawn(planned((A, B, C)))
    assert isinstance(chain, _chain)
    assert [list(link.args) for link in chain.tasks] == [
        ["the-id", ["a"], ["b"]],
        ["the-id", ["b"], ["c", "d"]],
        ["the-id", ["c", "d"]],
    ]
    assert [link.options["queue"] for link in chain.tasks] == ["cpu", "io", "cpu"]


def test_branches_are_a_group(drawn: Any):
    fork = drawn(planned((A, B), (C,)))
    assert isinstance(fork, group)
    assert isinstance(fork.tasks[0], _chain)
    assert list(fork.tasks[1].args) == ["the-id", ["c", "d"]]


def test_branches_that_meet_are_a_chord_whose_header_leaves_the_join_to_it(drawn: Any):
    join = Message("io", ("z",))
    chord = drawn(planned((A,), (B,), (C,), join=join))
    assert isinstance(chord, _chord)
    assert list(chord.body.args) == ["the-id", ["z"]]
    assert chord.body.options["queue"] == "io"
    headers = [leaf for leaf in leaves(chord) if leaf is not chord.body]
    assert [list(header.args) for header in headers] == [
        ["the-id", ["a"], ["z"]],
        ["the-id", ["b"], ["z"]],
        ["the-id", ["c", "d"], ["z"]],
    ]


def test_every_signature_is_immutable_and_carries_ids_alone(drawn: Any):
    for plan in (
        planned((A,)),
        planned((A, B, C)),
        planned((A, B), (C,)),
        planned((A,), (B,), (C,), join=Message("io", ("z",))),
    ):
        for leaf in leaves(drawn(plan)):
            assert leaf.immutable
            assert leaf.kwargs == {}
            assert leaf.options["ignore_result"] is True
            execution_id, *ids = leaf.args
            assert execution_id == "the-id"
            assert all(isinstance(id, str) for group in ids for id in group)
