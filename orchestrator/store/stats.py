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
        """A condition on rows that have a workflow_id."""
        if self.workflow_id is not None:
            return "workflow_id = %(workflow)s::uuid"
        if self.projects is not None:
            return "workflow_id IN (SELECT id FROM workflows WHERE project_id = ANY(%(projects)s::uuid[]))"
        return "true"

    @property
    def params(self) -> dict[str, Any]:
        return {"workflow": self.workflow_id, "projects": list(self.projects or ())}


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended as `status` within some time: how many, the seconds that they took together, and histograms of how
    long they took and waited before they began, as `buckets` reads them."""

    begins: datetime
    status: str
    number: int
    seconds: float
    durations: int
    waits: int


def ended(connection: Connection, which: Which, since: datetime, width: float) -> list[Ended]:
    """For each `width` seconds from `since` on in which something ended, in their order."""
    rows = run(
        connection,
        "SELECT date_bin(%(width)s * interval '1 second', slot, %(since)s) AS begins, status, "
        "sum(number)::bigint AS number, sum(seconds)::float8 AS seconds, sum(durations) AS durations, "
        f"sum(waits) AS waits FROM execution_stats WHERE {which.sql} AND slot >= %(since)s "
        "GROUP BY begins, status ORDER BY begins",
        {**which.params, "since": since, "width": width},
    )
    return [Ended(row.begins, row.status, row.number, row.seconds, int(row.durations), int(row.waits)) for row in rows]


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


MEASURES = {
    "execution_stats": "('executions', status, number::float8), ('seconds', status, seconds)",
    "step_stats": ", ".join(
        f"('steps', '{name}', {name}::float8)" for name in ("completed", "failed", "skipped", "cancelled", "retried")
    ),
}
"""What a row of a table adds to which totals, as a list of VALUES."""


def totals(connection: Connection) -> dict[str, dict[str, float]]:
    """Since the beginning, by status: how many `executions` ended, the `seconds` that they took, and what became of
    their `steps`. It reads what ended in the last quarter of an hour, and what is merged in stats_totals."""
    fresh = " UNION ALL ".join(
        f"SELECT m.* FROM {table} CROSS JOIN LATERAL (VALUES {values}) AS m (measure, status, value) WHERE shard > 1"
        for table, values in MEASURES.items()
    )
    found: dict[str, dict[str, float]] = {"executions": {}, "seconds": {}, "steps": {}}
    for row in run(
        connection,
        f"SELECT measure, status, sum(value)::float8 AS value FROM (SELECT * FROM stats_totals UNION ALL {fresh}) AS m "
        "GROUP BY measure, status ORDER BY measure, status",
    ):
        found[row.measure][row.status] = row.value
    return found


_MERGED = 2000
"""Rows merged at a time."""
_COLUMNS = {
    "execution_stats": ("status", ("number", "seconds", "durations", "waits")),
    "step_stats": (
        "step_id, error_kind",
        ("completed", "failed", "skipped", "cancelled", "retried", "retried_completed", "seconds"),
    ),
}
"""What the rows of a table are about besides a workflow, a slot and a shard; and what is added up."""


def merge(connection: Connection) -> None:
    """Merge what the server processes have counted once a slot is over, what is older than a day to hours, and what is
    older than a week to days, some at a time. Shard 1 has the slots, 0 the hours and -1 the days, so that an index
    finds what is left to do."""
    for old, merged, begins in (
        ("shard > 1 AND slot < now() - interval '15 minutes'", 1, "slot"),
        ("shard = 1 AND slot < now() - interval '25 hours'", 0, "date_trunc('hour', slot, 'UTC')"),
        ("shard = 0 AND slot < now() - interval '8 days'", -1, "date_trunc('day', slot, 'UTC')"),
    ):
        for table, (about, sums) in _COLUMNS.items():
            run(
                connection,
                f"""
                WITH gone AS (
                    DELETE FROM {table} WHERE ctid = ANY(ARRAY(
                        SELECT ctid FROM {table} WHERE {old} LIMIT {_MERGED} FOR UPDATE SKIP LOCKED)) RETURNING *
                ), totalled AS (
                    INSERT INTO stats_totals AS t (measure, status, value)
                    SELECT m.measure, m.status, sum(m.value)
                    FROM gone CROSS JOIN LATERAL (VALUES {MEASURES[table]}) AS m (measure, status, value)
                    WHERE gone.shard > 1 GROUP BY m.measure, m.status ORDER BY m.measure, m.status
                    ON CONFLICT (measure, status) DO UPDATE SET value = t.value + excluded.value
                )
                INSERT INTO {table} AS s (workflow_id, slot, shard, {about}, {", ".join(sums)})
                SELECT workflow_id, {begins} AS begins, {merged}, {about},
                       {", ".join(f"sum({name})" for name in sums)}
                FROM gone GROUP BY workflow_id, begins, {about}
                ON CONFLICT (workflow_id, slot, shard, {about}) DO UPDATE SET
                    {", ".join(f"{name} = s.{name} + excluded.{name}" for name in sums)}
                """,
            )
