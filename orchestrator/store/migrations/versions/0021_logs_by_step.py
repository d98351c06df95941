"""Log lines by the step that wrote them; those of all by their numbers, for none but those who follow all"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_step_logs_execution_id_step_id_seq", "step_logs", ["execution_id", "step_id", "seq"])
    op.drop_index("ix_step_logs_seq", table_name="step_logs")
    op.create_index("ix_step_logs_seq", "step_logs", ["seq"], postgresql_where=sa.text("attempt >= 0"))


def downgrade() -> None:
    op.drop_index("ix_step_logs_seq", table_name="step_logs")
    op.create_index("ix_step_logs_seq", "step_logs", ["seq"])
    op.drop_index("ix_step_logs_execution_id_step_id_seq", table_name="step_logs")
