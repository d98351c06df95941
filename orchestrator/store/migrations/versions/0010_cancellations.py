"""What steps have begun elsewhere that is to be cancelled there"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    now = sa.text("now()")
    op.create_table(
        "cancellations",
        sa.Column("id", sa.UUID(as_uuid=False), primary_key=True, server_default=sa.text("gen_random_uuid()")),
        sa.Column(
            "execution_id",
            sa.UUID(as_uuid=False),
            sa.ForeignKey("executions.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("step_execution_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", JSONB(), nullable=False, comment="what the attempt left that was ended"),
        sa.Column("iteration", JSONB(), comment="what templates see as loop"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        comment="What steps have begun elsewhere that nobody wants any more: a row until it is cancelled there.",
    )
