"""What live streams are read from: executions, steps and log lines by the number of what last became of them"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0018"
branch_labels = None
depends_on = None

_NEXT = sa.text("nextval('feed_seq')")


def upgrade() -> None:
    op.execute("CREATE SEQUENCE feed_seq")
    for table in "executions", "step_executions":
        # Rows that are there already have a constant, for which PostgreSQL does not write them anew.
        seq = sa.Column(
            "seq", sa.BigInteger(), server_default="0", nullable=False, comment="of its last change of status"
        )
        op.add_column(table, seq)
        op.add_column(table, sa.Column("begun_seq", sa.BigInteger(), comment="of its last change to running"))
        op.create_index(f"ix_{table}_seq", table, ["seq"], postgresql_where=sa.text("seq > 0"))
    op.alter_column("executions", "seq", server_default=_NEXT)
    # Lines get their numbers in the order in which they stand, which is that of their writing.
    op.add_column("step_logs", sa.Column("seq", sa.BigInteger(), server_default=_NEXT, nullable=False))
    op.create_index("ix_step_logs_seq", "step_logs", ["seq"])
    op.create_index("ix_step_logs_execution_id_seq", "step_logs", ["execution_id", "seq"])
    op.drop_index("ix_step_logs_execution_id_id", table_name="step_logs")


def downgrade() -> None:
    op.create_index("ix_step_logs_execution_id_id", "step_logs", ["execution_id", "id"])
    op.drop_column("step_logs", "seq")
    for table in "executions", "step_executions":
        op.drop_column(table, "begun_seq")
        op.drop_column(table, "seq")
    op.execute("DROP SEQUENCE feed_seq")
