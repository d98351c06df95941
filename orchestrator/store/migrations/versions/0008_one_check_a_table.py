"""The hot tables' CHECKs as one each: PostgreSQL parses and plans every CHECK anew in each statement that writes"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_EXECUTION_ENDS = "'cancelled', 'completed', 'failed'"
_STEP_ENDS = "'cancelled', 'completed', 'failed', 'skipped'"

_TABLES = {
    "executions": (
        "execution_is_sound",
        {"status": "text", "outcome": "text", "priority": "smallint", "finished_at": "timestamptz"},
        {
            "status_known": f"status IN ('queued', 'running', 'paused', {_EXECUTION_ENDS})",
            "outcome_known": f"outcome IS NULL OR outcome IN ({_EXECUTION_ENDS})",
            "priority_range": "priority BETWEEN 0 AND 9",
            "terminal_is_finished": f"(status IN ({_EXECUTION_ENDS})) = (finished_at IS NOT NULL)",
        },
    ),
    "step_executions": (
        "step_execution_is_sound",
        {
            "status": "text",
            "finished_at": "timestamptz",
            "claim_token": "uuid",
            "next_attempt_at": "timestamptz",
            "awaits": "text",
        },
        {
            "status_known": f"status IN ('pending', 'queued', 'running', 'waiting', {_STEP_ENDS})",
            "terminal_is_finished": f"(status IN ({_STEP_ENDS})) = (finished_at IS NOT NULL)",
            "running_is_claimed": "(status = 'running') = (claim_token IS NOT NULL)",
            "timer_is_waiting": "next_attempt_at IS NULL OR status = 'waiting'",
            "waiter_is_waiting": "awaits IS NULL OR status = 'waiting'",
        },
    ),
}


def upgrade() -> None:
    for table, (function, columns, invariants) in _TABLES.items():
        signature = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        sound = " AND ".join(f"({condition})" for condition in invariants.values())
        broken = " ".join(f"WHEN NOT ({condition}) THEN 'ck_{table}_{name}'" for name, condition in invariants.items())
        # It raises what a CHECK of its own would have raised: the error names what is broken.
        op.execute(
            f"""
            CREATE FUNCTION {function}({signature}) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $function$
            DECLARE
                broken text;
            BEGIN
                IF {sound} THEN
                    RETURN true;
                END IF;
                broken := CASE {broken} END;
                RAISE check_violation USING CONSTRAINT = broken, TABLE = '{table}',
                    MESSAGE = format('a row of {table} would violate %s', broken);
            END
            $function$
            """
        )
        for name in invariants:
            op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
        op.create_check_constraint(op.f(f"ck_{table}_sound"), table, f"{function}({', '.join(columns)})")
