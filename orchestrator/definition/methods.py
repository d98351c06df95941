"""The methods of texts and mappings that an expression may call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Undefined

from orchestrator.definition.bounds import FRESH, Budget, kind, require
from orchestrator.definition.filters import replace, split
from orchestrator.definition.functions import (
    Function,
    call,
    strip_set,
    text_arg,
)
from orchestrator.definition.list_filters import keys, pairs, values
from orchestrator.errors import TemplateError


def _get(_: Budget, value: Any, key: Any, default: Any = None) -> Any:
    return value.get(key, default) if isinstance(key, str) else default


def _stripping(name: str) -> Function:
    def run(budget: Budget, value: str, chars: Any = None) -> str:
        budget.grow(len(value))
        return str(getattr(value, name)(strip_set(chars, budget)))

    return run


def _edge(name: str) -> Function:
    def run(budget: Budget, value: str, other: Any) -> bool:
        others: Iterable[Any] = other if isinstance(other, (list, tuple)) else [other]
        for text in others:
            budget.spend(len(text_arg(name, text)) + 1)
            if getattr(value, name)(text):
                return True
        return False

    return run


def _casing(name: str) -> Function:
    def run(budget: Budget, value: str) -> str:
        budget.grow(2 * len(value))
        return str(getattr(value, name)())

    return run


def _splitlines(budget: Budget, value: str) -> list[str]:
    budget.grow(len(value), FRESH)
    return value.splitlines()


METHODS: dict[str, tuple[type, Function]] = {
    "get": (Mapping, _get),
    "items": (Mapping, pairs),
    "keys": (Mapping, keys),
    "values": (Mapping, values),
    "split": (str, split),
    "splitlines": (str, _splitlines),
    "replace": (str, replace),
}
"""By name: the type it belongs to, and what it does."""
METHODS |= {name: (str, _casing(name)) for name in ("upper", "lower", "title", "capitalize")}
METHODS |= {name: (str, _stripping(name)) for name in ("strip", "lstrip", "rstrip")}
METHODS |= {name: (str, _edge(name)) for name in ("startswith", "endswith")}


def invoke(budget: Budget, obj: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`obj.name(...)`. Raises TemplateError when `obj` has no such method."""
    if isinstance(obj, Undefined):
        return obj
    for argument in (*args, *kwargs.values()):
        require(argument)
    owner, function = METHODS[name]
    if not isinstance(obj, owner):
        raise TemplateError(f"{kind(obj)} has no {name}(); only {'a text' if owner is str else 'a mapping'} has")
    budget.spend(FRESH)
    return call(f"{name}()", function, budget, obj, *args, **kwargs)
