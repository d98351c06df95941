"""`condition`: one branch goes on, the others are skipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError, fields

from orchestrator.definition.truth import is_true
from workers.steps.contract import Done, QueueClass, StepContext, StepType
from workers.steps.fields import validates_whole

__all__ = ["Condition", "ConditionCase", "StepIds", "is_true"]


class StepIds(fields.List[str]):
    """A list of step ids; a single one may be written as a text."""

    def __init__(self, **options: Any) -> None:
        shape = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        super().__init__(fields.String(), metadata=shape, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> list[Any]:
        return super()._deserialize([value] if isinstance(value, str) else value, attr, data, **kwargs)


class ConditionCase(Schema):
    when = fields.Raw(required=True, allow_none=True)
    then = StepIds(load_default=list)


class Condition(StepType):
    """Either `expression` with `then` and `else`, or `cases` with `else`: the first true one is taken.

    Output: `result` (true or false; with cases the index of the one taken, null when none was) and `taken`,
    the ids of the steps that go on.
    """

    type: ClassVar[str] = "condition"
    queue: ClassVar[QueueClass] = "control"
    pure: ClassVar[bool] = True
    expression_fields: ClassVar[frozenset[str]] = frozenset({"expression", "cases.when"})
    unchecked_fields: ClassVar[frozenset[str]] = frozenset({"expression"})

    class Config(Schema):
        expression = fields.Raw(allow_none=True)
        then = StepIds()
        cases = fields.List(fields.Nested(ConditionCase))
        else_ = StepIds(data_key="else", load_default=list)

        @validates_whole
        def _one_form(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
            wrong = {}
            if {"cases", "expression"} <= written:
                wrong["cases"] = ["write either `expression` or `cases`, not both"]
            if {"cases", "then"} <= written:
                wrong["then"] = ["each of `cases` has its own `then`; move this one into a case"]
            if written.isdisjoint({"cases", "expression"}):
                wrong["expression"] = ["is missing; write `expression`, or `cases` for several"]
            if wrong:
                raise ValidationError(wrong)

    def perform(self, context: StepContext) -> Done:
        config = context.config
        result: bool | int | None
        if "cases" in config:
            branches = [case["then"] for case in config["cases"]]
            result = next((i for i, case in enumerate(config["cases"]) if is_true(case["when"])), None)
            taken = config["else_"] if result is None else branches[result]
        else:
            branches = [config.get("then", [])]
            result = is_true(config["expression"])
            taken = branches[0] if result else config["else_"]
        named = {step_id for branch in [*branches, config["else_"]] for step_id in branch}
        return Done({"result": result, "taken": list(taken)}, skip=frozenset(named.difference(taken)))

    def references(self, config: Mapping[str, object]) -> Iterable[tuple[str, str]]:
        yield from _ids_in("then", config.get("then"))
        cases = config.get("cases")
        for index, case in enumerate(cases if isinstance(cases, list) else ()):
            if isinstance(case, Mapping):
                yield from _ids_in(f"cases[{index}].then", case.get("then"))
        yield from _ids_in("else", config.get("else"))


def _ids_in(path: str, branch: object) -> Iterator[tuple[str, str]]:
    """(path, id) of the ids of one branch, as it is written: nothing has been validated yet."""
    if isinstance(branch, str):
        yield path, branch
    elif isinstance(branch, list):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(branch) if isinstance(item, str))
