"""Filters on texts and numbers."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from jinja2 import Undefined

from orchestrator.definition.bounds import FRESH, MAX_DEPTH, Budget, json_of, plain, text_of
from orchestrator.definition.functions import (
    FILTERS,
    UNSET,
    call,
    filter_,
    number_arg,
    register,
    shown,
    strip_set,
    text_arg,
    whole_arg,
)
from orchestrator.errors import TemplateError

_MAX_DIGITS = 1000


def _default(value: Any, default: Any = "", boolean: bool = False) -> Any:
    return default if isinstance(value, Undefined) or (boolean and not value) else value


# Not by register(): this one is for what is undefined.
FILTERS["default"] = FILTERS["d"] = lambda *args, **kwargs: call("default", _default, *args, **kwargs)


# -- texts ---------------------------------------------------------------------------------------------------


def _on_text(name: str, change: Callable[[str], str]) -> None:
    def run(budget: Budget, value: Any) -> str:
        # Twice, because some letters become two ("ß" in upper case).
        text = text_of(value, budget)
        budget.spend(len(text))
        return change(text)

    register(FILTERS, (name,), run)


_CHANGES: dict[str, Callable[[str], str]] = {
    "capitalize": str.capitalize,
    "lower": str.lower,
    "string": str,
    "title": str.title,
    "upper": str.upper,
}
for _name, _change in _CHANGES.items():
    _on_text(_name, _change)


@filter_("trim")
def _trim(budget: Budget, value: Any, chars: str | None = None) -> str:
    text = text_of(value, budget)
    return text.strip(strip_set(chars, budget))


@filter_("replace")
def replace(budget: Budget, value: Any, old: str, new: str, count: int | None = None) -> str:
    text, new = text_of(value, budget), text_of(new, budget)
    text_arg("replace", old)
    limit = -1 if count is None else whole_arg("replace", count, 0, 1_000_000)
    found = text.count(old)
    if limit >= 0:
        found = min(found, limit)
    budget.grow(len(text) + found * max(len(new) - len(old), 0))
    return text.replace(old, new, limit)


@filter_("truncate")
def _truncate(budget: Budget, value: Any, length: int = 255, killwords: bool = False, end: str = "...") -> str:
    text = text_of(value, budget)
    whole_arg("truncate", length, 0, 1_000_000)
    if len(text) <= length:
        return text
    cut = text[: max(length - len(text_arg("truncate", end)), 0)]
    return (cut if killwords else cut.rsplit(" ", 1)[0]) + end


@filter_("wordcount")
def _wordcount(budget: Budget, value: Any) -> int:
    return len(text_of(value, budget).split())


@filter_("split")
def split(budget: Budget, value: Any, separator: str | None = None, maxsplit: int = -1) -> list[str]:
    text = text_of(value, budget)
    if separator is not None and not text_arg("split", separator):
        raise TemplateError("split takes a separator that is not empty")
    pieces = text.count(separator) + 1 if separator else len(text) // 2 + 1
    budget.grow(pieces, FRESH)
    return text.split(separator, whole_arg("split", maxsplit, -1, 1_000_000))


@filter_("urlencode")
def _urlencode(budget: Budget, value: Any) -> str:
    if isinstance(value, Mapping):
        return "&".join(f"{_quoted(key, budget)}={_quoted(item, budget)}" for key, item in value.items())
    return _quoted(value, budget, safe="/")


def _quoted(value: Any, budget: Budget, safe: str = "") -> str:
    text = text_of(value, budget)
    budget.grow(len(text) * 12)  # four bytes of UTF-8, three characters each
    return quote(text, safe=safe)


@filter_("b64encode")
def _b64encode(budget: Budget, value: Any) -> str:
    data = text_of(value, budget).encode()
    budget.grow(len(data) * 4 // 3 + 4)
    return base64.b64encode(data).decode()


@filter_("b64decode")
def _b64decode(budget: Budget, value: Any) -> str:
    text = text_arg("b64decode", value)
    budget.grow(len(text))
    try:
        return base64.b64decode(text, validate=True).decode()
    except UnicodeDecodeError:
        raise TemplateError("b64decode: what is encoded is not UTF-8 text") from None
    except (binascii.Error, ValueError):
        raise TemplateError("b64decode: the text is not Base64") from None


@filter_("tojson")
def _tojson(budget: Budget, value: Any, indent: int | None = None) -> str:
    return json_of(value, budget, None if indent is None else whole_arg("tojson", indent, 0, 8))


@filter_("fromjson")
def _fromjson(budget: Budget, value: Any) -> Any:
    text = text_arg("fromjson", value)
    budget.spend(len(text) * 4)
    try:
        return plain(json.loads(text), Budget(len(text) * 8 + 100, "fromjson: too much data", budget))
    except json.JSONDecodeError as error:
        raise TemplateError(f"fromjson: not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise TemplateError(f"fromjson: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # an integer with thousands of digits
        raise TemplateError(f"fromjson: {error}") from None


# -- numbers -------------------------------------------------------------------------------------------------


@filter_("abs")
def _abs(_: Budget, value: Any) -> Any:
    return abs(number_arg("abs", value))


@filter_("int")
def _int(_: Budget, value: Any, default: Any = UNSET) -> Any:
    try:
        if isinstance(value, str):
            text = value[: _MAX_DIGITS + 1].strip()
            if len(value) > _MAX_DIGITS:
                raise ValueError
            return int(text) if re.fullmatch(r"[-+]?\d+", text) else int(float(text))
        return int(number_arg("int", value))
    except (ValueError, OverflowError):
        return _fallback("int", value, default, "a whole number")


@filter_("float")
def _float(_: Budget, value: Any, default: Any = UNSET) -> Any:
    try:
        number = float(value[:_MAX_DIGITS] if isinstance(value, str) else number_arg("float", value))
        if math.isfinite(number) and not (isinstance(value, str) and len(value) > _MAX_DIGITS):
            return number
    except (ValueError, OverflowError):
        pass
    return _fallback("float", value, default, "a number")


def _fallback(name: str, value: Any, default: Any, wanted: str) -> Any:
    if default is UNSET:
        raise TemplateError(f"{shown(value)} is not {wanted}; {name}(0) would take 0 instead")
    return default


@filter_("round")
def _round(_: Budget, value: Any, precision: int = 0, method: str = "common") -> Any:
    number = number_arg("round", value)
    whole_arg("round", precision, -20, 20)
    if method == "common":
        return float(round(number, precision))
    if method not in ("ceil", "floor"):
        raise TemplateError("round takes the method 'common', 'ceil' or 'floor'")
    scale = 10.0**precision
    return float((math.ceil if method == "ceil" else math.floor)(number * scale) / scale)
