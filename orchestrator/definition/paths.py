"""How a place in a document is written: `steps[2].config.url`, and `["..."]` around keys that need it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

Key = str | int

_PLAIN = re.compile(r"[^\s.\[\]\"']+")
_PART = re.compile(r'\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]|\.?([^.\[\]]+)')


def join(base: str, key: Key) -> str:
    """The path of `key` (a mapping's key, or a list's index) under the path `base`."""
    if isinstance(key, int):
        return f"{base}[{key}]"
    if not _PLAIN.fullmatch(key):
        return f"{base}[{json.dumps(key, ensure_ascii=False)}]"
    return f"{base}.{key}" if base else key


def join_all(keys: Iterable[Key], base: str = "") -> str:
    """`join` for several keys, outermost first."""
    for key in keys:
        base = join(base, key)
    return base


def split(path: str) -> list[Key]:
    """The keys of a path, outermost first; what cannot be read as a key is left out."""
    keys: list[Key] = []
    for index, quoted, plain in _PART.findall(path):
        keys.append(int(index) if index else json.loads(quoted) if quoted else plain)
    return keys
