"""Histograms are numbers, which sum() adds; lists by what is rare have indexes"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_DIGITS = 12

_FUNCTIONS = (
    f"""
    CREATE FUNCTION one_in_bucket(seconds float8) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ('1e' || {_DIGITS} * (duration_bucket(seconds) - 1))::numeric
    """,
    """
    CREATE OR REPLACE FUNCTION count_execution(e executions, sign int, since timestamptz) RETURNS void
    LANGUAGE plpgsql AS $function$
    DECLARE
        -- A row a server process: nobody waits for another's, and no two orders of locks can meet.
        my_shard int := pg_backend_pid();
        my_slot timestamptz := date_bin('5 minutes', e.finished_at, '2000-01-01 00:00:00+00');
        took float8 := extract(epoch FROM e.finished_at - coalesce(e.started_at, e.finished_at));
        waited float8 := extract(epoch FROM coalesce(e.started_at, e.finished_at) - e.created_at);
    BEGIN
        INSERT INTO execution_stats AS s (workflow_id, slot, shard, status, number, seconds, durations, waits)
        VALUES (e.workflow_id, my_slot, my_shard, e.status, sign, sign * took, sign * one_in_bucket(took),
                sign * one_in_bucket(waited))
        ON CONFLICT (workflow_id, slot, shard, status) DO UPDATE SET number = s.number + excluded.number,
            seconds = s.seconds + excluded.seconds, durations = s.durations + excluded.durations,
            waits = s.waits + excluded.waits;
        IF sign < 0 THEN
            RETURN;  -- what its steps have done stays done
        END IF;
        INSERT INTO step_stats AS s (workflow_id, slot, shard, step_id, error_kind, completed, failed, skipped,
                                     cancelled, retried, retried_completed, seconds)
        SELECT e.workflow_id, my_slot, my_shard, t.step_id, coalesce(t.error_kind, '') AS kind,
               count(*) FILTER (WHERE t.status = 'completed'), count(*) FILTER (WHERE t.status = 'failed'),
               count(*) FILTER (WHERE t.status = 'skipped'), count(*) FILTER (WHERE t.status = 'cancelled'),
               count(*) FILTER (WHERE t.attempt - coalesce(t.forgiven, 0) - t.losses > 1),
               count(*) FILTER (WHERE t.attempt - coalesce(t.forgiven, 0) - t.losses > 1 AND t.status = 'completed'),
               coalesce(sum(extract(epoch FROM t.finished_at - t.started_at))
                        FILTER (WHERE t.status IN ('completed', 'failed')), 0)
        FROM step_executions t
        WHERE t.execution_id = e.id AND (t.attempt > 0 OR t.status IN ('skipped', 'cancelled'))
          AND (since IS NULL OR t.finished_at > since)
        GROUP BY t.step_id, kind
        ON CONFLICT (workflow_id, slot, shard, step_id, error_kind) DO UPDATE SET
            completed = s.completed + excluded.completed, failed = s.failed + excluded.failed,
            skipped = s.skipped + excluded.skipped, cancelled = s.cancelled + excluded.cancelled,
            retried = s.retried + excluded.retried,
            retried_completed = s.retried_completed + excluded.retried_completed,
            seconds = s.seconds + excluded.seconds;
    END
    $function$
    """,
)


def upgrade() -> None:
    for function in _FUNCTIONS:
        op.execute(function)
    op.execute(
        f"""
        CREATE FUNCTION as_number(buckets int[]) RETURNS numeric LANGUAGE sql IMMUTABLE RETURN (
            SELECT coalesce(sum(n * ('1e' || {_DIGITS} * (i - 1))::numeric), 0)
            FROM unnest(buckets) WITH ORDINALITY AS u(n, i) WHERE n <> 0
        )
        """
    )
    op.execute(
        "ALTER TABLE execution_stats ALTER durations TYPE numeric USING as_number(durations), "
        "ALTER waits TYPE numeric USING as_number(waits)"
    )
    op.execute("COMMENT ON COLUMN execution_stats.durations IS 'a histogram, see store/stats.py'")
    op.execute("DROP FUNCTION as_number")
    op.create_index(
        "ix_step_stats_trouble", "step_stats", ["slot"], postgresql_where=sa.text("failed <> 0 OR retried <> 0")
    )
    for table in ("execution_stats", "step_stats"):
        for name, rows in (("slots", "shard > 0"), ("hours", "shard = 0")):
            op.create_index(f"ix_{table}_{name}", table, ["slot"], postgresql_where=sa.text(rows))
    op.drop_index("ix_executions_workflow_id_id", "executions")
    op.create_index(
        "ix_executions_workflow_id_id", "executions", ["workflow_id", "id"], postgresql_include=["created_at"]
    )
    op.create_index(
        "ix_executions_ended_of_workflow",
        "executions",
        ["workflow_id", "status", "id"],
        postgresql_include=["created_at"],
        postgresql_where=sa.text("status IN ('cancelled', 'completed', 'failed')"),
    )
    op.create_index("ix_audit_log_action_id", "audit_log", ["action", "id"])
    op.create_index("ix_audit_log_object_kind_id", "audit_log", ["object_kind", "id"])
    op.create_index("ix_audit_log_request_id", "audit_log", ["request_id"])
    op.create_index(
        "ix_audit_log_denied", "audit_log", ["id"], postgresql_where=sa.text("status IN (401, 403, 404, 429)")
    )
