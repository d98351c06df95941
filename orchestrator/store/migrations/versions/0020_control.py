"""Attempts that are counted on over a retry; pauses that are shared; looks at rate limits; ends to be told of"""

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
    op.create_table(
        "rate_looks",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rate_looks")),
        comment="When to look whether a rate limit lets in the next of those that it holds: a row a key that holds any.",
    )
    op.create_index(op.f("ix_rate_looks_at"), "rate_looks", ["at"])
    op.create_table(
        "untold_ends",
        sa.Column("execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("execution_id", name=op.f("pk_untold_ends")),
        comment="Executions that were ended by somebody who has no plugins to tell: a row until a worker tells its own.",
    )
    # Statistics count what a retry policy has tried again, not what a user has.
    op.execute("""
        DO $do$ BEGIN
            EXECUTE replace(pg_get_functiondef('count_execution(executions, int, timestamptz)'::regprocedure),
                            't.attempt - t.losses', 't.attempt - coalesce(t.forgiven, 0) - t.losses');
        END $do$
    """)
