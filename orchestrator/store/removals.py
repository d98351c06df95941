"""How much was removed because it had been kept long enough: for /metrics."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from orchestrator.store.session import run


def count(connection: Connection, kind: str, number: int = 1) -> None:
    """To be called in the transaction that removes them."""
    run(
        connection,
        "INSERT INTO removals AS r (kind, number) VALUES (%(kind)s, %(number)s) "
        "ON CONFLICT (kind) DO UPDATE SET number = r.number + excluded.number",
        {"kind": kind, "number": number},
    )


def numbers(connection: Connection) -> dict[str, int]:
    """By kind, since the beginning."""
    return {row.kind: row.number for row in run(connection, "SELECT kind, number FROM removals ORDER BY kind")}
