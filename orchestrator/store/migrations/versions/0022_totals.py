"""Statistics are merged as soon as their slot is over, and added to totals, which metrics read"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_STEPS = ("completed", "failed", "skipped", "cancelled", "retried")


def upgrade() -> None:
    op.create_table(
        "stats_totals",
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("measure", "status", name=op.f("pk_stats_totals")),
        comment="What the rows of execution_stats and step_stats that have been merged add up to, of all workflows.",
    )
    for measure, value in (("executions", "number"), ("seconds", "seconds")):
        op.execute(
            f"INSERT INTO stats_totals SELECT '{measure}', status, sum({value}) FROM execution_stats "
            "WHERE shard <= 1 GROUP BY status"
        )
    for status in _STEPS:
        op.execute(
            f"INSERT INTO stats_totals SELECT 'steps', '{status}', coalesce(sum({status}), 0) FROM step_stats "
            "WHERE shard <= 1"
        )
    for table in ("execution_stats", "step_stats"):
        op.drop_index(f"ix_{table}_slots", table)
        for name, rows in (("shards", "shard > 1"), ("slots", "shard = 1")):
            op.create_index(f"ix_{table}_{name}", table, ["slot"], postgresql_where=sa.text(rows))


def downgrade() -> None:
    for table in ("execution_stats", "step_stats"):
        for name in ("shards", "slots"):
            op.drop_index(f"ix_{table}_{name}", table)
        op.create_index(f"ix_{table}_slots", table, ["slot"], postgresql_where=sa.text("shard > 0"))
    op.drop_table("stats_totals")
