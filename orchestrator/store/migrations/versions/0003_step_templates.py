"""Step templates, and what a definition is with them written out"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "step_templates",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("parameters", postgresql.JSONB(), nullable=True, comment="a JSON Schema"),
        sa.Column("step", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step_templates")),
        sa.UniqueConstraint("name", name=op.f("uq_step_templates_name")),
    )
    op.add_column(
        "workflow_versions",
        sa.Column(
            "resolved",
            sa.JSON(),
            nullable=True,
            comment="the definition with its step templates written out; NULL if it uses none",
        ),
    )
