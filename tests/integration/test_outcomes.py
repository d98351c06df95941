"""What a step type hands back is recorded as it is read again, or its attempt fails: nothing that a type does throws
its worker off its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from deployment import Deployment
from test_execution import rows_of, step, workflow
from test_inline_bodies import OneWorker

from workers import attempt, prepared
from workers.steps.contract import StepType

SECRET = "s3cr3t-of-the-outcomes"


@pytest.fixture
def worker(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneWorker]:
    monkeypatch.setenv("ORCHESTRATOR_SECRET_TOKEN", SECRET)
    one = OneWorker(servers)
    yield one
    one.process.close()


def misbehaving(what: str, **config: Any) -> dict[str, Any]:
    return {**step("x", "misbehave", what=what, **config), "retry_policy": {"max_attempts": 1}}


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("an object", "output", "the step's output: is not JSON: Type is not JSON serializable: object"),
        ("no number", "output", "the step's output.x[1]: is nan, which is no JSON number"),
        ("itself", "output", "the step's output: is not JSON: Recursion limit reached"),
        ("an error", "error", "ValueError: no to "),
        ("a mute error", "error", "Mute"),
        ("what ends generators", "error", "GeneratorExit: "),
        ("an odd failure", "k\ufffd", "half ? (its output could not be kept: the step's output: is not JSON: "
                                      "Type is not JSON serializable: object)"),
        ("a rest with an object", "error", "what the step is to keep while it rests cannot be kept: state: is not "
                                           "JSON: Type is not JSON serializable: object"),
        ("a rest with too much", "error", "what the step is to keep while it rests cannot be kept: state: has "
                                          "2,000,002 bytes as JSON; the limit (executor.max_payload) is 1,048,576"),
        ("a rest for no child", "error", "`awaits` is 'child', and `state` has no execution_id"),
        ("a body that is not there", "error", "it spawns scopes of the body 'x', which the step does not have"),
        ("a skip of a stranger", "error", "`skip` names 'nobody', which does not depend on the step"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_fails_its_attempt(worker: OneWorker, what: str, kind: str, message: str) -> None:
    row = rows_of(worker.run(workflow(misbehaving(what), step("after", needs="x"))))["x"]
    assert (row["status"], row["error_kind"], row["error_message"]) == ("failed", kind, message)


def test_a_rest_has_a_time_with_its_zone(worker: OneWorker) -> None:
    row = rows_of(worker.run(workflow(misbehaving("a rest without a zone"))))["x"]
    assert row["error_message"].startswith("`until` of a Wait is a datetime with its time zone, not datetime.datetime(")


def test_a_type_that_returns_no_outcome_is_told_so(worker: OneWorker) -> None:
    row = rows_of(worker.run(workflow({**step("x", "no_outcome"), "retry_policy": {"max_attempts": 1}})))["x"]
    assert row["error_message"] == "perform() returned a dict; it is to return Done, Wait or Spawn"


def test_an_output_is_seen_as_it_is_stored_and_masked_before(worker: OneWorker) -> None:
    seen = step("seen", "set", "x", values={"text": "{{ steps.x.output.note.text }}", "at": "{{ steps.x.output.at }}"})
    rows = rows_of(worker.run(workflow(misbehaving("a dataclass", text="it is {{ secrets.token }}"), seen)))
    assert rows["x"]["output"]["note"] == {"text": "it is ***"}
    assert rows["seen"]["output"] == {"text": "it is ***", "at": rows["x"]["output"]["at"]}


def test_an_odd_log_line_takes_no_other_with_it(worker: OneWorker) -> None:
    execution = worker.run(workflow(misbehaving("odd log lines")))
    logs = worker.servers.client.get(f"/api/v1/executions/{execution['id']}/logs").json["items"]
    assert [line["message"] for line in logs] == ["half ?", "whole"]


def test_a_config_of_which_only_unchecked_values_change_is_checked_once(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, checked = prepared.load, []

    def counted(step_type: StepType, config: Mapping[str, Any]) -> Mapping[str, Any]:
        checked.append(step_type.type)
        return load(step_type, config)

    for module in (prepared, attempt):
        monkeypatch.setattr(module, "load", counted)
    workflow_id = worker.servers.create(workflow(step("x", "condition", expression="input.n")))
    for given, result in ((3, True), (0, False), (None, False), ([1], True)):
        execution_id = worker.servers.execute(workflow_id, {"n": given})
        worker.perform(execution_id)
        assert worker.servers.execution(execution_id)["step_executions"][0]["output"]["result"] is result
    assert checked == ["condition"]


def test_a_config_whose_checked_values_change_is_checked_at_each_attempt(worker: OneWorker) -> None:
    row = rows_of(worker.run(workflow(step("x", "set", values="{{ input.n }}"))))["x"]
    assert (row["status"], row["error_kind"]) == ("failed", "config")
