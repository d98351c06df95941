"""Reading executions and steps wherever they are: among the present ones, or laid aside (see store/archives.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.store.routines import Routine
from orchestrator.store.session import Params, Row, compiled, run


@cache
def everywhere(sql: str) -> str:
    """A query of the present executions and steps, as one of all that there are: PostgreSQL looks in each table."""
    return re.sub(r"\b(step_)?executions\b", r"all_\g<0>", sql)


def present(sql: str) -> str:
    """A query of all executions as one of the present ones, among which is all that has not ended: in what is laid
    aside there is neither any of it nor an index to find out."""
    return re.sub(r"\ball_((step_)?executions)\b", r"\1", sql)


class Reading:
    """A query about one execution or step that is asked often enough to keep its plans."""

    def __init__(self, name: str, query: sa.Select[Any], parameters: Mapping[str, str]) -> None:
        sql = compiled(query)
        self._present = Routine.of(name, sql, query, parameters, sorts=True)
        self._all = Routine.of(f"all_{name}", everywhere(sql), query, parameters, sorts=True)

    def all(self, connection: Connection, params: Params) -> Sequence[Row]:
        """Its rows, as of `all_anywhere`."""
        return run(connection, self._present.call, params).all() or run(connection, self._all.call, params).all()

    def first(self, connection: Connection, params: Params) -> Row | None:
        return next(iter(self.all(connection, params)), None)


def all_anywhere(connection: Connection, sql: str, params: Params) -> Sequence[Row]:
    """The rows of a query about one execution or step. Most that are asked for are among the present ones."""
    return run(connection, sql, params).all() or run(connection, everywhere(sql), params).all()


def first_anywhere(connection: Connection, sql: str, params: Params) -> Row | None:
    """The first of these rows."""
    return next(iter(all_anywhere(connection, sql, params)), None)
