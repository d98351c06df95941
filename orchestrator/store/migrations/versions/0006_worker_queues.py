"""What a worker process takes its steps from, and how many at a time"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "worker_processes",
        sa.Column(
            "queues",
            postgresql.ARRAY(sa.Text()),
            nullable=True,
            comment="that it takes steps from; NULL if it has not said so",
        ),
    )
    op.add_column(
        "worker_processes",
        sa.Column("slots", sa.Integer(), nullable=True, comment="tasks that it performs at a time"),
    )
