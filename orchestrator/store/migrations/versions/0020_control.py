"""Attempts that are counted on over a retry; pauses that are shared; retries that are said twice"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "step_executions",
        sa.Column("forgiven", sa.Integer(), comment="attempts made before it was tried again; NULL if it never was"),
    )
    for column in (
        sa.Column(
            "paused_with", sa.Text(), comment="whose pause it is that it shares: parent, workflow; NULL: its own"
        ),
        sa.Column(
            "retried_at",
            sa.DateTime(timezone=True),
            comment="when all that had failed of it was last tried again",
        ),
    ):
        op.add_column("executions", column)
    # Statistics count what a retry policy has tried again, not what a user has.
    op.execute("""
        DO $do$ BEGIN
            EXECUTE replace(pg_get_functiondef('count_execution(executions, int, timestamptz)'::regprocedure),
                            't.attempt - t.losses', 't.attempt - coalesce(t.forgiven, 0) - t.losses');
        END $do$
    """)
