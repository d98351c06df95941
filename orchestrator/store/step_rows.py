"""The rows of steps as they are first inserted.

They cross to PostgreSQL as one array in JSON. As columns that are unnested side by side, each element is a word of the
statement and each column a table of its own until they are joined: for one row that took 0.2 ms more there, and here
three times as long to write.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.lifecycle import StepStatus
from orchestrator.store.session import to_json


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step that is about to be inserted."""

    path: str
    step_id: str
    scope: str
    container: str | None
    type: str
    queue: str
    status: StepStatus
    height: int
    priority: int | None
    timeout: float | None
    iteration: Any = None
    """What its templates see as `loop`."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """Those of an execution's own steps, which are the same for all executions of a workflow version."""

    number: int
    written: str

    @classmethod
    def of(cls, rows: Sequence[StepRow]) -> StepRows:
        return cls(len(rows), to_json(rows))


_SQL = {"str": "text", "StepStatus": "text", "int": "int", "float": "float8", "Any": "jsonb"}
_PLACE = {column.name: _SQL[str(column.type).removesuffix(" | None")] for column in fields(StepRow)}
_PLACE_TYPES = ", ".join(f"{column} {kind}" for column, kind in _PLACE.items())
PLACE = ", ".join(_PLACE)
"""The columns that a StepRow fills."""
PLACED = ", ".join(f"u.{column}" for column in _PLACE)
"""The same of STEP_ROWS."""
STEP_ROWS = (
    f"ROWS FROM (unnest(%(ids)s::uuid[]), jsonb_to_recordset(%(rows)s::jsonb) AS ({_PLACE_TYPES})) AS u(id, {PLACE})"
)
"""What is selected from to insert StepRows: `rows` as `to_json` writes them, and an id for each."""


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A step that has ended before there was a row of it."""

    place: StepRow
    output: Any
    variables: Any
    written: str
    """All of it, in JSON."""

    @classmethod
    def of(
        cls,
        id: str,
        place: StepRow,
        *,
        input: Any = None,
        output: Any = None,
        variables: Any = None,
        reason: str | None = None,
        began: float | None = None,
    ) -> EndedRow:
        """It ends now. `began` (None: nobody looked at it) is on time.monotonic()'s clock; `reason` is why it was
        skipped."""
        row = {
            "id": id,
            **{column: getattr(place, column) for column in _PLACE},
            "input": input,
            "output": output,
            "variables": variables,
            "reason": reason,
            "began": began,
            "ended": time.monotonic(),
        }
        return cls(place, output, variables, to_json(row))


ENDED_PARAMETERS = {"execution": "uuid", "worker": "uuid", "rows": "jsonb", "now": "float8"}
"""What INSERT_ENDED takes."""

INSERT_ENDED = f"""
    INSERT INTO step_executions (id, execution_id, {PLACE}, attempt, worker_id, input, output, variables,
                                 error_message, started_at, finished_at, seq)
    SELECT u.id, %(execution)s, {PLACED}, CASE WHEN u.began IS NULL THEN 0 ELSE 1 END,
           CASE WHEN u.began IS NOT NULL THEN %(worker)s END, u.input, u.output, u.variables, u.reason,
           statement_timestamp() - (%(now)s - u.began) * interval '1 second',
           statement_timestamp() - (%(now)s - u.ended) * interval '1 second', nextval('feed_seq')
    FROM jsonb_to_recordset(%(rows)s) AS u(id uuid, {_PLACE_TYPES}, input jsonb, output jsonb, variables jsonb,
                                           reason text, began float8, ended float8);
"""


def ended_parameters(execution_id: str, rows: Sequence[EndedRow], worker_id: str) -> dict[str, Any]:
    return {
        "execution": execution_id,
        "worker": worker_id,
        "rows": f"[{','.join(row.written for row in rows)}]",
        "now": time.monotonic(),
    }
