"""Log lines of steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.store import models as tables
from orchestrator.store.keyset import Window, both_ways
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


LEVELS = ("debug", "info", "warning", "error")
"""From the least to the most severe."""


def at_least(level: str) -> tuple[str, ...]:
    """This level and those that are more severe."""
    return LEVELS[LEVELS.index(level) :]


_l = tables.step_logs

# By their numbers, not by their times or ids, which each worker has from a clock of its own.
ORDERS = both_ways(at=(_l.c.seq,))


def listing(
    connection: Connection,
    window: Window,
    execution_id: str,
    *,
    step_id: str | None = None,
    level: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[dict[str, Any]]:
    """The log lines of an execution: of a step, of this level or more severe, from `since` and before `until`."""
    query = window.of(sa.select(*_l.c).where(_l.c.execution_id == execution_id))
    if step_id is not None:
        query = query.where(_l.c.step_id == step_id)
    if level is not None:
        query = query.where(_l.c.level.in_(at_least(level)))
    if since is not None:
        query = query.where(_l.c.at >= since)
    if until is not None:
        query = query.where(_l.c.at < until)
    return as_dicts(connection.execute(query).all())
