"""Log lines of steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.store import models as tables
from orchestrator.store.session import as_dicts, new_id, run


class LogLine(NamedTuple):
    at: datetime
    level: str
    message: str


def append(
    connection: Connection,
    execution_id: str,
    step_execution_id: str,
    step_id: str,
    attempt: int,
    lines: Sequence[LogLine],
) -> None:
    run(
        connection,
        "INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at) "
        "SELECT u.id, %(execution)s::uuid, %(step_execution)s::uuid, %(step)s, %(attempt)s, u.level, u.message, u.at "
        "FROM unnest(%(ids)s::uuid[], %(levels)s::text[], %(messages)s::text[], %(ats)s::timestamptz[]) "
        "AS u(id, level, message, at)",
        {
            "execution": execution_id,
            "step_execution": step_execution_id,
            "step": step_id,
            "attempt": attempt,
            "ids": [new_id() for _ in lines],
            "levels": [line.level for line in lines],
            "messages": [line.message for line in lines],
            "ats": [line.at for line in lines],
        },
    )


_l = tables.step_logs


def listing(
    connection: Connection,
    execution_id: str,
    *,
    step_id: str | None = None,
    after: str | None = None,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """Log lines in the order in which they were written; `after` is the id that the last page ended with."""
    query = sa.select(*_l.c).where(_l.c.execution_id == execution_id).order_by(_l.c.id).limit(limit)
    if step_id is not None:
        query = query.where(_l.c.step_id == step_id)
    if after is not None:
        query = query.where(_l.c.id > after)
    return as_dicts(connection.execute(query).all())
