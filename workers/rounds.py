"""What became of the scopes of a step's body, made of the rows of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from orchestrator.definition.model import Body, Step
from orchestrator.lifecycle import StepStatus
from orchestrator.store import Store, bodies
from orchestrator.store.bodies import Inner
from workers.steps.contract import Round, Scope


def rounds(store: Store, execution_id: str, container: str, step: Step, *names: int | str) -> list[Round]:
    """The scopes in the bodies of `step`, which stands at the path `container`, in their order; those of `names`, if
    there are any."""
    lasts = {name: _lasts(body) for name, body in step.bodies.items()}
    shown = {step_id for ids in lasts.values() for step_id in ids}
    with store.single() as connection:
        paths = list(_paths(container, step, names)) if names else None
        rows = list(bodies.ended(connection, execution_id, container, shown, paths))
    made = []
    for scope, members in groupby(rows, key=lambda row: row.scope):
        name = _name(scope, container)
        body = "" if isinstance(name, int) else name
        made.append(_round(name, list(members), step.bodies[body], lasts[body]))
    return made


def _paths(container: str, step: Step, names: Iterable[int | str]) -> Iterator[str]:
    for scope in map(Scope, names):
        for inner in step.bodies[scope.body].steps:
            yield f"{scope.of(container)}.{inner.id}"


def named(made: Sequence[Round], *names: int | str) -> Sequence[Round]:
    """The same of rounds that are at hand."""
    if not names:
        return made
    found: list[Round] = []
    for one in reversed(made):  # most often it is the last that is asked for
        if len(found) == len(names):
            break
        if one.name in names:
            found.append(one)
    return found[::-1]


def round_of(name: int | str, rows: list[Inner], body: Body) -> Round:
    """What became of one scope, of which these are the rows."""
    return _round(name, rows, body, _lasts(body))


def _name(scope: str, container: str) -> int | str:
    name = scope[len(container) :]
    return int(name[1:-1]) if name.startswith("[") else name[1:]


def _lasts(body: Body) -> list[str]:
    """The ids of the steps that no other waits for."""
    waited_for = {needed for step in body.steps for needed in step.depends_on}
    return [step.id for step in body.steps if step.id not in waited_for]


def _round(name: int | str, rows: list[Inner], body: Body, lasts: list[str]) -> Round:
    types = {step.id: step.type for step in body.steps if step.on_error != "continue"}
    for row in rows:
        if row.status is StepStatus.FAILED and row.step_id in types:
            error = {"step": row.step_id, "type": types[row.step_id], "kind": row.error_kind}
            return Round(name, "failed", error={**error, "message": row.error_message})
    if any(row.status is StepStatus.CANCELLED for row in rows):
        return Round(name, "cancelled")
    outputs: dict[str, Any] = {row.step_id: row.output for row in rows if row.step_id in lasts}
    return Round(name, "completed", outputs.get(lasts[0]) if len(lasts) == 1 else outputs)
