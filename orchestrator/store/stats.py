"""Statistics, read from the rollups that every end of an execution keeps (migration 0014)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_LIVE, sql_words
from orchestrator.store.routines import Routine
from orchestrator.store.session import as_dicts, run

ALL = "00000000-0000-0000-0000-000000000000"
"""Whose the rows about all workflows together are; those about all of a project are its own. What is about many
workflows reads these, and what is not merged yet: of fifty workflows' 90 days that is a thirtieth of the rows."""

PER_OCTAVE = 4
"""Buckets of a histogram from a time to twice that."""


_BASE = 10**12


def buckets(histogram: int) -> list[int]:
    """How many a histogram has in each bucket. It is the sum over the buckets, from 0, of their numbers times 10 to the
    power of 12 times the bucket, so that PostgreSQL adds histograms by sum() and keeps no zeros."""
    found = []
    while histogram:
        histogram, number = divmod(histogram, _BASE)
        if number > _BASE // 2:  # below zero: what is taken back was merged to a slot that begins before the window
            histogram, number = histogram + 1, number - _BASE
        found.append(number)
    return found


def upper_bound(bucket: int) -> float:
    """The seconds at which bucket `bucket` (from 0) ends."""
    return float(2 ** ((bucket + 1) / PER_OCTAVE)) / 1000


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """The seconds that this share took at most, to within a tenth: within a bucket they are taken to be spread evenly
    on the logarithmic scale. None if there are none."""
    total = sum(buckets)
    wanted = share * total
    below = 0
    for bucket, number in enumerate(buckets):
        if number > 0 and below + number >= wanted:
            inside = (wanted - below) / number
            return float(2 ** ((bucket + inside) / PER_OCTAVE)) / 1000
        below += number
    return None


@dataclass(frozen=True, slots=True)
class Which:
    """The executions of one workflow, or of all that belong to `projects` (None: every project)."""

    workflow_id: str | None = None
    projects: Collection[str] | None = None

    @property
    def sql(self) -> str:
        """A condition on rows of statistics."""
        if self.workflow_id is not None:
            return "workflow_id = %(workflow)s::uuid"
        if self.projects is not None:
            return (
                "(workflow_id = ANY(%(projects)s::uuid[]) OR shard > 1 AND workflow_id IN "
                "(SELECT id FROM workflows WHERE project_id = ANY(%(projects)s::uuid[])))"
            )
        return f"(workflow_id = '{ALL}' OR shard > 1)"

    @property
    def params(self) -> dict[str, Any]:
        return {"workflow": self.workflow_id, "projects": list(self.projects or ())}


@dataclass(frozen=True, slots=True)
class Point:
    """How many ended as `status` in the time that begins with `begins`."""

    begins: datetime
    status: str
    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended as `status`: how many, the seconds that they took together, and histograms of how long they took and
    waited before they began, as `buckets` reads them."""

    status: str
    number: int
    seconds: float
    durations: int
    waits: int


def ended(connection: Connection, which: Which, since: datetime, width: float) -> tuple[list[Point], list[Ended]]:
    """The points for each `width` seconds from `since` on in which something ended, in their order; and all of it."""
    rows = run(
        connection,
        f"""
        WITH points AS (
            SELECT date_bin(%(width)s * interval '1 second', slot, %(since)s) AS begins, status, sum(number) AS number,
                   sum(seconds) AS seconds, sum(durations) AS durations, sum(waits) AS waits
            FROM execution_stats WHERE {which.sql} AND slot >= %(since)s GROUP BY begins, status
        )
        SELECT begins, status, number::bigint, NULL::float8 AS seconds, NULL AS durations, NULL AS waits FROM points
        UNION ALL
        SELECT NULL, status, sum(number)::bigint, sum(seconds)::float8, sum(durations)::text, sum(waits)::text
        FROM points GROUP BY status
        ORDER BY begins, status
        """,
        {**which.params, "since": since, "width": width},
    ).all()
    return (
        [Point(row.begins, row.status, row.number) for row in rows if row.begins is not None],
        [
            Ended(row.status, row.number, row.seconds, int(row.durations), int(row.waits))
            for row in rows
            if row.begins is None
        ],
    )


def counts(connection: Connection, which: Which, since: datetime, before: datetime) -> dict[str, int]:
    """How many ended as what."""
    rows = run(
        connection,
        f"SELECT status, sum(number)::bigint AS number FROM execution_stats WHERE {which.sql} "
        "AND slot >= %(since)s AND slot < %(before)s GROUP BY status",
        {**which.params, "since": since, "before": before},
    )
    return {row.status: row.number for row in rows}


def steps(connection: Connection, which: Which, since: datetime) -> list[dict[str, Any]]:
    """Of each step of a workflow what became of it, those that failed most first."""
    return as_dicts(
        run(
            connection,
            f"""
            SELECT step_id, sum(completed)::bigint AS completed, sum(failed)::bigint AS failed,
                   sum(skipped)::bigint AS skipped, sum(cancelled)::bigint AS cancelled,
                   sum(retried)::bigint AS retried, sum(retried_completed)::bigint AS retried_completed,
                   (sum(seconds) / nullif(sum(completed) + sum(failed), 0))::float8 AS mean_duration
            FROM step_stats WHERE {which.sql} AND slot >= %(since)s
            GROUP BY step_id ORDER BY failed DESC, step_id
            """,
            {**which.params, "since": since},
        ).all()
    )


@dataclass(frozen=True, slots=True)
class Trouble:
    """Steps that failed or took more than one attempt: how many failed in which way, the most frequent first; how many
    took more than one attempt, and those of them that completed."""

    error_kinds: Mapping[str, int]
    retried: int
    retried_completed: int


_KINDS_SHOWN = 50


def trouble(connection: Connection, which: Which, since: datetime) -> Trouble:
    rows = run(
        connection,
        "SELECT error_kind, sum(failed)::bigint AS failed, sum(retried)::bigint AS retried, "
        f"sum(retried_completed)::bigint AS completed FROM step_stats WHERE {which.sql} AND slot >= %(since)s "
        "AND (failed <> 0 OR retried <> 0) GROUP BY error_kind ORDER BY failed DESC, error_kind",
        {**which.params, "since": since},
    ).all()
    kinds = {row.error_kind: row.failed for row in rows if row.failed}
    return Trouble(
        dict(islice(kinds.items(), _KINDS_SHOWN)), sum(row.retried for row in rows), sum(row.completed for row in rows)
    )


_OF_WORKFLOW = Routine(
    "stats_of_workflow",
    f"""
    WITH ended AS (
        SELECT coalesce(sum(number), 0) AS number, sum(number) FILTER (WHERE status = 'completed') AS completed
        FROM execution_stats WHERE workflow_id = %(id)s
    )
    SELECT (ended.number + (SELECT count(*) FROM executions WHERE workflow_id = %(id)s
                            AND status IN ({sql_words(EXECUTION_LIVE)})))::bigint AS execution_count,
           (SELECT created_at FROM all_executions WHERE workflow_id = %(id)s ORDER BY id DESC LIMIT 1)
           AS last_executed,
           (coalesce(ended.completed, 0) / nullif(ended.number, 0))::float8 AS success_rate
    FROM ended
    """,
    {"id": "uuid"},
    {"execution_count": "bigint", "last_executed": "timestamptz", "success_rate": "float8"},
)


def of_workflow(connection: Connection, workflow_id: str) -> Mapping[str, Any]:
    """All that ever ran: execution_count, last_executed, and the share of those that ended which completed."""
    return run(connection, _OF_WORKFLOW.call, {"id": workflow_id}).one()._asdict()


def totals(connection: Connection) -> dict[str, dict[str, float]]:
    """Since the beginning, by status: how many `executions` ended, the `seconds` that they took, and what became of
    their `steps`."""
    ended = run(
        connection,
        "SELECT status, sum(number)::float8 AS number, sum(seconds)::float8 AS seconds FROM execution_stats "
        f"WHERE {Which().sql} GROUP BY status ORDER BY status",
    ).all()
    names = ("completed", "failed", "skipped", "cancelled", "retried")
    sums = ", ".join(f"coalesce(sum({name}), 0)::float8 AS {name}" for name in names)
    return {
        "executions": {row.status: row.number for row in ended},
        # Merging adds in another order, and a counter must not fall by what that loses in the last digit.
        "seconds": {row.status: round(row.seconds, 3) for row in ended},
        "steps": run(connection, f"SELECT {sums} FROM step_stats WHERE {Which().sql}").one()._asdict(),
    }


_LOCK = "hashtextextended('statistics', 0)"
"""Of whoever adds to rows of several workflows, and relies on which project a workflow is in."""
_MERGED = 2000
"""Rows merged at a time."""
_COLUMNS = {
    "execution_stats": ({"status": "status"}, ("number", "seconds", "durations", "waits")),
    "step_stats": (
        {"step_id": "CASE WHEN owner = workflow_id THEN step_id ELSE '' END", "error_kind": "error_kind"},
        ("completed", "failed", "skipped", "cancelled", "retried", "retried_completed", "seconds"),
    ),
}
"""What the rows of a table are about besides a workflow, a slot and a shard, and how a row for `owner` comes to it; and
what is added up."""


def merge(connection: Connection) -> None:
    """Merge what the server processes have counted once a slot is over, what is older than a day to hours, and what is
    older than a week to days, some at a time; nothing while somebody else does, or while a workflow moves. Shard 1 has
    the slots, 0 the hours and -1 the days, so that an index finds what is left to do. What is merged for the first time
    counts for its workflow's project and for all workflows as well; for the workflow unless it has been deleted."""
    if not run(connection, f"SELECT pg_try_advisory_xact_lock({_LOCK})").scalar():
        return
    for old, merged, begins, owners in (
        ("shard > 1 AND slot < now() - interval '15 minutes'", 1, "slot", f"w.id, w.project_id, '{ALL}'"),
        ("shard = 1 AND slot < now() - interval '25 hours'", 0, "date_trunc('hour', slot, 'UTC')", "workflow_id"),
        ("shard = 0 AND slot < now() - interval '8 days'", -1, "date_trunc('day', slot, 'UTC')", "workflow_id"),
    ):
        for table in _COLUMNS:
            gone = (
                f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("
                f"SELECT ctid FROM {table} WHERE {old} LIMIT {_MERGED} FOR UPDATE SKIP LOCKED)) RETURNING *"
            )
            counted = (
                f"SELECT gone.*, {begins} AS begins, {merged} AS merged, owner, 1 AS sign FROM gone "
                f"LEFT JOIN workflows w ON w.id = workflow_id CROSS JOIN unnest(ARRAY[{owners}]::uuid[]) AS owner"
            )
            _add(connection, table, f"gone AS ({gone}), counted AS ({counted})", {})


def move(connection: Connection, workflow_id: str, project_id: str, to: str | None) -> None:
    """What a workflow counts for its project counts for the project `to` instead, once this transaction is committed;
    None: it is deleted, and keeps no rows either."""
    run(connection, f"SELECT pg_advisory_xact_lock({_LOCK})")
    params = {"id": workflow_id, "projects": [project_id, to]}
    for table in _COLUMNS:
        counted = (
            f"SELECT {table}.*, slot AS begins, shard AS merged, owner, sign FROM {table}, "
            "unnest(%(projects)s::uuid[], ARRAY[-1, 1]) AS project (owner, sign) "
            "WHERE workflow_id = %(id)s::uuid AND shard <= 1"
        )
        _add(connection, table, f"counted AS ({counted})", params)
    if to is None:
        forget(connection, workflow_id)


def forget(connection: Connection, owner: str) -> None:
    """Nobody asks any more for what is merged of a workflow, or of a project."""
    for table in _COLUMNS:
        run(connection, f"DELETE FROM {table} WHERE workflow_id = %(owner)s::uuid AND shard <= 1", {"owner": owner})


def _add(connection: Connection, table: str, counted: str, params: Mapping[str, Any]) -> None:
    """Add the rows of `counted`, each `sign` times, to those that its `owner` has in the slot that `begins` then, in
    the shard `merged`. Whoever does this holds the lock: an owner's rows are of many workflows."""
    about, sums = _COLUMNS[table]
    run(
        connection,
        f"""
        WITH {counted}
        INSERT INTO {table} AS s (workflow_id, slot, shard, {", ".join(about)}, {", ".join(sums)})
        SELECT owner, begins, merged, {", ".join(f"{value} AS its_{name}" for name, value in about.items())},
               {", ".join(f"sum(sign * {name})" for name in sums)}
        FROM counted WHERE owner IS NOT NULL
        GROUP BY owner, begins, merged, {", ".join(f"its_{name}" for name in about)}
        ON CONFLICT (workflow_id, slot, shard, {", ".join(about)}) DO UPDATE SET
            {", ".join(f"{name} = s.{name} + excluded.{name}" for name in sums)}
        """,
        params,
    )
