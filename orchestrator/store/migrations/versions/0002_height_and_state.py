"""Steps by height, and what a resting attempt leaves for itself"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "step_executions",
        sa.Column(
            "height",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Graph.heights: the highest first",
        ),
    )
    op.add_column(
        "step_executions",
        sa.Column("state", postgresql.JSONB(), nullable=True, comment="what an attempt that rests left for itself"),
    )
