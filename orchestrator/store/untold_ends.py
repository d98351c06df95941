"""Ends of executions that nobody could tell the plugins of: those that came by way of the API, which has none."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.engine import Connection

from orchestrator.store.session import run


def leave(connection: Connection, execution_id: str) -> None:
    """In the transaction of the end, or nobody might ever know."""
    run(
        connection,
        "INSERT INTO untold_ends (execution_id) VALUES (%(id)s::uuid) ON CONFLICT DO NOTHING",
        {"id": execution_id},
    )


def first(connection: Connection, limit: int) -> list[str]:
    rows = run(
        connection,
        "SELECT execution_id::text FROM untold_ends ORDER BY ended_at LIMIT %(limit)s",
        {"limit": limit},
    )
    return [id for (id,) in rows]


def remove(connection: Connection, execution_ids: Collection[str]) -> None:
    run(
        connection,
        "DELETE FROM untold_ends WHERE execution_id = ANY(%(ids)s::uuid[])",
        {"ids": list(execution_ids)},
    )
