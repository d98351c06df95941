"""Steps by height"""

import sqlalchemy as sa
from alembic import op

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
