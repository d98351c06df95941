"""Steps that wait until the rate limit of the connection that they use lets them begin.

They stand in a line for each limit, in the order in which they came; whoever begins takes a use then, and leaves the
line. Their places are no times: one that is cancelled leaves no gap, and those that are late do not all begin at once.
Reconcile wakes the first of a line when there may be a use for them; whether there is one, and whether those before
them have gone, is decided when they take it, under a lock.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import STEP_LIVE, WAKE, ExecutionStatus, StepStatus, sql_words
from orchestrator.store.admission import PRIORITY
from orchestrator.store.rates import AWAITS_RATE, Rate, Turn, is_open, opens_at, turn, use
from orchestrator.store.recovery import Ring
from orchestrator.store.routines import Routine
from orchestrator.store.session import Store, run

_ON_ITS_WAY = 5.0
"""Seconds after which a step that was woken keeps nobody behind it waiting: its queue may have no worker."""

_IN_LINE = (
    "rate_line l JOIN step_executions s ON s.id = l.step_execution_id JOIN executions e ON e.id = s.execution_id "
    f"AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')"
)
_WAITS = f"s.status = '{StepStatus.WAITING}' AND s.awaits = '{AWAITS_RATE}'"
_COMES = (
    f"(s.status = '{StepStatus.RUNNING}' OR (s.status = '{StepStatus.QUEUED}' "
    f"AND s.rung_at > clock_timestamp() - interval '{_ON_ITS_WAY} seconds'))"
)
"""It was woken, and is about to take its use."""

_TAKE_ROUTINE = Routine(
    "take_rate",
    f"""
    DECLARE
        moment timestamptz;
        place_of_mine bigint;
        ahead int;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended(%(key)s, 1634887011));
        moment := clock_timestamp();
        SELECT l.place INTO place_of_mine FROM rate_line l WHERE l.step_execution_id = %(step)s AND l.key = %(key)s;
        SELECT count(*) INTO ahead FROM (
            SELECT FROM {_IN_LINE} WHERE l.key = %(key)s AND l.place < coalesce(place_of_mine, {2**63 - 1})
            AND l.step_execution_id <> %(step)s AND ({_WAITS} OR {_COMES}) LIMIT %(most)s) AS before;
        taken := {is_open("moment", "%(key)s", "%(most)s", "%(per)s", "ahead")};
        IF taken THEN
            {use("moment", "%(key)s", "%(per)s")};
            DELETE FROM rate_line WHERE step_execution_id = %(step)s;
        ELSIF %(joins)s THEN
            INSERT INTO rate_line (step_execution_id, key, rate_limit, rate_per)
            VALUES (%(step)s, %(key)s, %(most)s, %(per)s)
            ON CONFLICT (step_execution_id) DO UPDATE SET key = %(key)s, rate_limit = %(most)s, rate_per = %(per)s;
        END IF;
        RETURN NEXT;
    END
    """,
    {"key": "text", "most": "int", "per": "float8", "step": "uuid", "joins": "bool"},
    {"taken": "bool"},
)


def take(store: Store, rate: Rate, step_execution_id: str, *, joins: bool = True) -> bool:
    """Use `rate` for a step that is about to begin. If that is not possible now, or is the turn of others, the step
    stands in the line (if it `joins` it), and is woken when its turn has come."""
    params = {"key": rate.key, "most": rate.limit, "per": rate.per, "step": step_execution_id, "joins": joins}
    ((taken,),) = store.call(_TAKE_ROUTINE, params)
    return bool(taken)


# The first that waits of each line, and how many come before it that have been woken: one look a line, however long.
_LINES = f"""
    keys AS (
        (SELECT l.key FROM rate_line l ORDER BY l.key LIMIT 1)
        UNION ALL
        SELECT (SELECT l.key FROM rate_line l WHERE l.key > k.key ORDER BY l.key LIMIT 1) FROM keys k
        WHERE k.key IS NOT NULL
    ), lines AS (
        SELECT k.key, first.rate_limit, first.rate_per,
               (SELECT count(*) FROM {_IN_LINE} WHERE l.key = k.key AND {_COMES})::int AS coming
        FROM keys k CROSS JOIN LATERAL (
            SELECT l.rate_limit, l.rate_per FROM {_IN_LINE} WHERE l.key = k.key AND {_WAITS} ORDER BY l.place LIMIT 1
        ) AS first
    )
"""


_WAKE_ROUTINE = Routine(
    "wake_lines",
    f"""
    WITH RECURSIVE {_LINES}, due AS (
        SELECT next.id FROM lines CROSS JOIN LATERAL (
            SELECT s.id FROM {_IN_LINE} WHERE l.key = lines.key AND {_WAITS} ORDER BY l.place
            LIMIT greatest(0, lines.rate_limit - lines.coming - (
                SELECT count(*) FROM rate_uses u WHERE u.key = lines.key
                AND u.used_at > clock_timestamp() - lines.rate_per * interval '1 second'))
            FOR UPDATE OF s SKIP LOCKED
        ) AS next
    )
    UPDATE step_executions s SET {WAKE.assignment}, next_attempt_at = NULL, awaits = NULL,
        rung_at = clock_timestamp()
    FROM executions e, due
    WHERE s.id = due.id AND e.id = s.execution_id AND s.{WAKE.guard}
    RETURNING s.execution_id::text, s.path, s.queue, {PRIORITY}
    """,
    {},
    {"execution_id": "text", "path": "text", "queue": "text", "priority": "smallint"},
)
_TURN_ROUTINE = Routine(
    "next_turn_in_line",
    f"""
    WITH RECURSIVE {_LINES}
    SELECT extract(epoch FROM min(coalesce(
        {opens_at("lines.key", "lines.rate_limit", "lines.rate_per", "lines.coming")}, clock_timestamp()
    )) - clock_timestamp())::float8
    FROM lines WHERE lines.coming < lines.rate_limit
    """,
    {},
    {"seconds": "float8"},
)


def wake(connection: Connection) -> list[Ring]:
    """Queue those in the lines whose turn has come, and say which they are."""
    rows = run(connection, _WAKE_ROUTINE.call)
    return [Ring(row.execution_id, row.path, row.queue, row.priority) for row in rows]


def seconds_to_next_turn(connection: Connection) -> float | None:
    """Until the first step in any line may be woken; None if none waits."""
    seconds: float | None = run(connection, _TURN_ROUTINE.call).scalar()
    return seconds


def purge(connection: Connection) -> None:
    """Remove those who will not come any more."""
    run(
        connection,
        "DELETE FROM rate_line l WHERE NOT EXISTS (SELECT FROM step_executions s WHERE s.id = l.step_execution_id "
        f"AND s.status IN ({sql_words(STEP_LIVE)}))",
    )


def turn_of(connection: Connection, step_execution_id: str) -> Turn | None:
    """None if the step stands in no line."""
    row = run(
        connection,
        f"""
        SELECT mine.key, mine.rate_limit, mine.rate_per,
               (SELECT count(*) FROM {_IN_LINE} WHERE l.key = mine.key AND l.place < mine.place
                AND ({_WAITS} OR {_COMES})) AS ahead
        FROM rate_line mine WHERE mine.step_execution_id = %(id)s::uuid
        """,
        {"id": step_execution_id},
    ).first()
    return None if row is None else turn(connection, Rate(row.key, row.rate_limit, row.rate_per), row.ahead)
