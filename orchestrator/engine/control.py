"""What a user does to an execution: pause it, let it go on, cancel it, try it again.

Each call changes rows; what runs notices at its next claim, and a cancelled step's work is ended by its worker
(workers/stopping.py). Said twice, a call is done once; one that makes no sense in the present state is a Conflict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from sqlalchemy.engine import Connection

from orchestrator.definition.graph import Graph
from orchestrator.engine.admission import admit, plans_of_admitted
from orchestrator.engine.advance import end_early, go_on_with_all, plans_of
from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Program, Programs
from orchestrator.errors import Conflict, NotFound
from orchestrator.lifecycle import (
    CANCEL_WORKFLOW,
    PAUSE_EXECUTION,
    REQUEUE_EXECUTION,
    RESUME_EXECUTION,
    RETRY_EXECUTION,
    ExecutionStatus,
    StepStatus,
)
from orchestrator.store import Store, archives, control, executions, recovery, signals, steps, workflows
from orchestrator.store.executions import Locked

_CANCELLED_AT_ONCE = 1000
"""Executions of a workflow that is retired, or children of one; what is left, reconcile comes to."""


def pause(store: Store, execution_id: str) -> None:
    """Let no step of it begin any more, nor of those that its steps wait for; what runs comes to its end."""
    with store.transaction() as connection:
        locked = _locked(connection, execution_id)
        if locked.status is PAUSE_EXECUTION.target:
            control.keep_paused(connection, execution_id)
        elif control.pause(connection, execution_id):
            pause_below(connection, [execution_id])
        else:
            raise _conflict(locked, "paused")


def pause_below(connection: Connection, execution_ids: Collection[str]) -> None:
    """Pause the children of executions that are paused, however deep they are, in the transaction that holds these. Who
    comes to rest for a child later finds its own execution paused (see engine/waiting.py)."""
    while execution_ids := control.lock_children(connection, execution_ids):
        control.pause_with_parent(connection, execution_ids)


def resume(store: Store, programs: Programs, execution_id: str) -> list[Plan]:
    """Undo a pause, and those that came of it; what to dispatch. The time in between does not count."""
    with store.transaction() as connection:
        locked = _locked(connection, execution_id)
        if locked.status in (RESUME_EXECUTION.target, REQUEUE_EXECUTION.target):
            return []
        if locked.status is not PAUSE_EXECUTION.target:
            raise _conflict(locked, "resumed")
        level = together = [execution_id]
        # All of them, before a step's row is: who ends a child holds that when it comes to the step that waits for it.
        while level := control.lock_children(connection, level, paused=True):
            together = [*together, *level]
        return [plan for each in together for plan in _resume(connection, store, programs, each)]


def _resume(connection: Connection, store: Store, programs: Programs, execution_id: str) -> list[Plan]:
    control.resume(connection, execution_id)
    locked = _locked(connection, execution_id)
    program = programs.get(store, locked.workflow_id, locked.version)
    rings = recovery.queued(connection, execution_id)
    return [*_plans_of_all(connection, program, execution_id), *(plan for ring in rings for plan in plans_of(ring))]


def cancel(store: Store, programs: Programs, execution_id: str, message: str) -> list[Plan]:
    """End it now; what is undone by that, and what runs at its end, still runs. What to dispatch."""
    advanced = end_early(store, programs, execution_id, ExecutionStatus.CANCELLED, message, again=False, untold=True)
    if not advanced.counted:
        with store.transaction() as connection:
            locked = _locked(connection, execution_id)
        if ExecutionStatus.CANCELLED not in (locked.status, locked.outcome):
            raise _conflict(locked, "cancelled")
    freed = () if advanced.freed is None else plans_of_admitted(admit(store, programs.settings, advanced.freed.keys))
    return [*advanced.plans, *freed, *_cancel_children(store, programs, execution_id)]


def _cancel_children(store: Store, programs: Programs, execution_id: str) -> Iterator[Plan]:
    """At once, however deep they are: reconcile would come to one level of them at a time."""
    with store.single() as connection:
        children = control.children_left(connection, execution_id, _CANCELLED_AT_ONCE)
    for child in children:
        with suppress(Conflict):  # it has ended meanwhile
            yield from cancel(store, programs, child, "the execution that started it was cancelled")


def retire(store: Store, programs: Programs, workflow_id: str) -> Iterator[Plan]:
    """Let nothing start the workflow ever again, and cancel what runs of it; what to dispatch. What this does not come
    to, reconcile does."""
    with store.transaction() as connection:
        if not workflows.move(connection, workflow_id, CANCEL_WORKFLOW):
            workflows.current(connection, workflow_id)  # it has been retired, or is not there
        live = executions.live_of_workflow(connection, workflow_id, _CANCELLED_AT_ONCE)
    for execution_id in live:
        with suppress(Conflict):  # it has ended meanwhile
            yield from cancel(store, programs, execution_id, "its workflow was cancelled")


def retry(store: Store, programs: Programs, execution_id: str) -> list[Plan]:
    """Do again what failed, was cancelled, or was kept from running by that; what completed is kept. What to
    dispatch."""
    with store.transaction() as connection:
        locked = _locked(connection, execution_id)
        if control.is_tried_again(connection, execution_id):
            return []
        again = _Again(connection, store, programs)
        if locked.status in RETRY_EXECUTION.sources:
            archives.bring_back(connection, execution_id)
        again.execution(locked)
    return again.let_in()


def retry_step(store: Store, programs: Programs, step_execution_id: str) -> list[Plan]:
    """Do a step again that failed or was cancelled, and what hangs on it; the steps around it go on with it. What
    to dispatch."""
    with store.transaction() as connection:
        locked = _locked(connection, signals.address(connection, step_execution_id).execution_id)
        if control.is_step_tried_again(connection, step_execution_id):
            return []
        step = signals.address(connection, step_execution_id)
        program = programs.get(store, locked.workflow_id, locked.version)
        if step.status not in (StepStatus.FAILED, StepStatus.CANCELLED):
            raise Conflict(
                f"step {step.path} is {step.status}; only one that failed or was cancelled is retried", step.status
            )
        if locked.status in RETRY_EXECUTION.sources:
            archives.bring_back(connection, locked.id)
        _check_around(connection, program, locked, step.path)
        again = _Again(connection, store, programs)
        if locked.outcome is not None or locked.status in RETRY_EXECUTION.sources:
            again.revive(locked, whole=False)
        again.steps(locked, program, paths=_with_what_hangs_on_it(program, step.path))
    return again.let_in()


def _check_around(connection: Connection, program: Program, locked: Locked, path: str) -> None:
    """Raises Conflict if a step around it has completed: its result is made of this failure, and others may have gone
    on with that."""
    around = program.scopes.around(path)
    for container, status in steps.states(connection, locked.id, around).items():
        if status is StepStatus.COMPLETED:
            raise Conflict(
                f"step {path} stands in the body of {container}, which has completed all the same; do the execution "
                f"again from there: POST /api/v1/executions/{locked.id}/rerun with from_step '{path}'",
                status,
            )


def _with_what_hangs_on_it(program: Program, path: str) -> list[str]:
    """A step, its dependents near and far, and the same of each step around it."""
    return [below for at in (path, *program.scopes.around(path)) for below in _below(program.scopes.of(at), at)]


def _below(graph: Graph, path: str) -> list[str]:
    found = [path]
    for each in found:  # grows on the way
        found += [child for child in graph.children[each] if child not in found]
    return found


class _Again:
    """A retry, in its transaction, and what is to be dispatched for it after that."""

    def __init__(self, connection: Connection, store: Store, programs: Programs) -> None:
        self.connection = connection
        self.store = store
        self.programs = programs
        self.plans: list[Plan] = []
        self.waiting: set[str] = set()
        self.keys: set[str] = set()

    def execution(self, locked: Locked) -> None:
        program = self.programs.get(self.store, locked.workflow_id, locked.version)
        self.revive(locked, whole=True)
        self.steps(locked, program, tolerated=program.tolerated)

    def revive(self, locked: Locked, *, whole: bool) -> None:
        """An execution that ended begins again; what ran at its end is forgotten, and runs again then."""
        if locked.status not in RETRY_EXECUTION.sources:
            raise _conflict(locked, "retried")
        status, _ = workflows.current(self.connection, locked.workflow_id)
        if status is CANCEL_WORKFLOW.target:
            raise Conflict(
                f"the workflow of execution {locked.id} is cancelled, and nothing of it is done again", status
            )
        if control.was_undone(self.connection, locked.id):
            raise Conflict(
                f"steps of execution {locked.id} have been undone by their compensate; start a new execution",
                locked.status,
            )
        parent = None if locked.parent_step_id is None else control.parent_step(self.connection, locked.parent_step_id)
        if parent is not None and parent.has_ended:
            raise Conflict(
                f"the step that waited for execution {locked.id} has ended; retry its own execution, "
                f"{parent.execution_id}",
                locked.status,
            )
        control.forget_endings(self.connection, locked.id)
        self.keys.update(control.revive(self.connection, locked.id, whole=whole))
        self.waiting.add(locked.id)

    def steps(self, locked: Locked, program: Program, **which: Collection[str]) -> None:
        reset = control.reset(self.connection, locked.id, **which)
        for child in control.children_that_failed(self.connection, reset):
            self._child(_locked(self.connection, child))
        self.plans += _plans_of_all(self.connection, program, locked.id)

    def _child(self, locked: Locked) -> None:
        """The step that is done again finds the execution that it had started: so that is retried as well, and begins
        when the step comes to it."""
        if control.was_undone(self.connection, locked.id):
            control.forget(self.connection, locked.id)
        elif locked.status in RETRY_EXECUTION.sources:
            self.execution(locked)

    def let_in(self) -> list[Plan]:
        """After the commit: what waits for a place is rung for when it is admitted, which may be at once."""
        others = [plan for plan in self.plans if plan.execution_id not in self.waiting]
        if not self.waiting:
            return others
        return [*others, *plans_of_admitted(admit(self.store, self.programs.settings, self.keys))]


def _plans_of_all(connection: Connection, program: Program, execution_id: str) -> list[Plan]:
    return list(go_on_with_all(connection, program, _locked(connection, execution_id), untold=True).plans)


def _locked(connection: Connection, execution_id: str) -> Locked:
    locked = executions.lock(connection, execution_id)
    if locked is None:
        raise NotFound("execution", execution_id)
    return locked


def _conflict(locked: Locked, what: str) -> Conflict:
    return Conflict(f"an execution that is {locked.status} cannot be {what}", locked.status)
