"""Executions that ended a while ago are laid aside with their steps, in tables that are dropped as a whole.

`executions` and `step_executions` have what is live, and what has ended since they were begun. Once they have been
written for long enough, they are laid aside: renamed, and those that were made ready get their names, into which goes
what is live still. So whatever moves executions on knows nothing of this, and its tables stay small. All of them
inherit from `all_executions` and `all_step_executions`; who wants to know of what may have been laid aside reads from
these.

Executions that steps wait for are never in another pair of tables than those steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_LIVE, sql_words
from orchestrator.store import partitions
from orchestrator.store.designs import Design
from orchestrator.store.everywhere import everywhere, first_anywhere
from orchestrator.store.partitions import DAY
from orchestrator.store.session import id_at, run
from orchestrator.store.workflow_ends import IS_COUNTED

TABLES = ("executions", "step_executions")
"""In the order in which everybody takes locks on them."""
_NEXT = "_next"
"""What the names of those end with that will take the place of the present ones."""
_MOST = 20_000
"""Steps that are carried over while everybody waits: a second. With more of them nothing is laid aside, and what
expires is deleted in batches."""
_PATIENCE = "300ms"
"""For which everybody waits with us for those that are at it. Who has come to the steps before the executions is in our
way, and we are in theirs: then it is for another time."""
_HEIRS = 20
"""Archives, about, of what some workflow keeps for longer than others."""
SETTLES = 2.0
"""Seconds after its end for which an execution stays among the present ones: log lines of it may still be on their
way."""
_LATELY = 100_000
"""Changes of status, of which there are fewer in this time."""

# Nobody looks for these among what has ended, and each index is one more lock for whoever reads from all tables.
_OF_LIVE = frozenset(
    {
        "ix_executions_live",
        "ix_executions_admitted",
        "ix_executions_backlog",
        "ix_executions_backlog_of_workflow",
        "ix_executions_backlog_of_rate",
        "ix_executions_held",
        "ix_executions_paced",
        "ix_executions_trigger_live",
        "ix_step_executions_live",
        "ix_step_executions_inner",
    }
)


# --- laying aside --------------------------------------------------------------------------------------------


def make_ready(connection: Connection) -> bool:
    """Have a pair of tables that can take the place of the present ones; whether there was one already. A transaction
    of its own, before that of `lay_aside`: who reads from all tables has found out which there are before he comes to
    those that somebody has locked."""
    since = _ready_since(connection)
    designs = [Design.of(connection, table) for table in TABLES]
    if since is not None:
        if designs == [Design.of(connection, table, _NEXT) for table in TABLES]:
            return True
        # Somebody has changed the present ones since.
        run(connection, f"DROP TABLE step_executions{_NEXT}; DROP TABLE executions{_NEXT}")
    for design in designs:
        run(connection, design.making(_NEXT))
    since = since or partitions.now(connection)
    run(connection, f"COMMENT ON TABLE executions{_NEXT} IS '{since.isoformat()}'")
    return False


def _ready_since(connection: Connection) -> datetime | None:
    """Since when the present tables have been written, or since the first release that knows of this."""
    sql = "SELECT obj_description(to_regclass(%(table)s), 'pg_class')"
    since = run(connection, sql, {"table": f"executions{_NEXT}"}).scalar()
    return None if since is None else datetime.fromisoformat(since)


def is_due(connection: Connection, each: timedelta) -> bool:
    """Whether the present tables have been written for `each`, little would be carried over, and nobody is at them for
    long, for whom everybody else would have to wait as well."""
    since = _ready_since(connection)
    if since is None or partitions.now(connection) < since + each:
        return False
    is_little = run(
        connection,
        f"{_family('', _to_carry('', SETTLES))} SELECT count(*) <= {_MOST} FROM ("
        f"SELECT FROM family JOIN step_executions s ON s.execution_id = family.id LIMIT {_MOST} + 1) AS few",
    ).scalar()
    return bool(is_little) and not run(connection, _IS_HELD_FOR_LONG).scalar()


_IS_HELD_FOR_LONG = """
    SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.relation IN ('executions'::regclass, 'step_executions'::regclass) AND a.datname = current_database()
    AND a.pid <> pg_backend_pid() AND a.xact_start < clock_timestamp() - interval '1 second')
"""  # a dump, a vacuum


def lay_aside(connection: Connection, settles: float = SETTLES) -> None:
    """The present tables become an archive; what has not ended `settles` seconds ago, and whatever hangs together with
    that, goes on in those that were made ready. To be called in a transaction; everybody waits for its end."""
    designs = [Design.of(connection, table) for table in TABLES]
    run(connection, f"SET LOCAL lock_timeout = '{_PATIENCE}'; SET LOCAL enable_seqscan = off")
    run(connection, f"LOCK TABLE {', '.join(TABLES)} IN ACCESS EXCLUSIVE MODE")
    suffix = _suffix(
        run(
            connection,
            "INSERT INTO archives (until, seq) SELECT %(until)s, last_value FROM feed_seq RETURNING number",
            {"until": partitions.now(connection)},
        ).scalar_one()
    )
    for before, after in (("", suffix), (_NEXT, "")):
        run(connection, "; ".join(design.renaming(before, after) for design in designs))
    run(connection, "COMMENT ON TABLE executions IS NULL")
    _carry(connection, suffix, _to_carry(suffix, settles))
    run(connection, f"DROP INDEX IF EXISTS {', '.join(f'{name}{suffix}' for name in sorted(_OF_LIVE))}")


def _suffix(number: int) -> str:
    return f"_{number}"


def _to_carry(suffix: str, settles: float) -> str:
    """SQL: the executions that somebody has still to see to."""
    return (
        f"SELECT id FROM executions{suffix} WHERE status IN ({sql_words(EXECUTION_LIVE)}) "
        f"UNION ALL SELECT execution_id FROM untold_ends UNION ALL SELECT id FROM executions{suffix} "
        f"WHERE seq > greatest((SELECT last_value FROM feed_seq) - {_LATELY}, 0) "
        f"AND finished_at > clock_timestamp() - {settles} * interval '1 second'"
    )


def _family(suffix: str, which: str) -> str:
    """SQL that begins a statement: `family` are these executions, with their parents and children near and far."""
    return f"""
        WITH RECURSIVE family(id) AS (
            ({which}) UNION SELECT near.id FROM family CROSS JOIN LATERAL (
                SELECT c.id FROM step_executions{suffix} s JOIN executions{suffix} c ON c.parent_step_id = s.id
                WHERE s.execution_id = family.id
                UNION ALL
                SELECT p.execution_id FROM executions{suffix} e
                JOIN step_executions{suffix} p ON p.id = e.parent_step_id WHERE e.id = family.id
            ) AS near
        )
    """


def bring_back(connection: Connection, execution_id: str) -> None:
    """Have an execution among the present ones, with all that hangs together with it, so that it can go on."""
    sql = "SELECT tableoid::regclass::text AS its_table FROM executions WHERE id = %(id)s::uuid"
    row = first_anywhere(connection, sql, {"id": execution_id})
    if row is not None and row.its_table != "executions":
        _carry(connection, row.its_table.removeprefix("executions"), "SELECT %(id)s::uuid", id=execution_id)


def _carry(connection: Connection, suffix: str, which: str, **params: Any) -> None:
    """Move these executions into the present tables, and whatever hangs together with them."""
    run(connection, "SELECT set_config('orchestrator.moves', 'on', true)")  # see migration 0025
    run(
        connection,
        f"""
        {_family(suffix, which)}, moved_executions AS (
            DELETE FROM executions{suffix} WHERE id IN (SELECT id FROM family) RETURNING *
        ), moved_steps AS (
            DELETE FROM step_executions{suffix} WHERE execution_id IN (SELECT id FROM family) RETURNING *
        ), inserted AS (
            INSERT INTO executions SELECT * FROM moved_executions
        )
        INSERT INTO step_executions SELECT * FROM moved_steps
        """,
        params,
    )
    run(connection, "SELECT set_config('orchestrator.moves', '', true)")


# --- dropping ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Archive:
    """All in it had ended at the time `until`. What it has to keep for longer than others is carried over to the
    archive `heir`, if there is one yet."""

    number: int
    until: datetime
    heir: int | None

    @property
    def suffix(self) -> str:
        return _suffix(self.number)


def expired(connection: Connection, kept: float) -> Archive | None:
    """The oldest archive with something to be removed: all in it ended more than `kept` seconds ago (0: never)."""
    if not kept:
        return None
    moment = partitions.now(connection)
    row = run(
        connection,
        "SELECT a.number, a.until, h.number AS heir FROM archives a LEFT JOIN archives h ON h.number = a.heir "
        "WHERE a.until <= %(until)s AND coalesce(a.settled_until <= %(now)s, true) ORDER BY a.until LIMIT 1",
        {"until": moment - timedelta(seconds=kept), "now": moment},
    ).first()
    return None if row is None else Archive(row.number, row.until, row.heir)


# What its workflow keeps for longer, or has to count (see bulk.py), and what these have started.
_STAYS = f"""
    CREATE TEMPORARY TABLE stays ON COMMIT DROP AS
    WITH RECURSIVE stays(id) AS (
        SELECT e.id FROM executions{{suffix}} e JOIN workflows w ON w.id = e.workflow_id
        WHERE w.retention > %(age)s OR ({everywhere(IS_COUNTED)})
        UNION
        SELECT c.id FROM stays JOIN step_executions{{suffix}} s ON s.execution_id = stays.id
        JOIN executions{{suffix}} c ON c.parent_step_id = s.id
    )
    SELECT id FROM stays
"""


def remove(connection: Connection, archive: Archive) -> bool:
    """Drop it, with what belongs to its executions, or take a step towards that; whether it is gone. What is to be kept
    for longer is carried over to its heir, which has to be there a transaction before, as in `make_ready`."""
    old, moment = archive.suffix, partitions.now(connection)
    run(connection, _STAYS.format(suffix=old), {"age": (moment - archive.until).total_seconds()})
    some = run(
        connection,
        "SELECT EXISTS (SELECT FROM stays) AS stay, "
        f"EXISTS (SELECT FROM executions{old} e WHERE NOT EXISTS (SELECT FROM stays s WHERE s.id = e.id)) AS go",
    ).one()
    if some.stay and not some.go:
        _settle(connection, archive, moment)
        return False
    if some.stay and archive.heir is None:
        _name_heir(connection, archive)
        return False
    if archive.heir is not None:
        _copy_what_stays(connection, archive, archive.heir)
    _forget(connection, archive)
    # Nobody brings anything back or deletes it from here on. What somebody did until now is not to be there twice.
    run(connection, f"LOCK TABLE executions{old}, step_executions{old} IN SHARE ROW EXCLUSIVE MODE")
    if archive.heir is not None:
        _copy_nothing_that_went(connection, archive, archive.heir)
        _settle(connection, replace(archive, number=archive.heir), moment)
    run(
        connection,
        f"DROP TABLE step_executions{old}; DROP TABLE executions{old}; DELETE FROM archives WHERE number = %(number)s",
        {"number": archive.number},
    )
    return True


def _name_heir(connection: Connection, archive: Archive) -> None:
    """One that has what others left, about as old, or a new one: so there are never many of them."""
    longest = run(connection, "SELECT coalesce(max(retention), 0) FROM workflows").scalar_one()
    about = {"number": archive.number, "since": archive.until - timedelta(seconds=longest / _HEIRS)}
    heir = run(
        connection,
        "SELECT number FROM archives WHERE settled_until IS NOT NULL AND until >= %(since)s AND number <> %(number)s "
        "ORDER BY until DESC LIMIT 1",
        about,
    ).scalar()
    if heir is None:
        heir = run(
            connection,
            "INSERT INTO archives (until, seq, settled_until) SELECT until, seq, until FROM archives "
            "WHERE number = %(number)s RETURNING number",
            about,
        ).scalar_one()
        for table in TABLES:
            run(connection, Design.of(connection, table).making(_suffix(heir), without=_OF_LIVE))
    run(connection, "UPDATE archives SET heir = %(heir)s WHERE number = %(number)s", {**about, "heir": heir})


def _copy_what_stays(connection: Connection, archive: Archive, heir: int) -> None:
    for table, id in zip(TABLES, ("id", "execution_id"), strict=True):
        run(
            connection,
            f"INSERT INTO {table}{_suffix(heir)} SELECT * FROM {table}{archive.suffix} "
            f"WHERE {id} IN (SELECT id FROM stays)",
        )
    run(
        connection,
        "UPDATE archives h SET until = greatest(h.until, a.until), seq = greatest(h.seq, a.seq) "
        "FROM archives a WHERE h.number = %(heir)s AND a.number = %(number)s",
        {"heir": heir, "number": archive.number},
    )


def _copy_nothing_that_went(connection: Connection, archive: Archive, heir: int) -> None:
    run(connection, "SELECT set_config('orchestrator.moves', 'on', true)")  # see migration 0025
    run(
        connection,
        f"DELETE FROM executions{_suffix(heir)} h USING stays s WHERE h.id = s.id "
        f"AND NOT EXISTS (SELECT FROM executions{archive.suffix} e WHERE e.id = h.id)",
    )
    run(connection, "SELECT set_config('orchestrator.moves', '', true)")


def _settle(connection: Connection, archive: Archive, moment: datetime) -> None:
    """Nothing in it goes before the next workflow keeps it no longer; or it is counted, which is looked at each day."""
    run(
        connection,
        """
        UPDATE archives a SET settled_until = coalesce(
            (SELECT a.until + min(w.retention) * interval '1 second' FROM workflows w
             WHERE a.until + w.retention * interval '1 second' > %(now)s), %(now)s + interval '1 day')
        WHERE number = %(number)s
        """,
        {"number": archive.number, "now": moment},
    )


def _forget(connection: Connection, archive: Archive) -> None:
    """What a trigger removes when executions are deleted. What they said was said before they ended."""
    for table, also in (("signals", ""), ("cancellations", ""), ("step_logs", "t.id < %(last)s::uuid AND")):
        run(
            connection,
            f"DELETE FROM {table} t USING executions{archive.suffix} e WHERE {also} t.execution_id = e.id "
            "AND NOT EXISTS (SELECT FROM stays s WHERE s.id = e.id)",
            {"last": id_at((archive.until + DAY).timestamp() * 1000)},
        )
