"""The audit log: who did what to which object. Rows are inserted and read; the database refuses everything else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.store import models as tables
from orchestrator.store.access import PROJECT_OF
from orchestrator.store.everywhere import first_anywhere
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.session import as_dicts, new_id, run, to_json

_a = tables.audit_log


@dataclass(frozen=True, slots=True)
class Entry:
    """`project_id` None: the project of the object, if that belongs to one and is still there."""

    actor_kind: str
    actor_id: str | None
    actor_name: str | None
    action: str
    object_kind: str | None
    object_id: str | None
    status: int
    project_id: str | None = None
    detail: str | None = None
    before: Any = None
    after: Any = None
    address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None

    def as_row(self) -> dict[str, Any]:
        """All that is known of it before it is written."""
        return {"id": new_id(), **asdict(self)}


_COLUMNS = ", ".join(("id", *(field.name for field in fields(Entry))))


def _insertion(row: str, found: str) -> str:
    """SQL that writes an entry's row, and what is `found` there and then."""
    return (
        f"INSERT INTO audit_log ({_COLUMNS}) SELECT {_COLUMNS} "
        f"FROM jsonb_populate_record(NULL::audit_log, {row} || jsonb_build_object({found}))"
    )


LOG_START = _insertion(
    "%(log)s",
    "'project_id', (SELECT w.project_id FROM workflows w WHERE w.id = %(workflow)s), "
    "'after', jsonb_build_object('execution_id', %(id)s)",
)
"""SQL that writes the row of an entry, `log`, in the transaction that starts what it is about."""


_LOGGED_IN = {
    **PROJECT_OF,
    "grant": "SELECT project_id::text FROM grants WHERE id = %(id)s::uuid",
    # One that opens several projects, or all, is for those who administer all.
    "key": "SELECT CASE WHEN count(*) = 1 THEN min(project_id::text) END FROM grants WHERE key_id = %(id)s::uuid",
}
"""By kind, what finds the project whose administrators read of a thing."""


def write(connection: Connection, entry: Entry) -> None:
    found_by = _LOGGED_IN.get(entry.object_kind or "")
    project = f"({found_by})::uuid" if found_by else "NULL"
    run(
        connection,
        _insertion("%(log)s::jsonb", f"'project_id', coalesce(%(project_id)s::uuid, {project})"),
        {"log": to_json(entry.as_row()), "project_id": entry.project_id, "id": entry.object_id},
    )


# What is kept of an object's state. Of a workflow its definition is not: `version` names it, and versions never change.
_STATES = {
    "workflow": "SELECT to_jsonb(t) FROM workflows t",
    "execution": "SELECT to_jsonb(t) FROM (SELECT id, workflow_id, version, status, priority, error_message "
    "FROM executions) t",
    "step execution": "SELECT to_jsonb(t) FROM (SELECT id, execution_id, path, status, attempt, error_message "
    "FROM step_executions) t",
    "trigger": "SELECT to_jsonb(t) FROM (SELECT id, workflow_id, type, name, config, is_enabled FROM triggers) t",
    "step template": "SELECT to_jsonb(t) FROM step_templates t",
    "project": "SELECT to_jsonb(t) FROM projects t",
    "key": "SELECT to_jsonb(t) FROM (SELECT id, name, prefix, rate_limit, max_body, expires_at, revoked_at, "
    "(SELECT jsonb_agg(jsonb_build_object('role', g.role, 'project', p.name) ORDER BY g.id) FROM grants g "
    "LEFT JOIN projects p ON p.id = g.project_id WHERE g.key_id = k.id) AS grants FROM api_keys k) t",
    "secret": "SELECT to_jsonb(t) FROM (SELECT id, name, project_id, workflow_id, description, key_id, updated_at "
    "FROM secrets) t",
    "grant": "SELECT to_jsonb(t) FROM (SELECT g.id, g.subject, g.role, g.project_id, p.name AS project FROM grants g "
    "LEFT JOIN projects p ON p.id = g.project_id) t",
}


def state(connection: Connection, kind: str, id: str) -> Any:
    """What the log keeps of it as it is now; None if it is not there, or of no such kind."""
    if kind not in _STATES:
        return None
    row = first_anywhere(connection, f"{_STATES[kind]} WHERE id = %(id)s::uuid", {"id": id})
    return None if row is None else row[0]


# --- what administrators read ------------------------------------------------------------------------------

ORDERS = both_ways(at=(_a.c.id,))
_DENIED = (401, 403, 404, 429)


@dataclass(frozen=True, slots=True)
class Filter:
    """Entries for which all of this is so; what is None does not matter. `projects` are those that may be seen."""

    projects: Collection[str] | None = None
    project_id: str | None = None
    actor_id: str | None = None
    action: str | None = None
    object_kind: str | None = None
    object_id: str | None = None
    request_id: str | None = None
    denied: bool | None = None
    since: datetime | None = None
    until: datetime | None = None


def listing(connection: Connection, window: Window, which: Filter) -> list[dict[str, Any]]:
    query = window.of(sa.select(_a))
    for condition in (
        None if which.projects is None else _a.c.project_id.in_(which.projects),
        None if which.project_id is None else _a.c.project_id == which.project_id,
        None if which.actor_id is None else _a.c.actor_id == which.actor_id,
        None if which.action is None else _a.c.action == which.action,
        None if which.object_kind is None else _a.c.object_kind == which.object_kind,
        None if which.object_id is None else _a.c.object_id == which.object_id,
        None if which.request_id is None else _a.c.request_id == which.request_id,
        None if which.denied is None else _a.c.status.in_(_DENIED) == which.denied,
        None if which.since is None else _a.c.id >= _first_id(which.since),
        None if which.until is None else _a.c.id < _first_id(which.until),
    ):
        if condition is not None:
            query = query.where(condition)
    return as_dicts(connection.execute(query).all())


def _first_id(moment: datetime) -> str:
    """The least UUIDv7 of this millisecond: the ids are in the order of time, and have an index."""
    milliseconds = max(0, min(int(moment.timestamp() * 1000), 2**48 - 1))
    digits = f"{milliseconds:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"
