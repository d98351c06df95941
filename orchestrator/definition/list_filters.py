"""Filters on lists and mappings, and those that apply a filter or a test to each item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined, pass_context

from orchestrator.definition import operations
from orchestrator.definition.bounds import FRESH, ITEM, Budget, json_of, kind, require, text_of, weigh
from orchestrator.definition.functions import (
    FILTERS,
    TESTS,
    UNSET,
    Function,
    filter_,
    items_of,
    mapping_of,
    number_arg,
    register,
    shown,
    whole_arg,
)
from orchestrator.errors import TemplateError


def _keys_of(attribute: Any) -> list[str | int]:
    """'a.0.b' as the keys to follow."""
    if isinstance(attribute, int) and not isinstance(attribute, bool):
        return [attribute]
    if not isinstance(attribute, str) or len(attribute) > 500:
        raise TemplateError("an attribute is a text such as 'a.b', of at most 500 characters")
    return [int(key) if key.isdecimal() and len(key) < 10 else key for key in attribute.split(".")]


def _follow(item: Any, keys: list[str | int], budget: Budget) -> Any:
    """What is at `keys` in `item`; undefined if there is nothing."""
    budget.spend(10 + 10 * len(keys))
    for key in keys:
        item = operations.member(item, key, ".".join(map(str, keys)))
    return item


def _each(items: list[Any], attribute: Any, budget: Budget) -> list[Any]:
    """The items, or what each has at `attribute`, all of which must be there."""
    if attribute is None:
        return items
    keys = _keys_of(attribute)
    found = [_follow(item, keys, budget) for item in items]
    for value in found:
        require(value)
    return found


@filter_("length", "count")
def _length(_: Budget, value: Any) -> int:
    if not isinstance(value, (list, tuple, str, Mapping)):
        raise TemplateError(f"length takes a list, a mapping or a text, not {kind(value)}")
    return len(value)


@filter_("list")
def _list(budget: Budget, value: Any) -> list[Any]:
    return items_of("list", value, budget)


@filter_("first")
def _first(_: Budget, value: Any) -> Any:
    return operations.member(_sequence("first", value), 0, "the first item of an empty list")


@filter_("last")
def _last(_: Budget, value: Any) -> Any:
    return operations.member(_sequence("last", value), -1, "the last item of an empty list")


def _sequence(name: str, value: Any) -> Any:
    if not isinstance(value, (list, tuple, str)):
        raise TemplateError(f"{name} takes a list or a text, not {kind(value)}")
    return value


@filter_("reverse")
def _reverse(budget: Budget, value: Any) -> Any:
    items = _sequence("reverse", value)
    budget.grow(len(items))
    return items[::-1]


@filter_("join")
def _join(budget: Budget, value: Any, separator: Any = "", attribute: Any = None) -> str:
    items, separator = items_of("join", value, budget), text_of(separator, budget)
    texts: list[str] = []
    length = 0
    for item in _each(items, attribute, budget):
        texts.append(text_of(item, budget))
        length += len(texts[-1]) + len(separator)
        if length > 2 * budget.left:
            break
    budget.grow(max(length - len(separator), 0))
    return str(separator.join(texts))


@filter_("sort")
def _sort(budget: Budget, value: Any, reverse: bool = False, attribute: Any = None) -> list[Any]:
    items = items_of("sort", value, budget)
    keys = _each(items, attribute, budget)
    for _repeat in range(2):  # n log n comparisons, each of up to a whole item
        weigh(keys, budget)
    try:
        order = sorted(range(len(items)), key=keys.__getitem__, reverse=bool(reverse))
    except TypeError:
        raise TemplateError("sort: the items are of different types, which have no order") from None
    return [items[index] for index in order]


def _extreme(name: str, choose: Callable[..., Any]) -> None:
    def run(budget: Budget, value: Any, attribute: Any = None) -> Any:
        items = items_of(name, value, budget)
        keys = _each(items, attribute, budget)
        weigh(keys, budget)
        if not items:
            return operations.Missing(name=f"the {name} of an empty list")
        try:
            return items[choose(range(len(items)), key=keys.__getitem__)]
        except TypeError:
            raise TemplateError(f"{name}: the items are of different types, which have no order") from None

    register(FILTERS, (name,), run)


_extreme("min", min)
_extreme("max", max)


@filter_("unique")
def _unique(budget: Budget, value: Any, attribute: Any = None) -> list[Any]:
    found: dict[str, Any] = {}
    items = items_of("unique", value, budget)
    for key, item in zip(_each(items, attribute, budget), items, strict=True):
        found.setdefault(json_of(key, budget), item)
    return list(found.values())


@filter_("flatten")
def _flatten(budget: Budget, value: Any) -> list[Any]:
    made: list[Any] = []
    for item in items_of("flatten", value, budget):
        budget.spend(FRESH)
        budget.grow(len(made) + (len(item) if isinstance(item, (list, tuple)) else 1), 0)
        made.extend(item if isinstance(item, (list, tuple)) else [item])
    budget.grow(len(made), ITEM)
    return made


@filter_("batch")
def _batch(budget: Budget, value: Any, size: int) -> list[list[Any]]:
    items = items_of("batch", value, budget)
    whole_arg("batch", size, 1, 1_000_000)
    budget.grow(len(items) // size + 1, FRESH)
    return [items[index : index + size] for index in range(0, len(items), size)]


@filter_("items")
def pairs(budget: Budget, value: Any) -> list[list[Any]]:
    return [[key, item] for key, item in mapping_of("items", value, budget).items()]


@filter_("keys")
def keys(budget: Budget, value: Any) -> list[str]:
    return list(mapping_of("keys", value, budget))


@filter_("values")
def values(budget: Budget, value: Any) -> list[Any]:
    return list(mapping_of("values", value, budget).values())


@filter_("combine")
def _combine(budget: Budget, value: Any, *others: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for mapping in (value, *others):
        made |= mapping_of("combine", mapping, budget)
    return made


@filter_("sum")
def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = start
    for item in _each(items_of("sum", value, budget), attribute, budget):
        budget.spend(10)
        total = operations.binary("+", total, number_arg("sum", item), budget)
    return total


# -- over items ----------------------------------------------------------------------------------------------


def _named(table: dict[str, Function], word: str, name: Any) -> Function:
    if not isinstance(name, str) or name not in table:
        raise TemplateError(f"there is no {word} {shown(name)}")
    return table[name]


def _apply(table: dict[str, Function], word: str, name: Any, context: Any) -> Function:
    function = _named(table, word, name)
    return (lambda *a, **k: function(context, *a, **k)) if hasattr(function, "jinja_pass_arg") else function


@pass_context
def _map(context: Any, value: Any, name: Any = None, *args: Any, **kwargs: Any) -> list[Any]:
    """`map(attribute='a.b', default=x)` or `map('filter', arguments...)`."""
    require(value)
    items = items_of("map", value, context.budget)
    if name is None:
        if not kwargs or kwargs.keys() - {"attribute", "default"}:
            raise TemplateError("map takes the name of a filter, or attribute='...' and default=...")
        return _mapped(items, context.budget, **kwargs)
    function = _apply(FILTERS, "filter", name, context)
    return [function(item, *args, **kwargs) for item in items]


def _mapped(items: list[Any], budget: Budget, attribute: Any = None, default: Any = UNSET) -> list[Any]:
    if default is UNSET:
        return _each(items, attribute, budget)
    keys = _keys_of(attribute)
    found = [_follow(item, keys, budget) for item in items]
    return [default if isinstance(value, Undefined) else value for value in found]


def _selecting(name: str, keep: bool, by_attribute: bool) -> None:
    @pass_context
    def run(context: Any, value: Any, *args: Any) -> list[Any]:
        require(value)
        if by_attribute and not args:
            raise TemplateError(f"{name} takes the attribute's name first")
        attribute, args = (args[0], args[1:]) if by_attribute else (None, args)
        test = _apply(TESTS, "test", args[0], context) if args else _truth
        budget = context.budget
        items = items_of(name, value, budget)
        keys = _keys_of(attribute) if by_attribute else []
        return [item for item in items if bool(test(_follow(item, keys, budget), *args[1:])) is keep]

    FILTERS[name] = run


def _truth(value: Any) -> bool:
    return bool(value)


FILTERS["map"] = _map
_selecting("select", keep=True, by_attribute=False)
_selecting("reject", keep=False, by_attribute=False)
_selecting("selectattr", keep=True, by_attribute=True)
_selecting("rejectattr", keep=False, by_attribute=True)
