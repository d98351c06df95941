"""What an execution does again, and when a workflow comes to its end by itself"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "executions",
        sa.Column(
            "rerun_of",
            sa.UUID(as_uuid=False),
            nullable=True,
            comment="the execution that it does again; that may have been deleted",
        ),
    )
    op.create_index(
        "ix_executions_rerun_of", "executions", ["rerun_of"], postgresql_where=sa.text("rerun_of IS NOT NULL")
    )
    for column in (
        sa.Column("run_limit", sa.Integer(), comment="as the newest version says, like the two that follow"),
        sa.Column("max_failures", sa.Integer()),
        sa.Column("end_date", sa.DateTime(timezone=True)),
        sa.Column(
            "counts_from",
            sa.UUID(as_uuid=False),
            comment="executions with later ids count for run_limit and max_failures",
        ),
        sa.Column("status_reason", sa.Text(), comment="why it has this status, if nobody asked for it"),
    ):
        op.add_column("workflows", column)
    op.create_index(
        "ix_workflows_limited",
        "workflows",
        ["id"],
        postgresql_where=sa.text("run_limit IS NOT NULL OR max_failures IS NOT NULL OR end_date IS NOT NULL"),
    )
