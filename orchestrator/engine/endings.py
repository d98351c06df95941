"""How an execution ends: what undoes it, what runs on failure and at the end, its outputs, and who waits for it.

Each part is a scope of its own that begins when the one before it has ended:

    the definition's steps > compensate (if it fails or is cancelled) > on_failure (likewise) > finally

The outcome is settled before the first of these begins; only a failure in `finally` can still spoil it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.definition.scopes import FINALLY, ON_FAILURE, scope_of
from orchestrator.engine import bodies as engine_bodies
from orchestrator.engine.programs import Program
from orchestrator.engine.rows import rows_of
from orchestrator.errors import ArtifactGone, TemplateError
from orchestrator.lifecycle import ExecutionStatus, StepStatus
from orchestrator.store import admission, bodies, executions, signals, steps, workflow_ends
from orchestrator.store.admission import Freed
from orchestrator.store.bodies import Undoable
from orchestrator.store.claims import ExecutionFacts
from orchestrator.store.executions import Locked
from orchestrator.store.recovery import Ring
from orchestrator.store.step_rows import StepRow

COMPLETED, FAILED = ExecutionStatus.COMPLETED, ExecutionStatus.FAILED


@dataclass(frozen=True, slots=True)
class After:
    """What follows when nothing of a part is left to do: the first steps of the next, or the end; then `parent` is
    to be rung for, if there is one that waits."""

    ready: tuple[str, ...] = ()
    ended: bool = False
    parent: Ring | None = None
    freed: Freed | None = None


_GOES_ON = After()


def after_part(connection: Connection, program: Program, locked: Locked) -> After:
    """To be called when a last step has ended; others may still be at work."""
    if locked.outcome is not None and program.undoable:
        # There may be many: each end of one finds the next without a look at the rest.
        undoing = bodies.first_unfinished(connection, locked.id, COMPENSATE)
        if undoing is not None:
            path, status = undoing
            return After((path,)) if status is StepStatus.PENDING else _GOES_ON
    if steps.is_unfinished(connection, locked.id):
        return _GOES_ON
    outcome, message = _outcome(connection, program, locked)
    if program.has_endings:
        if locked.outcome is None:
            executions.settle_outcome(connection, locked.id, outcome, message)
        ready = _next_part(connection, program, locked.id, outcome)
        if ready:
            return After(ready)
        if outcome is COMPLETED:
            outcome, message = _judged(connection, program, locked.id, FINALLY)
    _end(connection, program, locked, outcome, message)
    after = After(ended=True, parent=wake_parent(connection, locked), freed=admission.freed(connection, locked.id))
    if program.is_counted:
        workflow_ends.settle(connection, locked.workflow_id)
    return after


def wake_parent(connection: Connection, locked: Locked) -> Ring | None:
    return None if locked.parent_step_id is None else signals.wake_parent(connection, locked.parent_step_id)


def _outcome(connection: Connection, program: Program, locked: Locked) -> tuple[ExecutionStatus, str | None]:
    if locked.outcome is not None:
        return locked.outcome, locked.error_message
    return _judged(connection, program, locked.id, "")


def _judged(
    connection: Connection, program: Program, execution_id: str, scope: str
) -> tuple[ExecutionStatus, str | None]:
    """Failed if a step of this scope failed that counts, with the first of these as the message; else cancelled if one
    was: a user has retried others of an execution that was ended early."""
    not_done = steps.not_done(connection, execution_id, scope)
    for path, status, message in not_done:
        step = program.scopes.step(path)
        if status is StepStatus.FAILED and step.on_error == "fail":
            return FAILED, f"step {path} ({step.type}) failed: {message}"
    cancelled = next((path for path, status, _ in not_done if status is StepStatus.CANCELLED), None)
    return (COMPLETED, None) if cancelled is None else (ExecutionStatus.CANCELLED, f"step {cancelled} was cancelled")


def _next_part(
    connection: Connection, program: Program, execution_id: str, outcome: ExecutionStatus
) -> tuple[str, ...]:
    definition = program.definition
    if definition.finally_ and bodies.scope_exists(connection, execution_id, FINALLY):
        return ()
    if outcome is not COMPLETED:
        handled = bool(definition.on_failure) and bodies.scope_exists(connection, execution_id, ON_FAILURE)
        undone = () if handled else _begin_undoing(connection, program, execution_id)
        if undone:
            return undone
        if definition.on_failure and not handled:
            return _begin(connection, program, execution_id, ON_FAILURE)
    return _begin(connection, program, execution_id, FINALLY) if definition.finally_ else ()


def _begin(connection: Connection, program: Program, execution_id: str, scope: str) -> tuple[str, ...]:
    graph = program.scopes.at(scope)
    bodies.insert(connection, execution_id, list(rows_of(graph, begins=True)))
    return graph.roots


def _begin_undoing(connection: Connection, program: Program, execution_id: str) -> tuple[str, ...]:
    """Insert what undoes the steps that completed, in the order in which that is to be done: one after the other, and
    one that fails keeps no other from it. The first of them."""
    if not program.undoable:
        return ()
    rows = [_undoing(program, one) for one in bodies.undoable(connection, execution_id, program.undoable)]
    for start in range(0, len(rows), engine_bodies.CHUNK):
        bodies.insert(connection, execution_id, rows[start : start + engine_bodies.CHUNK])
    return tuple(row.path for row in rows[:1])


def _undoing(program: Program, done: Undoable) -> StepRow:
    path = f"{COMPENSATE}.{done.path}"
    undo = program.scopes.step(path)
    return StepRow(
        path,
        undo.id,
        scope_of(path),
        COMPENSATE,
        undo.type,
        undo.queue,
        StepStatus.PENDING,
        1,
        undo.priority,
        undo.timeout,
        done.iteration,
    )


def _end(
    connection: Connection, program: Program, locked: Locked, outcome: ExecutionStatus, message: str | None
) -> None:
    if outcome is ExecutionStatus.CANCELLED:
        executions.cancel(connection, locked.id, message or "")
    elif outcome is FAILED:
        executions.fail(connection, locked.id, message or "")
    elif program.outputs is None:
        executions.finish_with_outputs_of(connection, locked.id, program.scopes.root.sinks)
    else:
        _finish_with_outputs(connection, program, locked)


def _finish_with_outputs(connection: Connection, program: Program, locked: Locked) -> None:
    seen = steps.outputs(connection, locked.id, seen_by_outputs(program))
    trigger = trigger_facts(executions.trigger_data(connection, locked.id) if locked.trigger_id else None)
    try:
        output = outputs(program, locked, seen, trigger)
    except (TemplateError, ArtifactGone) as error:
        executions.fail(connection, locked.id, f"outputs: {error}")
    else:
        executions.finish(connection, locked.id, output)


def seen_by_outputs(program: Program) -> set[str]:
    """The steps that a workflow's `outputs` may look at."""
    return {*(program.outputs.steps if program.outputs else ()), *program.mappers_of_all()}


def outputs(
    program: Program, execution: Locked | ExecutionFacts, seen: Mapping[str, Any], trigger: Mapping[str, Any]
) -> Any:
    """The workflow's `outputs` for an execution; `seen` has what templates see of `seen_by_outputs`. Raises
    TemplateError; ArtifactGone, ArtifactsAway."""
    assert program.outputs is not None
    context: Mapping[str, Any] = {
        "variables": program.variables_after(execution.input, program.mappers_of_all(), seen),
        "input": execution.input,
        "steps": {id: program.artifacts.lazily(execution.id, one) for id, one in seen.items()},
        "execution": execution_facts(execution.id, execution.workflow_id, execution.version, execution.priority),
        "trigger": trigger,
    }
    return program.outputs.render(context)


def execution_facts(id: str, workflow_id: str, version: int, priority: int) -> dict[str, Any]:
    """What templates see as `execution`."""
    return {"id": id, "workflow_id": workflow_id, "version": version, "priority": priority}


NOT_TRIGGERED: Mapping[str, Any] = dict.fromkeys(("id", "type", "name", "slot", "scheduled_for", "payload"))
"""What templates see as `trigger` when none started the execution: a definition that speaks of it can be tried."""


def trigger_facts(data: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What templates see as `trigger`."""
    return {**NOT_TRIGGERED, **(data or {})}
