"""Triggers, and each time that one fired"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "triggers",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("workflow_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", postgresql.JSONB(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("from_definition", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("state", postgresql.JSONB(), nullable=True, comment="what its type keeps"),
        sa.Column(
            "next_slot",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its next slot is due, jitter included; NULL if time is not what fires it",
        ),
        sa.Column("last_triggered", sa.DateTime(timezone=True), nullable=True),
        sa.Column("trigger_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"], ["workflows.id"], name=op.f("fk_triggers_workflow_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_triggers")),
        sa.UniqueConstraint("workflow_id", "name", name="uq_triggers_name"),
    )
    op.create_index(
        "ix_triggers_next_slot",
        "triggers",
        ["next_slot"],
        postgresql_where=sa.text("is_enabled AND next_slot IS NOT NULL"),
    )
    op.create_index(
        "uq_triggers_webhook",
        "triggers",
        [
            sa.text("regexp_replace(config ->> 'path', '^/?(webhook/)?|/$', '', 'g')"),
            sa.text("upper(coalesce(config ->> 'method', 'POST'))"),
        ],
        unique=True,
        postgresql_where=sa.text("is_enabled AND type = 'webhook'"),
    )
    op.create_index(
        "ix_triggers_event",
        "triggers",
        [sa.text("(config ->> 'type')")],
        postgresql_where=sa.text("is_enabled AND type = 'event' AND strpos(config ->> 'type', '*') = 0"),
    )
    op.create_index(
        "ix_triggers_event_pattern",
        "triggers",
        ["id"],
        postgresql_where=sa.text("is_enabled AND type = 'event' AND strpos(config ->> 'type', '*') > 0"),
    )
    op.create_table(
        "trigger_fires",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("trigger_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("slot", sa.Text(), nullable=True, comment="what it is one of a kind by; NULL if it is not"),
        sa.Column("scheduled_for", sa.DateTime(timezone=True), nullable=True),
        sa.Column("payload", postgresql.JSONB(), nullable=True, comment="what came"),
        sa.Column("input", postgresql.JSONB(), nullable=False, comment="what the execution gets, or would have got"),
        sa.Column("outcome", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("execution_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('failed', 'pending', 'queued', 'skipped', 'started')",
            name=op.f("ck_trigger_fires_outcome_known"),
        ),
        sa.CheckConstraint(
            "(outcome = 'started') = (execution_id IS NOT NULL)", name=op.f("ck_trigger_fires_started_has_execution")
        ),
        sa.ForeignKeyConstraint(
            ["trigger_id"], ["triggers.id"], name=op.f("fk_trigger_fires_trigger_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trigger_fires")),
        sa.UniqueConstraint("trigger_id", "slot", name="uq_trigger_fires_slot"),
    )
    op.create_index("ix_trigger_fires_trigger_id_id", "trigger_fires", ["trigger_id", "id"])
    op.create_index(
        "ix_trigger_fires_unsettled",
        "trigger_fires",
        ["created_at"],
        postgresql_where=sa.text("outcome IN ('pending', 'queued')"),
    )
    op.create_index(
        "uq_trigger_fires_queued",
        "trigger_fires",
        ["trigger_id"],
        unique=True,
        postgresql_where=sa.text("outcome = 'queued'"),
    )
    op.add_column(
        "executions",
        sa.Column(
            "trigger_data",
            postgresql.JSONB(),
            nullable=True,
            comment="what templates see as trigger, if one started it",
        ),
    )
    op.create_index(
        "ix_executions_trigger_live",
        "executions",
        ["trigger_id"],
        postgresql_where=sa.text("trigger_id IS NOT NULL AND status NOT IN ('cancelled', 'completed', 'failed')"),
    )
