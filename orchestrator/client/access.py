"""Projects, who may do what in them, secrets, and who did what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.client.shapes import AuditEntry, Key, NewKey, Project, RoleGrant, Secret
from orchestrator.client.transport import Transport, at

_PROJECTS = "/api/v1/projects"
_GRANTS = "/api/v1/grants"
_SECRETS = "/api/v1/secrets"
_KEYS = "/api/v1/keys"
_AUDIT = "/api/v1/audit"


class Projects:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[Project]:
        """Those in which the key holds a role, by name."""
        return self._api.items(Project, _PROJECTS, **filters)

    def get(self, id: str) -> Project:
        return self._api.get(Project, at(_PROJECTS, id))

    def create(self, name: str, description: str = "") -> Project:
        return self._api.post(Project, _PROJECTS, {"name": name, "description": description})

    def update(self, id: str, **fields: Any) -> Project:
        """Change what is given: `name`, `description`."""
        return self._api.put(Project, at(_PROJECTS, id), fields)

    def delete(self, id: str) -> None:
        """Remove it and the roles held in it; Conflict while it has workflows."""
        self._api.delete(at(_PROJECTS, id))


class Grants:
    """Roles of those who come with a token of an OpenID Connect issuer; a key has its own, see Keys."""

    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[RoleGrant]:
        """Those in the projects that you administer, newest first."""
        return self._api.items(RoleGrant, _GRANTS, **filters)

    def get(self, id: str) -> RoleGrant:
        return self._api.get(RoleGrant, at(_GRANTS, id))

    def create(self, subject: str, role: str, project: str | None = None) -> RoleGrant:
        """`subject` is ISSUER:SUB; without a `project`, a name, the role is held in all of them."""
        return self._api.post(RoleGrant, _GRANTS, {"subject": subject, "role": role, "project": project})

    def delete(self, id: str) -> None:
        self._api.delete(at(_GRANTS, id))


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


class Audit:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[AuditEntry]:
        """Who did what in the projects that you administer, newest first. Filters: `actor_id`, `action`, `object_kind`,
        `object_id`, `project` (a name), `request_id`, `denied`, `since`, `until`, `sort`."""
        return self._api.items(AuditEntry, _AUDIT, **filters)
