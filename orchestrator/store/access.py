"""Projects, API keys and grants; and which project something belongs to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.access import DEFAULT_PROJECT, Principal, Role
from orchestrator.errors import Conflict, NotFound
from orchestrator.store import models as tables
from orchestrator.store import stats
from orchestrator.store.everywhere import first_anywhere
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.session import as_dicts, new_id, run

Row = dict[str, Any]

KEY_PREFIX = "ork_"
_SHOWN_OF_KEY = len(KEY_PREFIX) + 8

_p, _k, _g = tables.projects, tables.api_keys, tables.grants


# --- which project something belongs to --------------------------------------------------------------------

PROJECT_OF: Mapping[str, str] = {
    "project": "SELECT id::text FROM projects WHERE id = %(id)s::uuid",
    "workflow": "SELECT project_id::text FROM workflows WHERE id = %(id)s::uuid",
    "execution": "SELECT w.project_id::text FROM executions e JOIN workflows w ON w.id = e.workflow_id "
    "WHERE e.id = %(id)s::uuid",
    "step execution": "SELECT w.project_id::text FROM step_executions s JOIN executions e ON e.id = s.execution_id "
    "JOIN workflows w ON w.id = e.workflow_id WHERE s.id = %(id)s::uuid",
    # One that everybody may name belongs to none, and is found by whoever may change it.
    "secret": "SELECT coalesce(s.project_id, w.project_id)::text FROM secrets s LEFT JOIN workflows w "
    "ON w.id = s.workflow_id WHERE s.id = %(id)s::uuid",
    "trigger": "SELECT w.project_id::text FROM triggers t JOIN workflows w ON w.id = t.workflow_id "
    "WHERE t.id = %(id)s::uuid",
}
"""By kind, what finds the project of a thing that belongs to one."""


def project_of(connection: Connection, kind: str, id: str) -> str | None:
    """The id of the project that it belongs to; None if it is not there."""
    row = first_anywhere(connection, PROJECT_OF[kind], {"id": id})
    return None if row is None else row[0]


# --- projects ----------------------------------------------------------------------------------------------

PROJECT_ORDERS = both_ways(name=(_p.c.name,), created_at=(_p.c.id,))


def insert_project(connection: Connection, name: str, description: str) -> str:
    """Its id. Raises Conflict if the name is taken."""
    id = new_id()
    _write_project(connection, _p.insert().values(id=id, name=name, description=description), name)
    return id


def update_project(connection: Connection, id: str, changes: Mapping[str, Any]) -> None:
    """Raises NotFound, Conflict."""
    if id == DEFAULT_PROJECT and changes.get("name", "default") != "default":
        raise Conflict("the project default keeps its name: what names none belongs to it", "default")
    if changes:
        update = _p.update().where(_p.c.id == id).values(**changes)
        if not _write_project(connection, update, changes.get("name")):
            raise NotFound("project", id)


def _write_project(connection: Connection, statement: sa.Insert | sa.Update, name: str | None) -> int:
    try:
        return connection.execute(statement).rowcount
    except sa.exc.IntegrityError:
        raise Conflict(f"there is a project {name!r} already; take another name", "taken") from None


def delete_project(connection: Connection, id: str) -> None:
    """With the grants in it. Raises NotFound; Conflict while it has workflows."""
    if id == DEFAULT_PROJECT:
        raise Conflict("the project default stays: what names none belongs to it", "default")
    try:
        deleted = run(connection, "DELETE FROM projects WHERE id = %(id)s::uuid", {"id": id}).rowcount
    except sa.exc.IntegrityError:
        raise Conflict("the project has workflows; delete them or give them another project first", "in use") from None
    if not deleted:
        raise NotFound("project", id)
    stats.forget(connection, id)


def get_project(connection: Connection, id: str) -> Row:
    """Raises NotFound."""
    row = connection.execute(sa.select(_p).where(_p.c.id == id)).first()
    if row is None:
        raise NotFound("project", id)
    return row._asdict()


def list_projects(connection: Connection, window: Window, visible: Collection[str] | None) -> list[Row]:
    query = window.of(sa.select(_p))
    if visible is not None:
        query = query.where(_p.c.id.in_(visible))
    return as_dicts(connection.execute(query).all())


def project_ids(connection: Connection, names: Collection[str]) -> dict[str, str]:
    """{name: id} of those that are there."""
    rows = run(
        connection, "SELECT name, id::text AS id FROM projects WHERE name = ANY(%(names)s)", {"names": list(names)}
    )
    return {row.name: row.id for row in rows}


def project_names(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """{id: name} of those that are there, by name."""
    sql = "SELECT id::text AS id, name FROM projects WHERE id = ANY(%(ids)s::uuid[]) ORDER BY name"
    return {row.id: row.name for row in run(connection, sql, {"ids": list(ids)})}


# --- keys --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    role: Role
    project_id: str | None
    """None: all projects."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key that was found by its digest, whether it is still good or not."""

    principal: Principal
    expires_at: datetime | None
    expired: bool
    revoked: bool


def digest(key: str) -> bytes:
    """What is stored of a key. A key has 256 random bits, so that there is no guessing it from a fast hash, and a slow
    one, which is for passwords, would only make each call slow. It is looked up by the digest: how long that takes
    says nothing of the keys that are there."""
    return hashlib.sha256(key.encode()).digest()


def insert_key(
    connection: Connection,
    *,
    name: str,
    grants: Iterable[Grant],
    created_by: str,
    expires_at: datetime | None = None,
    rate_limit: int | None = None,
    max_body: int | None = None,
) -> tuple[str, str]:
    """(id, the key itself): only its digest is kept."""
    id, key = new_id(), KEY_PREFIX + secrets.token_urlsafe(32)
    connection.execute(
        _k.insert().values(
            id=id,
            name=name,
            prefix=key[:_SHOWN_OF_KEY],
            digest=digest(key),
            rate_limit=rate_limit,
            max_body=max_body,
            created_by=created_by,
            expires_at=expires_at,
        )
    )
    _insert_grants(connection, id, grants)
    return id, key


def update_key(connection: Connection, id: str, changes: Mapping[str, Any], grants: Iterable[Grant] | None) -> None:
    """Change what is given. Raises NotFound; Conflict if it has been revoked."""
    row = connection.execute(sa.select(_k.c.revoked_at).where(_k.c.id == id).with_for_update()).first()
    if row is None:
        raise NotFound("API key", id)
    if row.revoked_at is not None:
        raise Conflict("a key that has been revoked stays so; create another", "revoked")
    if changes:
        connection.execute(_k.update().where(_k.c.id == id).values(**changes))
    if grants is not None:
        connection.execute(_g.delete().where(_g.c.key_id == id))
        _insert_grants(connection, id, grants)


def _insert_grants(connection: Connection, key_id: str, grants: Iterable[Grant]) -> None:
    rows = [
        {"id": new_id(), "key_id": key_id, "project_id": grant.project_id, "role": grant.role.word} for grant in grants
    ]
    if rows:
        connection.execute(_g.insert(), rows)


def revoke_key(connection: Connection, id: str) -> None:
    """For good; said twice, it is done once. Raises NotFound."""
    sql = "UPDATE api_keys SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE id = %(id)s::uuid"
    if run(connection, sql, {"id": id}).rowcount == 0:
        raise NotFound("API key", id)


def find_key(connection: Connection, digest: bytes) -> KnownKey | None:
    """The key with this digest, and that it has been used, which is written down at most once a minute."""
    row = run(
        connection,
        "SELECT id::text AS id, name, rate_limit, max_body, expires_at, expires_at <= clock_timestamp() AS expired, "
        "revoked_at IS NOT NULL AS revoked, "
        "coalesce(last_used_at < clock_timestamp() - interval '1 minute', true) AS unmarked "
        "FROM api_keys WHERE digest = %(digest)s",
        {"digest": digest},
    ).first()
    if row is None:
        return None
    good = not (row.expired or row.revoked)
    if good and row.unmarked:
        run(connection, "UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = %(id)s::uuid", {"id": row.id})
    everywhere, projects = _held(connection, "key_id = %(holder)s::uuid", row.id) if good else (None, {})
    principal = Principal("key", row.id, row.name, everywhere, projects, row.id, row.rate_limit, row.max_body)
    return KnownKey(principal, row.expires_at, bool(row.expired), row.revoked)


def held_by_subject(connection: Connection, subject: str) -> tuple[Role | None, dict[str, Role]]:
    """(the role in all projects, the roles by project id) that have been granted to it."""
    return _held(connection, "subject = %(holder)s", subject)


def _held(connection: Connection, condition: str, holder: str) -> tuple[Role | None, dict[str, Role]]:
    rows = run(
        connection, f"SELECT project_id::text AS project, role FROM grants WHERE {condition}", {"holder": holder}
    ).all()
    everywhere = next((Role.of(row.role) for row in rows if row.project is None), None)
    return everywhere, {row.project: Role.of(row.role) for row in rows if row.project is not None}


KEY_ORDERS = both_ways(created_at=(_k.c.id,), name=(_k.c.name, _k.c.id))
_KEY_SHOWN = tuple(column for column in _k.c if column.name != "digest")


def get_key(connection: Connection, id: str, administered: Collection[str] | None) -> Row:
    """With its grants. Raises NotFound, also for one that is not to be seen; see `_within`."""
    query = sa.select(*_KEY_SHOWN).where(_k.c.id == id, _within(_g.c.key_id == _k.c.id, administered))
    row = connection.execute(query).first()
    if row is None:
        raise NotFound("API key", id)
    return _with_grants(connection, [row._asdict()])[0]


def list_keys(connection: Connection, window: Window, administered: Collection[str] | None) -> list[Row]:
    query = window.of(sa.select(*_KEY_SHOWN).where(_within(_g.c.key_id == _k.c.id, administered)))
    return _with_grants(connection, as_dicts(connection.execute(query).all()))


def _within(grants_of: sa.ColumnElement[bool], administered: Collection[str] | None) -> sa.ColumnElement[bool]:
    """What an admin of some projects sees: keys that open nothing outside of these, and something in them. A key that
    opens more is not theirs to change."""
    if administered is None:
        return sa.true()
    grants = sa.select(_g.c.id).where(grants_of)
    inside = _g.c.project_id.in_(administered)
    return sa.exists(grants.where(inside)) & ~sa.exists(grants.where(~sa.func.coalesce(inside, False)))


def _with_grants(connection: Connection, keys: list[Row]) -> list[Row]:
    rows = connection.execute(
        sa.select(_g.c.key_id, _g.c.role, _p.c.name)
        .select_from(_g.outerjoin(_p))
        .where(_g.c.key_id.in_([key["id"] for key in keys]))
        .order_by(_g.c.id)
    ).all()
    for key in keys:
        key["grants"] = [{"role": role, "project": name} for key_id, role, name in rows if key_id == key["id"]]
    return keys


# --- grants to subjects ------------------------------------------------------------------------------------

GRANT_ORDERS = both_ways(created_at=(_g.c.id,))
_GRANT_SHOWN = (_g.c.id, _g.c.subject, _g.c.role, _p.c.name.label("project"), _g.c.created_at)


def grant_to_subject(connection: Connection, subject: str, grant: Grant) -> str:
    """Its id. Raises Conflict if the subject holds a role there already."""
    id = new_id()
    try:
        connection.execute(
            _g.insert().values(id=id, subject=subject, project_id=grant.project_id, role=grant.role.word)
        )
    except sa.exc.IntegrityError:
        raise Conflict(f"{subject} holds a role there already; delete that grant first", "granted") from None
    return id


def get_grant(connection: Connection, id: str, administered: Collection[str] | None) -> Row:
    """Raises NotFound, also for one in a project that is not administered."""
    row = connection.execute(_grants(administered).where(_g.c.id == id)).first()
    if row is None:
        raise NotFound("grant", id)
    return row._asdict()


def list_grants(connection: Connection, window: Window, administered: Collection[str] | None) -> list[Row]:
    return as_dicts(connection.execute(window.of(_grants(administered))).all())


def delete_grant(connection: Connection, id: str) -> None:
    run(connection, "DELETE FROM grants WHERE id = %(id)s::uuid AND subject IS NOT NULL", {"id": id})


def _grants(administered: Collection[str] | None) -> sa.Select[Any]:
    query = sa.select(*_GRANT_SHOWN).select_from(_g.outerjoin(_p)).where(_g.c.subject.is_not(None))
    return query if administered is None else query.where(_g.c.project_id.in_(administered))
