"""How values cross between JSON and a database."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import orjson

_LARGEST = 2**64
_SMALLEST = -(2**63)
"""Of what is written as a JSON number; whole numbers beyond are texts."""


def bound(value: Any) -> Any:
    """A JSON value as a parameter: objects and arrays as JSON text, which PostgreSQL takes for json and jsonb."""
    return orjson.dumps(value).decode() if isinstance(value, (Mapping, list)) else value


def bound_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: bound(value) for name, value in row.items()}


def plain(value: Any) -> Any:
    """A value from a database as JSON.

    Dates and times are ISO 8601, intervals seconds, bytes base64. A decimal is a number if the same decimal can be
    read back from it, else a text: money comes as numbers, 30 digits as text. NaN and the infinities are texts. What
    has no counterpart (ranges, addresses, UUIDs) is the text that its type makes of it.
    """
    match value:
        case None | str() | bool():
            return value
        case int():
            return value if _SMALLEST <= value < _LARGEST else str(value)
        case float():
            return value if math.isfinite(value) else str(Decimal(value))
        case Decimal():
            return _number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    return str(value)


def _number(value: Decimal) -> int | float | str:
    if not value.is_finite():
        return str(value)
    # The exponent first: int() of 1e1000000 would write out all of it.
    if value.adjusted() < 20 and value == value.to_integral_value():
        whole = int(value)
        return whole if _SMALLEST <= whole < _LARGEST else str(value)
    near = float(value)
    return near if math.isfinite(near) and Decimal(repr(near)) == value else str(value)
