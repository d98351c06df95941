"""The hot statements as functions in the database, so that their plans are kept there.

Planning a transition takes PostgreSQL longer than running it. Prepared statements would keep the plan too, but
they are session state, which PgBouncer in transaction mode does not carry; a function's plans live in the
server. A routine's name holds a digest of its text: processes of an older release find theirs beside ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

_registered: list[Routine] = []
_PARAMETER = re.compile(r"%\((\w+)\)s")

# A plan is kept for long, and made at a moment that may be another than most: while the table was empty, or nothing
# waited. Each routine has an index in the order of what it looks for, which is never far from the best.
_BY_INDEX = "SET enable_seqscan = off SET enable_bitmapscan = off"
_IN_ORDER = "SET enable_sort = off"
# PostgreSQL, left to itself, makes a new plan each time if it seems to be cheaper than the one for any parameters: of a
# list, always. A transition is left to it. It keeps plans of these, too, so what two indexes could find has to be asked
# in the order of the right one (has_key in executions.py).
_KEPT = "SET plan_cache_mode = force_generic_plan"


class Routine:
    """One SQL statement with %(name)s parameters, each of the type given for it; or several, as a PL/pgSQL block
    that begins with DECLARE and returns with RETURN NEXT, or nothing if it has no columns."""

    def __init__(
        self,
        name: str,
        sql: str,
        parameters: Mapping[str, str],
        columns: Mapping[str, str],
        *,
        planning: str = f"{_BY_INDEX} {_IN_ORDER}",
    ) -> None:
        body = _PARAMETER.sub(lambda match: f"p_{match[1]}", sql)
        signature = ", ".join(f"p_{parameter} {kind}" for parameter, kind in parameters.items())
        row = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        block = body if body.lstrip().startswith("DECLARE") else f"BEGIN RETURN QUERY {body}; END"
        definition = (
            f"({signature}) RETURNS {f'TABLE ({row})' if row else 'void'} LANGUAGE plpgsql {planning} AS $routine$\n"
            f"#variable_conflict use_column\n{block} $routine$"
        )
        self.name = f"{name}_{hashlib.sha256(definition.encode()).hexdigest()[:10]}"
        self.definition = f"CREATE OR REPLACE FUNCTION {self.name}{definition}"
        arguments = ", ".join(f"%({parameter})s::{kind}" for parameter, kind in parameters.items())
        self.call = f"SELECT {'* FROM ' if row else ''}{self.name}({arguments})"
        self._parameters = dict(parameters)
        _registered.append(self)

    @classmethod
    def of(
        cls, name: str, query: str, selected: sa.Select[Any], parameters: Mapping[str, str], *, sorts: bool = False
    ) -> Routine:
        """`query`, which has the columns that are `selected`: its plan is kept, whatever a new one would cost. If it
        `sorts`, no index has what it finds in its order."""
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        columns = {column.name: column.type.compile(dialect) for column in selected.selected_columns}
        planning = f"{_KEPT} {_BY_INDEX}" if sorts else f"{_KEPT} {_BY_INDEX} {_IN_ORDER}"
        return cls(name, query, parameters, columns, planning=planning)

    def call_for_each(self, *varying: str) -> str:
        """A statement that calls it for each object of the JSON array %(each)s, in their order; these have the
        `varying` parameters, and the others are the same for all."""
        kinds = ", ".join(f"{name} {self._parameters[name]}" for name in varying)
        arguments = ", ".join(
            f"e.{name}" if name in varying else f"%({name})s::{kind}" for name, kind in self._parameters.items()
        )
        return f"SELECT r.* FROM jsonb_to_recordset(%(each)s::jsonb) AS e ({kinds}), {self.name}({arguments}) AS r"


def install(connection: Connection) -> None:
    """Create the functions that this release calls."""
    for routine in _registered:
        connection.exec_driver_sql(routine.definition.replace("%", "%%"))
