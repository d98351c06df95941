"""Steps that are tried out: what was asked, and what came of it. A row lives for an hour at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.store.session import new_id, run, to_json

KEPT = 3600.0
"""Seconds; whoever asked has its answer long before."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a worker is to try; `age` is the seconds since it was asked for."""

    request: dict[str, Any]
    age: float


def insert(connection: Connection, request: Any) -> str:
    id = new_id()
    run(
        connection,
        "INSERT INTO step_tests (id, request) VALUES (%(id)s::uuid, %(request)s::jsonb)",
        {"id": id, "request": to_json(request)},
    )
    return id


def start(connection: Connection, id: str) -> Given | None:
    """Take it on; None if somebody has, or if nobody waits for it any more."""
    row = run(
        connection,
        "UPDATE step_tests SET started_at = clock_timestamp() WHERE id = %(id)s::uuid AND started_at IS NULL "
        "RETURNING request, extract(epoch FROM clock_timestamp() - created_at)::float8 AS age",
        {"id": id},
    ).first()
    return None if row is None else Given(row.request, row.age)


def finish(connection: Connection, id: str, result: Any) -> bool:
    """Keep what came of it; False if nobody waits for it any more."""
    sql = (
        "UPDATE step_tests SET result = %(result)s::jsonb, finished_at = clock_timestamp() "
        "WHERE id = %(id)s::uuid AND result IS NULL"
    )
    return run(connection, sql, {"id": id, "result": to_json(result)}).rowcount == 1


def result(connection: Connection, id: str) -> dict[str, Any] | None:
    """What came of it, None so far."""
    found: dict[str, Any] | None = run(
        connection, "SELECT result FROM step_tests WHERE id = %(id)s::uuid", {"id": id}
    ).scalar()
    return found


def withdraw(connection: Connection, id: str) -> bool:
    """Take back what no worker has taken on, so that none will; False if one has."""
    sql = "DELETE FROM step_tests WHERE id = %(id)s::uuid AND started_at IS NULL"
    return run(connection, sql, {"id": id}).rowcount == 1


def purge(connection: Connection, limit: int) -> int:
    """Remove what is older than KEPT; how many."""
    return run(
        connection,
        "DELETE FROM step_tests WHERE ctid IN (SELECT ctid FROM step_tests "
        "WHERE created_at < clock_timestamp() - %(kept)s * interval '1 second' LIMIT %(limit)s)",
        {"kept": KEPT, "limit": limit},
    ).rowcount
