"""Other workflows, as a step may start them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Program
from orchestrator.engine.start import check_payload, start_execution
from orchestrator.errors import Conflict, InputError, NotFound, StepFailed
from orchestrator.lifecycle import ExecutionStatus
from orchestrator.store import executions, inline_executions, new_id, workflows
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.executions import Outcome, Parent
from orchestrator.store.inline_executions import InlineExecution
from orchestrator.store.session import Call
from orchestrator.store.step_rows import EndedRow
from workers.attempt import Attempt, own_store
from workers.inline import Room, only_computes, perform_execution
from workers.secrets import Secrets
from workers.steps.contract import Child
from workers.stopping import Unwatched

if TYPE_CHECKING:
    from workers.process import WorkerProcess

MAX_DEPTH = 10
"""Executions above one another; a workflow that starts itself would never end."""


@dataclass(frozen=True, slots=True)
class Children:
    """The executions that one step starts."""

    process: WorkerProcess
    ring: Callable[[Plan | None], None]
    facts: ExecutionFacts
    claim: Claim
    secrets: Secrets
    besides: list[Call] | None
    """Takes the insertion of an execution that was performed whole; None to start each like any other."""

    def start(self, workflow: str, input: Any, *, attached: bool) -> Child:
        if self.facts.depth + 1 > MAX_DEPTH:
            raise _mistake(f"workflows may start one another {MAX_DEPTH} levels deep; this would be one more")
        given = self.secrets.mask(input)  # it is stored and shown; the other workflow can name its secrets itself
        is_known = workflow in self.process.programs.newest
        try:
            with own_store():
                workflow_id = workflow if is_known else self._found(workflow)
                performed = self._performed(workflow_id, given) if attached else None
                return performed or self._started(self._found(workflow) if is_known else workflow_id, given, attached)
        except (NotFound, Conflict, InputError) as error:
            raise _mistake(str(error)) from error

    def outcome(self, execution_id: str) -> Outcome:
        with own_store(), self.process.store.single() as connection:
            outcome = executions.outcome(connection, execution_id)
        if outcome is None:
            raise _mistake(f"execution {execution_id}, which this step started, has been deleted")
        return self._whole(execution_id, outcome)

    def _whole(self, execution_id: str, outcome: Outcome) -> Outcome:
        """With the large outputs that the child's refers to: what becomes of the child is no concern of ours."""
        programs = self.process.programs
        limit = programs.settings.executor.max_output
        return replace(outcome, output=programs.artifacts.expand(execution_id, outcome.output, limit))

    def _found(self, workflow: str) -> str:
        with self.process.store.single() as connection:
            return workflows.find(connection, workflow, beside=self.facts.workflow_id)

    def _started(self, workflow_id: str, given: Any, attached: bool) -> Child:
        started = start_execution(
            self.process.store,
            self.process.programs,
            workflow_id,
            given,
            priority=self.facts.priority,
            idempotency_key=self._key,
            parent=Parent(self.claim.id if attached else None, self.facts.depth),
        )
        self.ring(started.plan)
        return Child(started.execution_id)

    @property
    def _key(self) -> str:
        return f"{self.facts.id}:{self.claim.path}"

    def _performed(self, workflow_id: str, given: Any) -> Child | None:
        """An execution that only computes, performed here and inserted whole. None if it is to be started like any
        other; so is the first of a workflow that this process comes to know."""
        process = self.process
        version = process.programs.newest.get(workflow_id)
        if version is None or self.besides is None:
            return None
        program = process.programs.get(process.store, workflow_id, version)
        if not only_computes(program, process.programs.catalogue):
            return None
        check_payload(given, process.settings.executor.max_payload)
        began = time.monotonic()
        facts = ExecutionFacts(
            id=new_id(),
            workflow_id=workflow_id,
            version=version,
            input=program.checked_input(given),
            priority=self.facts.priority,
            trigger_id=None,
            seconds_left=program.timeout,
            parent_step_id=self.claim.id,
            depth=self.facts.depth + 1,
        )
        performed = self._perform(program, facts)
        if performed is None:
            return None
        output, rows = performed
        made = InlineExecution(facts, program.timeout, output, rows, began, self._key)
        insertion = inline_executions.insertion(made, beside=self.facts.workflow_id, worker_id=process.lease.id)
        self.besides.append(insertion)
        return Child(facts.id, self._whole(facts.id, Outcome(ExecutionStatus.COMPLETED, output, None)))

    def _perform(self, program: Program, facts: ExecutionFacts) -> tuple[Any, Sequence[EndedRow]] | None:
        process, room = self.process, Room()
        first = program.definition.steps[0]
        attempt = Attempt(
            store=process.store,
            settings=process.settings,
            program=program,
            step=first,
            claim=Claim(new_id(), first.id, attempt=1, losses=0, token=new_id()),
            execution=facts,
            catalogue=process.programs.catalogue,
            secrets=process.secrets.of(facts.workflow_id),
            seen={},
            ends_at=None,
            watch=Unwatched(),
            workflows=None,
            room=room,
        )
        return perform_execution(attempt, room)


def _mistake(message: str) -> StepFailed:
    return StepFailed(message, kind="workflow", retryable=False)
