"""SQL as a definition writes it: with parameters by name, and never with templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from marshmallow import ValidationError

from workers.steps.database_values import bound

_LEADING = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_READS = re.compile(rf"{_LEADING}\(*{_LEADING}(?:SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE | re.DOTALL)


def plain_sql(value: str) -> None:
    if not value.strip():
        raise ValidationError("is empty")
    if "{{" in value or "{%" in value:
        raise ValidationError("templates are not rendered in SQL; write :name, and give its value under `params`")


def reads(sql: str) -> bool:
    """Whether a cursor on the server can be declared for it: SHOW and EXPLAIN have none."""
    return _READS.match(sql) is not None


def missing_params(sql: str, params: Mapping[str, Any]) -> list[str]:
    """The names in `sql` that are not in `params`. A colon that begins no name is written `\\:`."""
    return [name for name in sa.text(sql).compile().params if name not in params]


def statement(sql: str, params: Mapping[str, Any], dialect: str) -> tuple[sa.TextClause, dict[str, Any]]:
    """(statement, its parameters). A list is the right side of an IN, or is bound as JSON anywhere else."""
    listed = [name for name, value in params.items() if isinstance(value, list) and _in(name).search(sql)]
    values = {name: bound(value) for name, value in params.items()}
    expanding: list[sa.BindParameter[Any]] = []
    for name in listed:
        # SQLAlchemy's empty set is one of integers; this one is of whatever it is compared with.
        if not params[name] and dialect == "postgresql":
            sql = _rewritten(sql, name, "= ANY ('{}')", "<> ALL ('{}')")
            continue
        sql = _rewritten(sql, name, f"IN :{name}", f"NOT IN :{name}")
        values[name] = [bound(item) for item in params[name]]
        expanding.append(sa.bindparam(name, expanding=True))
    return sa.text(sql).bindparams(*expanding), values


def _rewritten(sql: str, name: str, within: str, without: str) -> str:
    return _in(name).sub(lambda found: without if found["not"] else within, sql)


def _in(name: str) -> re.Pattern[str]:
    """`IN :name`, with or without parentheses."""
    parameter = f":{re.escape(name)}"
    return re.compile(rf"(?P<not>\bNOT\s+)?\bIN\s*(?:\(\s*{parameter}\s*\)|{parameter}\b)", re.IGNORECASE)
