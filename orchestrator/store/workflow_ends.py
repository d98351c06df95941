"""How workflows come to their end by themselves: after so many executions or failures in a row, or at a date.

What has been is counted from the rows, among the executions that began since the workflow was activated or given
another limit. In a row is meant in the order in which they began, as that of their ends is a matter of luck.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import (
    COMPLETE_WORKFLOW,
    EXECUTION_TERMINAL,
    FAIL_WORKFLOW,
    ExecutionStatus,
    Transition,
    sql_words,
)
from orchestrator.store.session import run

_SINCE = "coalesce(w.counts_from, '00000000-0000-0000-0000-000000000000')"
_COMPLETED_LAST = (
    "SELECT e.id FROM all_executions e WHERE e.workflow_id = w.id "
    f"AND e.id > {_SINCE} AND e.status = '{ExecutionStatus.COMPLETED}' ORDER BY e.id DESC LIMIT 1"
)


def _end(transition: Transition, condition: str, reason: str) -> str:
    return (
        f"UPDATE workflows w SET {transition.assignment}, status_reason = {reason}, updated_at = clock_timestamp() "
        f"WHERE {transition.guard} AND {condition}"
    )


_RAN_OUT = _end(
    COMPLETE_WORKFLOW,
    "w.run_limit <= (SELECT count(*) FROM all_executions e WHERE e.workflow_id = w.id "
    f"AND e.id > {_SINCE} AND e.status IN ({sql_words(EXECUTION_TERMINAL)}))",
    "'its run_limit of ' || w.run_limit || ' is reached'",
)
_FAILED = _end(
    FAIL_WORKFLOW,
    "w.max_failures <= (SELECT count(*) FROM all_executions e WHERE e.workflow_id = w.id "
    f"AND e.id > coalesce(({_COMPLETED_LAST}), {_SINCE}) AND e.status = '{ExecutionStatus.FAILED}')",
    "'its max_failures of ' || w.max_failures || ' in a row is reached'",
)
_PAST = _end(COMPLETE_WORKFLOW, "w.end_date <= clock_timestamp()", "'its end_date has passed'")
_ONE = "w.id = %(id)s::uuid"
# A statement of its own before those that count: of two executions that end at once, the later one sees the other.
_IN_TURN = "SELECT pg_advisory_xact_lock(1634887012, hashtext(%(id)s))"
# Who changes the workflow may wait for its triggers, and those for the end of an execution: so this waits for nobody.
_IF_FREE = "w.id = (SELECT id FROM workflows WHERE id = %(id)s::uuid FOR NO KEY UPDATE SKIP LOCKED)"


IS_COUNTED = (
    f"w.status IN ({sql_words(COMPLETE_WORKFLOW.sources)}) AND (w.run_limit IS NOT NULL AND e.id > {_SINCE} "
    f"OR w.max_failures IS NOT NULL AND e.id >= coalesce(({_COMPLETED_LAST}), {_SINCE}))"
)
"""Executions (e) of a workflow (w) without which it would end later than it is to."""


def settle(connection: Connection, workflow_id: str) -> None:
    """An execution of the workflow has ended: end the workflow if that was the last one. To be the last statement of
    the transaction of that end. While somebody changes the workflow, it is left to `settle_all`."""
    run(connection, f"{_IN_TURN}; {_RAN_OUT} AND {_IF_FREE}; {_FAILED} AND {_IF_FREE}", {"id": workflow_id})


def settle_all(connection: Connection) -> None:
    """End whatever workflow is over: at the end of an execution whose version had no limit, nobody looked."""
    run(connection, f"{_RAN_OUT}; {_FAILED}")


def settle_past(connection: Connection) -> None:
    """End the workflows whose date has come."""
    run(connection, _PAST)


def is_past(connection: Connection, workflow_id: str) -> bool:
    past = run(
        connection, f"SELECT w.end_date <= clock_timestamp() FROM workflows w WHERE {_ONE}", {"id": workflow_id}
    ).scalar()
    return bool(past)
