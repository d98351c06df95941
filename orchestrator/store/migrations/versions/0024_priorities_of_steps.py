"""The priority of a step's messages, which reconcile sends as well"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "step_executions", sa.Column("priority", sa.SmallInteger(), comment="of its messages; NULL: the execution's")
    )
