"""Executions inserted whole: what only computes has ended before there is a row of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.lifecycle import STARTABLE, ExecutionStatus, sql_words
from orchestrator.store.bodies import ENDED_PARAMETERS, INSERT_ENDED, EndedRow, ended_parameters
from orchestrator.store.routines import Routine
from orchestrator.store.session import REFUSE, Call, to_json
from orchestrator.store.steps import ExecutionFacts


@dataclass(frozen=True, slots=True)
class InlineExecution:
    """An execution that a step started and that has completed; `began` is on time.monotonic()'s clock."""

    facts: ExecutionFacts
    timeout: float
    output: Any
    rows: Sequence[EndedRow]
    began: float
    idempotency_key: str


_INSERT_ROUTINE = Routine(
    "insert_inline_execution",
    f"""
    DECLARE
        ended timestamptz := statement_timestamp();  -- of which also those of its steps are reckoned
        began timestamptz := ended - %(took)s * interval '1 second';
    BEGIN
        INSERT INTO executions (id, workflow_id, version, status, input, output, priority, idempotency_key, timeout,
                                parent_step_id, depth, created_at, admitted_at, started_at, finished_at, counted_until)
        SELECT %(execution)s, w.id, w.version, '{ExecutionStatus.COMPLETED}', %(input)s, %(output)s, %(priority)s,
               %(key)s, %(timeout)s, %(parent)s, %(depth)s, began, began, began, ended, ended
        FROM workflows w
        WHERE w.id = %(workflow)s AND w.version = %(version)s AND NOT w.is_template
          AND w.status IN ({sql_words(STARTABLE)})
          AND w.project_id = (SELECT b.project_id FROM workflows b WHERE b.id = %(beside)s);
        IF NOT FOUND THEN
            {REFUSE};
        END IF;
        {INSERT_ENDED}
        -- As the trigger does when an execution ends.
        PERFORM count_execution(e, 1, NULL) FROM executions e WHERE e.id = %(execution)s;
    END
    """,
    {
        "workflow": "uuid",
        "beside": "uuid",
        "version": "int",
        "input": "jsonb",
        "output": "jsonb",
        "priority": "smallint",
        "key": "text",
        "timeout": "float8",
        "parent": "uuid",
        "depth": "smallint",
        "took": "float8",
    }
    | ENDED_PARAMETERS,
    {"nothing": "bool"},
)


def insertion(execution: InlineExecution, beside: str, worker_id: str) -> Call:
    """Inserts an execution with all its steps. It refuses if its version is not the newest of its workflow, or that may
    not be started or is not of the project of the workflow `beside`, or if there is an execution with this key."""
    facts = execution.facts
    params = {
        "workflow": facts.workflow_id,
        "beside": beside,
        "version": facts.version,
        "input": to_json(facts.input),
        "output": to_json(execution.output),
        "priority": facts.priority,
        "key": execution.idempotency_key,
        "timeout": execution.timeout,
        "parent": facts.parent_step_id,
        "depth": facts.depth,
        "took": time.monotonic() - execution.began,
    }
    return Call(_INSERT_ROUTINE, params | ended_parameters(facts.id, execution.rows, worker_id))
