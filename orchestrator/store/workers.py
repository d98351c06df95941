"""Worker processes and their leases, and the duties that one process at a time holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from orchestrator.store.session import run


@dataclass(frozen=True, slots=True)
class ProcessRow:
    id: str
    pid: int
    born: float


def register(
    connection: Connection,
    id: str,
    *,
    node: str,
    host: str,
    pid: int,
    born: float,
    queues: Iterable[str] | None = None,
    slots: int | None = None,
    script_isolation: str | None = None,
) -> None:
    run(
        connection,
        "INSERT INTO worker_processes (id, node, host, pid, born, queues, slots, script_isolation) "
        "VALUES (%(id)s::uuid, %(node)s, %(host)s, %(pid)s, %(born)s, %(queues)s, %(slots)s, %(isolation)s)",
        {
            "id": id,
            "node": node,
            "host": host,
            "pid": pid,
            "born": born,
            "queues": None if queues is None else sorted(queues),
            "slots": slots,
            "isolation": script_isolation,
        },
    )


def beat(connection: Connection, id: str) -> bool:
    """Keep the lease; False if it has been taken away, and with it every claim made under it."""
    sql = "UPDATE worker_processes SET seen_at = clock_timestamp() WHERE id = %(id)s::uuid"
    return run(connection, sql, {"id": id}).rowcount == 1


def remove(connection: Connection, ids: Iterable[str]) -> None:
    sql = "DELETE FROM worker_processes WHERE id = ANY(%(ids)s::uuid[])"
    run(connection, sql, {"ids": list(ids)})


def remove_expired(connection: Connection, lease: float) -> int:
    """Take away the leases not kept for `lease` seconds; how many those were."""
    sql = "DELETE FROM worker_processes WHERE seen_at < clock_timestamp() - %(lease)s * interval '1 second'"
    return run(connection, sql, {"lease": lease}).rowcount


def on_host(connection: Connection, host: str) -> list[ProcessRow]:
    rows = run(
        connection, "SELECT id::text AS id, pid, born FROM worker_processes WHERE host = %(host)s", {"host": host}
    )
    return [ProcessRow(row.id, row.pid, row.born) for row in rows]


def seconds_since_newest_beat(connection: Connection) -> float | None:
    """None if no worker process is known."""
    sql = "SELECT extract(epoch FROM clock_timestamp() - max(seen_at))::float8 FROM worker_processes"
    seconds: float | None = run(connection, sql).scalar()
    return seconds


def script_isolation(connection: Connection) -> dict[str, int]:
    """How many worker processes isolate scripts in which way, of those that have said so."""
    rows = run(
        connection,
        "SELECT script_isolation AS mode, count(*) AS number FROM worker_processes WHERE script_isolation IS NOT NULL "
        "GROUP BY script_isolation ORDER BY script_isolation",
    )
    return {row.mode: row.number for row in rows}


def hold_duty(connection: Connection, name: str, holder: str, lapse: float) -> bool:
    """Take or keep the duty `name`; False while another holder has kept it within `lapse` seconds."""
    run(
        connection,
        "INSERT INTO duties (name) VALUES (%(name)s) ON CONFLICT DO NOTHING",
        {"name": name},
    )
    sql = (
        "UPDATE duties SET holder = %(holder)s::uuid, at = clock_timestamp() WHERE name = %(name)s AND "
        "(holder = %(holder)s::uuid OR at < clock_timestamp() - %(lapse)s * interval '1 second')"
    )
    return run(connection, sql, {"name": name, "holder": holder, "lapse": lapse}).rowcount == 1


def seconds_since_duty(connection: Connection, name: str) -> float | None:
    """Since the duty was last kept; None if nobody ever did."""
    sql = "SELECT extract(epoch FROM clock_timestamp() - at)::float8 FROM duties WHERE name = %(name)s"
    seconds: float | None = run(connection, sql, {"name": name}).scalar()
    return seconds
