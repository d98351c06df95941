"""Plans that do not depend on how much was waiting when PostgreSQL last looked

What is live is a handful of rows after a quiet minute and thousands after a busy one; a plan made after the former
would look through all of the latter. So nothing is kept of the columns that tell it, and the planner assumes the same
small part of the table at any time."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_OF_THE_MOMENT = {
    "executions": ("status", "admitted_at", "held", "paced"),
    "step_executions": ("status", "claim_token", "awaits"),
}
_LIVE = "status IN ('paused', 'queued', 'running')"
_INDEXES = {
    "ix_executions_live": ("id", _LIVE),
    "ix_executions_admitted": ("id", f"admitted_at IS NOT NULL AND {_LIVE}"),
    "ix_executions_trigger_live": ("trigger_id", f"trigger_id IS NOT NULL AND {_LIVE}"),
}


def upgrade() -> None:
    _keep_statistics(0)
    # Without them "none of these" seems to be almost all of the table, and "one of these" almost nothing.
    for name, (column, predicate) in _INDEXES.items():
        op.drop_index(name)
        op.create_index(name, "executions", [column], postgresql_where=sa.text(predicate))


def downgrade() -> None:
    for name, (column, predicate) in _INDEXES.items():
        op.drop_index(name)
        predicate = predicate.replace(_LIVE, "status NOT IN ('cancelled', 'completed', 'failed')")
        op.create_index(name, "executions", [column], postgresql_where=sa.text(predicate))
    _keep_statistics(-1)


def _keep_statistics(most: int) -> None:
    for table, columns in _OF_THE_MOMENT.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS {most}")
