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
PLAIN = ["noop", "noop", "io_noop", "io_noop", "set", "fail"]
RULES = ["all_success", "all_success", "all_success", "all_done", "one_success", "one_failed", "none_failed"]


@st.composite
def graphs(draw: st.DrawFn, prefix: str, most: int, kinds: list[str]) -> list[dict[str, Any]]:
    """Steps that depend on others before them."""
    steps: list[dict[str, Any]] = []
    for n in range(draw(st.integers(1, most))):
        needs = draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set()
        kind = draw(st.sampled_from(kinds))
        one = {
            "id": f"{prefix}{n}",
            "type": kind,
            "config": dict(TYPES.get(kind, {})),
            "depends_on": [f"{prefix}{at}" for at in sorted(needs)],
            "on_error": draw(st.sampled_from(["fail", "fail", "continue"])),
        }
        if needs:
            one["trigger_rule"] = draw(st.sampled_from(RULES))
        if kind == "loop":
            one["config"] = draw(loops(f"{prefix}{n}_"))
        elif kind == "parallel":
            one["config"] = draw(forks(f"{prefix}{n}_"))
        steps.append(one)
    for one in steps:
        # A step that may begin early cannot be a branch: whether it had begun by then would be a matter of time.
        dependents = [other for other in steps if one["id"] in other["depends_on"]]
        children = [other["id"] for other in dependents if not other["trigger_rule"].startswith("one_")]
        if one["type"] == "condition" and children:
            one["config"]["expression"] = draw(st.sampled_from(["{{ false }}", "{{ true }}"]))
            one["config"]["then"] = draw(st.lists(st.sampled_from(children), unique=True))
    return steps


@st.composite
def loops(draw: st.DrawFn, prefix: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "items": list(range(draw(st.integers(0, 3)))),
        "on_item_error": draw(st.sampled_from(["continue", "fail"])),
        "steps": draw(graphs(prefix, 3, PLAIN)),
    }
    limit = draw(st.sampled_from([None, 1, 2]))
    return config if limit is None else {**config, "concurrency": limit}


@st.composite
def forks(draw: st.DrawFn, prefix: str) -> dict[str, Any]:
    names = ["left", "right"][: draw(st.integers(1, 2))]
    branches = {name: draw(graphs(f"{prefix}{name}_", 3, PLAIN)) for name in names}
    return {"branches": branches, "fail_fast": False}


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    return {"steps": draw(graphs("s", 12, [*PLAIN, "condition", "loop", "parallel"]))}


class Implied:
    """The reference: steps stand in the definition after what they wait for, so one pass decides them all.

    `open` are the paths in loops that end at their first failure: which of these were done by then is a matter of
    time.
    """

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self.states: dict[str, str] = {}
        self.open: set[str] = set()
        self.failed = self._decide(steps, "")

    def _decide(self, steps: list[dict[str, Any]], scope: str) -> bool:
        """Whether this graph has failed."""
        states: dict[str, str] = {}
        blocking: set[str] = set()  # failed, or kept from running by a failure
        not_taken: set[str] = set()
        failed = False
        for step in steps:
            id, needs = step["id"], step["depends_on"]
            good = [one for one in needs if states[one] in ("completed", "failed") and one not in blocking]
            runs = {
                "all_success": not blocking.intersection(needs) and (good or not needs),
                "all_done": True,
                "one_success": good,
                "one_failed": blocking.intersection(needs),
                "none_failed": not blocking.intersection(needs),
            }[step.get("trigger_rule", "all_success")]
            if id in not_taken or not runs:
                states[id] = "skipped"
                if id not in not_taken and step.get("trigger_rule") != "one_failed" and blocking.intersection(needs):
                    blocking.add(id)
                continue
            states[id] = "failed" if self._fails(step, f"{scope}{id}") else "completed"
            if states[id] == "failed" and step["on_error"] == "fail":
                blocking.add(id)
                failed = True
            if step["config"].get("expression") == "{{ false }}":
                not_taken.update(step["config"].get("then", ()))
        self.states |= {f"{scope}{id}": state for id, state in states.items()}
        return failed

    def _fails(self, step: dict[str, Any], path: str) -> bool:
        config = step["config"]
        if step["type"] == "loop":
            before = set(self.states)
            results = [self._decide(config["steps"], f"{path}[{index}].") for index in config["items"]]
            if config["on_item_error"] == "continue" or not any(results):
                return False
            self.open |= set(self.states) - before
            return True
        if step["type"] == "parallel":
            results = [self._decide(steps, f"{path}.{name}.") for name, steps in config["branches"].items()]
            return any(results)
        return step["type"] == "fail"


@pytest.fixture(scope="module")
def programs(deployment: Deployment) -> Programs:
    return Programs(load_catalogue("sample_steps"), deployment.settings)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(definition=definitions())
def test_any_graph_ends_in_the_states_that_its_definition_implies(
    deployment: Deployment, programs: Programs, definition: dict[str, Any]
):
    execution = deployment.ended(start(deployment, programs, definition))
    expected = Implied(definition["steps"])
    rows = {row["path"]: row for row in execution["step_executions"]}
    assert rows.keys() == expected.states.keys()
    settled = rows.keys() - expected.open
    assert {path: rows[path]["status"] for path in settled} == {path: expected.states[path] for path in settled}
    assert execution["status"] == ("failed" if expected.failed else "completed")
    for path in settled:
        assert rows[path]["attempt"] == (0 if rows[path]["status"] == "skipped" else 1)
    assert all(rows[path]["end_time"] for path in expected.open)


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
