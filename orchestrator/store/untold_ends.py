"""Ends of executions that nobody could tell the plugins of: those that came by way of the API, which has none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from orchestrator.store.session import run


@dataclass(frozen=True, slots=True)
class Untold:
    execution_id: str
    ended_at: datetime
    """Of the last end, if it was done again in between."""


def leave(connection: Connection, execution_id: str) -> None:
    """In the transaction of the end, or nobody might ever know."""
    run(
        connection,
        "INSERT INTO untold_ends (execution_id) VALUES (%(id)s::uuid) "
        "ON CONFLICT (execution_id) DO UPDATE SET ended_at = excluded.ended_at",
        {"id": execution_id},
    )


def first(connection: Connection, limit: int) -> list[Untold]:
    rows = run(
        connection,
        "SELECT execution_id::text AS id, ended_at FROM untold_ends ORDER BY ended_at LIMIT %(limit)s",
        {"limit": limit},
    )
    return [Untold(row.id, row.ended_at) for row in rows]


def remove(connection: Connection, told: Collection[Untold]) -> None:
    """Those that have not ended once more while they were told."""
    run(
        connection,
        "DELETE FROM untold_ends u USING unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) AS told(id, ended_at) "
        "WHERE u.execution_id = told.id AND u.ended_at = told.ended_at",
        {"ids": [one.execution_id for one in told], "times": [one.ended_at for one in told]},
    )
