"""Triggers: what starts a workflow, and what came of each fire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.client.shapes import Backfill, Fire, Slot, Trigger
from orchestrator.client.transport import Transport, at

_ROOT = "/api/v1/triggers"


class Triggers:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, workflow_id: str) -> Iterator[Trigger]:
        """A workflow's, the oldest first."""
        return self._api.items(Trigger, at("/api/v1/workflows", workflow_id, "triggers"))

    def create(self, workflow_id: str, type: str, config: Mapping[str, Any] | None = None, **fields: Any) -> Trigger:
        """Fields: `name`, `is_enabled`."""
        body = {"type": type, "config": config or {}, **fields}
        return self._api.post(Trigger, at("/api/v1/workflows", workflow_id, "triggers"), body)

    def get(self, id: str) -> Trigger:
        return self._api.get(Trigger, at(_ROOT, id))

    def update(self, id: str, **fields: Any) -> Trigger:
        """Change what is given: `name`, `is_enabled`, `config` (null takes a key out, *** stays)."""
        return self._api.put(Trigger, at(_ROOT, id), fields)

    def delete(self, id: str) -> None:
        self._api.delete(at(_ROOT, id))

    def fires(self, id: str) -> Iterator[Fire]:
        """What fired it, newest first, and what that started or why it did not."""
        return self._api.items(Fire, at(_ROOT, id, "fires"))

    def fire(self, id: str, input: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None) -> Fire:
        """Fire it by hand; without an input its config says what that is."""
        return self._api.start(Fire, at(_ROOT, id, "fire"), {} if input is None else {"input": input}, idempotency_key)

    def preview(self, id: str, count: int = 10) -> Sequence[Slot]:
        """The next slots of a schedule."""
        slots: Sequence[Slot] = self._api.get(dict[str, Any], at(_ROOT, id, "preview"), count=count)["items"]
        return slots

    def backfill(self, id: str, first: datetime | str, last: datetime | str) -> Backfill:
        """Fire each slot of a past time that has started nothing yet."""
        return self._api.post(Backfill, at(_ROOT, id, "backfill"), {"from": first, "to": last}, repeated=True)
