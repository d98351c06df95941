"""`database`: one transaction on a named connection."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.config import ConnectionSettings, Settings
from workers.steps.contract import Done, QueueClass, Rate, StepContext, StepType, config_mistake
from workers.steps.database_call import transact
from workers.steps.database_operations import operation
from workers.steps.database_sql import missing_params, plain_sql
from workers.steps.database_values import bound_row
from workers.steps.fields import Duration, Parsed, validates_whole

_FIELDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "query": (frozenset({"sql"}), frozenset({"params"})),
    "execute": (frozenset({"sql"}), frozenset({"params"})),
    "insert": (frozenset({"table"}), frozenset({"rows", "returning", "batch_size"})),
    "upsert": (frozenset({"table", "key"}), frozenset({"rows", "returning", "batch_size"})),
    "update": (frozenset({"table", "values"}), frozenset({"where", "all", "returning"})),
    "delete": (frozenset({"table"}), frozenset({"where", "all", "returning"})),
    "transaction": (frozenset({"statements"}), frozenset()),
}
"""(fields that it needs, fields that it may have) of each operation, besides those of all of them."""

_COMMON = frozenset({"connection", "operation", "max_rows", "timeout"})


class Rows(Parsed[list[dict[str, Any]]]):
    """Rows as objects; one row may stand without a list."""

    def parse(self, value: Any) -> list[dict[str, Any]]:
        rows = [value] if isinstance(value, Mapping) else value
        if not isinstance(rows, list):
            raise ValidationError("must be an object, or a list of objects")
        wrong = {
            index: ["must be an object with at least one column"]
            for index, row in enumerate(rows)
            if not isinstance(row, Mapping) or not row
        }
        if wrong:
            raise ValidationError(wrong)
        return [dict(row) for row in rows]


def _name() -> fields.String:
    return fields.String(validate=validate.Length(min=1))


def _values(**options: Any) -> fields.Dict:
    return fields.Dict(keys=_name(), values=fields.Raw(allow_none=True), **options)


def _table_name(value: str) -> None:
    parts = value.split(".")
    if len(parts) > 2 or not all(parts):
        raise ValidationError("must be the name of a table, or schema.table")


class Statement(Schema):
    sql = fields.String(required=True, validate=plain_sql)
    params = _values()

    @validates_whole
    def _complete(self, data: Mapping[str, Any], written: Set[str]) -> None:
        if problems := _missing_params(data, written):
            raise ValidationError({field: [text] for field, text in problems.items()})


class Database(StepType):
    """What an operation does is one transaction: all of it or nothing.

    Output: `row_count`, and `rows` where rows come back; `query` has `columns` too, and `transaction` a list of
    `results`. `sql` is never rendered: values reach it as parameters, `:name`.
    """

    type: ClassVar[str] = "database"
    queue: ClassVar[QueueClass] = "io"
    raw_fields: ClassVar[frozenset[str]] = frozenset({"sql", "statements.sql"})

    class Config(Schema):
        connection = fields.String(required=True, validate=validate.Length(min=1))
        operation = fields.String(required=True, validate=validate.OneOf(sorted(_FIELDS)))
        sql = fields.String(validate=plain_sql)
        params = _values()
        statements = fields.List(fields.Nested(Statement), validate=validate.Length(min=1))
        table = fields.String(validate=_table_name)
        rows = Rows()
        key = fields.List(_name(), validate=validate.Length(min=1))
        values = _values(validate=validate.Length(min=1))
        where = _values()
        all = fields.Boolean()
        returning = fields.List(_name(), validate=validate.Length(min=1))
        batch_size = fields.Integer(load_default=500, strict=True, validate=validate.Range(1, 10_000))
        max_rows = fields.Integer(load_default=1000, strict=True, validate=validate.Range(1))
        timeout = Duration(load_default=30.0)

        @validates_whole
        def _fits_the_operation(self, data: Mapping[str, Any], written: Set[str]) -> None:
            name: str = data.get("operation", "")
            if name not in _FIELDS:
                return
            needed, allowed = _FIELDS[name]
            others = set(self.fields) - needed - allowed - _COMMON
            problems = dict.fromkeys(others & written, f"does not belong to the operation {name}")
            problems |= dict.fromkeys(needed - written, f"is missing; {name} needs it")
            problems |= _missing_params(data, written)
            if "where" in allowed:
                problems |= _unbounded(data, written, name)
            if problems:
                raise ValidationError({field: [text] for field, text in problems.items()})

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:
        name = config["connection"]
        known = settings.connections.get(name)
        return None if known is None else Rate.of(f"connections.{name}", known.rate_limit)

    def perform(self, context: StepContext) -> Done:
        config = context.config
        name = config["connection"]
        limit = context.settings.output_limit
        return Done(
            transact(
                name,
                _settings(context, name),
                operation(config, _rows(context) if "rows" in _FIELDS[config["operation"]][1] else [], limit),
                seconds=context.within(config["timeout"]),
                writes=config["operation"] != "query",
            )
        )


def _missing_params(data: Mapping[str, Any], written: Set[str]) -> dict[str, str]:
    if "sql" not in data or ("params" in written and "params" not in data):
        return {}
    missing = missing_params(data["sql"], data.get("params", {}))
    return {"sql": f"names {', '.join(f':{name}' for name in missing)}, which params does not have"} if missing else {}


def _unbounded(data: Mapping[str, Any], written: Set[str], operation: str) -> dict[str, str]:
    if "all" in written and "all" not in data:
        return {}
    everything = data.get("all", False)
    if everything and "where" in written:
        return {"all": "write either `where` or `all`, not both"}
    if not everything and ("where" not in written or data.get("where") == {}):
        return {"where": f"must name a column; to {operation} every row of the table, write `all: true`"}
    return {}


def _settings(context: StepContext, name: str) -> ConnectionSettings:
    known = context.settings.connections
    if name not in known:
        has = f"has {', '.join(sorted(known))}" if known else "is empty"
        raise config_mistake(f"there is no connection {name!r}; the setting `connections` {has}")
    return replace(known[name], url=context.reveal(known[name].url))


def _rows(context: StepContext) -> list[dict[str, Any]]:
    """The rows of `rows`, else of the mapped input's `data`, as parameters."""
    config = context.config
    rows: Any = config.get("rows")
    if rows is None:
        if not isinstance(context.input, Mapping) or "data" not in context.input:
            raise config_mistake("there are no rows; write `rows`, or map the step's input `data`")
        try:
            rows = Rows().deserialize(context.input["data"])
        except ValidationError as error:
            raise config_mistake(f"input.data is not rows: {error.messages}") from None
    for index, row in enumerate(rows):
        missing = [name for name in config.get("key", ()) if name not in row]
        if missing:
            raise config_mistake(f"row {index} has no {missing[0]!r}, which is in `key`")
    return [bound_row(row) for row in rows]
