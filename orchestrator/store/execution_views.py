"""Executions and steps as users see them, one by one and in lists."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.lifecycle import EXECUTION_LIVE, ExecutionStatus, sql_words
from orchestrator.store import models as tables
from orchestrator.store.everywhere import Reading, first_anywhere, present
from orchestrator.store.keyset import LIMIT, Pattern, Window, both_ways
from orchestrator.store.routines import Routine
from orchestrator.store.session import as_dicts, compiled, id_at, run

_e = tables.all_executions


def _duration(table: sa.Table) -> sa.Label[float]:
    ended = sa.func.coalesce(table.c.finished_at, sa.func.clock_timestamp())
    return sa.cast(sa.extract("epoch", ended - table.c.started_at), sa.Double).label("duration")


def _shown(table: sa.Table) -> tuple[sa.ColumnElement[Any], ...]:
    e = table.c
    return (
        e.id,
        e.workflow_id,
        e.version,
        e.status,
        e.input,
        e.output,
        e.started_at.label("start_time"),
        e.finished_at.label("end_time"),
        _duration(table),
        e.trigger_id,
        e.priority,
        e.rerun_of,
        e.error_message,
        e.created_at,
    )


_present, _s = tables.executions, tables.step_executions
_SHOWN = _shown(_e)
_STEP_SHOWN = (
    _s.c.id,
    _s.c.execution_id,
    _s.c.step_id,
    _s.c.path,
    _s.c.type,
    _s.c.status,
    _s.c.attempt,
    _s.c.input,
    _s.c.output,
    _s.c.started_at.label("start_time"),
    _s.c.finished_at.label("end_time"),
    _duration(_s),
    _s.c.next_attempt_at,
    _s.c.error_kind,
    _s.c.error_message,
)

_BY_ID = {"id": "uuid"}
_GET = Reading("show_execution", sa.select(*_shown(_present)).where(_present.c.id == sa.bindparam("id")), _BY_ID)
# The ids were given in the definition's order.
_GET_STEPS = Reading(
    "show_steps", sa.select(*_STEP_SHOWN).where(_s.c.execution_id == sa.bindparam("id")).order_by(_s.c.id), _BY_ID
)
_GET_STEP = Reading("show_step", sa.select(*_STEP_SHOWN).where(_s.c.id == sa.bindparam("id")), _BY_ID)


def get(connection: Connection, execution_id: str) -> dict[str, Any]:
    """An execution with its step executions in the definition's order. Raises NotFound."""
    row = _GET.first(connection, {"id": execution_id})
    if row is None:
        raise NotFound("execution", execution_id)
    steps = _GET_STEPS.all(connection, {"id": execution_id})
    return {**row._asdict(), "step_executions": as_dicts(steps)}


def summary(connection: Connection, execution_id: str) -> dict[str, Any] | None:
    """An execution as it is shown, without its steps."""
    row = _GET.first(connection, {"id": execution_id})
    return None if row is None else row._asdict()


def assert_exists(connection: Connection, execution_id: str) -> None:
    """Raises NotFound if there is no such execution."""
    sql = "SELECT id FROM executions WHERE id = %(id)s::uuid"
    if first_anywhere(connection, sql, {"id": execution_id}) is None:
        raise NotFound("execution", execution_id)


def get_step(connection: Connection, step_execution_id: str) -> dict[str, Any]:
    """One step execution. Raises NotFound."""
    row = _GET_STEP.first(connection, {"id": step_execution_id})
    if row is None:
        raise NotFound("step execution", step_execution_id)
    return row._asdict()


def output_at(connection: Connection, execution_id: str, path: str) -> Any:
    """The output of the step at `path`. Raises NotFound."""
    row = first_anywhere(
        connection,
        "SELECT output FROM step_executions WHERE execution_id = %(id)s::uuid AND path = %(path)s",
        {"id": execution_id, "path": path},
    )
    if row is None:
        raise NotFound("step", f"{path} in execution {execution_id}")
    return row.output


ORDERS = both_ways(created_at=(_e.c.id,))
_SKEW = 3_600_000.0
"""Milliseconds by which the clock that made an id may differ from the database's."""


def in_projects(projects: Collection[str]) -> sa.ColumnElement[bool]:
    """Whether an execution's workflow belongs to one of them."""
    return _in_projects(sa.literal(list(projects), _IDS))


def listing(
    connection: Connection,
    window: Window,
    *,
    projects: Collection[str] | None = None,
    workflow_id: str | None = None,
    status: str | None = None,
    rerun_of: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> list[dict[str, Any]]:
    """Executions without their steps, made at `created_after` or later, and before `created_before`."""
    given = {
        "projects": None if projects is None else list(projects),
        "workflow": workflow_id,
        "status": status,
        "rerun_of": rerun_of,
        "since": created_after,
        "since_id": None if created_after is None else id_at(_milliseconds(created_after) - _SKEW),
        "before": created_before,
        "before_id": None if created_before is None else id_at(_milliseconds(created_before) + _SKEW),
    }
    given = {name: value for name, value in given.items() if value is not None}
    is_live = status in EXECUTION_LIVE
    # Of one workflow, of one original, and of what has not ended, there are few, or an index in their order.
    are_many = workflow_id is None and rerun_of is None and not is_live
    sql = _list_sql(window.pattern, frozenset(given), are_many, is_live)
    return as_dicts(run(connection, sql, given | window.params))


_IDS = ARRAY(_e.c.id.type)
_FILTERS: Mapping[str, sa.ColumnElement[bool]] = {
    "workflow": _e.c.workflow_id == sa.bindparam("workflow"),
    "status": _e.c.status == sa.bindparam("status"),
    "rerun_of": _e.c.rerun_of == sa.bindparam("rerun_of"),
    # The ids lead an index to about there; a clock that is wrong by more than _SKEW would need another look.
    "since": _e.c.created_at >= sa.bindparam("since"),
    "since_id": _e.c.id >= sa.bindparam("since_id"),
    "before": _e.c.created_at < sa.bindparam("before"),
    "before_id": _e.c.id < sa.bindparam("before_id"),
}
_PROJECTS = sa.bindparam("projects", type_=_IDS)


@cache
def _list_sql(window: Pattern, given: frozenset[str], are_many: bool, is_live: bool) -> str:
    """Putting the query together takes longer than asking it, and there are not many."""
    often = _OFTEN.get((window, given))
    if often is not None:
        return often.call
    sql = compiled(_list(window, given, are_many))
    return present(sql) if is_live else sql


def _list(window: Pattern, given: frozenset[str], are_many: bool) -> sa.Select[Any]:
    conditions = [condition for name, condition in _FILTERS.items() if name in given]
    if "projects" in given and are_many:
        return _of_their_workflows(window, conditions)
    among = [_in_projects(_PROJECTS)] if "projects" in given else []
    return window.of(sa.select(*_SHOWN).where(*conditions, *among))


def _in_projects(projects: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    _w = tables.workflows
    return _e.c.workflow_id.in_(sa.select(_w.c.id).where(_w.c.project_id == sa.any_(projects)))


def _of_their_workflows(window: Pattern, conditions: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    """The page of what is in the projects, put together from those of their workflows, each in the order of an index.

    Going through all executions for those of the projects would take as long as these are rare. A page can only have
    executions of as many workflows as it has rows: those whose first ones come first.
    """

    def page_of(workflow_id: sa.ColumnElement[Any], limit: sa.ColumnElement[int] = LIMIT) -> sa.FromClause:
        mine = sa.select(_e.c.id).where(_e.c.workflow_id == workflow_id, *conditions)
        return window.of(mine, limit).lateral()

    def first_of(query: sa.Select[Any], id: sa.ColumnElement[Any]) -> sa.Subquery:
        return query.order_by(id.desc() if window.order.descending else id).limit(LIMIT).subquery()

    workflows = tables.workflows
    newest = page_of(workflows.c.id, sa.literal_column("1"))
    theirs = sa.select(workflows.c.id).select_from(workflows.join(newest, sa.true()))
    chosen = first_of(theirs.where(workflows.c.project_id == sa.any_(_PROJECTS)), newest.c.id)
    candidates = page_of(chosen.c.id)
    found = first_of(sa.select(candidates.c.id).select_from(chosen.join(candidates, sa.true())), candidates.c.id)
    return window.of(sa.select(*_SHOWN).join(found, found.c.id == _e.c.id))


def _often(window: Pattern, given: frozenset[str]) -> Routine:
    query = _list(window, given, are_many=True)
    parameters = {
        "limit": "int",
        **({"projects": "uuid[]"} if given else {}),
        **({"after_0": "uuid"} if window.goes_on else {}),
    }
    return Routine.of("list_executions", compiled(query), query, parameters)


_OFTEN = {
    (window, given): _often(window, given)
    for window in (Pattern(order, goes_on) for order in ORDERS.values() for goes_on in (False, True))
    for given in (frozenset[str](), frozenset({"projects"}))
}
"""What everybody looks at, whether they may see all or what is in their projects: planning it takes longer than reading
it, the more so with many archives."""


def _milliseconds(moment: datetime) -> float:
    return moment.timestamp() * 1000


def live_counts(connection: Connection) -> tuple[int, int]:
    """How many executions are running, and how many are queued."""
    row = run(
        connection,
        f"SELECT count(*) FILTER (WHERE status = '{ExecutionStatus.RUNNING}') AS running, "
        f"count(*) FILTER (WHERE status = '{ExecutionStatus.QUEUED}') AS queued FROM executions "
        f"WHERE status IN ({sql_words(EXECUTION_LIVE)})",
    ).one()
    return row.running, row.queued
