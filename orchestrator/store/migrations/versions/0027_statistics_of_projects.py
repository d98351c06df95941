"""Statistics of the workflows of a project together have rows of their own; those of deleted workflows have none"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

_ALL = "00000000-0000-0000-0000-000000000000"
_COMMENT = "or a project's id, or 0: of all workflows"


def upgrade() -> None:
    op.execute(
        """
        INSERT INTO execution_stats (workflow_id, slot, shard, status, number, seconds, durations, waits)
        SELECT w.project_id, slot, shard, s.status, sum(number), sum(seconds), sum(durations), sum(waits)
        FROM execution_stats s JOIN workflows w ON w.id = s.workflow_id WHERE shard <= 1
        GROUP BY w.project_id, slot, shard, s.status
        """
    )
    op.execute(
        """
        INSERT INTO step_stats (workflow_id, slot, shard, step_id, error_kind, completed, failed, skipped, cancelled,
                                retried, retried_completed, seconds)
        SELECT w.project_id, slot, shard, '', error_kind, sum(completed), sum(failed), sum(skipped), sum(cancelled),
               sum(retried), sum(retried_completed), sum(seconds)
        FROM step_stats s JOIN workflows w ON w.id = s.workflow_id WHERE shard <= 1
        GROUP BY w.project_id, slot, shard, error_kind
        """
    )
    for table in ("execution_stats", "step_stats"):
        op.execute(
            f"DELETE FROM {table} WHERE shard <= 1 AND workflow_id <> '{_ALL}' AND workflow_id NOT IN "
            "(SELECT id FROM workflows UNION ALL SELECT id FROM projects)"
        )
        op.alter_column(table, "workflow_id", existing_type=sa.UUID(as_uuid=False), comment=_COMMENT)
