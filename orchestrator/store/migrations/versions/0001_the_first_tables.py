"""The first tables"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "duties",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("'-infinity'"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_duties")),
        comment="What one process at a time does; whoever holds it keeps `at` fresh.",
    )
    op.create_table(
        "worker_processes",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("node", sa.Text(), nullable=False, comment="the Celery node name"),
        sa.Column("host", sa.Text(), nullable=False, comment="host and process namespace, within which pid counts"),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("born", sa.Double(), nullable=False, comment="start of the process, since pids come again"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_processes")),
        comment="A row is a lease: a running step whose worker has no row here has lost its worker.",
    )
    op.create_table(
        "workflows",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("status", sa.Text(), server_default="draft", nullable=False),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("owner_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("is_template", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'cancelled', 'completed', 'draft', 'failed', 'paused')",
            name=op.f("ck_workflows_status_known"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflows")),
    )
    op.create_index("ix_workflows_name", "workflows", ["name"], unique=False)
    op.create_index("ix_workflows_tags", "workflows", ["tags"], unique=False, postgresql_using="gin")
    op.create_table(
        "workflow_versions",
        sa.Column("workflow_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"], ["workflows.id"], name=op.f("fk_workflow_versions_workflow_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("workflow_id", "version", name=op.f("pk_workflow_versions")),
        comment="Immutable: a trigger refuses every UPDATE, since executions are pinned to a version.",
    )
    op.create_table(
        "executions",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("workflow_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("input", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("output", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("priority", sa.SmallInteger(), server_default="5", nullable=False),
        sa.Column("trigger_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("timeout", sa.Double(), nullable=True, comment="seconds, counted from started_at"),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status IN ('cancelled', 'completed', 'failed')) = (finished_at IS NOT NULL)",
            name=op.f("ck_executions_terminal_is_finished"),
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'completed', 'failed', 'paused', 'queued', 'running')",
            name=op.f("ck_executions_status_known"),
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=op.f("ck_executions_priority_range")),
        sa.ForeignKeyConstraint(
            ["workflow_id", "version"],
            ["workflow_versions.workflow_id", "workflow_versions.version"],
            name="fk_executions_version",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_executions")),
        sa.UniqueConstraint("workflow_id", "idempotency_key", name="uq_executions_idempotency"),
    )
    op.create_index(
        "ix_executions_live",
        "executions",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status NOT IN ('cancelled', 'completed', 'failed')"),
    )
    op.create_index("ix_executions_workflow_id_id", "executions", ["workflow_id", "id"], unique=False)
    op.create_table(
        "step_executions",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("timeout", sa.Double(), nullable=True, comment="seconds that one attempt may take"),
        sa.Column("resumes", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("input", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("output", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error_kind", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("claim_token", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("worker_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column(
            "rung_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a message was last sent for it; NULL if none was needed",
        ),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status = 'running') = (claim_token IS NOT NULL)", name=op.f("ck_step_executions_running_is_claimed")
        ),
        sa.CheckConstraint(
            "(status IN ('cancelled', 'completed', 'failed', 'skipped')) = (finished_at IS NOT NULL)",
            name=op.f("ck_step_executions_terminal_is_finished"),
        ),
        sa.CheckConstraint(
            "next_attempt_at IS NULL OR status = 'waiting'", name=op.f("ck_step_executions_timer_is_waiting")
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'completed', 'failed', 'pending', 'queued', 'running', 'skipped', 'waiting')",
            name=op.f("ck_step_executions_status_known"),
        ),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["executions.id"], name=op.f("fk_step_executions_execution_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step_executions")),
        sa.UniqueConstraint("execution_id", "path", name="uq_step_executions_path"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "ix_step_executions_live",
        "step_executions",
        ["execution_id", "path"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running', 'waiting')"),
    )
    op.create_table(
        "step_logs",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("step_execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["executions.id"], name=op.f("fk_step_logs_execution_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step_logs")),
    )
    op.create_index("ix_step_logs_execution_id_id", "step_logs", ["execution_id", "id"], unique=False)
    # A version that an execution is pinned to must not change under it, whoever tries.
    op.execute("""
        CREATE FUNCTION refuse_version_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'workflow versions are immutable; insert a new one';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER workflow_versions_immutable BEFORE UPDATE ON workflow_versions
        FOR EACH ROW EXECUTE FUNCTION refuse_version_change()
    """)


def downgrade() -> None:
    op.drop_index("ix_step_logs_execution_id_id", table_name="step_logs")
    op.drop_table("step_logs")
    op.drop_index(
        "ix_step_executions_live",
        table_name="step_executions",
        postgresql_where=sa.text("status IN ('queued', 'running', 'waiting')"),
    )
    op.drop_table("step_executions")
    op.drop_index("ix_executions_workflow_id_id", table_name="executions")
    op.drop_index(
        "ix_executions_live",
        table_name="executions",
        postgresql_where=sa.text("status NOT IN ('cancelled', 'completed', 'failed')"),
    )
    op.drop_table("executions")
    op.drop_table("workflow_versions")
    op.drop_index("ix_workflows_tags", table_name="workflows", postgresql_using="gin")
    op.drop_index("ix_workflows_name", table_name="workflows")
    op.drop_table("workflows")
    op.drop_table("worker_processes")
    op.drop_table("duties")
    op.execute("DROP FUNCTION refuse_version_change()")
