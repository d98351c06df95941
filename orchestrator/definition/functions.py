"""How filters and tests are entered into the expression language, and the checks of arguments they share.

Jinja's own are not used: theirs reach attributes of Python objects, build whole results before anybody can
measure them, and turn mistakes into silence (`'abc' | int` is 0). The names and arguments are Jinja's
(https://jinja.palletsprojects.com/en/stable/templates/#list-of-builtin-filters).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import pass_context

from orchestrator.definition.bounds import FRESH, ITEM, Budget, kind, require
from orchestrator.errors import TemplateError

Function = Callable[..., Any]

FILTERS: dict[str, Function] = {}
TESTS: dict[str, Function] = {}

UNSET: Any = object()


def register(table: dict[str, Function], names: tuple[str, ...], function: Function) -> None:
    """Enter `function(budget, value, ...)`, so that it gets no undefined values and always pays."""

    @pass_context
    def run(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        require(value)
        for argument in (*args, *kwargs.values()):
            require(argument)
        context.budget.spend(FRESH)
        return call(names[0], function, context.budget, value, *args, **kwargs)

    table.update(dict.fromkeys(names, run))


def call(name: str, function: Function, *args: Any, **kwargs: Any) -> Any:
    """Call one of ours; Python's word for wrong arguments becomes the user's."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        detail = str(error).removeprefix(f"{function.__name__}() ")
        raise TemplateError(f"{name}: {detail}") from None


def filter_(*names: str) -> Callable[[Function], Function]:
    """Enter the decorated `function(budget, value, ...)` as a filter."""

    def enter(function: Function) -> Function:
        register(FILTERS, names, function)
        return function

    return enter


def test_(*names: str) -> Callable[[Function], Function]:
    """Enter the decorated `function(budget, value, ...)` as a test."""

    def enter(function: Function) -> Function:
        register(TESTS, names, function)
        return function

    return enter


def items_of(name: str, value: Any, budget: Budget) -> list[Any]:
    """`value` as a list to go through: a list's items, a mapping's keys, a text's characters."""
    if not isinstance(value, (list, tuple, str, Mapping)):
        raise TemplateError(f"{name} takes a list, not {kind(value)}")
    budget.grow(len(value), FRESH if isinstance(value, str) else ITEM)
    return list(value)


def mapping_of(name: str, value: Any, budget: Budget) -> Mapping[str, Any]:
    """`value`, which must be a mapping, about to be gone through."""
    if not isinstance(value, Mapping):
        raise TemplateError(f"{name} takes a mapping, not {kind(value)}")
    budget.grow(len(value), FRESH)
    return value


def text_arg(name: str, value: Any) -> str:
    """`value`, which must be a text."""
    if not isinstance(value, str):
        raise TemplateError(f"{name} takes a text, not {kind(value)}")
    return value


def whole_arg(name: str, value: Any, low: int, high: int) -> int:
    """`value`, which must be a whole number in those bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise TemplateError(f"{name} takes a whole number from {low:,} to {high:,}, not {shown(value)}")
    return value


def shown(value: object) -> str:
    """`value` in an error message, shortened."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return str(value) if isinstance(value, float) or kind(value) == "a number" else kind(value)


def number_arg(name: str, value: Any) -> int | float:
    """`value`, which must be a number."""
    if not isinstance(value, (int, float)):
        raise TemplateError(f"{name} takes a number, not {kind(value)}")
    return value


def strip_set(chars: Any, budget: Budget) -> str | None:
    """The characters to strip. str.strip looks each up in the whole of them, so they are few."""
    if chars is None:
        return None
    if len(text_arg("strip", chars)) > 100:
        raise TemplateError("strip takes at most 100 characters to take away")
    budget.spend(len(chars))
    return str(chars)
