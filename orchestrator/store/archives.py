"""Executions that ended a while ago are laid aside with their steps, in tables that are dropped as a whole.

`executions` and `step_executions` have what is live, and what has ended since they were begun. Once they have been
written for long enough, they are laid aside: renamed, and new ones are made with their names, into which goes what is
live still. So whatever moves executions on knows nothing of this, and its tables stay small. All of them inherit from
`all_executions` and `all_step_executions`; who wants to know of what may have been laid aside reads from these.

Executions that steps wait for are never in another pair of tables than those steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_LIVE, EXECUTION_TERMINAL, sql_words
from orchestrator.store import partitions
from orchestrator.store.everywhere import everywhere, first_anywhere
from orchestrator.store.partitions import DAY, id_time
from orchestrator.store.session import Params, id_at, run
from orchestrator.store.workflow_ends import IS_COUNTED

TABLES = ("executions", "step_executions")
"""In the order in which everybody takes locks on them."""

_MOST = 20_000
"""Steps of live executions that are carried over while everybody waits: a second. With more of them nothing is
laid aside, and what expires is deleted in batches."""
_PATIENCE = "300ms"
"""For which everybody waits with us for those that are at it. Who has come to the steps before the executions is in our
way, and we are in theirs: then it is for another time."""
_NEXT = "_next"
"""What the names of the tables end with that will take the place of the present ones."""


# --- laying aside --------------------------------------------------------------------------------------------


def is_due(connection: Connection, each: timedelta) -> bool:
    """Whether the present tables have been written for `each`, something in them has ended, and little has not."""
    row = run(
        connection,
        "SELECT (SELECT max(until) FROM archives) AS until, (SELECT id FROM executions ORDER BY id LIMIT 1) AS oldest, "
        f"EXISTS (SELECT FROM executions WHERE status IN ({sql_words(EXECUTION_TERMINAL)})) AS some_ended",
    ).one()
    if not row.some_ended:
        return False
    begun = id_time(row.oldest) if row.until is None else row.until
    return begun + each <= partitions.now(connection) and _steps_of_live(connection) <= _MOST


def _steps_of_live(connection: Connection) -> int:
    """How many there are, up to one more than may be."""
    number: int = run(
        connection,
        "SELECT count(*) FROM (SELECT FROM executions e JOIN step_executions s ON s.execution_id = e.id "
        f"WHERE e.status IN ({sql_words(EXECUTION_LIVE)}) LIMIT {_MOST} + 1) AS few",
    ).scalar_one()
    return number


def make_ready(connection: Connection) -> bool:
    """Have a pair of tables that can take the place of the present ones; whether there was one already. A transaction
    of its own, before that of `lay_aside`: who reads from all tables has found out which there are before he comes to
    those that somebody has locked."""
    designs = [_Design.of(connection, table) for table in TABLES]
    if run(connection, f"SELECT to_regclass('executions{_NEXT}')").scalar() is not None:
        if designs == [_Design.of(connection, table, _NEXT) for table in TABLES]:
            return True
        # Somebody has changed the present ones since.
        run(connection, f"DROP TABLE step_executions{_NEXT}; DROP TABLE executions{_NEXT}")
    for design in designs:
        run(connection, "; ".join(design.making(_NEXT)))
    return False


def lay_aside(connection: Connection) -> None:
    """The present tables become an archive; what has not ended, and whatever hangs together with that, goes on in those
    that were made ready. To be called in a transaction; everybody waits for its end."""
    designs = [_Design.of(connection, table) for table in TABLES]
    run(connection, f"SET LOCAL lock_timeout = '{_PATIENCE}'")
    run(connection, f"LOCK TABLE {', '.join(TABLES)} IN ACCESS EXCLUSIVE MODE")
    number: int = run(
        connection,
        "INSERT INTO archives (until, seq) SELECT %(until)s, last_value FROM feed_seq RETURNING number",
        {"until": partitions.now(connection)},
    ).scalar_one()
    suffix = f"_{number}"
    for before, after in (("", suffix), (_NEXT, "")):
        run(connection, "; ".join(sql for design in designs for sql in design.renaming(before, after)))
    live = f"SELECT id FROM executions{suffix} WHERE status IN ({sql_words(EXECUTION_LIVE)})"
    _carry(connection, suffix, f"{live} UNION ALL SELECT execution_id FROM untold_ends")  # somebody has still to look


def bring_back(connection: Connection, execution_id: str) -> None:
    """Have an execution among the present ones, with all that hangs together with it, so that it can go on."""
    sql = "SELECT tableoid::regclass::text AS its_table FROM executions WHERE id = %(id)s::uuid"
    row = first_anywhere(connection, sql, {"id": execution_id})
    if row is not None and row.its_table != "executions":
        _carry(connection, row.its_table.removeprefix("executions"), "SELECT %(id)s::uuid", id=execution_id)


def _carry(connection: Connection, suffix: str, which: str, **params: Any) -> None:
    """Move these executions into the present tables, with their parents and children near and far."""
    run(connection, "SELECT set_config('orchestrator.moves', 'on', true)")  # see migration 0025
    run(
        connection,
        f"""
        WITH RECURSIVE family(id) AS (
            ({which}) UNION SELECT near.id FROM family CROSS JOIN LATERAL (
                SELECT c.id FROM step_executions{suffix} s JOIN executions{suffix} c ON c.parent_step_id = s.id
                WHERE s.execution_id = family.id
                UNION ALL
                SELECT p.execution_id FROM executions{suffix} e
                JOIN step_executions{suffix} p ON p.id = e.parent_step_id WHERE e.id = family.id
            ) AS near
        ), moved_executions AS (
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


@dataclass(frozen=True, slots=True)
class _Design:
    """How a table is made, read from one: so a migration that changes the present ones has nothing to do here. Its own
    name stands as {table} in it, that of the executions beside it as {executions}; an index is {name}."""

    table: str
    options: str
    keys: dict[str, str]
    """The constraints that are indexes, by their names."""
    constraints: dict[str, str]
    indexes: dict[str, str]
    triggers: tuple[str, ...]

    @classmethod
    def of(cls, connection: Connection, table: str, suffix: str = "") -> _Design:
        of_it = {"table": f"{table}{suffix}"}
        options = "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = %(table)s::regclass"
        constraints = run(
            connection,
            "SELECT conname AS name, contype IN ('p', 'u') AS is_key, pg_get_constraintdef(oid) AS definition "
            "FROM pg_constraint WHERE conrelid = %(table)s::regclass AND contype IN ('p', 'u', 'c', 'f') "
            "ORDER BY conname",
            of_it,
        ).all()
        indexes = run(
            connection,
            "SELECT c.relname AS name, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %(table)s::regclass AND NOT EXISTS "
            "(SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid) ORDER BY name",
            of_it,
        ).all()
        triggers = run(
            connection,
            "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = %(table)s::regclass AND NOT tgisinternal "
            "ORDER BY tgname",
            of_it,
        ).scalars()
        foreign = f"REFERENCES executions{suffix}("
        on_it = re.compile(rf" ON \S*\b{table}{suffix} ")
        return cls(
            table,
            run(connection, options, of_it).scalar() or "",
            {row.name.removesuffix(suffix): row.definition for row in constraints if row.is_key},
            {
                row.name: row.definition.replace(foreign, "REFERENCES {executions}(")
                for row in constraints
                if not row.is_key
            },
            {
                row.name.removesuffix(suffix): on_it.sub(" ON {table} ", row.definition, 1).replace(
                    f"INDEX {row.name} ", "INDEX {name} ", 1
                )
                for row in indexes
            },
            tuple(on_it.sub(" ON {table} ", definition, 1) for definition in triggers),
        )

    def making(self, suffix: str) -> Iterator[str]:
        """Of a table like it, with `suffix` at its name and at those that no two tables may have in common."""
        table = f"{self.table}{suffix}"
        options = f" WITH ({self.options})" if self.options else ""
        yield f"CREATE TABLE {table} (LIKE all_{self.table} INCLUDING DEFAULTS INCLUDING COMMENTS){options}"
        for name, definition in self.keys.items():
            yield f"ALTER TABLE {table} ADD CONSTRAINT {name}{suffix} {definition}"
        for name, definition in self.constraints.items():
            beside = definition.replace("{executions}", f"executions{suffix}")
            yield f"ALTER TABLE {table} ADD CONSTRAINT {name} {beside}"
        for name, definition in self.indexes.items():
            yield definition.replace("{name}", f"{name}{suffix}", 1).replace("{table}", table, 1)
        for definition in self.triggers:
            yield definition.replace("{table}", table, 1)
        yield f"ALTER TABLE {table} INHERIT all_{self.table}"

    def renaming(self, before: str, after: str) -> Iterator[str]:
        yield f"ALTER TABLE {self.table}{before} RENAME TO {self.table}{after}"
        for name in (*self.keys, *self.indexes):
            yield f"ALTER INDEX {name}{before} RENAME TO {name}{after}"


# --- dropping ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Archive:
    """All in it had ended at the time `until`."""

    number: int
    until: datetime

    @property
    def suffix(self) -> str:
        return f"_{self.number}"


def expired(connection: Connection, kept: float) -> Archive | None:
    """The oldest archive with something to be removed: all in it ended more than `kept` seconds ago (0: never)."""
    if not kept:
        return None
    row = run(
        connection,
        "SELECT number, until FROM archives WHERE until <= %(until)s AND coalesce(settled_until <= %(now)s, true) "
        "ORDER BY until LIMIT 1",
        {"until": partitions.now(connection) - timedelta(seconds=kept), "now": partitions.now(connection)},
    ).first()
    return None if row is None else Archive(row.number, row.until)


# What its workflow keeps for longer, or has to count (see _EXPIRED in bulk.py), and what these have started.
_STAYS = f"""
    WITH RECURSIVE stays(id) AS (
        SELECT e.id FROM executions{{suffix}} e JOIN workflows w ON w.id = e.workflow_id
        WHERE w.retention > %(age)s OR ({everywhere(IS_COUNTED)})
        UNION
        SELECT c.id FROM stays JOIN step_executions{{suffix}} s ON s.execution_id = stays.id
        JOIN executions{{suffix}} c ON c.parent_step_id = s.id
    )
"""


def remove(connection: Connection, archive: Archive) -> None:
    """Drop it, with what belongs to its executions; those that are to be kept for longer are carried over into one that
    takes its place. To be called in a transaction, in which nobody is kept from reading before that."""
    old, moment = archive.suffix, partitions.now(connection)
    params = {"age": (moment - archive.until).total_seconds()}
    # Nobody brings anything back or deletes it until this is over.
    run(connection, f"LOCK TABLE executions{old}, step_executions{old} IN SHARE ROW EXCLUSIVE MODE")
    stays = _STAYS.format(suffix=old)
    if run(connection, f"{stays} SELECT EXISTS (SELECT FROM stays)", params).scalar():
        next_retention = run(
            connection, "SELECT min(retention) FROM workflows WHERE retention > %(age)s", params
        ).scalar()
        settled = moment + DAY if next_retention is None else archive.until + timedelta(seconds=next_retention)
        new = _carried(connection, archive, stays, params, settled)
        kept = f"AND NOT EXISTS (SELECT FROM executions{new} k WHERE k.id = a.id)"
    else:
        kept = ""
    _forget(connection, archive, kept)
    run(
        connection,
        f"DROP TABLE step_executions{old}; DROP TABLE executions{old}; DELETE FROM archives WHERE number = %(number)s",
        {"number": archive.number},
    )


def _carried(connection: Connection, archive: Archive, stays: str, params: Params, settled: datetime) -> str:
    """Copy what `stays` into a new archive; its suffix."""
    number: int = run(
        connection,
        "INSERT INTO archives (until, seq, settled_until) SELECT until, seq, %(settled)s FROM archives "
        "WHERE number = %(number)s RETURNING number",
        {"number": archive.number, "settled": settled},
    ).scalar_one()
    new, old = f"_{number}", archive.suffix
    for table, id in zip(TABLES, ("id", "execution_id"), strict=True):
        run(connection, "; ".join(_Design.of(connection, table).making(new)))
        run(
            connection,
            f"{stays} INSERT INTO {table}{new} SELECT * FROM {table}{old} WHERE {id} IN (SELECT id FROM stays)",
            params,
        )
    return new


def _forget(connection: Connection, archive: Archive, kept: str) -> None:
    """What a trigger removes when executions are deleted. What they said was said before they ended."""
    for table, also in (
        ("signals", ""),
        ("cancellations", ""),
        ("step_logs", "t.id < %(last)s::uuid AND"),
    ):
        run(
            connection,
            f"DELETE FROM {table} t USING executions{archive.suffix} a WHERE {also} t.execution_id = a.id {kept}",
            {"last": id_at((archive.until + DAY).timestamp() * 1000)},
        )
