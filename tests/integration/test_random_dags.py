"""Any acyclic definition, whatever fails in it, ends with the states that the definition implies."""

from __future__ import annotations

from typing import Any

import pytest
from deployment import Deployment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.engine.programs import Programs
from orchestrator.engine.start import start_execution
from orchestrator.plugins import load_catalogue
from orchestrator.store import workflows

TYPES = {
    "noop": {},
    "io_noop": {},
    "set": {"values": {"x": 1}},
    "fail": {},
    "condition": {"expression": "{{ false }}"},
}


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for n in range(draw(st.integers(1, 12))):
        needs = draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set()
        kind = draw(st.sampled_from(["noop", "noop", "io_noop", "io_noop", "set", "fail", "condition"]))
        steps.append(
            {
                "id": f"s{n}",
                "type": kind,
                "config": dict(TYPES[kind]),
                "depends_on": [f"s{at}" for at in sorted(needs)],
                "on_error": draw(st.sampled_from(["fail", "fail", "continue"])),
            }
        )
    for one in steps:
        children = [other["id"] for other in steps if one["id"] in other["depends_on"]]
        if one["type"] == "condition" and children:
            one["config"]["expression"] = draw(st.sampled_from(["{{ false }}", "{{ true }}"]))
            one["config"]["then"] = draw(st.lists(st.sampled_from(children), unique=True))
    return {"steps": steps}


def implied(definition: dict[str, Any]) -> dict[str, str]:
    """The reference: steps stand in the definition after what they wait for, so one pass decides them all."""
    states: dict[str, str] = {}
    blocking: set[str] = set()  # failed, or kept from running by a failure
    not_taken: set[str] = set()
    for step in definition["steps"]:
        id, needs = step["id"], step["depends_on"]
        if id in not_taken:
            states[id] = "skipped"
        elif blocking.intersection(needs):
            states[id] = "skipped"
            blocking.add(id)
        elif needs and all(states[need] == "skipped" for need in needs):
            states[id] = "skipped"
        else:
            states[id] = "failed" if step["type"] == "fail" else "completed"
            if states[id] == "failed" and step["on_error"] == "fail":
                blocking.add(id)
            if step["config"].get("expression") == "{{ false }}":
                not_taken.update(step["config"].get("then", ()))
    return states


@pytest.fixture(scope="module")
def programs(deployment: Deployment) -> Programs:
    return Programs(load_catalogue("sample_steps"), deployment.settings)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(definition=definitions())
def test_any_graph_ends_in_the_states_that_its_definition_implies(
    deployment: Deployment, programs: Programs, definition: dict[str, Any]
):
    execution = deployment.ended(start(deployment, programs, definition))
    expected = implied(definition)
    assert {row["path"]: row["status"] for row in execution["step_executions"]} == expected

    fatal = [one["id"] for one in definition["steps"] if one["on_error"] == "fail"]
    failed = any(expected[id] == "failed" for id in fatal)
    assert execution["status"] == ("failed" if failed else "completed")
    for row in execution["step_executions"]:
        assert row["attempt"] == (0 if row["status"] == "skipped" else 1)


def start(deployment: Deployment, programs: Programs, definition: dict[str, Any]) -> str:
    """As the API does it, without HTTP."""
    assert deployment.client  # points the app at this deployment
    from workers.dispatch import send

    with deployment.store.transaction() as connection:
        workflow_id = workflows.insert(
            connection,
            name="random",
            description="",
            tags=[],
            owner_id=None,
            is_template=False,
            definition=definition,
        )
    started = start_execution(deployment.store, programs, workflow_id, {})
    send(started.plan)
    return started.execution_id
