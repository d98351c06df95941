"""Secrets, encrypted; and an index by which a lost worker's signal is found"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "secrets",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="in lower case, as templates name it"),
        sa.Column("project_id", sa.UUID(as_uuid=False)),
        sa.Column("workflow_id", sa.UUID(as_uuid=False)),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False, comment="which key it is encrypted with"),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("project_id IS NULL OR workflow_id IS NULL", name=op.f("ck_secrets_one_scope")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_secrets_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["workflow_id"], ["workflows.id"], name=op.f("fk_secrets_workflow_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secrets")),
        comment="Encrypted by orchestrator/vault.py; the key is not in here.",
    )
    scopes = {
        "global": ([], "project_id IS NULL AND workflow_id IS NULL"),
        "project": (["project_id"], "project_id IS NOT NULL"),
        "workflow": (["workflow_id"], "workflow_id IS NOT NULL"),
    }
    for scope, (columns, where) in scopes.items():
        op.create_index(
            f"uq_secrets_{scope}", "secrets", [*columns, "name"], unique=True, postgresql_where=sa.text(where)
        )
    op.create_index("ix_secrets_name_id", "secrets", ["name", "id"])
    op.drop_index("ix_signals_untaken", "signals")
    op.create_index("ix_signals_execution_id_name", "signals", ["execution_id", "name", "taken_by", "id"])
