"""A body whose steps only compute, performed whole in its container's attempt; so is an execution of such steps, in
the attempt of the step that starts it.

`pure` steps (set, condition, and containers of nothing else) touch nothing outside: to perform them twice, or for
nothing, does no harm. So none of them needs a claim of its own. Their rows are inserted as they ended, all in one
statement, or not at all: with the record of the step whose attempt it was; that of an execution also has its step's
key, for whoever performed the step before may have started it. What turns out to be more than that (a step fails, or
there are too many) is begun like any other, as if nothing had been performed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.definition.graph import CONTROL, Graph
from orchestrator.definition.model import Step
from orchestrator.engine.bodies import Scope, Spawn, loop_inside
from orchestrator.engine.endings import NOT_TRIGGERED, outputs, seen_by_outputs
from orchestrator.engine.plan import frontier
from orchestrator.engine.programs import Program
from orchestrator.engine.rows import row_of
from orchestrator.errors import StepFailed, TemplateError
from orchestrator.lifecycle import StepStatus
from orchestrator.store import new_id
from orchestrator.store.bodies import Inner
from orchestrator.store.claims import Claim
from orchestrator.store.step_rows import EndedRow
from orchestrator.store.steps import as_seen_by_templates
from workers.rounds import round_of
from workers.steps.contract import Done, Round, Wait
from workers.stopping import Unwatched

if TYPE_CHECKING:
    from workers.attempt import Attempt

MOST_ROWS = 2000
MOST_SECONDS = 0.2
"""What is more than that is worth several workers."""
MOST_WRITTEN = 8_000_000
"""Characters of JSON in the statement that inserts it all."""

PerformAgain = Callable[["Attempt", Any, Sequence[Round]], "Done | Wait | Spawn"]


class _NotHere(Exception):
    """The body is to be begun like any other."""


class Room:
    """What is left for the bodies, one within the other, that are performed in one attempt. Each method raises _NotHere
    if that is not enough."""

    def __init__(self) -> None:
        self._rows = MOST_ROWS
        self._written = MOST_WRITTEN
        self._until = time.monotonic() + MOST_SECONDS

    def check(self, rows: int) -> None:
        """For as many more."""
        if rows > self._rows or time.monotonic() > self._until:
            raise _NotHere

    def take(self, row: EndedRow) -> None:
        self._rows -= 1
        self._written -= len(row.written)
        if self._rows < 0 or self._written < 0:
            raise _NotHere


def has_pure_bodies(step: Step, catalogue: Mapping[str, Any]) -> bool:
    """Whether all that stands in a step's bodies computes and does nothing else, and any worker may perform it."""
    return all(_is_pure(inner, catalogue) for body in step.bodies.values() for inner in body.steps)


def only_computes(program: Program, catalogue: Mapping[str, Any]) -> bool:
    """The same of all steps of a workflow, whose executions run under no limits of their own and have nothing to do at
    their end."""
    if program.only_computes is None:
        definition = program.definition
        limits = (definition.max_concurrent, definition.concurrency, definition.rate_limit)
        program.only_computes = (
            all(limit is None for limit in limits)
            and not program.has_endings
            and not program.is_counted
            and all(_is_pure(step, catalogue) for step in definition.steps)
        )
    return program.only_computes


def _is_pure(step: Step, catalogue: Mapping[str, Any]) -> bool:
    if step.queue != CONTROL or step.cache is not None or step.type not in catalogue:
        return False
    step_type = catalogue[step.type]
    return step_type.pure or (step_type.repeatable and bool(step.bodies) and has_pure_bodies(step, catalogue))


def perform_body(
    attempt: Attempt, room: Room, spawn: Spawn, perform_again: PerformAgain
) -> tuple[Done, Sequence[EndedRow]] | None:
    """What the container comes to after the bodies that it spawns, and their steps, if they can be performed here.
    `perform_again(attempt, state, rounds)` performs the container as if these had come to their end."""
    # Nobody outside sees what is inside; and it takes little time under the container's claim.
    inside = replace(attempt, seen=dict(attempt.seen), watch=Unwatched())
    body = _Body(inside, room)
    outcome: Done | Wait | Spawn = spawn
    try:
        while isinstance(outcome, Spawn):
            body.run(outcome.scopes)
            outcome = perform_again(inside, outcome.state, body.rounds)
    except (_NotHere, StepFailed):  # a failure is retried, told and kept on the other way
        return None
    return (outcome, body.rows) if isinstance(outcome, Done) else None


def perform_execution(attempt: Attempt, room: Room) -> tuple[Any, Sequence[EndedRow]] | None:
    """The output of an execution that `only_computes` and its steps, if they can all be performed here. `attempt` is of
    its first step."""
    program = attempt.program
    try:
        room.check(len(program.definition.steps))
        rows = list(_Steps(attempt, room).perform(program.scopes.root, loop=None))
        return _output(attempt, rows), rows
    except (_NotHere, TemplateError, StepFailed):
        return None


def _output(attempt: Attempt, rows: Sequence[EndedRow]) -> Any:
    program, ended = attempt.program, {row.place.path: row for row in rows}
    if program.outputs is None:
        sinks = [ended[path] for path in program.scopes.root.sinks]
        return {row.place.path: row.output for row in sinks if row.place.status is StepStatus.COMPLETED}
    rows_seen = {path: ended[path] for path in seen_by_outputs(program) if path in ended}
    seen = {
        path: as_seen_by_templates(row.place.status, row.output, variables=row.variables)
        for path, row in rows_seen.items()
    }
    return outputs(program, attempt.execution, seen, NOT_TRIGGERED)


class _Body:
    """The scopes of one container, one after the other."""

    def __init__(self, inside: Attempt, room: Room) -> None:
        self._inside = inside
        self._room = room
        self._steps = _Steps(inside, room)
        self.rows: list[EndedRow] = []
        self.rounds: list[Round] = []

    def run(self, scopes: Sequence[Scope]) -> None:
        program, container, bodies = self._inside.program, self._inside.claim, self._inside.step.bodies
        self._room.check(sum(len(bodies[scope.body].steps) for scope in scopes))
        for scope in scopes:
            graph = program.scopes.at(scope.of(container.path))
            rows = list(self._steps.perform(graph, loop_inside(program, container.loop, scope.loop)))
            self.rows += rows
            # What stands in containers among these steps is theirs to make something of.
            own = [_inner(row) for row in rows if row.place.container == container.path]
            self.rounds.append(round_of(scope.name, own, bodies[scope.body]))


class _Steps:
    """Performs the steps of a graph, each with an attempt of its own like `inside`, in which also what they have come
    to is seen."""

    def __init__(self, inside: Attempt, room: Room) -> None:
        self._inside = inside
        self._room = room

    def perform(self, graph: Graph, loop: Any) -> Iterator[EndedRow]:
        """The rows of a scope, in the order in which its steps end."""
        states = dict.fromkeys(graph.steps, StepStatus.PENDING)
        ready = deque(graph.roots)
        while ready:
            path = ready.popleft()
            row, within, not_taken = self._step(graph, path, loop)
            yield row
            yield from within
            states[path] = row.place.status
            skipped: Mapping[str, str] = {graph.path_of(id): f"{path} took another branch" for id in not_taken}
            ended = [path]
            while ended or skipped:
                for other, reason in skipped.items():
                    states[other] = StepStatus.SKIPPED
                    yield self._row(graph, other, loop, StepStatus.SKIPPED, reason=reason)
                decided = frontier(graph, states, [*ended, *skipped])
                ready += decided.ready
                states |= dict.fromkeys(decided.ready, StepStatus.QUEUED)
                skipped, ended = decided.skipped, []

    def _step(self, graph: Graph, path: str, loop: Any) -> tuple[EndedRow, Sequence[EndedRow], frozenset[str]]:
        """The row of a step, those of what stands in it, and the ids of the dependents that it decided against."""
        self._room.check(1)
        began = time.monotonic()
        claim = Claim(new_id(), path, attempt=1, losses=0, token=self._inside.claim.token, loop=loop)
        attempt = replace(self._inside, step=graph.steps[path], claim=claim)
        outcome = attempt.perform()
        if isinstance(outcome, Done):
            row = self._row(graph, path, loop, StepStatus.COMPLETED, output=outcome.output, by=attempt, began=began)
            self._inside.seen[path] = as_seen_by_templates("completed", row.output, variables=row.variables)
            return row, attempt.body, outcome.skip
        reason = getattr(outcome, "reason", None)
        if reason is None:
            raise _NotHere
        return self._row(graph, path, loop, StepStatus.SKIPPED, reason=reason, began=began), (), frozenset()

    def _row(
        self,
        graph: Graph,
        path: str,
        loop: Any,
        status: StepStatus,
        *,
        output: Any = None,
        by: Attempt | None = None,
        began: float | None = None,
        reason: str | None = None,
    ) -> EndedRow:
        place = row_of(graph, path, status, loop=loop, sees_loop=self._inside.program.sees_loop)
        row = EndedRow.of(
            by.claim.id if by else new_id(),
            place,
            input=by.recorded_input if by else None,
            output=output,
            variables=by.variables if by else None,
            reason=reason,
            began=began,
        )
        self._room.take(row)
        return row


def _inner(row: EndedRow) -> Inner:
    return Inner(row.place.scope, row.place.step_id, row.place.status, row.output, None, None)
