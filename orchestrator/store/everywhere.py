"""Reading executions and steps wherever they are: among the present ones, or laid aside (see store/archives.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from sqlalchemy.engine import Connection

from orchestrator.store.session import Params, Row, run


@cache
def everywhere(sql: str) -> str:
    """A query of the present executions and steps, as one of all that there are: PostgreSQL looks in each table."""
    return re.sub(r"\b(step_)?executions\b", r"all_\g<0>", sql)


def all_anywhere(connection: Connection, sql: str, params: Params) -> Sequence[Row]:
    """The rows of a query about one execution or step. Most that are asked for are among the present ones."""
    return run(connection, sql, params).all() or run(connection, everywhere(sql), params).all()


def first_anywhere(connection: Connection, sql: str, params: Params) -> Row | None:
    """The first of these rows."""
    return next(iter(all_anywhere(connection, sql, params)), None)
