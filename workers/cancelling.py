"""Cancelling what a step has begun elsewhere and nobody wants any more: one try of one row of the table cancellations.

Whatever becomes of this process, the row has a worker called again, until the type has seen to it or the tries are used
up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from orchestrator.store import cancellations, executions
from orchestrator.store.cancellations import MAX_TRIES, Cancellation
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.executions import Locked
from workers.attempt import Attempt

if TYPE_CHECKING:
    from workers.process import WorkerProcess

logger = logging.getLogger(__name__)

_SECONDS = 30.0
"""That one try may take."""


def cancel_step(process: WorkerProcess, id: str) -> None:
    """Have the step's type cancel it, unless that has been seen to."""
    with process.store.single() as connection:
        wanted = cancellations.take(connection, id)
        execution = None if wanted is None else executions.look(connection, wanted.execution_id)
    if wanted is None or execution is None:
        return
    # More tries than there may be: their processes died over them.
    failure = _attempt(process, wanted, execution).cancel() if wanted.tries <= MAX_TRIES else None
    if failure is not None and failure.retryable and wanted.tries < MAX_TRIES:
        logger.info("step %s of %s could not be cancelled: %s", wanted.path, wanted.execution_id, failure)
        return
    if failure is not None:
        logger.warning("step %s of %s is not cancelled: %s", wanted.path, wanted.execution_id, failure)
    with process.store.single() as connection:
        cancellations.remove(connection, id)


def _attempt(process: WorkerProcess, wanted: Cancellation, execution: Locked) -> Attempt:
    program = process.programs.get(process.store, execution.workflow_id, execution.version)
    return Attempt(
        store=process.store,
        settings=process.settings,
        program=program,
        step=program.scopes.step(wanted.path),
        claim=Claim(
            wanted.step_execution_id,
            wanted.path,
            wanted.attempt,
            losses=0,
            token=wanted.id,
            state=wanted.state,
            loop=wanted.loop,
            time_left=_SECONDS,
        ),
        execution=ExecutionFacts(
            execution.id,
            execution.workflow_id,
            execution.version,
            execution.input,
            execution.priority,
            execution.trigger_id,
            None,
        ),
        catalogue=process.programs.catalogue,
        secrets=process.secrets.of(execution.workflow_id),
        seen={},
        ends_at=None,
        watch=process.watch,
        workflows=None,
    )
