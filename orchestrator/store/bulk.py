"""Many executions at a time: which they are, and their removal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_LIVE, EXECUTION_TERMINAL, STEP_LIVE, ExecutionStatus, sql_words
from orchestrator.store import execution_views
from orchestrator.store import models as tables
from orchestrator.store.everywhere import everywhere
from orchestrator.store.session import run, sql_id_at
from orchestrator.store.workflow_ends import IS_COUNTED


@dataclass(frozen=True, slots=True)
class Selection:
    """Executions for which all of this is so; what is None does not matter."""

    ids: tuple[str, ...] | None = None
    workflow_id: str | None = None
    statuses: frozenset[ExecutionStatus] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    projects: frozenset[str] | None = None


def matching(connection: Connection, which: Selection, limit: int) -> dict[str, str]:
    """Their ids, each with that of its project, the oldest first."""
    is_live = which.statuses is not None and which.statuses <= EXECUTION_LIVE  # nothing that was laid aside is
    e, w = tables.executions if is_live else tables.all_executions, tables.workflows
    query = sa.select(e.c.id, w.c.project_id).join(w, w.c.id == e.c.workflow_id).order_by(e.c.id).limit(limit)
    for condition in (
        None if which.ids is None else e.c.id.in_(which.ids),
        None if which.workflow_id is None else e.c.workflow_id == which.workflow_id,
        None if which.statuses is None else e.c.status.in_(sorted(which.statuses)),
        None if which.created_after is None else e.c.created_at > which.created_after,
        None if which.created_before is None else e.c.created_at < which.created_before,
        None if which.projects is None else w.c.project_id.in_(sorted(which.projects)),
    ):
        if condition is not None:
            query = query.where(condition)
    return {row.id: row.project_id for row in connection.execute(query)}


def statuses(
    connection: Connection, ids: Collection[str], projects: Collection[str] | None = None
) -> dict[str, ExecutionStatus]:
    """Of those that are there, in one of `projects` if these are given."""
    e = tables.all_executions
    query = sa.select(e.c.id, e.c.status).where(e.c.id.in_(ids))
    if projects is not None:
        query = query.where(execution_views.in_projects(projects))
    return {row.id: ExecutionStatus(row.status) for row in connection.execute(query)}


# One that another one needs stays: the result of a child until its parent has it, a parent until reconcile has ended
# its children.
_REMOVABLE = f"""
    e.status IN ({sql_words(EXECUTION_TERMINAL)})
    AND NOT EXISTS (SELECT FROM step_executions p
                    WHERE p.id = e.parent_step_id AND p.status IN ({sql_words(STEP_LIVE)}))
    AND NOT EXISTS (SELECT FROM step_executions s JOIN executions c ON c.parent_step_id = s.id
                    WHERE s.execution_id = e.id AND c.status IN ({sql_words(EXECUTION_LIVE)}))
"""


def delete(connection: Connection, ids: Collection[str]) -> set[str]:
    """Remove the executions that have ended and that no other one needs, with all that is known of them; which they
    were."""
    rows = run(
        connection,
        everywhere(f"DELETE FROM executions e WHERE e.id = ANY(%(ids)s::uuid[]) AND {_REMOVABLE} RETURNING e.id::text"),
        {"ids": list(ids)},
    )
    return {id for (id,) in rows}


def _expired(kept: str) -> str:
    """Each workflow has a range of an index with what may have expired, since nothing ends before it is made. A child
    stays for as long as its parent, which may be retried or asked for what its children did."""
    return f"""
        SELECT x.id::text, x.finished_at FROM workflows w CROSS JOIN LATERAL (
            SELECT clock_timestamp() - {kept} * interval '1 second' AS moment
        ) until CROSS JOIN LATERAL (
            SELECT e.id, e.finished_at FROM executions e
            WHERE e.workflow_id = w.id AND e.id < {sql_id_at("until.moment")} AND e.finished_at < until.moment
              AND {_REMOVABLE} AND NOT EXISTS (SELECT FROM step_executions p WHERE p.id = e.parent_step_id)
              AND NOT ({IS_COUNTED})
            ORDER BY e.id LIMIT %(limit)s
        ) x
        WHERE until.moment IS NOT NULL LIMIT %(limit)s
    """


_EXPIRED = _expired("coalesce(w.retention, nullif(%(kept)s, 0))")
# Of what has been laid aside: what is kept for less long than the rest, and what should have gone with its archive; in
# the one that was made of all that there was, some is older than the others.
_EXPIRED_ASIDE = everywhere(
    _expired(
        "CASE WHEN w.retention < coalesce(nullif(%(kept)s, 0)::float8, 'infinity') THEN w.retention "
        "ELSE coalesce(w.retention, nullif(%(kept)s, 0)) + %(each)s END"
    )
)
# However many have expired, these are read in the order of the index, and no more of them than wanted.
_IN_ORDER = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"


@dataclass(frozen=True, slots=True)
class Ended:
    id: str
    finished_at: datetime


def expired(connection: Connection, kept: float, each: float, limit: int) -> list[Ended]:
    """Up to `limit` executions that ended more than `kept` seconds ago (0: none), or more than the `retention` of their
    workflow, and that no other one needs. Not those that are about to go with an archive, as each does `each` seconds
    later at the most. To be called in a transaction."""
    run(connection, _IN_ORDER)
    params = {"kept": kept, "each": each, "limit": limit}
    rows = (row for query in (_EXPIRED, _EXPIRED_ASIDE) for row in run(connection, query, params))
    found = dict.fromkeys(Ended(row.id, row.finished_at) for row in rows)
    return list(islice(found, limit))


def remove(connection: Connection, ended: Sequence[Ended]) -> int:
    """Remove those that have not been done again since, like `delete`; how many."""
    return run(
        connection,
        everywhere(
            "DELETE FROM executions e USING unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) AS u(id, finished_at) "
            f"WHERE e.id = u.id AND e.finished_at = u.finished_at AND {_REMOVABLE}"
        ),
        {"ids": [one.id for one in ended], "times": [one.finished_at for one in ended]},
    ).rowcount
