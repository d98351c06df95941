"""What counts as true where a definition has a condition."""

from __future__ import annotations

_FALSE_TEXTS = frozenset({"false", "no", "0", ""})


def is_true(value: object) -> bool:
    """Python's truth, except that the texts `false`, `no`, `0` and blank ones, in any case, are false."""
    return value.strip().lower() not in _FALSE_TEXTS if isinstance(value, str) else bool(value)
