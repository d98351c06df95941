"""Fills a database with a service's past: executions that have ended, their steps, logs, audit entries and statistics.

Set-based SQL, since a million executions through the API would take hours. It stands in for what three months leave
behind: the busiest of fifty workflows has a seventh of the executions, some never fail, one never ran.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from orchestrator.config import RetentionSettings
from orchestrator.store import Store, archives, partitions, stats
from orchestrator.store.session import run

DAYS = 90
STEPS = 5
_AT_ONCE = 100_000
"""Executions of a transaction."""


@dataclass(frozen=True, slots=True)
class Past:
    """`workflow_ids`: the busiest first; the last one never ran. `trigger_id` belongs to the first."""

    workflow_ids: Sequence[str]
    step_ids: Sequence[str]
    trigger_id: str


# Ids are UUIDv7 of the moment: those of the steps differ from their execution's by the place in the definition.
_ID = """
    (substr(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0'), 1, 12) || '7'
     || lpad(to_hex({kind}), 3, '0') || '8' || lpad(to_hex({number}), 15, '0'))::uuid
"""

# Who ends how: the busiest workflow never fails, nor do those after the fortieth. `stopped` is the place of the step
# that failed, or during which it was cancelled.
_DRAW = f"""
    CREATE UNLOGGED TABLE past AS
    SELECT n, {_ID.format(at="at", kind="0", number="n")} AS id, workflow_id, at,
           CASE WHEN chance < 0.02 THEN 'cancelled' WHEN fails THEN 'failed' ELSE 'completed' END AS status,
           CASE WHEN chance < 0.02 OR fails THEN 1 + n %% {STEPS} ELSE {STEPS} + 1 END AS stopped,
           at + interval '1 ms' * (2 + 60 * spread * spread) AS began,
           interval '1 ms' * (5 + place * 40 * spread) AS per_step
    FROM (
        SELECT n, chance, chance < 0.06 AND place BETWEEN 2 AND 40 AS fails, random() AS spread, place,
               (%(workflows)s)[place]::uuid AS workflow_id,
               clock_timestamp() - interval '{DAYS} days' * (1 - n::float8 / %(executions)s) AS at
        FROM (SELECT n, random() AS chance,
                     1 + floor((cardinality(%(workflows)s) - 1) * power(random(), 2))::int AS place
              FROM generate_series(1, %(executions)s) n) AS placed
    ) AS drawn
"""

_EXECUTIONS = """
    INSERT INTO executions (id, workflow_id, version, status, input, output, priority, idempotency_key, error_message,
                            created_at, started_at, finished_at, counted_until, admitted_at, rerun_of)
    SELECT p.id, workflow_id, 1, status, jsonb_build_object('order', n, 'customer', 'customer ' || n %% 5000),
           CASE WHEN status = 'completed' THEN jsonb_build_object('s4', jsonb_build_object('rows', n %% 1000)) END, 5,
           CASE WHEN n %% 4 = 0 THEN 'order-' || n END,
           CASE WHEN status <> 'completed' THEN 'step s did not end well' END,
           at, began, ended, ended, at,
           CASE WHEN n %% 1000 = 0 THEN before END
    FROM (SELECT *, lag(id) OVER (ORDER BY n) AS before, began + per_step * least(stopped, %(steps)s) AS ended FROM past
          WHERE n > %(after)s AND n <= %(until)s) AS p ORDER BY n
"""

_STEPS = f"""
    INSERT INTO step_executions (id, execution_id, path, step_id, type, queue, status, attempt, height, input, output,
                                 error_kind, error_message, worker_id, rung_at, started_at, finished_at)
    SELECT {_ID.format(at="at", kind="place", number="n")}, id, step_id, step_id, 'noop', 'control',
           CASE WHEN place < stopped THEN 'completed' WHEN place = stopped THEN status ELSE 'skipped' END,
           CASE WHEN place > stopped THEN 0 WHEN n %% 40 = 0 THEN 2 ELSE 1 END, cardinality(%(names)s) - place,
           CASE WHEN place <= stopped THEN jsonb_build_object('order', n, 'url', 'https://shop/orders/' || n) END,
           CASE WHEN place < stopped THEN jsonb_build_object('rows', n %% 1000, 'etag', md5(n::text)) END,
           CASE WHEN place = stopped AND status = 'failed'
                THEN (ARRAY['error', 'timeout', 'connection'])[1 + n %% 3] END,
           CASE WHEN place = stopped AND status = 'failed' THEN 'the shop did not answer' END,
           CASE WHEN place <= stopped THEN id END, CASE WHEN place = 1 THEN at END,
           CASE WHEN place <= stopped THEN began + per_step * (place - 1) END, began + per_step * least(place, stopped)
    FROM past, unnest(%(names)s) WITH ORDINALITY AS names(step_id, place)
    WHERE n > %(after)s AND n <= %(until)s ORDER BY n, place
"""

# As the trigger on the end of an execution counts (migration 0014), and reconcile merges (store/stats.py).
_SLOT = """
    CASE WHEN finished_at < clock_timestamp() - interval '8 days' THEN date_trunc('day', finished_at, 'UTC')
         WHEN finished_at < clock_timestamp() - interval '25 hours' THEN date_trunc('hour', finished_at, 'UTC')
         ELSE date_bin('5 minutes', finished_at, '2000-01-01 00:00:00+00') END
"""
_SHARD = """
    CASE WHEN finished_at < clock_timestamp() - interval '8 days' THEN -1
         WHEN finished_at < clock_timestamp() - interval '25 hours' THEN 0
         WHEN finished_at < clock_timestamp() - interval '20 minutes' THEN 1 ELSE 2 + n %% 4 END
"""

# What is merged counts for the workflow's project and for all workflows, too.
_OWNERS = f"""
    unnest(CASE WHEN shard <= 1 THEN ARRAY[workflow_id, project_id, '{stats.ALL}'] ELSE ARRAY[workflow_id] END)
"""

_EXECUTION_STATS = f"""
    INSERT INTO execution_stats (workflow_id, slot, shard, status, number, seconds, durations, waits)
    SELECT owner, slot, shard, status, count(*), sum(took), sum(one_in_bucket(took)),
           sum(one_in_bucket(waited))
    FROM (
        SELECT workflow_id, w.project_id, {_SLOT} AS slot, {_SHARD} AS shard, e.status,
               extract(epoch FROM finished_at - started_at)::float8 AS took,
               extract(epoch FROM started_at - e.created_at)::float8 AS waited
        FROM all_executions e JOIN past USING (id, workflow_id) JOIN workflows w ON w.id = workflow_id
    ) AS ended CROSS JOIN LATERAL {_OWNERS} AS owner GROUP BY 1, 2, 3, 4
"""

_STEP_STATS = f"""
    INSERT INTO step_stats (workflow_id, slot, shard, step_id, error_kind, completed, failed, skipped, cancelled,
                            retried, retried_completed, seconds)
    SELECT owner, slot, shard, CASE WHEN owner = workflow_id THEN step_id ELSE '' END, kind,
           count(*) FILTER (WHERE status = 'completed'),
           count(*) FILTER (WHERE status = 'failed'), count(*) FILTER (WHERE status = 'skipped'),
           count(*) FILTER (WHERE status = 'cancelled'), count(*) FILTER (WHERE attempt > 1),
           count(*) FILTER (WHERE attempt > 1 AND status = 'completed'),
           coalesce(sum(extract(epoch FROM ended - began)) FILTER (WHERE status IN ('completed', 'failed')), 0)
    FROM (
        SELECT e.workflow_id, w.project_id, {_SLOT.replace("finished_at", "e.finished_at")} AS slot,
               {_SHARD.replace("finished_at", "e.finished_at")} AS shard, s.step_id, coalesce(s.error_kind, '') AS kind,
               s.status, s.attempt, s.started_at AS began, s.finished_at AS ended
        FROM all_step_executions s JOIN all_executions e ON e.id = s.execution_id JOIN past ON past.id = e.id
             JOIN workflows w ON w.id = e.workflow_id
    ) AS ended CROSS JOIN LATERAL {_OWNERS} AS owner GROUP BY 1, 2, 3, 4, 5
"""

# One execution has very many lines, and of the others one in ten has two.
_LOGS = f"""
    INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at)
    SELECT {_ID.format(at="at", kind="kind", number="number")}, id, id, (%(names)s)[1], 1,
           CASE kind WHEN 1 THEN 'info' ELSE 'warning' END, 'line ' || number, at
    FROM (
        SELECT id, at, kind, n AS number FROM past, generate_series(1, 2) kind WHERE n %% 10 = 0
        UNION ALL
        SELECT id, at, 3, number FROM past, generate_series(1, %(lines)s) number WHERE n = %(executions)s
    ) AS lines
"""

_AUDIT = f"""
    INSERT INTO audit_log (id, at, actor_kind, actor_id, actor_name, action, object_kind, object_id, project_id, status,
                           after, address, request_id)
    SELECT {_ID.format(at="p.at", kind="9", number="n")}, p.at, 'key', 'somebody ' || n %% 20, 'somebody',
           'workflow.execute', 'workflow', p.workflow_id, w.project_id, CASE WHEN n %% 1000 = 0 THEN 403 ELSE 202 END,
           jsonb_build_object('execution_id', p.id), '192.0.2.1', md5(n::text)
    FROM past p JOIN workflows w ON w.id = p.workflow_id WHERE n %% 2 = 0
"""

_FIRES = f"""
    INSERT INTO trigger_fires (id, trigger_id, slot, scheduled_for, input, outcome, execution_id, created_at)
    SELECT {_ID.format(at="at", kind="8", number="n")}, %(trigger)s, n::text, at, '{{}}', 'started', id, at
    FROM past WHERE workflow_id = (%(workflows)s)[1]::uuid
"""


def fill(store: Store, past: Past, executions: int, log_lines: int = 100_000) -> None:
    """Executions that ended within the last DAYS days, `executions` of them, each of its workflow's version 1. They are
    laid aside as often as they would have been meanwhile."""
    each = partitions.span(RetentionSettings().executions)
    in_each = round(executions * each.total_seconds() / (DAYS * partitions.DAY.total_seconds()))
    with store.single() as connection, _unchecked(connection):
        params = {
            "executions": executions,
            "workflows": list(past.workflow_ids),
            "names": list(past.step_ids),
            "trigger": past.trigger_id,
            "steps": len(past.step_ids),
            "lines": log_lines,
        }
        _timed(connection, "who ran when", _DRAW, params)
        for begin in range(0, executions, in_each):
            if begin:
                _lay_aside(store)
            end = min(begin + in_each, executions)
            for after in range(begin, end, _AT_ONCE):
                until = {"after": after, "until": min(after + _AT_ONCE, end)}
                _timed(connection, f"executions from {after:,}", _EXECUTIONS, params | until)
                _timed(connection, f"their {len(past.step_ids)} steps each", _STEPS, params | until)
        for name, sql in (
            ("statistics", _EXECUTION_STATS),
            ("statistics of steps", _STEP_STATS),
            ("log lines", _LOGS),
            ("audit entries", _AUDIT),
            ("fires", _FIRES),
        ):
            _timed(connection, name, sql, params)


def _lay_aside(store: Store) -> None:
    with store.transaction() as connection:
        archives.make_ready(connection)
    with store.transaction() as connection:
        archives.lay_aside(connection)


@contextmanager
def _unchecked(connection: Connection) -> Iterator[None]:
    """Foreign keys are not looked up for each row: what is inserted is known to be there."""
    run(connection, "SELECT setseed(0.5)")
    run(connection, "SET session_replication_role = replica")
    run(connection, "SET work_mem = '256MB'")
    try:
        yield
    finally:
        run(connection, "DROP TABLE IF EXISTS past")
        run(connection, "RESET session_replication_role; RESET work_mem")
        run(connection, "VACUUM ANALYZE")


def _timed(connection: Connection, what: str, sql: str, params: dict[str, object]) -> None:
    began = time.perf_counter()
    rows = run(connection, sql, params).rowcount
    print(f"  {what:<30} {rows:>10,} rows {time.perf_counter() - began:8.1f} s", flush=True)
