"""Which artifacts rows refer to; see orchestrator/artifacts.py."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.engine import Connection

from orchestrator.store.session import run


def referred(
    connection: Connection, execution_ids: Collection[str], *, ended_after: float, ended_before: float
) -> dict[str, frozenset[str] | None]:
    """By execution, of those that are there, the keys of the artifacts that its steps refer to; None for one that has
    not ended, or not between `ended_after` and `ended_before` seconds ago."""
    rows = run(
        connection,
        """
        SELECT e.id::text, CASE WHEN e.finished_at BETWEEN clock_timestamp() - %(after)s * interval '1 second'
                                                       AND clock_timestamp() - %(before)s * interval '1 second'
               THEN ARRAY(SELECT s.output -> '$artifact' ->> 'key' FROM all_step_executions s
                          WHERE s.execution_id = e.id AND s.output ? '$artifact') END AS keys
        FROM all_executions e WHERE e.id = ANY(%(ids)s::uuid[])
        """,
        {"ids": list(execution_ids), "after": ended_after, "before": ended_before},
    )
    return {row.id: None if row.keys is None else frozenset(row.keys) for row in rows}
