"""Rate limits: what has been used of them, who waits for one, and which an execution runs under"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rate_uses",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", "number", name=op.f("pk_rate_uses")),
        comment="What rate limits are counted from: a row a use, until its window is over.",
    )
    op.create_index(op.f("ix_rate_uses_expires_at"), "rate_uses", ["expires_at"])
    op.create_table(
        "rate_line",
        sa.Column("step_execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("place", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("rate_limit", sa.Integer(), nullable=False),
        sa.Column("rate_per", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("step_execution_id", name=op.f("pk_rate_line")),
        comment="Steps that wait for the rate limit of a connection, in their order; those that have ended do not count.",
    )
    op.create_index("ix_rate_line_key_place", "rate_line", ["key", "place"])
    for column in (
        sa.Column("rate_key", sa.Text(), comment="what its rate limit is counted by: rate_limit in rate_per seconds"),
        sa.Column("rate_limit", sa.Integer()),
        sa.Column("rate_per", sa.Double()),
        sa.Column(
            "paced",
            sa.Boolean(),
            nullable=False,
            server_default=sa.text("false"),
            comment="held, and by its rate limit",
        ),
    ):
        op.add_column("executions", column)
    op.create_index(
        "ix_executions_paced",
        "executions",
        ["rate_key", sa.text("priority DESC"), "turn", "id"],
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND paced"),
    )
    op.create_index(
        "ix_executions_backlog_of_rate",
        "executions",
        ["rate_key"],
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND NOT held AND rate_key IS NOT NULL"),
    )
