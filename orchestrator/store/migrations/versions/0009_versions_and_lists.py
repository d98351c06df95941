"""Which version says an older one again; what workflows are found by; an index for each order of a list"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from orchestrator.store.search import terms

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "workflow_versions", sa.Column("restored_from", sa.Integer(), comment="the version that it says again")
    )
    op.add_column(
        "workflows",
        sa.Column(
            "terms",
            postgresql.TSVECTOR(),
            nullable=False,
            server_default="",
            comment="what store/search.py finds it by",
        ),
    )
    connection = op.get_bind()
    for id, name, description, tags in connection.exec_driver_sql("SELECT id, name, description, tags FROM workflows"):
        connection.exec_driver_sql(
            "UPDATE workflows SET terms = array_to_tsvector(%(terms)s::text[]) WHERE id = %(id)s",
            {"id": id, "terms": terms([name, description, *tags])},
        )
    op.create_index("ix_workflows_terms", "workflows", ["terms"], postgresql_using="gin")
    op.create_index("ix_workflows_name_id", "workflows", ["name", "id"])
    op.drop_index("ix_workflows_name", table_name="workflows")
    op.create_index("ix_workflows_updated_at_id", "workflows", ["updated_at", "id"])
    op.create_index(
        "ix_workflows_owner_id_id", "workflows", ["owner_id", "id"], postgresql_where=sa.text("owner_id IS NOT NULL")
    )
    op.create_index(
        "ix_executions_ended",
        "executions",
        ["status", "id"],
        postgresql_where=sa.text("status IN ('cancelled', 'completed', 'failed')"),
    )
