"""Other workflows, as a step may start them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Programs
from orchestrator.engine.start import start_execution
from orchestrator.errors import Conflict, InputError, NotFound, StepFailed
from orchestrator.store import Store, executions, workflows
from orchestrator.store.executions import Outcome, Parent
from orchestrator.store.steps import Claim, ExecutionFacts
from workers.secrets import Secrets

MAX_DEPTH = 10
"""Executions above one another; a workflow that starts itself would never end."""


@dataclass(frozen=True, slots=True)
class Children:
    """The executions that one step starts."""

    store: Store
    programs: Programs
    ring: Callable[[Plan | None], None]
    facts: ExecutionFacts
    claim: Claim
    secrets: Secrets

    def start(self, workflow: str, input: Any, *, attached: bool) -> str:
        if self.facts.depth + 1 > MAX_DEPTH:
            raise _mistake(f"workflows may start one another {MAX_DEPTH} levels deep; this would be one more")
        parent = Parent(self.claim.id if attached else None, self.facts.depth)
        try:
            with self.store.single() as connection:
                workflow_id = workflows.find(connection, workflow, beside=self.facts.workflow_id)
            started = start_execution(
                self.store,
                self.programs,
                workflow_id,
                self.secrets.mask(input),  # it is stored and shown; the other workflow can name its secrets itself
                priority=self.facts.priority,
                idempotency_key=f"{self.facts.id}:{self.claim.path}",
                parent=parent,
            )
        except (NotFound, Conflict, InputError) as error:
            raise _mistake(str(error)) from error
        self.ring(started.plan)
        return started.execution_id

    def outcome(self, execution_id: str) -> Outcome:
        with self.store.single() as connection:
            outcome = executions.outcome(connection, execution_id)
        if outcome is None:
            raise _mistake(f"execution {execution_id}, which this step started, has been deleted")
        return outcome


def _mistake(message: str) -> StepFailed:
    return StepFailed(message, kind="workflow", retryable=False)
