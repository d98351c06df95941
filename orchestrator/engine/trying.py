"""Trying out one step outside of an execution: whether it can be, and where it is performed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.definition import load_definition, paths
from orchestrator.definition.building import bodies_of
from orchestrator.definition.schema import STEP_ID
from orchestrator.engine.endings import NOT_TRIGGERED
from orchestrator.errors import DefinitionError, InputError, Problem
from orchestrator.plugins import Catalogue
from orchestrator.store.steps import as_seen_by_templates

_STARTS_OTHERS = "workflow"
"""The type that starts executions, which would go their own way after the test."""

GRACE = 5.0
"""Seconds beyond its own timeout that whoever tries a step waits for its result."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A step to try. `context` is what its templates see, by the names that they start from."""

    type: str
    config: Mapping[str, Any]
    input: Any
    """The step's own, as an input_mapping would make it."""
    context: Mapping[str, Any]
    timeout: float
    """Seconds it may take."""

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Trial:
        """`request` has `type`, `config`, `timeout` and may have `input` and `context`. Of the step's input and the
        one that templates see, either stands for the other where only one is given."""
        context = dict(request.get("context") or {})
        given = request["input"] if "input" in request else context.get("input", {})
        context.setdefault("input", given)
        return cls(request["type"], request["config"], given, context, request["timeout"])

    def seen(self, id: str) -> dict[str, Any]:
        """What its templates see. `id` is what stands for the execution's, if the context has no other."""
        given = self.context
        others = given.get("steps", {})
        names = {
            "variables": given.get("variables", {}),
            "input": given["input"],
            "steps": {other: _as_ended(facts) for other, facts in others.items()},
            "trigger": {**NOT_TRIGGERED, **given.get("trigger", {})},
            "execution": {"id": id, "workflow_id": None, "version": 1, "priority": 5} | given.get("execution", {}),
        }
        return names | ({"loop": given["loop"]} if "loop" in given else {})


def _as_ended(facts: Mapping[str, Any]) -> dict[str, Any]:
    error = facts.get("error") or {}
    return as_seen_by_templates(
        facts.get("status", "completed"), facts.get("output"), error.get("kind"), error.get("message")
    )


def check(trial: Trial, catalogue: Catalogue) -> str:
    """The queue whose workers can try it.

    Raises InputError with all that is wrong, each with its path in the request.
    """
    others = list(trial.context.get("steps", {}))
    step = {"id": _unlike("tried", others), "type": trial.type, "config": trial.config}
    known = catalogue.get(trial.type)
    if known is not None and (trial.type == _STARTS_OTHERS or bodies_of(step, known)):
        why = "starts another workflow" if trial.type == _STARTS_OTHERS else "has steps inside it"
        raise InputError([Problem("type", f"a step of the type '{trial.type}' {why}; execute a workflow with it")])
    definition, place = _around(step, others, trial)
    try:
        load_definition(definition, catalogue)
    except DefinitionError as error:
        raise InputError([_in_request(problem, place, others) for problem in error.problems]) from None
    assert known is not None
    return known.queue


def _around(step: dict[str, Any], others: list[str], trial: Trial) -> tuple[dict[str, Any], str]:
    """(the definition in which the step would stand, its path there): after the steps that it sees, and in a loop
    if it sees one."""
    steps = [{"id": other, "type": "set", "config": {"values": {}}} for other in others]
    before = [other for other in others if STEP_ID.fullmatch(other)]
    place = f"steps[{len(steps)}]"
    if "loop" in trial.context:
        place += ".config.steps[0]"
        loop = {"id": _unlike("around", [*others, step["id"]]), "type": "loop", "depends_on": before}
        steps.append({**loop, "config": {"items": [None], "steps": [step]}})
    else:
        steps.append({**step, "depends_on": before})
    return {"steps": steps, "variables": trial.context.get("variables", {})}, place


def _unlike(id: str, others: list[str]) -> str:
    while id in others:
        id += "_"
    return id


def _in_request(problem: Problem, place: str, others: list[str]) -> Problem:
    """The problem where the request has what the definition was made of."""
    if problem.path == place or problem.path.startswith(f"{place}."):
        return Problem(problem.path[len(place) + 1 :], problem.message)
    match paths.split(problem.path):
        case ["steps", int(index), *_] if index < len(others):
            return Problem(paths.join("context.steps", others[index]), problem.message)
        case _:
            return Problem(f"context.{problem.path}", problem.message)
