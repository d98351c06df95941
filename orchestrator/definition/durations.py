"""Durations (`30s`, `5m`, `2h`, `7d`, `1h30m`, `250ms`), sizes (`64KB`, `1GB`) and moments as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB)", re.IGNORECASE)

DURATION_SHAPE: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w))+\s*$",
            "examples": ["30s", "5m", "1h30m"],
        },
    ]
}
"""A duration, as JSON Schema."""

SIZE_SHAPE: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {
            "type": "string",
            "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([Bb]|[KkMmGgTt][Bb])\s*$",
            "examples": ["64KB", "1GB"],
        },
    ]
}
"""A size, as JSON Schema."""


def parse_duration(value: object) -> float:
    """Seconds in `value`: a number of seconds, or a text such as `30s` or `1h30m`.

    Raises ValueError with a sentence for the user.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"a duration is a number of seconds or a text like '30s', not {value!r}")
    if isinstance(value, (int, float)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"a duration cannot be {value}")
        return float(value)
    text = value.strip()
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"'{value}' is not a duration; write it like 250ms, 30s, 5m, 1h30m or 7d")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_size(value: object) -> int:
    """Bytes in `value`: a number of bytes, or a text such as `512KB` (1 KB is 1,024 bytes).

    Raises ValueError with a sentence for the user.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"a size is a number of bytes or a text like '1GB', not {value!r}")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"a size cannot be {value}")
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"'{value}' is not a size; write it like 64KB, 10MB or 1GB")
    return int(float(match[1]) * _BYTES[match[2].upper()])


def parse_moment(value: object) -> datetime:
    """The moment in UTC that `value` says as RFC 3339 does: `2030-01-01T08:00:00+01:00`. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{value!r:.100} is not a moment; write it with its offset: 2030-01-01T08:00:00+01:00")
