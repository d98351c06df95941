"""Counters of the whole deployment: what its processes have counted, added up."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from orchestrator.metrics import Key, tally
from orchestrator.store.session import run, to_json


def flush(connection: Connection) -> None:
    """Add what this process has counted. If that fails, it is kept for the next time: of a connection that breaks off
    right between the commit and its answer it is then counted twice."""
    counts = tally.take()
    if not counts:
        return
    rows = [{"name": name, "labels": labels, "value": number} for (name, labels), number in counts.items()]
    try:
        run(
            connection,
            # In one order, so that of two processes one waits for the other, and not both.
            "INSERT INTO counters AS c (name, labels, value) "
            "SELECT name, labels, value FROM jsonb_to_recordset(%(rows)s::jsonb) "
            "AS given(name text, labels text[], value float8) ORDER BY name, labels "
            "ON CONFLICT (name, labels) DO UPDATE SET value = c.value + excluded.value",
            {"rows": to_json(rows)},
        )
    except BaseException:
        tally.put_back(counts)
        raise


def read(connection: Connection) -> dict[Key, float]:
    rows = run(connection, "SELECT name, labels, value FROM counters ORDER BY name, labels")
    return {(row.name, tuple(row.labels)): row.value for row in rows}
