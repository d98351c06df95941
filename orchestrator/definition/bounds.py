"""How much an expression may do, and the account that is kept of it.

Templates come from users and run in shared processes, so each is bounded three ways: no value may grow past
MAX_LENGTH, no rendering may do more than MAX_WORK, and what comes out is at most MAX_RENDERED. Every
operation pays for its result before it makes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Undefined

from orchestrator.definition.document import why_not_integer
from orchestrator.errors import TemplateError

Json = Any

MAX_SOURCE = 64 * 1024
"""Characters of one template."""
MAX_LENGTH = 1_000_000
"""Characters of a text, or items of a list, that an expression makes on its way."""
MAX_BITS = 4096
"""Bits of an integer that an expression makes on its way."""
MAX_WORK = 10_000_000
"""Characters copied in one rendering, other work converted; about half a second at the very worst."""
MAX_RENDERED = 1024 * 1024
"""Characters of a rendered value, written as JSON."""
MAX_RANGE = 10_000
MAX_DEPTH = 100
"""Levels of nesting of a rendered value."""

ITEM = 4
"""What an item of a list costs (a pointer, and a step of a loop in C), in characters copied."""
NODE = 8
"""What looking at a value from Python costs."""
FRESH = 16
"""What a value costs that is made anew."""

_SCALAR = 4  # characters of a number, a boolean or null in JSON, comma included
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Budget:
    """What is left of an allowance. `within` is the larger one that this one also draws on."""

    __slots__ = ("left", "message", "within")

    def __init__(self, allowance: int, message: str, within: Budget | None = None) -> None:
        self.left = allowance
        self.message = message
        self.within = within

    def spend(self, amount: int) -> None:
        """Take `amount`. Raises TemplateError when there is not that much left."""
        self.left -= amount
        if self.left < 0:
            raise TemplateError(self.message)
        if self.within is not None:
            self.within.spend(amount)

    def grow(self, length: int, each: int = 1) -> None:
        """Pay for a text or list of `length` that is about to be made; `each` is the cost of an item."""
        if length > MAX_LENGTH:
            raise TemplateError(
                f"the result would have {length:,} characters or items; at most {MAX_LENGTH:,} are allowed"
            )
        self.spend(length * each + 1)


def work_budget() -> Budget:
    """The allowance of one rendering."""
    return Budget(MAX_WORK, "the expression works on too much data; select less of it first, or use a script step")


def rendered_budget(within: Budget | None = None) -> Budget:
    """The allowance for the size of one rendered value."""
    return Budget(MAX_RENDERED, f"the rendered value is larger than {MAX_RENDERED:,} characters", within)


def kind(value: object) -> str:
    """What a user calls the type of `value`."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    if type(value) in names:
        return names[type(value)]
    return "a mapping" if isinstance(value, Mapping) else "a list" if _is_list(value) else type(value).__name__


def require(value: object) -> None:
    """Raise jinja2.UndefinedError, which says what is unknown, when `value` is undefined."""
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()


def plain(value: object, budget: Budget, depth: int = 0) -> Json:
    """A copy of `value` in JSON types, paid for as it is made. Raises TemplateError when it is not JSON."""
    if value is None or value is True or value is False:
        budget.spend(_SCALAR)
        return value
    if isinstance(value, str):
        budget.spend(len(value) + 2)
        if not value.isprintable() and (found := _UNSTORABLE.search(value)):
            raise TemplateError(f"the result has the character U+{ord(found[0]):04X}, which PostgreSQL cannot hold")
        return str(value)
    if isinstance(value, (int, float)):
        budget.spend(_SCALAR)
        return _number(value)
    require(value)
    if depth >= MAX_DEPTH:
        raise TemplateError(f"the value is nested deeper than {MAX_DEPTH} levels")
    budget.spend(2)
    if isinstance(value, Mapping):
        made = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TemplateError(f"a mapping's keys must be texts, not {kind(key)}")
            budget.spend(len(key) + 2)
            made[str(key)] = plain(item, budget, depth + 1)
        return made
    if _is_list(value):
        return [plain(item, budget, depth + 1) for item in value]  # type: ignore[attr-defined]
    raise TemplateError(f"the result is {kind(value)}, which is not a JSON value")


def weigh(value: object, budget: Budget) -> None:
    """Pay for looking at all of `value`, however often its parts are shared."""
    stack = [value]
    while stack:
        item = stack.pop()
        budget.spend(NODE + (len(item) if isinstance(item, str) else 0))
        if isinstance(item, Mapping):
            budget.spend(len(item) * NODE)
            stack.extend(item.values())
        elif _is_list(item):
            budget.spend(len(item))  # type: ignore[arg-type]
            stack.extend(item)  # type: ignore[arg-type]


def text_of(value: object, budget: Budget) -> str:
    """`value` as it stands in a text: null is empty, booleans are as in JSON, and so are lists and mappings."""
    if isinstance(value, str):
        budget.grow(len(value))
        return value
    if value is None:
        return ""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(_number(value))
    require(value)
    return json_of(value, budget)


def json_of(value: object, budget: Budget, indent: int | None = None) -> str:
    """`value` as JSON text."""
    size = Budget(MAX_LENGTH, f"the JSON text would have more than {MAX_LENGTH:,} characters", budget)
    text = json.dumps(plain(value, size), ensure_ascii=False, indent=indent)
    budget.grow(len(text))
    return text


def check_integer(bits: int) -> None:
    """Raises TemplateError when an integer of that many bits is too large to compute with."""
    if bits > MAX_BITS:
        raise TemplateError(f"the number would have more than {MAX_BITS:,} bits")


def _number(value: float) -> int | float:
    if isinstance(value, int):
        check_integer(value.bit_length())
        # Within an expression integers may be larger than what JSON, as it is stored, can hold.
        if wrong := why_not_integer(int(value)):
            raise TemplateError(f"the result: {wrong}")
        return int(value)
    if not math.isfinite(value):
        raise TemplateError(f"the result is {value}, which is not a JSON number")
    return float(value)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))
