"""Secrets that people wrote through the API: encrypted, each in a scope (everything, a project, or a workflow)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.errors import Conflict, NotFound
from orchestrator.store import models as tables
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.session import as_dicts, run
from orchestrator.vault import Sealed

_s = tables.secrets
ORDERS = both_ways(name=(_s.c.name, _s.c.id), created_at=(_s.c.id,))

_SHOWN = tuple(column for column in _s.c if column.name != "sealed")
"""What a sealed secret is, is nobody's to read."""


@dataclass(frozen=True, slots=True)
class Stored:
    id: str
    name: str
    sealed: Sealed

    @property
    def bound_to(self) -> str:
        return bound_to(self.id, self.name)


def bound_to(id: str, name: str) -> str:
    """What a sealed secret belongs to; see Vault."""
    return f"{id}:{name}"


def insert(
    connection: Connection,
    id: str,
    name: str,
    sealed: Sealed,
    *,
    project_id: str | None,
    workflow_id: str | None,
    description: str,
) -> None:
    """Raises Conflict if the name is taken in that scope."""
    values = {"id": id, "name": name, "key_id": sealed.key_id, "sealed": sealed.data, "description": description}
    try:
        connection.execute(_s.insert().values(**values, project_id=project_id, workflow_id=workflow_id))
    except sa.exc.IntegrityError as error:
        if "uq_secrets" not in str(error.orig):
            raise
        raise Conflict(f"there is a secret {name!r} already in this scope; change that one with PUT", "taken") from None


def update(connection: Connection, id: str, *, sealed: Sealed | None = None, description: str | None = None) -> None:
    """Raises NotFound."""
    values: dict[str, Any] = {"updated_at": sa.func.now()}
    if sealed is not None:
        values |= {"key_id": sealed.key_id, "sealed": sealed.data}
    if description is not None:
        values["description"] = description
    if connection.execute(_s.update().where(_s.c.id == id).values(**values)).rowcount == 0:
        raise NotFound("secret", id)


def delete(connection: Connection, id: str) -> None:
    """Raises NotFound."""
    if connection.execute(_s.delete().where(_s.c.id == id)).rowcount == 0:
        raise NotFound("secret", id)


def get(connection: Connection, id: str) -> dict[str, Any]:
    """What may be seen of it. Raises NotFound."""
    rows = as_dicts(connection.execute(sa.select(*_SHOWN).where(_s.c.id == id)).all())
    if not rows:
        raise NotFound("secret", id)
    return rows[0]


def listing(
    connection: Connection,
    window: Window,
    *,
    projects: frozenset[str] | None,
    project_id: str | None = None,
    workflow_id: str | None = None,
) -> list[dict[str, Any]]:
    """Those of everybody, and of `projects` (None: all) with their workflows; or of the one scope that is asked for."""
    query = window.of(sa.select(*_SHOWN))
    if project_id is not None:
        query = query.where(_s.c.project_id == project_id)
    if workflow_id is not None:
        query = query.where(_s.c.workflow_id == workflow_id)
    if projects is not None:
        w = tables.workflows
        theirs = sa.select(w.c.id).where(w.c.project_id.in_(projects))
        everybodys = _s.c.project_id.is_(None) & _s.c.workflow_id.is_(None)
        query = query.where(everybodys | _s.c.project_id.in_(projects) | _s.c.workflow_id.in_(theirs))
    return as_dicts(connection.execute(query).all())


@dataclass(frozen=True, slots=True)
class Scope:
    """From where secrets are named: a workflow, or a project (that of a workflow need not be said)."""

    workflow_id: str | None = None
    project_id: str | None = None


def seen_in(connection: Connection, scope: Scope) -> Iterator[Stored]:
    """What may be named there, those of the narrowest scope last."""
    rows = run(
        connection,
        """
        SELECT s.id::text AS id, s.name, s.key_id, s.sealed FROM secrets s
        WHERE s.workflow_id = %(workflow)s::uuid OR (s.workflow_id IS NULL AND (s.project_id IS NULL
              OR s.project_id = coalesce(%(project)s::uuid,
                                         (SELECT w.project_id FROM workflows w WHERE w.id = %(workflow)s::uuid))))
        ORDER BY s.workflow_id NULLS FIRST, s.project_id NULLS FIRST
        """,
        {"workflow": scope.workflow_id, "project": scope.project_id},
    )
    return (_stored(row) for row in rows)


_BATCH = 500


def sealed_otherwise(connection: Connection, key_id: str, *, after: str | None = None) -> list[Stored]:
    """Those that another key than this one seals, some at a time by their ids."""
    rows = run(
        connection,
        "SELECT id::text AS id, name, key_id, sealed FROM secrets WHERE key_id <> %(key)s "
        "AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid) ORDER BY id LIMIT %(limit)s",
        {"key": key_id, "after": after, "limit": _BATCH},
    )
    return [_stored(row) for row in rows]


def reseal(connection: Connection, stored: Stored, sealed: Sealed) -> bool:
    """Put another seal on what has not been changed meanwhile; whether that was so."""
    values = {"key_id": sealed.key_id, "sealed": sealed.data}
    unchanged = (_s.c.id == stored.id) & (_s.c.sealed == stored.sealed.data)
    return connection.execute(_s.update().where(unchanged).values(**values)).rowcount == 1


def _stored(row: Any) -> Stored:
    mapping: Mapping[str, Any] = row._asdict()
    return Stored(mapping["id"], mapping["name"], Sealed(mapping["key_id"], bytes(mapping["sealed"])))
