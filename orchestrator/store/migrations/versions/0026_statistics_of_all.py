"""Statistics of all workflows together have rows of their own, which metrics read as well"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_ALL = "00000000-0000-0000-0000-000000000000"


def upgrade() -> None:
    op.execute(
        f"""
        INSERT INTO execution_stats (workflow_id, slot, shard, status, number, seconds, durations, waits)
        SELECT '{_ALL}', slot, shard, status, sum(number), sum(seconds), sum(durations), sum(waits)
        FROM execution_stats WHERE shard <= 1 GROUP BY slot, shard, status
        """
    )
    op.execute(
        f"""
        INSERT INTO step_stats (workflow_id, slot, shard, step_id, error_kind, completed, failed, skipped, cancelled,
                                retried, retried_completed, seconds)
        SELECT '{_ALL}', slot, shard, '', error_kind, sum(completed), sum(failed), sum(skipped), sum(cancelled),
               sum(retried), sum(retried_completed), sum(seconds)
        FROM step_stats WHERE shard <= 1 GROUP BY slot, shard, error_kind
        """
    )
    op.drop_table("stats_totals")
