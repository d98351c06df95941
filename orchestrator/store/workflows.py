"""Workflows and their immutable versions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY
from sqlalchemy.engine import Connection

from orchestrator.access import DEFAULT_PROJECT
from orchestrator.definition.durations import parse_duration, parse_moment
from orchestrator.errors import Conflict, NotFound, Outdated
from orchestrator.lifecycle import (
    ACTIVATE,
    EXECUTION_LIVE,
    PAUSE_WORKFLOW,
    Transition,
    WorkflowStatus,
    sql_words,
)
from orchestrator.store import control, stats
from orchestrator.store import models as tables
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.search import question, terms
from orchestrator.store.session import as_dicts, compiled, new_id, run


def current(connection: Connection, workflow_id: str) -> tuple[WorkflowStatus, int]:
    """Status and newest version. Raises NotFound."""
    row = run(connection, "SELECT status, version FROM workflows WHERE id = %(id)s::uuid", {"id": workflow_id}).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    return WorkflowStatus(row.status), row.version


def is_template(connection: Connection, workflow_id: str) -> bool:
    """Whether it is there to make others from, and never executed itself."""
    found = run(connection, "SELECT is_template FROM workflows WHERE id = %(id)s::uuid", {"id": workflow_id}).scalar()
    return bool(found)


def find(connection: Connection, reference: str, beside: str) -> str:
    """The id of the workflow with this id, or else of the newest one with this name, a template only if there is
    nothing else; within the project of the workflow `beside`, so that nobody starts by a step what they may not start
    themselves. Raises NotFound."""
    id: str | None = run(
        connection,
        "SELECT id::text FROM workflows WHERE (id::text = %(ref)s OR name = %(ref)s) "
        "AND project_id = (SELECT project_id FROM workflows WHERE id = %(beside)s::uuid) "
        "ORDER BY (id::text = %(ref)s) DESC, is_template, id DESC LIMIT 1",
        {"ref": reference, "beside": beside},
    ).scalar()
    if id is None:
        raise NotFound("workflow", reference)
    return id


def definition(connection: Connection, workflow_id: str, version: int) -> dict[str, Any]:
    """The document of one version, as it was given. Raises NotFound."""
    return _documents(connection, workflow_id, version)[0]


def runnable(connection: Connection, workflow_id: str, version: int) -> dict[str, Any]:
    """The same with its step templates written out: what is executed. Raises NotFound."""
    written, resolved = _documents(connection, workflow_id, version)
    return written if resolved is None else resolved


def _documents(connection: Connection, workflow_id: str, version: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    row = run(
        connection,
        "SELECT definition, resolved FROM workflow_versions WHERE workflow_id = %(id)s::uuid AND version = %(version)s",
        {"id": workflow_id, "version": version},
    ).first()
    if row is None:
        raise NotFound("workflow version", f"{workflow_id}/{version}")
    return row.definition, row.resolved


def original(connection: Connection, workflow_id: str) -> dict[str, Any]:
    """What a copy is made of: `name`, `description`, `tags`, `is_template`, `project_id`, `version`, and of that
    `definition` and `resolved`. Raises NotFound."""
    row = run(
        connection,
        "SELECT name, description, tags, is_template, version, project_id::text AS project_id "
        "FROM workflows WHERE id = %(id)s::uuid",
        {"id": workflow_id},
    ).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    written, resolved = _documents(connection, workflow_id, row.version)
    return {**row._asdict(), "definition": written, "resolved": resolved}


def template(connection: Connection, workflow_id: str) -> dict[str, Any]:
    """What a workflow can be made from: `name`, `description`, `tags`, and of its newest version `definition` and
    `resolved`. Raises NotFound; Conflict if the workflow is no template."""
    row = run(
        connection,
        "SELECT name, description, tags, status, version, is_template FROM workflows WHERE id = %(id)s::uuid",
        {"id": workflow_id},
    ).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    if not row.is_template:
        raise Conflict(f"workflow {workflow_id} is not a template; set is_template to make others from it", row.status)
    written, resolved = _documents(connection, workflow_id, row.version)
    return {**row._asdict(), "definition": written, "resolved": resolved}


def insert(
    connection: Connection,
    *,
    name: str,
    description: str,
    tags: Sequence[str],
    owner_id: str | None,
    is_template: bool,
    definition: Mapping[str, Any],
    resolved: Mapping[str, Any] | None = None,
    project_id: str = DEFAULT_PROJECT,
) -> str:
    """A new draft with its version 1; `resolved` is None for a definition that uses no step templates."""
    workflow_id = new_id()
    connection.execute(
        tables.workflows.insert().values(
            id=workflow_id,
            project_id=project_id,
            name=name,
            description=description,
            tags=list(tags),
            owner_id=owner_id,
            is_template=is_template,
            version=1,
            terms=_terms(name, description, tags),
            **_columns_of(definition),
        )
    )
    _insert_version(connection, workflow_id, 1, definition, resolved)
    return workflow_id


def copy(
    connection: Connection,
    original: Mapping[str, Any],
    *,
    name: str,
    description: str,
    tags: Sequence[str],
    owner_id: str | None,
    project_id: str,
) -> str:
    """A new draft with what `original` found."""
    return insert(
        connection,
        name=name,
        description=description,
        tags=tags,
        owner_id=owner_id,
        is_template=original["is_template"],
        definition=original["definition"],
        resolved=original["resolved"],
        project_id=project_id,
    )


def update(
    connection: Connection,
    workflow_id: str,
    changes: Mapping[str, Any],
    new_definition: Mapping[str, Any] | None,
    resolved: Mapping[str, Any] | None = None,
    *,
    seen: Collection[int] | None = None,
    restored_from: int | None = None,
) -> None:
    """Change the workflow's own fields, and add a version if the definition differs, be it only by what its step
    templates have become. `seen` are the versions that the caller may have in mind (None: any).

    Raises NotFound; Outdated if the newest is none of `seen`; Conflict if it has been activated and is to be a
    template.
    """
    row = run(
        connection,
        "SELECT name, description, tags, version, status, run_limit, max_failures, project_id::text FROM workflows "
        "WHERE id = %(id)s::uuid FOR UPDATE",
        {"id": workflow_id},
    ).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    if seen is not None and row.version not in seen:
        raise Outdated(
            f"workflow {workflow_id} has version {row.version} by now; get it, and see whether your change still fits"
        )
    if changes.get("is_template") and row.status != WorkflowStatus.DRAFT:
        raise Conflict(
            f"workflow {workflow_id} is {row.status}; only a draft can become a template: make one of its definition",
            row.status,
        )
    project_id = changes.get("project_id", row.project_id)
    if project_id != row.project_id:
        stats.move(connection, workflow_id, row.project_id, project_id)
    words = {key: changes.get(key, getattr(row, key)) for key in ("name", "description", "tags")}
    values = {**changes, "terms": _terms(**words)}
    if new_definition is not None:
        newest = _documents(connection, workflow_id, row.version)
        if (new_definition, resolved) != newest:
            values |= {"version": row.version + 1, **_columns_of(new_definition)}
            if (values["run_limit"], values["max_failures"]) != (row.run_limit, row.max_failures):
                values["counts_from"] = new_id()
            _insert_version(connection, workflow_id, row.version + 1, new_definition, resolved, restored_from)
    connection.execute(
        tables.workflows.update()
        .where(tables.workflows.c.id == workflow_id)
        .values(**values, updated_at=sa.func.clock_timestamp())
    )


def _terms(name: str, description: str, tags: Sequence[str]) -> sa.ColumnElement[Any]:
    return sa.func.array_to_tsvector(sa.literal(terms([name, description, *tags]), ARRAY(sa.Text)))


def _columns_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """What a definition says of the end of its workflow (see store/workflow_ends.py), and how long it keeps things."""
    end_date, retention = definition.get("end_date"), definition.get("retention")
    return {
        "retention": None if retention is None else parse_duration(retention),
        "run_limit": definition.get("run_limit"),
        "max_failures": definition.get("max_failures"),
        "end_date": None if end_date is None else parse_moment(end_date),
    }


def _insert_version(
    connection: Connection,
    workflow_id: str,
    version: int,
    definition: Mapping[str, Any],
    resolved: Mapping[str, Any] | None,
    restored_from: int | None = None,
) -> None:
    connection.execute(
        tables.workflow_versions.insert().values(
            workflow_id=workflow_id,
            version=version,
            definition=definition,
            resolved=resolved,
            restored_from=restored_from,
        )
    )


def longest_retention(connection: Connection) -> float:
    """The seconds for which any workflow wants to keep what it has."""
    longest: float = run(connection, "SELECT coalesce(max(retention), 0) FROM workflows").scalar_one()
    return longest


def delete(connection: Connection, workflow_id: str) -> None:
    """Remove a workflow with its versions and its ended executions.

    Raises NotFound; Conflict while an execution is live.
    """
    status, _ = current(connection, workflow_id)
    live = run(
        connection,
        f"SELECT count(*) FROM executions WHERE workflow_id = %(id)s::uuid AND status IN ({sql_words(EXECUTION_LIVE)})",
        {"id": workflow_id},
    ).scalar_one()
    if live:
        raise Conflict(
            f"workflow {workflow_id} has {live} executions that have not ended; wait for them or cancel them", status
        )
    deleted = "DELETE FROM workflows WHERE id = %(id)s::uuid RETURNING project_id::text"
    for project_id in run(connection, deleted, {"id": workflow_id}).scalars():
        stats.move(connection, workflow_id, project_id, None)


def move(connection: Connection, workflow_id: str, transition: Transition) -> bool:
    """Change the status; False if it is not one that this transition starts from, or would activate a template or what
    has passed its end date. What waits for a place waits for a paused workflow as well."""
    allowed, also = transition.guard, ""
    if transition is ACTIVATE:
        allowed += " AND NOT is_template AND (end_date IS NULL OR end_date > clock_timestamp())"
        also = "counts_from = %(now)s::uuid, "
    sql = (
        f"UPDATE workflows SET {transition.assignment}, {also}status_reason = NULL, updated_at = clock_timestamp() "
        f"WHERE id = %(id)s::uuid AND {allowed}"
    )
    moved = run(connection, sql, {"id": workflow_id, "now": new_id()}).rowcount == 1
    if moved and transition is PAUSE_WORKFLOW:
        control.pause_waiting(connection, workflow_id)
    elif moved and transition.target is WorkflowStatus.ACTIVE:
        control.resume_waiting(connection, workflow_id)
    return moved


_w = tables.workflows
_SHOWN = (
    _w.c.id,
    sa.select(tables.projects.c.name).where(tables.projects.c.id == _w.c.project_id).scalar_subquery().label("project"),
    _w.c.name,
    _w.c.description,
    _w.c.status,
    _w.c.status_reason,
    _w.c.tags,
    _w.c.owner_id,
    _w.c.is_template,
    _w.c.version,
    _w.c.created_at,
    _w.c.updated_at,
)


_v = tables.workflow_versions
_GET = compiled(
    sa.select(*_SHOWN, _v.c.definition)
    .join(_v, sa.and_(_v.c.workflow_id == _w.c.id, _v.c.version == _w.c.version))
    .where(_w.c.id == sa.bindparam("id"))
)


def get(connection: Connection, workflow_id: str) -> dict[str, Any]:
    """The workflow with its newest definition and what its executions add up to. Raises NotFound."""
    row = run(connection, _GET, {"id": workflow_id}).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    shown = row._asdict()
    definition = shown.pop("definition")
    return {**shown, **stats.of_workflow(connection, workflow_id), "definition": definition}


ORDERS = both_ways(created_at=(_w.c.id,), name=(_w.c.name, _w.c.id), updated_at=(_w.c.updated_at, _w.c.id))


def listing(
    connection: Connection,
    window: Window,
    *,
    projects: Collection[str] | None = None,
    owner_id: str | None = None,
    status: str | None = None,
    tag: str | None = None,
    name: str | None = None,
    is_template: bool | None = None,
    words: str | None = None,
) -> list[dict[str, Any]]:
    """Workflows without their definitions; `words` are looked for in their names, descriptions and tags."""
    query = window.of(sa.select(*_SHOWN))
    for condition in (
        None if projects is None else _w.c.project_id.in_(projects),
        None if owner_id is None else _w.c.owner_id == owner_id,
        None if status is None else _w.c.status == status,
        None if tag is None else _w.c.tags.contains([tag]),
        None if name is None else _w.c.name == name,
        None if is_template is None else _w.c.is_template == is_template,
        None if words is None else _w.c.terms.op("@@")(sa.cast(question(words), TSQUERY)),
    ):
        if condition is not None:
            query = query.where(condition)
    return as_dicts(connection.execute(query).all())


def counts(connection: Connection) -> tuple[int, int]:
    """How many workflows there are, and how many of them are active."""
    row = run(
        connection,
        f"SELECT count(*) AS total, count(*) FILTER (WHERE status = '{WorkflowStatus.ACTIVE}') AS active "
        "FROM workflows",
    ).one()
    return row.total, row.active
