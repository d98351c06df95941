"""The tables that grow with time, in partitions: ranges of ids, and so of time, since ids are UUIDv7.

What has expired is dropped as a whole, which costs the same however much it is. A row for which there is no partition
(nobody has made one ahead, or a clock is wrong) goes to the table's default partition, so that no insert fails for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import UNSETTLED, sql_words
from orchestrator.store.session import id_at, run

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_LONGEST = timedelta(days=30)
_AHEAD = 3
"""Partitions that there are beyond the present one."""
_IN_A_RETENTION = 7
"""Partitions that what is kept is in: the part that is kept beyond its time is one of them."""
_AT_MOST = 100
"""About as many partitions as workflows that keep theirs for long may make of a table: each costs a look at an index in
a query that is not about a certain time."""
_PATIENCE = "1s"
"""For which a change of the partitions waits for others, while yet others wait behind it."""


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table in partitions, and what there is to know when one of them has expired.

    `kept_longer`: the rows (p) of workflows that keep theirs for longer than `age`; `unsettled`: those that somebody
    still has to see to; `forget`: removes what another table knows of the ids from `first` to `last` that are not
    {carried} over. `seal` closes {partition} for changes.
    """

    name: str
    kept_longer: str = "false"
    unsettled: str = "false"
    forget: str = ""
    seal: str = ""


LOGS = Partitioned(
    "step_logs",
    kept_longer="p.execution_id IN (SELECT e.id FROM all_executions e JOIN workflows w ON w.id = e.workflow_id "
    "WHERE w.retention > %(age)s AND e.id < %(last)s::uuid)",
)
FIRES = Partitioned(
    "trigger_fires",
    kept_longer="p.trigger_id IN (SELECT t.id FROM triggers t JOIN workflows w ON w.id = t.workflow_id "
    "WHERE w.retention > %(age)s)",
    unsettled=f"p.outcome IN ({sql_words(UNSETTLED)})",
    forget="DELETE FROM trigger_slots s WHERE s.fire_id >= %(first)s::uuid AND s.fire_id < %(last)s::uuid "
    "AND NOT EXISTS (SELECT FROM {carried} c WHERE c.id = s.fire_id)",
)
AUDIT = Partitioned(
    "audit_log",
    seal="CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {partition} "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()",
)
TABLES = (LOGS, FIRES, AUDIT)


@dataclass(frozen=True, slots=True)
class Partition:
    """The rows with ids made from `begin` (None: ever since) to `end`. Before `settled_until` nothing is to be removed
    from it: what it has left is to be kept for longer."""

    name: str
    begin: datetime | None
    end: datetime
    settled_until: datetime | None = None

    @property
    def bounds(self) -> tuple[str, str]:
        """The first id in it, and the first one after it."""
        return id_at(0) if self.begin is None else first_id(self.begin), first_id(self.end)


def span(kept: float, longest: float = 0) -> timedelta:
    """What one partition holds of a table whose rows are kept for `kept` seconds (0: for ever), some of them for
    `longest`: whole days, or hours if it is less than one."""
    if not kept:
        return _LONGEST
    wanted = timedelta(seconds=max(kept / _IN_A_RETENTION, longest / _AT_MOST))
    unit = DAY if wanted >= DAY else HOUR
    return min(max(wanted // unit, 1) * unit, _LONGEST)


def alone(connection: Connection) -> bool:
    """Whether nobody else changes partitions until this transaction ends; it then waits for nobody for long."""
    sql = f"SET LOCAL lock_timeout = '{_PATIENCE}'; SELECT pg_try_advisory_xact_lock(hashtextextended('partitions', 0))"
    return bool(run(connection, sql).scalar())


def partitions(connection: Connection, table: Partitioned) -> list[Partition]:
    """Those of `table`, the oldest first, without the default one."""
    rows = run(
        connection,
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds, obj_description(c.oid, 'pg_class') AS comment "
        "FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %(table)s::regclass",
        {"table": table.name},
    )
    found = [_partition(row.relname, row.bounds, row.comment or "") for row in rows if row.bounds != "DEFAULT"]
    return sorted(found, key=lambda partition: partition.end)


_ID = re.compile(r"[0-9a-f-]{36}")
_SETTLED = "nothing to be removed before "


def _partition(name: str, bounds: str, comment: str) -> Partition:
    begin, end = bounds.split(" TO ")
    first, last = _ID.search(begin), _ID.search(end)
    assert last is not None, f"{name} has no end"
    settled = datetime.fromisoformat(comment.removeprefix(_SETTLED)) if comment.startswith(_SETTLED) else None
    return Partition(name, None if first is None else _time_of(first[0]), _time_of(last[0]), settled)


def _time_of(id: str) -> datetime:
    return datetime.fromtimestamp(int(id.replace("-", "")[:12], 16) / 1000, UTC)


def first_id(moment: datetime) -> str:
    return id_at(round(moment.timestamp() * 1000))


def make_ahead(connection: Connection, table: Partitioned, each: timedelta = DAY) -> None:
    """Have partitions for what is to come, each for as long as `each`, one after the other without a gap. To be called
    `alone` in a transaction."""
    moment, there = now(connection), partitions(connection, table)
    begin, until = there[-1].end, moment + _AHEAD * each
    if begin >= until:
        return
    stray = _set_default_aside(connection, table, until)
    while begin < until:
        end = max(begin, moment - (moment - begin) % each) + each  # what nobody made one for in time has one now
        new = Partition(f"{table.name}_{begin:%Y%m%d%H}", begin, end)
        _create(connection, table, new.name)
        _attach(connection, table, new)
        begin = end
    if stray is not None:
        # Older than all partitions is what has expired with the oldest one.
        oldest = there[0].bounds[0]
        run(
            connection,
            f"INSERT INTO {table.name} SELECT * FROM {stray} WHERE id >= %(oldest)s::uuid; DROP TABLE {stray}",
            {"oldest": oldest},
        )


def _set_default_aside(connection: Connection, table: Partitioned, until: datetime) -> str | None:
    """A partition is not added while the default one has rows that belong into it: the table that these are in now."""
    default, stray = f"{table.name}_default", f"{table.name}_stray"
    if not run(
        connection, f"SELECT EXISTS (SELECT FROM {default} WHERE id < %(until)s::uuid)", {"until": first_id(until)}
    ).scalar():
        return None
    run(connection, f"ALTER TABLE {table.name} DETACH PARTITION {default}; ALTER TABLE {default} RENAME TO {stray}")
    _create(connection, table, default)
    run(connection, f"ALTER TABLE {table.name} ATTACH PARTITION {default} DEFAULT")
    return stray


def expired(connection: Connection, table: Partitioned, kept: float) -> Partition | None:
    """The oldest partition that has something to be removed: all in it is older than `kept` seconds (0: never). Not the
    newest: where it ends, the next one begins."""
    moment = now(connection)
    for partition in partitions(connection, table)[:-1] if kept else ():
        is_settled = partition.settled_until is not None and moment < partition.settled_until
        if partition.end + timedelta(seconds=kept) <= moment and not is_settled:
            return partition
    return None


def remove(connection: Connection, table: Partitioned, partition: Partition) -> None:
    """Drop it; rows that are to be kept for longer are carried over into one that takes its place. To be called `alone`
    in a transaction.

    They are copied before anybody has to wait. A fire that is settled in between is carried out again, to no effect.
    """
    moment, carried = now(connection), f"{table.name}_carried"
    first, last = partition.bounds
    params = {"first": first, "last": last, "age": (moment - partition.end).total_seconds()}
    next_retention = run(connection, "SELECT min(retention) FROM workflows WHERE retention > %(age)s", params).scalar()
    _create(connection, table, carried)
    # With it nothing has to be looked through when the partition is attached.
    run(
        connection,
        f"ALTER TABLE {carried} ADD CONSTRAINT bounds CHECK (id >= %(first)s::uuid AND id < %(last)s::uuid)",
        params,
    )
    stays = table.unsettled if next_retention is None else f"{table.unsettled} OR {table.kept_longer}"
    number = run(connection, f"INSERT INTO {carried} SELECT * FROM {partition.name} p WHERE {stays}", params).rowcount
    if table.forget:
        run(connection, table.forget.format(carried=carried), params)
    run(connection, f"DROP TABLE {partition.name}")
    if not number:
        run(connection, f"DROP TABLE {carried}")
        return
    run(connection, f"ALTER TABLE {carried} RENAME TO {partition.name}")
    _attach(connection, table, partition)
    until = moment + DAY if next_retention is None else partition.end + timedelta(seconds=next_retention)
    run(
        connection,
        f"ALTER TABLE {partition.name} DROP CONSTRAINT bounds; "
        f"COMMENT ON TABLE {partition.name} IS '{_SETTLED}{until.isoformat()}'",
    )


def _create(connection: Connection, table: Partitioned, name: str) -> None:
    run(connection, f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL); {table.seal.format(partition=name)}")


def _attach(connection: Connection, table: Partitioned, partition: Partition) -> None:
    first, last = partition.bounds
    # Not created in place, for which all who use the table would have to wait.
    run(
        connection,
        f"ALTER TABLE {table.name} ATTACH PARTITION {partition.name} FOR VALUES FROM ('{first}') TO ('{last}')",
    )


def now(connection: Connection) -> datetime:
    moment: datetime = run(connection, "SELECT clock_timestamp()").scalar_one()
    return moment
