"""What workers count of their work, and how each isolates scripts"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0019"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", ARRAY(sa.Text()), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_counters")),
        comment="What processes have counted, added up; see orchestrator/metrics.py.",
    )
    # Written every few seconds by each process: room for the next state of a row beside this one.
    op.execute("ALTER TABLE counters SET (fillfactor = 50)")
    op.add_column(
        "worker_processes",
        sa.Column("script_isolation", sa.Text(), comment="bubblewrap or limits; NULL if it has not said so"),
    )


def downgrade() -> None:
    op.drop_column("worker_processes", "script_isolation")
    op.drop_table("counters")
