"""Statistics: rollups that are kept by the very update that ends an execution, whoever makes it"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_BUCKETS = 120

# Bucket n holds what took from 2^(n/4) to 2^((n+1)/4) milliseconds; the last one all that took longer (12 days).
_FUNCTIONS = (
    f"""
    CREATE FUNCTION duration_bucket(seconds float8) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 1 + least({_BUCKETS - 1}, greatest(0, floor(4 * ln(greatest(seconds, 0.001) * 1000) / ln(2))::int))
    """,
    f"""
    CREATE FUNCTION count_execution(e executions, sign int, since timestamptz) RETURNS void LANGUAGE plpgsql AS $function$
    DECLARE
        -- A row a server process: nobody waits for another's, and no two orders of locks can meet.
        my_shard int := pg_backend_pid();
        my_slot timestamptz := date_bin('5 minutes', e.finished_at, '2000-01-01 00:00:00+00');
        took float8 := extract(epoch FROM e.finished_at - coalesce(e.started_at, e.finished_at));
        waited float8 := extract(epoch FROM coalesce(e.started_at, e.finished_at) - e.created_at);
        d int := duration_bucket(took);
        w int := duration_bucket(waited);
        new_durations int[] := array_fill(0, ARRAY[{_BUCKETS}]);
        new_waits int[] := new_durations;
    BEGIN
        new_durations[d] := sign;
        new_waits[w] := sign;
        INSERT INTO execution_stats AS s (workflow_id, slot, shard, status, number, seconds, durations, waits)
        VALUES (e.workflow_id, my_slot, my_shard, e.status, sign, sign * took, new_durations, new_waits)
        ON CONFLICT (workflow_id, slot, shard, status) DO UPDATE SET number = s.number + sign,
            seconds = s.seconds + sign * took, durations[d] = s.durations[d] + sign, waits[w] = s.waits[w] + sign;
        IF sign < 0 THEN
            RETURN;  -- what its steps have done stays done
        END IF;
        INSERT INTO step_stats AS s (workflow_id, slot, shard, step_id, error_kind, completed, failed, skipped,
                                     cancelled, retried, retried_completed, seconds)
        SELECT e.workflow_id, my_slot, my_shard, t.step_id, coalesce(t.error_kind, '') AS kind,
               count(*) FILTER (WHERE t.status = 'completed'), count(*) FILTER (WHERE t.status = 'failed'),
               count(*) FILTER (WHERE t.status = 'skipped'), count(*) FILTER (WHERE t.status = 'cancelled'),
               count(*) FILTER (WHERE t.attempt - t.losses > 1),
               count(*) FILTER (WHERE t.attempt - t.losses > 1 AND t.status = 'completed'),
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
    """
    CREATE FUNCTION count_execution_end() RETURNS trigger LANGUAGE plpgsql AS $function$
    BEGIN
        IF OLD.finished_at IS NOT NULL THEN
            PERFORM count_execution(OLD, -1, NULL);  -- it is retried: it has not ended after all
        END IF;
        IF NEW.finished_at IS NOT NULL THEN
            PERFORM count_execution(NEW, 1, OLD.counted_until);
            NEW.counted_until := NEW.finished_at;
        END IF;
        RETURN NEW;
    END
    $function$
    """,
)


def upgrade() -> None:
    op.create_table(
        "execution_stats",
        sa.Column("workflow_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("slot", sa.DateTime(timezone=True), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("durations", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("waits", sa.ARRAY(sa.Integer()), nullable=False),
        sa.PrimaryKeyConstraint("workflow_id", "slot", "shard", "status", name=op.f("pk_execution_stats")),
        comment="What became of the executions that ended in a slot; the sum of the shards counts.",
    )
    counts = ("completed", "failed", "skipped", "cancelled", "retried", "retried_completed")
    op.create_table(
        "step_stats",
        sa.Column("workflow_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("slot", sa.DateTime(timezone=True), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("error_kind", sa.Text(), nullable=False, comment="empty: none"),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counts),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_id", "slot", "shard", "step_id", "error_kind", name=op.f("pk_step_stats")),
        comment="The same of their steps.",
    )
    for table in ("execution_stats", "step_stats"):
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")  # a count goes on where it stands
    op.add_column(
        "executions",
        sa.Column("counted_until", sa.DateTime(timezone=True), comment="steps that ended by then are in step_stats"),
    )
    for function in _FUNCTIONS:
        op.execute(function)
    op.execute("SELECT count_execution(e, 1, NULL) FROM executions e WHERE e.finished_at IS NOT NULL")
    op.execute("UPDATE executions SET counted_until = finished_at WHERE finished_at IS NOT NULL")
    op.execute(
        "CREATE TRIGGER count_end BEFORE UPDATE OF finished_at ON executions FOR EACH ROW "
        "WHEN (OLD.finished_at IS DISTINCT FROM NEW.finished_at) EXECUTE FUNCTION count_execution_end()"
    )
