"""What has a place is counted by an index that is of nothing else, whatever PostgreSQL knows of its size"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_NAME = "ix_executions_admitted"


def upgrade() -> None:
    op.drop_index(_NAME, table_name="executions")
    _create("finished_at IS NULL")


def downgrade() -> None:
    op.drop_index(_NAME, table_name="executions")
    _create("status IN ('paused', 'queued', 'running')")


def _create(lives: str) -> None:
    op.create_index(_NAME, "executions", ["id"], postgresql_where=sa.text(f"admitted_at IS NOT NULL AND {lives}"))
