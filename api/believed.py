"""What this process has found out, and believes for a while without asking again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

KEPT = 2.0
"""Seconds: what has changed meanwhile is what it was for as long, and no longer."""
_MOST = 10_000
"""Things that are remembered at a time."""


class Believed(Generic[Key, Value]):
    def __init__(self) -> None:
        self._known: dict[Key, tuple[float, Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        found = self._known.get(key)
        return found[1] if found is not None and time.monotonic() < found[0] else None

    def forget(self) -> None:
        """All of it: this process knows that it has changed. Others do not."""
        with self._lock:
            self._known.clear()

    def keep(self, key: Key, value: Value, at_most: float = math.inf) -> None:
        """For KEPT seconds, or `at_most` so many."""
        with self._lock:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = (time.monotonic() + min(KEPT, at_most), value)
