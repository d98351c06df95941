"""Executions inserted whole: what only computes has ended before there is a row of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.lifecycle import STARTABLE, ExecutionStatus, sql_words
from orchestrator.store.claims import ExecutionFacts
from orchestrator.store.routines import Routine
from orchestrator.store.session import REFUSE, Call, to_json
from orchestrator.store.step_rows import ENDED_PARAMETERS, INSERT_ENDED, EndedRow, ended_parameters


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
        made executions;
    BEGIN
        INSERT INTO executions (id, workflow_id, version, status, input, output, priority, idempotency_key, timeout,
                                parent_step_id, depth, created_at, admitted_at, started_at, finished_at, counted_until)
        SELECT %(execution)s, w.id, w.version, '{ExecutionStatus.COMPLETED}', coalesce(e.input, 'null'), e.output,
               e.priority, e.key, e.timeout, e.parent, e.depth, t.began, t.began, t.began, ended, ended
        FROM jsonb_to_record(%(whole)s) AS e(workflow uuid, beside uuid, version int, input jsonb, output jsonb,
                                             priority smallint, key text, timeout float8, parent uuid, depth smallint,
                                             began float8),
             LATERAL (SELECT ended - (%(now)s - e.began) * interval '1 second' AS began) AS t,
             workflows w, workflows b
        WHERE w.id = e.workflow AND w.version = e.version AND NOT w.is_template
          AND w.status IN ({sql_words(STARTABLE)}) AND b.id = e.beside AND b.project_id = w.project_id
        RETURNING * INTO made;
        IF NOT FOUND THEN
            {REFUSE};
        END IF;
        {INSERT_ENDED}
        PERFORM count_execution(made, 1, NULL);  -- as the trigger does when an execution ends
    END
    """,
    {"whole": "jsonb"} | ENDED_PARAMETERS,
    {},
)


def insertion(execution: InlineExecution, beside: str, worker_id: str) -> Call:
    """Inserts an execution with all its steps. It refuses if its version is not the newest of its workflow, or that may
    not be started or is not of the project of the workflow `beside`, or if there is an execution with this key."""
    facts = execution.facts
    whole = {
        "workflow": facts.workflow_id,
        "beside": beside,
        "version": facts.version,
        "input": facts.input,
        "output": execution.output,
        "priority": facts.priority,
        "key": execution.idempotency_key,
        "timeout": execution.timeout,
        "parent": facts.parent_step_id,
        "depth": facts.depth,
        "began": execution.began,
    }
    return Call(_INSERT_ROUTINE, {"whole": to_json(whole)} | ended_parameters(facts.id, execution.rows, worker_id))
