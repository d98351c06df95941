"""Secrets and API keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.client.shapes import Key, NewKey, Secret
from orchestrator.client.transport import Transport, at

_SECRETS = "/api/v1/secrets"
_KEYS = "/api/v1/keys"


class Secrets:
    """Written, and never read back."""

    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[Secret]:
        """Filters: `project_id`, `workflow_id`, `sort`."""
        return self._api.items(Secret, _SECRETS, **filters)

    def get(self, id: str) -> Secret:
        return self._api.get(Secret, at(_SECRETS, id))

    def create(self, name: str, value: str, **fields: Any) -> Secret:
        """Fields: `project` (a name) or `workflow_id`, without which it is everybody's, and `description`."""
        return self._api.post(Secret, _SECRETS, {"name": name, "value": value, **fields})

    def update(self, id: str, **fields: Any) -> Secret:
        """Change what is given: `value`, `description`."""
        return self._api.put(Secret, at(_SECRETS, id), fields)

    def delete(self, id: str) -> None:
        self._api.delete(at(_SECRETS, id))


class Keys:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[Key]:
        """Those that open nothing outside of the projects that you administer, newest first."""
        return self._api.items(Key, _KEYS, **filters)

    def get(self, id: str) -> Key:
        return self._api.get(Key, at(_KEYS, id))

    def create(self, name: str, grants: Sequence[Mapping[str, str | None]], **fields: Any) -> NewKey:
        """`key` of the answer is the key itself, shown this once. A grant has a `role`, and a `project` unless it is
        for all. Fields: `expires_at`, `rate_limit`, `max_body`."""
        return self._api.post(NewKey, _KEYS, {"name": name, "grants": grants, **fields})

    def update(self, id: str, **fields: Any) -> Key:
        """Change what is given: `name`, `grants` as a whole, `expires_at`, `rate_limit`, `max_body`."""
        return self._api.put(Key, at(_KEYS, id), fields)

    def revoke(self, id: str) -> None:
        """For good: within seconds it opens nothing."""
        self._api.delete(at(_KEYS, id))
