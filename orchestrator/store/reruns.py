"""Executions that do another one again: what is there of that one, and what of it is kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.errors import NotFound
from orchestrator.lifecycle import STEP_TERMINAL, ExecutionStatus, StepStatus, WorkflowStatus, sql_words
from orchestrator.store import admission
from orchestrator.store.executions import StepRows, rate_columns
from orchestrator.store.rates import Rate
from orchestrator.store.session import new_id, run, to_json
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
    row = run(
        connection,
        """
        SELECT e.workflow_id::text AS workflow_id, e.version, e.status, e.input, e.priority,
               w.status AS workflow_status, w.version AS newest_version, w.is_template
        FROM executions e JOIN workflows w ON w.id = e.workflow_id WHERE e.id = %(id)s::uuid FOR SHARE OF e
        """,
        {"id": execution_id},
    ).first()
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


_END = (
    f"CASE WHEN status IN ({sql_words(STEP_TERMINAL)}) "
    f"AND NOT (status = '{StepStatus.SKIPPED}' AND error_kind IS NOT DISTINCT FROM %(upstream)s) THEN status END AS end"
)
"""SQL: how a step ended; NULL if a failure kept it from running."""


def ends(connection: Connection, execution_id: str) -> dict[str, StepStatus]:
    """How the definition's own steps ended, except for those that a failure kept from running."""
    rows = run(
        connection,
        f"SELECT path, {_END} FROM step_executions WHERE execution_id = %(id)s::uuid AND scope = ''",
        {"id": execution_id, "upstream": UPSTREAM},
    )
    return {row.path: StepStatus(row.end) for row in rows if row.end is not None}


def stands_in_a_body(connection: Connection, execution_id: str, path: str) -> bool:
    stands: bool = run(
        connection,
        "SELECT EXISTS (SELECT FROM step_executions "
        "WHERE execution_id = %(id)s::uuid AND path = %(path)s AND container IS NOT NULL)",
        {"id": execution_id, "path": path},
    ).scalar_one()
    return stands


def inside(connection: Connection, execution_id: str, containers: Collection[str]) -> dict[str, StepStatus | None]:
    """The same of what stands in the bodies of `containers`, all of it, in its order."""
    rows = run(
        connection,
        f"SELECT path, {_END} FROM step_executions WHERE execution_id = %(id)s::uuid "
        "AND container = ANY(%(containers)s) ORDER BY id",
        {"id": execution_id, "containers": list(containers), "upstream": UPSTREAM},
    )
    return {row.path: None if row.end is None else StepStatus(row.end) for row in rows}


def undone(connection: Connection, execution_id: str) -> set[str]:
    """Paths of the steps that others have undone, or tried to."""
    rows = run(
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
FROM executions o WHERE o.id = %(original)s::uuid
ON CONFLICT (workflow_id, idempotency_key) DO NOTHING
"""

# What was kept was not done here: its `attempt` is 0, and its times are those of the original.
_INSERT_STEPS = """
INSERT INTO step_executions (id, execution_id, path, step_id, type, queue, status, height, timeout, input, output,
                             variables, error_kind, error_message, started_at, finished_at)
SELECT u.id, %(execution)s::uuid, u.path, u.path, u.type, u.queue, u.status, u.height, u.timeout, k.input, k.output,
       k.variables, k.error_kind, k.error_message, k.started_at, k.finished_at
FROM unnest(%(ids)s::uuid[], %(paths)s::text[], %(types)s::text[], %(queues)s::text[], %(statuses)s::text[],
            %(heights)s::int[], %(timeouts)s::float8[]) AS u(id, path, type, queue, status, height, timeout)
     LEFT JOIN step_executions k ON k.execution_id = %(original)s::uuid AND k.path = u.path
                                 AND k.path = ANY(%(kept)s::text[])
"""
# What stands in a body that is gone on with: its container finds all of it there, as after an attempt that was ended.
_INSERT_INNER = f"""
INSERT INTO step_executions (id, execution_id, path, step_id, scope, container, type, queue, status, height, timeout,
                             iteration, input, output, variables, error_kind, error_message, started_at, finished_at)
SELECT u.id, %(execution)s::uuid, o.path, o.step_id, o.scope, o.container, o.type, o.queue,
       coalesce(k.status, '{StepStatus.PENDING}'), o.height, o.timeout, o.iteration, k.input, k.output, k.variables,
       k.error_kind, k.error_message, k.started_at, k.finished_at
FROM unnest(%(ids)s::uuid[], %(paths)s::text[], %(are_kept)s::bool[]) AS u(id, path, is_kept)
     JOIN step_executions o ON o.execution_id = %(original)s::uuid AND o.path = u.path
     LEFT JOIN step_executions k ON k.id = o.id AND u.is_kept
"""


def insert(
    connection: Connection,
    original: Original,
    execution_id: str,
    version: int,
    input: Any,
    steps: StepRows,
    *,
    kept: Collection[str],
    inner: Collection[str],
    priority: int,
    timeout: float | None,
    limits: Collection[tuple[str, int]],
    rate: Rate | None,
    idempotency_key: str | None,
) -> bool:
    """Insert an execution, which waits for a place; False if one with this key is there. Of the steps `kept`, which
    ended in `original` with the statuses that `steps` has, it gets the results; and of the bodies in which some of them
    stand, all the steps, `inner`."""
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
            "kept": list(kept),
            "ids": [new_id() for _ in steps.paths],
            "paths": list(steps.paths),
            "types": list(steps.types),
            "queues": list(steps.queues),
            "statuses": list(steps.statuses),
            "heights": list(steps.heights),
            "timeouts": list(steps.timeouts),
        },
    )
    if inner:
        run(
            connection,
            _INSERT_INNER,
            {
                "execution": execution_id,
                "original": original.id,
                "ids": [new_id() for _ in inner],
                "paths": list(inner),
                "are_kept": [path in kept for path in inner],
            },
        )
    return True
