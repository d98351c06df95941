"""What is wrong with a step template by itself, whatever will be given for its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from jsonschema import Draft202012Validator, SchemaError

from orchestrator.definition import paths
from orchestrator.definition.bounds import work_budget
from orchestrator.definition.complaints import Complaint, Hints
from orchestrator.definition.document import check_plain, walk
from orchestrator.definition.filling import Filling, Keys, UsedParameters, bodies_in
from orchestrator.definition.parameters import Parameters
from orchestrator.definition.step_templates import USES, StepTemplate
from orchestrator.definition.validation import load_definition
from orchestrator.errors import DefinitionError, Problem
from orchestrator.plugins import Catalogue


def check_step_template(template: StepTemplate, catalogue: Catalogue) -> list[Problem]:
    """Every problem found; paths begin with `step` or `parameters`.

    A template stands by itself: what it needs of variables, other steps or a loop around it, parameters bring in.
    """
    wrong = check_plain({"step": template.step, "parameters": template.parameters})
    if wrong:
        return wrong
    found = [*_wrong_in_schema(template.parameters), *_out_of_place(template.step, catalogue)]
    found = found or list(_wrong_in_step(template, catalogue))
    return [Problem(paths.join_all(keys), message) for keys, message in dict.fromkeys(found)]


def _wrong_in_schema(schema: Mapping[str, Any] | None) -> Iterator[Complaint]:
    if schema is None:
        return
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        yield ("parameters", *error.absolute_path), f"is not a JSON Schema: {error.message[:300]}"
        return
    if schema.get("type", "object") != "object":
        yield ("parameters", "type"), "must be 'object': parameters have names"


def _out_of_place(step: Mapping[str, Any], catalogue: Catalogue) -> Iterator[Complaint]:
    """What a step may have and a template's may not."""
    for key in ("id", "depends_on"):
        if key in step:
            yield ("step", key), "belongs to the step that uses the template; leave it out here"
    if USES not in step and not isinstance(step.get("type"), str):
        yield ("step", "type"), "is missing: a template says what its step does"
    for at, inner in _steps_in(step, ("step",), catalogue):
        if USES in inner:
            yield (*at, USES), "a template cannot use another one; write out what that has"


def _steps_in(step: Mapping[str, Any], at: Keys, catalogue: Catalogue) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """The step, those in its bodies, and those that undo them."""
    yield at, step
    if isinstance(step.get("compensate"), Mapping):
        yield (*at, "compensate"), step["compensate"]
    for body in bodies_in(step, at, catalogue):
        for index, inner in enumerate(body.steps):
            if isinstance(inner, Mapping):
                yield from _steps_in(inner, (*at, "config", *body.place, index), catalogue)


def _wrong_in_step(template: StepTemplate, catalogue: Catalogue) -> Iterator[Complaint]:
    used = UsedParameters()
    reading = Filling(catalogue, used)
    reading.step(template.step)
    yield from ((("step", *keys), message) for keys, message in reading.found)
    hints = Hints()
    declared = used.names if template.parameters is None else template.properties
    for name, text in used.names.items():
        if name not in declared:
            hint = hints(name, declared, "; declare it under parameters.properties")
            yield ("step", *_place_of(text, template.step)), f"there is no parameter '{name}'{hint}"
    yield from _wrong_with_stand_ins(template, {*declared, *used.names}, catalogue)


def _wrong_with_stand_ins(template: StepTemplate, names: set[str], catalogue: Catalogue) -> Iterator[Complaint]:
    """What is wrong even if something stands for each parameter that is only known when the step runs."""
    stand_ins = {name: f"{{{{ input[{orjson.dumps(name).decode()}] }}}}" for name in names}
    parameters = Parameters(stand_ins, _free, work_budget())
    filling = Filling(catalogue, lambda text, expression: parameters.fill(text, expression=expression))
    step = filling.step(template.step)
    of_parameters = {keys for keys, value in filling.changed.items() if value in stand_ins.values()}
    open = of_parameters | filling.never_rendered
    try:
        load_definition({"steps": [{"id": "_", **step}]}, catalogue)
    except DefinitionError as error:
        for problem in error.problems:
            keys = tuple(paths.split(problem.path))[2:]
            if not any(keys[:end] in open for end in range(len(keys) + 1)):
                yield ("step", *keys), problem.message


def _place_of(text: str, step: Mapping[str, Any]) -> Keys:
    return next((keys for keys, value in walk(step) if value == text), ())


def _free(_: int) -> None:
    pass
