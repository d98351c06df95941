"""Logs, fires and the audit log in partitions of time, and how long a workflow keeps what it has"""

import sqlalchemy as sa
from alembic import op

from orchestrator.store.session import id_at

revision = "0017"
down_revision = "0019"
branch_labels = None
depends_on = None

_COMMENT = "Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE."


def upgrade() -> None:
    op.add_column(
        "workflows",
        sa.Column("retention", sa.Double(), comment="seconds that its executions, their logs and its fires are kept"),
    )
    op.create_table(
        "removals",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_removals")),
        comment="How many of what was removed, because it had been kept long enough.",
    )
    _logs()
    _fires()
    _audit()


def _logs() -> None:
    op.drop_constraint("fk_step_logs_execution_id", "step_logs")
    _partition("step_logs")
    op.create_index("ix_step_logs_execution_id_id", "step_logs", ["execution_id", "id"])
    _attach("step_logs")
    _goes_with("step_logs", "execution_id", "executions")


def _fires() -> None:
    op.create_table(
        "trigger_slots",
        sa.Column("trigger_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("fire_id", sa.UUID(as_uuid=False), nullable=False),
        sa.PrimaryKeyConstraint("trigger_id", "slot", name=op.f("pk_trigger_slots")),
        sa.ForeignKeyConstraint(
            ["trigger_id"], ["triggers.id"], name=op.f("fk_trigger_slots_trigger_id"), ondelete="CASCADE"
        ),
        comment="The fire that has a slot: no index of trigger_fires can say so over all its partitions.",
    )
    op.execute("INSERT INTO trigger_slots SELECT trigger_id, slot, id FROM trigger_fires WHERE slot IS NOT NULL")
    op.create_index("ix_trigger_slots_fire_id", "trigger_slots", ["fire_id"])
    op.drop_constraint("fk_trigger_fires_trigger_id", "trigger_fires")
    op.drop_constraint("uq_trigger_fires_slot", "trigger_fires")
    op.drop_index("uq_trigger_fires_queued", "trigger_fires")
    _partition("trigger_fires")
    op.create_index("ix_trigger_fires_trigger_id_id", "trigger_fires", ["trigger_id", "id"])
    unsettled = sa.text("outcome IN ('pending', 'queued')")
    op.create_index("ix_trigger_fires_unsettled", "trigger_fires", ["created_at"], postgresql_where=unsettled)
    op.create_index(
        "ix_trigger_fires_queued", "trigger_fires", ["trigger_id"], postgresql_where=sa.text("outcome = 'queued'")
    )
    _attach("trigger_fires")
    _goes_with("trigger_fires", "trigger_id", "triggers")


def _audit() -> None:
    _partition("audit_log")
    op.execute(f"COMMENT ON TABLE audit_log IS '{_COMMENT}'")
    for column in ("project_id", "object_id", "actor_id"):
        op.create_index(f"ix_audit_log_{column}_id", "audit_log", [column, "id"])
    _attach("audit_log")
    for table in ("audit_log", "audit_log_default"):  # what was the table has its trigger
        op.execute(
            f"CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )


def _partition(table: str) -> None:
    """What was the table becomes `<table>_first`, and the table one that has nothing yet."""
    first = f"{table}_first"
    op.execute(f"ALTER TABLE {table} RENAME TO {first}")
    op.execute(
        f"""
        DO $do$
        DECLARE
            its_index regclass;
        BEGIN
            FOR its_index IN SELECT indexrelid FROM pg_index WHERE indrelid = '{first}'::regclass LOOP
                EXECUTE format('ALTER INDEX %s RENAME TO %I', its_index, replace(its_index::text, '{table}', '{first}'));
            END LOOP;
        END $do$
        """
    )
    op.execute(
        f"CREATE TABLE {table} (LIKE {first} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS) "
        "PARTITION BY RANGE (id)"
    )
    op.create_primary_key(f"pk_{table}", table, ["id"])


def _attach(table: str) -> None:
    """Nothing is copied: what there is, and comes until midnight, is the first partition."""
    midnight = "date_trunc('day', clock_timestamp() AT TIME ZONE 'UTC') + interval '1 day'"
    seconds = op.get_bind().execute(sa.text(f"SELECT extract(epoch FROM {midnight})::float8")).scalar_one()
    op.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {table}_first FOR VALUES FROM (MINVALUE) TO ('{id_at(seconds * 1000)}')"
    )
    op.execute(f"CREATE TABLE {table}_default (LIKE {table} INCLUDING ALL)")
    op.execute(f"ALTER TABLE {table} ATTACH PARTITION {table}_default DEFAULT")


def _goes_with(table: str, column: str, owner: str) -> None:
    """Whatever removes rows of `owner` removes theirs in `table`. With a foreign key, to drop a partition would lock
    `owner` against everybody, and each insert would look there."""
    op.execute(
        f"""
        CREATE FUNCTION forget_{table}() RETURNS trigger LANGUAGE plpgsql AS $function$
        BEGIN
            DELETE FROM {table} t USING gone WHERE t.{column} = gone.id;
            RETURN NULL;
        END
        $function$
        """
    )
    op.execute(
        f"CREATE TRIGGER forget_{table} AFTER DELETE ON {owner} REFERENCING OLD TABLE AS gone "
        f"FOR EACH STATEMENT EXECUTE FUNCTION forget_{table}()"
    )
