"""The operations of a `database` step: each gets a connection in a transaction, and its output is JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.config import OutputLimit
from orchestrator.errors import StepFailed
from workers.steps.contract import config_mistake
from workers.steps.database_sql import reads, statement
from workers.steps.database_values import bound, bound_row, plain

Row = Mapping[str, Any]
Operation = Callable[[sa.Connection], dict[str, Any]]

_FETCH = 100
"""Rows asked for at a time: what is read past a limit at most."""

_MOST_PARAMETERS = 30_000
"""In one statement; SQLAlchemy would divide it at 32,700, and tell the row count of the last part."""


def operation(config: Mapping[str, Any], rows: Sequence[Row], limit: OutputLimit) -> Operation:
    """What the step does with a connection, and what it outputs. `rows` are those to insert or upsert."""
    results = _Results(config["max_rows"], limit)
    match config["operation"]:
        case "query":
            return lambda connection: _query(connection, config, results)
        case "execute":
            return lambda connection: _execute(connection, config, results)
        case "transaction":
            return lambda connection: {
                "results": [_execute(connection, each, results) for each in config["statements"]]
            }
        case "update":
            values = bound_row(config["values"])
            changed = _table(config, values).update().where(*_conditions(config)).values(values)
            return lambda connection: _change(connection, changed, config, results)
        case "delete":
            deleted = _table(config).delete().where(*_conditions(config))
            return lambda connection: _change(connection, deleted, config, results)
    return lambda connection: _insert(connection, config, rows, results)


def _query(connection: sa.Connection, config: Mapping[str, Any], results: _Results) -> dict[str, Any]:
    if reads(config["sql"]):
        connection = connection.execution_options(stream_results=True, max_row_buffer=_FETCH)
    found = connection.execute(*statement(config["sql"], config.get("params", {}), connection.dialect.name))
    rows = results.take(found)
    return {"rows": rows, "row_count": len(rows), "columns": list(found.keys()) if found.returns_rows else []}


def _execute(connection: sa.Connection, config: Mapping[str, Any], results: _Results) -> dict[str, Any]:
    return results.output(
        connection.execute(*statement(config["sql"], config.get("params", {}), connection.dialect.name))
    )


def _change(
    connection: sa.Connection, change: sa.Update | sa.Delete, config: Mapping[str, Any], results: _Results
) -> dict[str, Any]:
    if "returning" in config:
        return results.output(connection.execute(change.returning(*map(sa.column, config["returning"]))))
    return results.output(connection.execute(change))


def _insert(
    connection: sa.Connection, config: Mapping[str, Any], rows: Sequence[Row], results: _Results
) -> dict[str, Any]:
    returned: list[dict[str, Any]] = []
    count = 0
    for batch in _batches(rows, config["batch_size"]):
        if "key" in config:
            batch = _last_of_each_key(batch, config["key"])
        # In one statement each, of which the row count then tells everything.
        options = {"insertmanyvalues_page_size": len(batch)}
        result = connection.execute(_insertion(connection, config, batch[0]), batch, execution_options=options)
        if "returning" in config:
            returned += results.take(result)
        count += len(result.all()) if result.returns_rows else max(0, result.rowcount)
    return {"row_count": len(returned), "rows": returned} if "returning" in config else {"row_count": count}


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """At most `size` rows that follow each other and name the same columns: what is not named gets its default."""
    for columns, alike in groupby(rows, key=lambda row: row.keys()):
        batch: list[Row] = []
        for row in alike:
            batch.append(row)
            if len(batch) == min(size, _MOST_PARAMETERS // len(columns)):
                yield batch
                batch = []
        if batch:
            yield batch


def _last_of_each_key(batch: Sequence[Row], key: Sequence[str]) -> list[Row]:
    """One statement may touch a row once only; the last row of a key is what single statements would leave."""
    return list({tuple(row[name] for name in key): row for row in batch}.values())


def _insertion(connection: sa.Connection, config: Mapping[str, Any], row: Row) -> sa.Insert:
    table = _table(config, row)
    insertion: Any = table.insert()
    if "key" in config:
        dialect = connection.dialect.name
        if dialect not in _UPSERTS:
            raise config_mistake(f"upsert is for PostgreSQL and SQLite; write it as `execute` in the SQL of {dialect}")
        insertion = _UPSERTS[dialect](table)
        others = {name: insertion.excluded[name] for name in row if name not in config["key"]}
        if others:
            insertion = insertion.on_conflict_do_update(index_elements=config["key"], set_=others)
        else:
            insertion = insertion.on_conflict_do_nothing(index_elements=config["key"])
    # An upsert that returns nothing would be sent row by row.
    returning = config.get("returning") or config.get("key", [])[:1]
    if returning:
        insertion = insertion.returning(*map(sa.column, returning))
    return cast(sa.Insert, insertion)


_UPSERTS: Mapping[str, Callable[[sa.TableClause], Any]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}


def _table(config: Mapping[str, Any], columns: Iterable[str] = ()) -> sa.TableClause:
    schema, _, name = config["table"].rpartition(".")
    return sa.table(name, *map(sa.column, columns), schema=schema or None)


def _conditions(config: Mapping[str, Any]) -> Iterator[sa.ColumnElement[bool]]:
    for name, value in config.get("where", {}).items():
        column: sa.ColumnElement[Any] = sa.column(name)
        if isinstance(value, list):
            # `IN (..., NULL)` would never find the rows without a value.
            nothing = [column.is_(None)] if None in value else []
            yield sa.or_(column.in_([bound(item) for item in value if item is not None]), *nothing)
        elif value is None:
            yield column.is_(None)
        else:
            yield column == sa.literal(bound(value))


class _Results:
    """Reads rows within bounds that hold for the whole step's output."""

    def __init__(self, max_rows: int, limit: OutputLimit) -> None:
        self._max_rows = max_rows
        self._limit = limit
        self._bytes = 0

    def output(self, result: sa.CursorResult[Any]) -> dict[str, Any]:
        if result.returns_rows:
            rows = self.take(result)
            return {"row_count": len(rows), "rows": rows}
        return {"row_count": max(0, result.rowcount)}

    def take(self, result: sa.CursorResult[Any]) -> list[dict[str, Any]]:
        """Every row of `result`. Raises StepFailed past the bounds, and for two columns of one name."""
        if not result.returns_rows:
            return []
        names = list(result.keys())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise StepFailed(
                f"two columns are called {twice[0]!r}; name them apart with AS", kind="sql", retryable=False
            )
        rows: list[dict[str, Any]] = []
        while chunk := result.fetchmany(min(_FETCH, self._max_rows + 1 - len(rows))):
            rows += (self._json(names, row) for row in chunk)
            if len(rows) > self._max_rows:
                raise StepFailed(
                    f"more than {self._max_rows} rows (max_rows); raise max_rows, or narrow what is asked for",
                    kind="too_many_rows",
                    retryable=False,
                )
        return rows

    def _json(self, names: Sequence[str], values: Iterable[Any]) -> dict[str, Any]:
        row = {name: plain(value) for name, value in zip(names, values, strict=True)}
        self._bytes += len(orjson.dumps(row))
        if self._bytes > self._limit.bytes:
            raise StepFailed(
                f"the rows have over {self._limit.bytes} bytes ({self._limit.setting}); ask for fewer or smaller ones",
                kind="output_too_large",
                retryable=False,
            )
        return row
