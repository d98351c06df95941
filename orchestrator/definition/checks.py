"""The tests of the expression language: what may follow `is`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined

from orchestrator.definition import operations
from orchestrator.definition.bounds import Budget
from orchestrator.definition.functions import (
    TESTS,
    number_arg,
    register,
    test_,
)

TESTS["defined"] = lambda value: not isinstance(value, Undefined)
TESTS["undefined"] = lambda value: isinstance(value, Undefined)


def _is(name: str, check: Callable[[Any], bool]) -> None:
    register(TESTS, (name,), lambda _, value: check(value))


for _name, _check in {
    "none": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, float),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, Mapping),
    "sequence": lambda value: isinstance(value, (list, tuple)),
    "iterable": lambda value: isinstance(value, (list, tuple, str, Mapping)),
    "empty": lambda value: not value and value is not None,
    "odd": lambda value: number_arg("odd", value) % 2 == 1,
    "even": lambda value: number_arg("even", value) % 2 == 0,
}.items():
    _is(_name, _check)


def _comparing(op: str, *names: str) -> None:
    def run(budget: Budget, value: Any, other: Any) -> bool:
        return operations.compare((op,), (value, other), budget)

    register(TESTS, names, run)


_comparing("eq", "eq", "equalto", "==")
_comparing("ne", "ne", "!=")
_comparing("lt", "lt", "lessthan", "<")
_comparing("lteq", "le", "<=")
_comparing("gt", "gt", "greaterthan", ">")
_comparing("gteq", "ge", ">=")
_comparing("in", "in")


@test_("divisibleby")
def _divisibleby(_: Budget, value: Any, number: Any) -> bool:
    return bool(number_arg("divisibleby", value) % number_arg("divisibleby", number) == 0)
