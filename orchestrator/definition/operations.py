"""What the operators and methods of the expression language do, each bounded before it acts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, Undefined

from orchestrator.definition.bounds import (
    FRESH,
    ITEM,
    MAX_RANGE,
    Budget,
    check_integer,
    kind,
    require,
    text_of,
    weigh,
)
from orchestrator.errors import TemplateError

Number = int | float


class Missing(StrictUndefined):
    """A name that stands for nothing. It may be passed to `default` and `is defined`, and asked for more
    names; anything else raises jinja2.UndefinedError with its full name."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"'{self._undefined_name}' is not defined"


def member(obj: Any, key: Any, dotted: str) -> Any:
    """`obj.key` or `obj[key]`: an item of a mapping, list or text, and never an attribute of a Python object.
    `dotted` is the whole expression's name, for the error."""
    if isinstance(obj, Undefined):
        return obj
    require(key)
    if isinstance(obj, Mapping):
        if isinstance(key, str) and key in obj:
            return obj[key]
    elif (
        isinstance(obj, (list, tuple, str))
        and isinstance(key, int)
        and not isinstance(key, bool)
        and -len(obj) <= key < len(obj)
    ):
        return obj[key]
    return Missing(name=dotted)


def part(obj: Any, start: Any, stop: Any, step: Any, budget: Budget) -> Any:
    """`obj[start:stop:step]` of a list or text."""
    if isinstance(obj, Undefined):
        return obj
    if not isinstance(obj, (list, tuple, str)):
        raise TemplateError(f"only a list or a text can be sliced, not {kind(obj)}")
    budget.grow(len(obj), ITEM)
    return obj[start:stop:step]


def compare(ops: tuple[str, ...], operands: tuple[Any, ...], budget: Budget) -> bool:
    """`a < b <= c` and the like; `ops` in Jinja's names, one fewer than `operands`."""
    return all(_COMPARE[op](operands[i], operands[i + 1], budget) for i, op in enumerate(ops))


def binary(op: str, left: Any, right: Any, budget: Budget) -> Any:
    """`left op right` for an arithmetic operator."""
    require(left)
    require(right)
    return _BINARY[op](left, right, budget)


def concat(values: tuple[Any, ...], budget: Budget) -> str:
    """`a ~ b ~ c`."""
    texts = [text_of(value, budget) for value in values]
    budget.grow(sum(map(len, texts)))
    return "".join(texts)


def make_range(arguments: tuple[Any, ...], budget: Budget) -> list[int]:
    """`range(stop)`, `range(start, stop)`, `range(start, stop, step)` as a list."""
    for argument in arguments:
        require(argument)
        if not isinstance(argument, int):
            raise TemplateError(f"range() takes whole numbers, not {kind(argument)}")
    numbers = range(*arguments)
    # len() itself fails beyond a machine word; indexing does not.
    if numbers[MAX_RANGE : MAX_RANGE + 1]:
        raise TemplateError(f"range() has more than {MAX_RANGE:,} numbers")
    budget.grow(len(numbers), FRESH)
    return list(numbers)


# -- comparison ----------------------------------------------------------------------------------------------


def _pay_for_equality(left: Any, right: Any, budget: Budget) -> None:
    require(left)
    require(right)
    for value in (left, right):
        if isinstance(value, (list, tuple, Mapping)):
            weigh(value, budget)
        elif isinstance(value, str):
            budget.spend(len(value) // 8 + 1)


def _equals(left: Any, right: Any, budget: Budget) -> bool:
    _pay_for_equality(left, right, budget)
    return bool(left == right)


def _ordered(precedes: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Budget], bool]:
    def run(left: Any, right: Any, budget: Budget) -> bool:
        _pay_for_equality(left, right, budget)
        try:
            return precedes(left, right)
        except TypeError:
            raise TemplateError(f"{kind(left)} and {kind(right)} have no order") from None

    return run


def contains(item: Any, container: Any, budget: Budget) -> bool:
    """`item in container`."""
    require(item)
    require(container)
    if isinstance(container, str):
        if not isinstance(item, str):
            raise TemplateError(f"only a text can be in a text, not {kind(item)}")
        budget.spend(len(container) + len(item))
        return item in container
    if isinstance(container, Mapping):
        return isinstance(item, str) and item in container
    if not isinstance(container, (list, tuple)):
        raise TemplateError(f"nothing can be in {kind(container)}; it takes a list, a mapping or a text")
    if isinstance(item, (list, tuple, Mapping)):
        weigh(container, budget)
        weigh(item, budget)
    else:
        budget.spend(len(container) * (1 + (len(item) // 8 if isinstance(item, str) else 0)))
    return item in container


_COMPARE: dict[str, Callable[[Any, Any, Budget], bool]] = {
    "eq": _equals,
    "ne": lambda left, right, budget: not _equals(left, right, budget),
    "lt": _ordered(operator.lt),
    "lteq": _ordered(operator.le),
    "gt": _ordered(operator.gt),
    "gteq": _ordered(operator.ge),
    "in": contains,
    "notin": lambda left, right, budget: not contains(left, right, budget),
}


# -- arithmetic ----------------------------------------------------------------------------------------------


def _numbers(op: str, left: Any, right: Any) -> tuple[Number, Number]:
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        raise TemplateError(f"'{op}' does not work between {kind(left)} and {kind(right)}")
    return left, right


def _bits(*values: Number) -> int:
    return max(value.bit_length() if isinstance(value, int) else 0 for value in values)


def _alike(left: Any, right: Any, types: type | tuple[type, ...]) -> bool:
    return isinstance(left, types) and isinstance(right, types)


def _add(left: Any, right: Any, budget: Budget) -> Any:
    if _alike(left, right, str) or _alike(left, right, (list, tuple)):
        each = 1 if isinstance(left, str) else ITEM
        budget.grow(len(left) + len(right), each)
        joined: Any = left + right if isinstance(left, str) else [*left, *right]
        return joined
    left, right = _numbers("+", left, right)
    check_integer(_bits(left, right) + 1)
    return left + right


def _multiply(left: Any, right: Any, budget: Budget) -> Any:
    if isinstance(right, (str, list, tuple)):
        left, right = right, left
    if isinstance(left, (str, list, tuple)) and isinstance(right, int):
        budget.grow(len(left) * max(right, 0), 1 if isinstance(left, str) else ITEM)
        return left * right
    left, right = _numbers("*", left, right)
    if isinstance(left, int) and isinstance(right, int):
        check_integer(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any, _: Budget) -> Any:
    left, right = _numbers("**", left, right)
    if isinstance(left, int) and isinstance(right, int):
        check_integer(left.bit_length() * abs(right))
    result = left**right
    if isinstance(result, complex):
        raise TemplateError("a negative number has no root")
    return result


def _numeric(op: str, compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Budget], Any]:
    def run(left: Any, right: Any, _: Budget) -> Any:
        left, right = _numbers(op, left, right)
        check_integer(_bits(left, right) + 1)
        return compute(left, right)

    return run


_BINARY: dict[str, Callable[[Any, Any, Budget], Any]] = {
    "+": _add,
    "-": _numeric("-", operator.sub),
    "*": _multiply,
    "/": _numeric("/", operator.truediv),
    "//": _numeric("//", operator.floordiv),
    "%": _numeric("%", operator.mod),
    "**": _power,
}
