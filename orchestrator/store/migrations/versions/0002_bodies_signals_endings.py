"""Bodies, signals, endings, cached results, admission, and the order of steps by height"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cached_results",
        sa.Column("workflow_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False, comment="digest of the rendered key"),
        sa.Column("output", postgresql.JSONB(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"], ["workflows.id"], name=op.f("fk_cached_results_workflow_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("workflow_id", "step_id", "key", name=op.f("pk_cached_results")),
    )
    op.create_index("ix_cached_results_expires_at", "cached_results", ["expires_at"], unique=False)
    op.create_table(
        "signals",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "taken_by",
            sa.UUID(as_uuid=False),
            nullable=True,
            comment="the step execution that it woke; NULL until one asks for it",
        ),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["executions.id"], name=op.f("fk_signals_execution_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signals")),
    )
    op.create_index(
        "ix_signals_untaken",
        "signals",
        ["execution_id", "name", "id"],
        unique=False,
        postgresql_where=sa.text("taken_by IS NULL"),
    )
    op.add_column("executions", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "executions",
        sa.Column(
            "outcome", sa.Text(), nullable=True, comment="what it ends as, once the steps have run that run at its end"
        ),
    )
    op.add_column(
        "executions",
        sa.Column(
            "parent_step_id", sa.UUID(as_uuid=False), nullable=True, comment="the step execution that started it"
        ),
    )
    op.add_column(
        "executions",
        sa.Column("depth", sa.SmallInteger(), server_default="0", nullable=False, comment="parents above it"),
    )
    op.create_index(
        "ix_executions_parent_step_id",
        "executions",
        ["parent_step_id"],
        unique=False,
        postgresql_where=sa.text("parent_step_id IS NOT NULL"),
    )
    op.add_column(
        "step_executions",
        sa.Column(
            "height", sa.Integer(), server_default="0", nullable=False, comment="Graph.heights: the highest first"
        ),
    )
    op.add_column(
        "step_executions",
        sa.Column("state", postgresql.JSONB(), nullable=True, comment="what an attempt that rests left for itself"),
    )
    op.add_column(
        "step_executions",
        sa.Column(
            "scope", sa.Text(), server_default="", nullable=False, comment="what stands before the dot in its path"
        ),
    )
    op.add_column(
        "step_executions",
        sa.Column("container", sa.Text(), nullable=True, comment="path of the step in whose body it stands"),
    )
    op.add_column(
        "step_executions",
        sa.Column("iteration", postgresql.JSONB(), nullable=True, comment="what templates see as loop"),
    )
    op.add_column(
        "step_executions",
        sa.Column("awaits", sa.Text(), nullable=True, comment="what a waiting step waits for, besides its time"),
    )
    op.add_column(
        "step_executions",
        sa.Column("variables", postgresql.JSONB(), nullable=True, comment="what it mapped its output to"),
    )
    op.create_index(
        "ix_step_executions_inner",
        "step_executions",
        ["execution_id", "container", "id"],
        unique=False,
        postgresql_where=sa.text("container IS NOT NULL AND status IN ('pending', 'queued', 'running', 'waiting')"),
    )
    op.add_column(
        "executions",
        sa.Column(
            "admitted_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="since when it may run; NULL while it waits for a place",
        ),
    )
    op.add_column(
        "executions",
        sa.Column(
            "turn", sa.BigInteger(), server_default="0", nullable=False, comment="its place among those that wait"
        ),
    )
    op.add_column(
        "executions",
        sa.Column("held", sa.Boolean(), server_default=sa.false(), nullable=False, comment="by a limit of its own"),
    )
    op.add_column(
        "executions",
        sa.Column(
            "limit_keys",
            postgresql.ARRAY(sa.Text()),
            nullable=True,
            comment="what the limits are counted by that it runs under",
        ),
    )
    op.add_column(
        "executions",
        sa.Column(
            "limits",
            postgresql.ARRAY(sa.Integer()),
            nullable=True,
            comment="as many may run at a time, for each of limit_keys",
        ),
    )
    op.create_index(
        "ix_executions_admitted",
        "executions",
        ["id"],
        unique=False,
        postgresql_where=sa.text("admitted_at IS NOT NULL AND status NOT IN ('cancelled', 'completed', 'failed')"),
    )
    op.create_index(
        "ix_executions_backlog",
        "executions",
        [sa.text("priority DESC"), "turn", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND NOT held"),
    )
    op.create_index(
        "ix_executions_backlog_of_workflow",
        "executions",
        ["workflow_id", "turn"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL"),
    )
    op.create_index(
        "ix_executions_held",
        "executions",
        ["limit_keys"],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND held"),
    )
    op.create_check_constraint(
        op.f("ck_executions_outcome_known"), "executions", "outcome IN ('cancelled', 'completed', 'failed')"
    )
    op.create_check_constraint(
        op.f("ck_step_executions_waiter_is_waiting"), "step_executions", "awaits IS NULL OR status = 'waiting'"
    )
