"""Executions that do another one again: what is there of that one, and what of it is kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.errors import NotFound
from orchestrator.lifecycle import STEP_TERMINAL, ExecutionStatus, StepStatus, WorkflowStatus
from orchestrator.store import admission
from orchestrator.store.everywhere import all_anywhere, first_anywhere
from orchestrator.store.executions import has_key, rate_columns
from orchestrator.store.rates import Rate
from orchestrator.store.session import new_id, run, to_json
from orchestrator.store.step_rows import PLACE, PLACED, STEP_ROWS, StepRow
from orchestrator.store.steps import UPSTREAM


@dataclass(frozen=True, slots=True)
class Original:
    """An execution that is to be done again; nobody moves it on before this transaction has ended."""

    id: str
    workflow_id: str
    version: int
    status: ExecutionStatus
    input: Any
    priority: int
    workflow_status: WorkflowStatus
    newest_version: int
    is_template: bool


def original(connection: Connection, execution_id: str) -> Original:
    """Raises NotFound."""
    row = first_anywhere(
        connection,
        """
        SELECT e.workflow_id::text AS workflow_id, e.version, e.status, e.input, e.priority,
               w.status AS workflow_status, w.version AS newest_version, w.is_template
        FROM executions e JOIN workflows w ON w.id = e.workflow_id WHERE e.id = %(id)s::uuid FOR SHARE OF e
        """,
        {"id": execution_id},
    )
    if row is None:
        raise NotFound("execution", execution_id)
    return Original(
        execution_id,
        row.workflow_id,
        row.version,
        ExecutionStatus(row.status),
        row.input,
        row.priority,
        WorkflowStatus(row.workflow_status),
        row.newest_version,
        row.is_template,
    )


@dataclass(frozen=True, slots=True)
class Was:
    """What became of a step. `is_blocked` if a failure kept it from running; `loop` is what its templates saw so."""

    status: StepStatus
    is_blocked: bool
    loop: Any

    @property
    def has_ended(self) -> bool:
        return self.status in STEP_TERMINAL


def found(connection: Connection, execution_id: str, containers: Collection[str]) -> dict[str, Was]:
    """The definition's own steps, and all that stand in the bodies of `containers`, in their order."""
    rows = all_anywhere(
        connection,
        "SELECT path, status, error_kind IS NOT DISTINCT FROM %(upstream)s AS is_blocked, iteration "
        "FROM step_executions WHERE execution_id = %(id)s::uuid "
        "AND (scope = '' OR container = ANY(%(containers)s)) ORDER BY id",
        {"id": execution_id, "containers": list(containers), "upstream": UPSTREAM},
    )
    return {row.path: Was(StepStatus(row.status), row.is_blocked, row.iteration) for row in rows}


def outputs(connection: Connection, execution_id: str, paths: Collection[str]) -> dict[str, Any]:
    rows = all_anywhere(
        connection,
        "SELECT path, output FROM step_executions WHERE execution_id = %(id)s::uuid AND path = ANY(%(paths)s)",
        {"id": execution_id, "paths": list(paths)},
    )
    return {row.path: row.output for row in rows}


def undone(connection: Connection, execution_id: str) -> set[str]:
    """Paths of the steps that others have undone, or tried to."""
    rows = all_anywhere(
        connection,
        "SELECT substr(path, length(%(prefix)s) + 1) FROM step_executions "
        "WHERE execution_id = %(id)s::uuid AND starts_with(path, %(prefix)s)",
        {"id": execution_id, "prefix": f"{COMPENSATE}."},
    )
    return {path for (path,) in rows}


_INSERT = f"""
INSERT INTO executions (id, workflow_id, version, status, input, priority, trigger_id, trigger_data, idempotency_key,
                        timeout, turn, limit_keys, limits, rate_key, rate_limit, rate_per, rerun_of)
SELECT %(id)s::uuid, o.workflow_id, %(version)s, '{ExecutionStatus.QUEUED}', %(input)s::jsonb, %(priority)s,
       o.trigger_id, o.trigger_data, %(key)s, %(timeout)s, {admission.next_turn("o.workflow_id", "%(priority)s")},
       %(limit_keys)s::text[], %(limits)s::int[], %(rate_key)s, %(rate_limit)s, %(rate_per)s, o.id
FROM all_executions o WHERE o.id = %(original)s::uuid AND NOT {has_key("o.workflow_id", "%(key)s")}
ON CONFLICT (workflow_id, idempotency_key) DO NOTHING
"""

# What was kept was not done here: its `attempt` is 0, and its times are those of the original. What stands in a body
# that is gone on with, its container finds there as after an attempt of its own that was ended.
_INSERT_STEPS = f"""
INSERT INTO step_executions (id, execution_id, {PLACE}, input, output, variables, error_kind, error_message, started_at,
                             finished_at)
SELECT u.id, %(execution)s::uuid, {PLACED}, k.input, k.output, k.variables, k.error_kind, k.error_message,
       k.started_at, k.finished_at
FROM {STEP_ROWS}
     LEFT JOIN all_step_executions k ON k.execution_id = %(original)s::uuid AND k.path = u.path
                                        AND u.path = ANY(%(kept)s)
"""


def insert(
    connection: Connection,
    original: Original,
    execution_id: str,
    version: int,
    input: Any,
    steps: Sequence[StepRow],
    *,
    kept: Collection[str],
    priority: int,
    timeout: float | None,
    limits: Collection[tuple[str, int]],
    rate: Rate | None,
    idempotency_key: str | None,
) -> bool:
    """Insert an execution, which waits for a place, with its `steps`; False if one with this key is there. Those whose
    paths are `kept` get the results that they have in `original`, where they ended with the same statuses."""
    inserted = run(
        connection,
        _INSERT,
        {
            "id": execution_id,
            "original": original.id,
            "version": version,
            "input": to_json(input),
            "priority": priority,
            "key": idempotency_key,
            "timeout": timeout,
            "limit_keys": [key for key, _ in limits] or None,
            "limits": [most for _, most in limits] or None,
            **rate_columns(rate),
        },
    )
    if not inserted.rowcount:
        return False
    run(
        connection,
        _INSERT_STEPS,
        {
            "execution": execution_id,
            "original": original.id,
            "ids": [new_id() for _ in steps],
            "rows": to_json(steps),
            "kept": list(kept),
        },
    )
    return True
