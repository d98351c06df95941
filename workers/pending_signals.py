"""Signals that a lane has seen and nobody had taken."""

from __future__ import annotations

from collections import deque
from typing import Any

from orchestrator.store import Store, signals

_MOST, _BYTES = 100, 1_000_000
"""Read at a time; their payloads may be large."""


class PendingSignals:
    """Those of one execution, the oldest first. Somebody else may take one meanwhile: whoever takes it has to see."""

    def __init__(self, store: Store, execution_id: str) -> None:
        self._store = store
        self._execution_id = execution_id
        self._known: dict[str, deque[tuple[str, Any]]] = {}

    def next(self, name: str) -> tuple[str, Any] | None:
        """The id of the oldest of this name that was not asked for yet, and what a step sees of it."""
        known = self._known.get(name)
        if not known:
            known = self._known[name] = deque(
                signals.untaken(self._store, self._execution_id, name, most=_MOST, bytes=_BYTES)
            )
        return known.popleft() if known else None
