"""Statistics, read from the rollups that every end of an execution keeps (migration 0014)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_LIVE, EXECUTION_TERMINAL, sql_words
from orchestrator.store.session import as_dicts, run

PER_OCTAVE = 4
"""Buckets of a histogram from a time to twice that."""


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
        """A condition on rows that have a workflow_id."""
        if self.workflow_id is not None:
            return "workflow_id = %(workflow)s::uuid"
        if self.projects is not None:
            return "workflow_id IN (SELECT id FROM workflows WHERE project_id = ANY(%(projects)s::uuid[]))"
        return "true"

    @property
    def params(self) -> dict[str, Any]:
        return {"workflow": self.workflow_id, "projects": list(self.projects or ())}


def counts(connection: Connection, which: Which, since: datetime, before: datetime | None = None) -> dict[str, int]:
    """How many ended as what."""
    rows = run(
        connection,
        f"SELECT status, sum(number)::bigint AS number FROM execution_stats WHERE {which.sql} "
        "AND slot >= %(since)s AND (%(before)s::timestamptz IS NULL OR slot < %(before)s) GROUP BY status",
        {**which.params, "since": since, "before": before},
    )
    return dict.fromkeys(sorted(EXECUTION_TERMINAL), 0) | {row.status: row.number for row in rows}


def series(connection: Connection, which: Which, since: datetime, width: float) -> list[dict[str, Any]]:
    """The same for each `width` seconds in which something ended."""
    rows = run(
        connection,
        "SELECT date_bin(%(width)s * interval '1 second', slot, %(since)s) AS begins, status, "
        f"sum(number)::bigint AS number FROM execution_stats WHERE {which.sql} AND slot >= %(since)s "
        "GROUP BY begins, status ORDER BY begins",
        {**which.params, "since": since, "width": width},
    )
    points: dict[datetime, dict[str, Any]] = {}
    for row in rows:
        empty = {"begins": row.begins} | dict.fromkeys(sorted(EXECUTION_TERMINAL), 0)
        points.setdefault(row.begins, empty)[row.status] = row.number
    return list(points.values())


@dataclass(frozen=True, slots=True)
class Times:
    """Of the executions that completed or failed: seconds in all, and histograms of how long they took, and waited
    before they began."""

    number: int
    seconds: float
    durations: Sequence[int]
    waits: Sequence[int]


def times(connection: Connection, which: Which, since: datetime) -> Times:
    chosen = f"{which.sql} AND slot >= %(since)s AND status IN ('completed', 'failed')"
    row = run(
        connection,
        f"""
        SELECT coalesce(sum(number), 0)::bigint AS number, coalesce(sum(seconds), 0)::float8 AS seconds,
               (SELECT array_agg(d ORDER BY i) FROM (
                    SELECT i, sum(d)::bigint AS d FROM execution_stats, unnest(durations) WITH ORDINALITY AS u(d, i)
                    WHERE {chosen} GROUP BY i) AS sums) AS durations,
               (SELECT array_agg(w ORDER BY i) FROM (
                    SELECT i, sum(w)::bigint AS w FROM execution_stats, unnest(waits) WITH ORDINALITY AS u(w, i)
                    WHERE {chosen} GROUP BY i) AS sums) AS waits
        FROM execution_stats WHERE {chosen}
        """,
        {**which.params, "since": since},
    ).one()
    return Times(row.number, row.seconds, row.durations or (), row.waits or ())


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


def error_kinds(connection: Connection, which: Which, since: datetime) -> dict[str, int]:
    """How many steps failed in which way, the most frequent first."""
    rows = run(
        connection,
        f"SELECT error_kind, sum(failed)::bigint AS number FROM step_stats WHERE {which.sql} AND slot >= %(since)s "
        "AND failed <> 0 GROUP BY error_kind ORDER BY number DESC, error_kind LIMIT 50",
        {**which.params, "since": since},
    )
    return {row.error_kind: row.number for row in rows}


def retries(connection: Connection, which: Which, since: datetime) -> tuple[int, int]:
    """Steps that took more than one attempt, and those of them that completed."""
    row = run(
        connection,
        "SELECT coalesce(sum(retried), 0)::bigint AS retried, coalesce(sum(retried_completed), 0)::bigint AS completed "
        f"FROM step_stats WHERE {which.sql} AND slot >= %(since)s",
        {**which.params, "since": since},
    ).one()
    return row.retried, row.completed


def of_workflow(connection: Connection, workflow_id: str) -> Mapping[str, Any]:
    """All that ever ran: execution_count, last_executed, and the share of those that ended which completed."""
    row = run(
        connection,
        f"""
        WITH ended AS (
            SELECT coalesce(sum(number), 0) AS number, sum(number) FILTER (WHERE status = 'completed') AS completed
            FROM execution_stats WHERE workflow_id = %(id)s::uuid
        )
        SELECT (ended.number + (SELECT count(*) FROM executions WHERE workflow_id = %(id)s::uuid
                                AND status IN ({sql_words(EXECUTION_LIVE)})))::bigint AS execution_count,
               (SELECT created_at FROM executions WHERE workflow_id = %(id)s::uuid ORDER BY id DESC LIMIT 1)
               AS last_executed,
               (coalesce(ended.completed, 0) / nullif(ended.number, 0))::float8 AS success_rate
        FROM ended
        """,
        {"id": workflow_id},
    ).one()
    return dict(row._mapping)


def all_ended(connection: Connection) -> Sequence[Any]:
    """Of all executions that ever ended, by status: their number, and the seconds that they took."""
    return run(
        connection,
        "SELECT status, sum(number)::bigint AS number, sum(seconds)::float8 AS seconds FROM execution_stats "
        "GROUP BY status ORDER BY status",
    ).all()


def all_steps(connection: Connection) -> dict[str, int]:
    """What became of all their steps, and how many took more than one attempt."""
    names = ("completed", "failed", "skipped", "cancelled", "retried")
    sums = ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in names)
    return dict(run(connection, f"SELECT {sums} FROM step_stats").one()._mapping)


_MERGED = 2000
"""Rows merged at a time."""
_ADD = "(SELECT array_agg(a + b ORDER BY i) FROM unnest(s.{0}, excluded.{0}) WITH ORDINALITY AS u(a, b, i))"


def merge(connection: Connection) -> None:
    """Merge what is older than a day to hours, and what is older than a week to days, some at a time."""
    for unit, age in (("hour", "25 hours"), ("day", "8 days")):
        old = (
            f"SELECT ctid FROM {{table}} WHERE slot < clock_timestamp() - interval '{age}' "
            f"AND (shard <> 0 OR slot <> date_trunc('{unit}', slot, 'UTC')) LIMIT {_MERGED} FOR UPDATE SKIP LOCKED"
        )
        slot = f"date_trunc('{unit}', slot, 'UTC') AS slot"
        run(
            connection,
            f"""
            WITH gone AS (
                DELETE FROM execution_stats WHERE ctid = ANY(ARRAY({old.format(table="execution_stats")})) RETURNING *
            ), sums AS (
                SELECT workflow_id, {slot}, status, sum(number) AS number, sum(seconds) AS seconds
                FROM gone GROUP BY 1, 2, 3
            ), buckets AS (
                SELECT workflow_id, {slot}, status, i, sum(d)::int AS d, sum(w)::int AS w
                FROM gone, unnest(durations, waits) WITH ORDINALITY AS u(d, w, i) GROUP BY 1, 2, 3, 4
            ), arrays AS (
                SELECT workflow_id, slot, status, array_agg(d ORDER BY i) AS durations, array_agg(w ORDER BY i) AS waits
                FROM buckets GROUP BY 1, 2, 3
            )
            INSERT INTO execution_stats AS s (workflow_id, slot, shard, status, number, seconds, durations, waits)
            SELECT workflow_id, slot, 0, status, number, seconds, durations, waits
            FROM sums JOIN arrays USING (workflow_id, slot, status)
            ON CONFLICT (workflow_id, slot, shard, status) DO UPDATE SET number = s.number + excluded.number,
                seconds = s.seconds + excluded.seconds, durations = {_ADD.format("durations")},
                waits = {_ADD.format("waits")}
            """,
        )
        columns = ("completed", "failed", "skipped", "cancelled", "retried", "retried_completed", "seconds")
        run(
            connection,
            f"""
            WITH gone AS (
                DELETE FROM step_stats WHERE ctid = ANY(ARRAY({old.format(table="step_stats")})) RETURNING *
            )
            INSERT INTO step_stats AS s (workflow_id, slot, shard, step_id, error_kind, {", ".join(columns)})
            SELECT workflow_id, {slot}, 0, step_id, error_kind, {", ".join(f"sum({name})" for name in columns)}
            FROM gone GROUP BY 1, 2, 4, 5
            ON CONFLICT (workflow_id, slot, shard, step_id, error_kind) DO UPDATE SET
                {", ".join(f"{name} = s.{name} + excluded.{name}" for name in columns)}
            """,
        )
