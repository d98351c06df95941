"""Executions are laid aside with their steps, and dropped by the table"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archives",
        sa.Column("number", sa.Integer(), sa.Identity(), nullable=False, comment="of its tables"),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False, comment="when all in it had ended"),
        sa.Column("seq", sa.BigInteger(), nullable=False, comment="what is in it has no higher number"),
        sa.Column("settled_until", sa.DateTime(timezone=True), comment="before that nothing is to be removed from it"),
        sa.Column("heir", sa.Integer(), comment="the number of the one that gets what is to be kept for longer"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_archives")),
        comment="Where executions are that ended a while ago: tables named after the present ones and this number.",
    )
    op.execute(
        """
        CREATE FUNCTION refuse_insert() RETURNS trigger LANGUAGE plpgsql AS $function$
        BEGIN
            RAISE EXCEPTION '% has no rows of its own; insert into the table that inherits from it', TG_TABLE_NAME;
        END
        $function$
        """
    )
    for table in ("executions", "step_executions"):
        op.execute(f"CREATE TABLE all_{table} (LIKE {table} INCLUDING DEFAULTS INCLUDING COMMENTS)")
        op.execute(
            f"CREATE TRIGGER stays_empty BEFORE INSERT ON all_{table} FOR EACH STATEMENT EXECUTE FUNCTION refuse_insert()"
        )
        op.execute(f"ALTER TABLE {table} INHERIT all_{table}")
    _count_any_execution()
    for table in ("signals", "cancellations"):
        op.drop_constraint(f"fk_{table}_execution_id", table)
    op.execute("CREATE INDEX ix_cancellations_execution_id ON cancellations (execution_id)")
    _forget_all_of_it()


def _count_any_execution() -> None:
    """Which table the row is of has no part in it."""
    op.execute(
        """
        DO $do$
        DECLARE
            counting regprocedure := 'count_execution(executions, int, timestamptz)';
        BEGIN
            EXECUTE replace(pg_get_functiondef(counting), 'e executions', 'e all_executions');
            EXECUTE 'DROP FUNCTION ' || counting;
        END
        $do$
        """
    )


def _forget_all_of_it() -> None:
    """What belongs to an execution goes with it, from whichever table it is deleted; unless it is only moved. A foreign
    key would name one table."""
    op.execute(
        """
        CREATE FUNCTION forget_executions() RETURNS trigger LANGUAGE plpgsql AS $function$
        BEGIN
            IF current_setting('orchestrator.moves', true) = 'on' THEN
                RETURN NULL;
            END IF;
            DELETE FROM step_logs t USING gone WHERE t.execution_id = gone.id;
            DELETE FROM signals t USING gone WHERE t.execution_id = gone.id;
            DELETE FROM cancellations t USING gone WHERE t.execution_id = gone.id;
            RETURN NULL;
        END
        $function$
        """
    )
    op.execute("DROP TRIGGER forget_step_logs ON executions")
    op.execute("DROP FUNCTION forget_step_logs")
    for table in ("executions", "all_executions"):
        op.execute(
            f"CREATE TRIGGER forget_executions AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone "
            "FOR EACH STATEMENT EXECUTE FUNCTION forget_executions()"
        )
