"""What follows the end of an attempt: record it, find what became ready, end the execution when nothing is left.

One transaction under the execution's row lock. So whoever looks from outside never sees a step that could run
and for which nobody was told, nor an execution that has ended in all its steps but not itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.graph import CONTROL
from orchestrator.engine.plan import Plan, frontier, plan, whole_frontier
from orchestrator.engine.programs import Program, Programs
from orchestrator.errors import TemplateError
from orchestrator.lifecycle import EXECUTION_TERMINAL, STEP_TERMINAL, ExecutionStatus, StepStatus
from orchestrator.store import Store, executions, steps
from orchestrator.store.executions import Locked
from orchestrator.store.steps import EMPTY, Claim, ExecutionFacts, Result, Surroundings

KEPT = 8
"""Branches of a fork that one worker keeps for a moment, at most."""

_FEW_WAITS = 64
"""Steps whose states are worth sending to the database by name after each of them."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Who would go straight on with what becomes ready."""

    id: str
    queue: str


@dataclass(frozen=True, slots=True)
class Advance:
    """What an advance led to. `counted` is False if the claim was no longer held: then nothing was written.

    `claim` is what the worker goes on with, `kept` what it may go on with after that; `plan` is to be dispatched.
    `exhausted` says that there is nothing else to claim: the execution is over, or a look at it found nothing.
    """

    counted: bool
    exhausted: bool = False
    claim: Claim | None = None
    kept: tuple[str, ...] = ()
    plan: Plan | None = None


_LOST = Advance(counted=False)


@dataclass(frozen=True, slots=True)
class End:
    """A step that has ended, and the steps it decided against (a condition's branches not taken). `held` is
    None if that has been recorded already."""

    path: str
    held: Claim | None
    result: Result = EMPTY
    status: StepStatus = StepStatus.COMPLETED
    skip: frozenset[str] = frozenset()


def advance(
    store: Store,
    program: Program,
    execution_id: str,
    end: End,
    *,
    worker: Worker | None = None,
    rung: frozenset[str] = frozenset(),
) -> Advance:
    """Record the end of a step and settle what follows from it.

    `worker`, if given, keeps what it can go on with at once. `rung` names steps for which the canvas itself
    sends the next message (a chord's body, a chain's next link): they are queued, not dispatched.
    """
    outlook = program.graph.outlook({end.path, *end.skip})
    with steps.ending(store, execution_id, end.held, end.result, end.status, outlook) as opened:
        if opened is None:
            return _LOST
        connection, locked, states = opened
        if locked.status in EXECUTION_TERMINAL:
            return Advance(counted=True, exhausted=True)
        states[end.path] = end.status
        if end.skip:
            steps.skip(connection, execution_id, dict.fromkeys(end.skip, f"{end.path} took another branch"))
            states |= dict.fromkeys(end.skip, StepStatus.SKIPPED)
        ready = _follow_up(connection, program, execution_id, {end.path, *end.skip}, states)
        waits_for_others = any(status not in STEP_TERMINAL for status in states.values())
        return _go_on(connection, program, locked, ready, worker, rung, waits_for_others=waits_for_others)


def surroundings(program: Program, step_id: str) -> Surroundings | None:
    """What `go_on` looks at after `step_id`; None if it is not for that step: a wide fork, one that a chord
    counts, or a join of many, where the general advance costs no more; or the last step of all."""
    graph = program.graph
    if step_id not in program.surroundings:
        children = graph.children[step_id]
        waits = tuple(
            (child, needed) for child in children for needed in graph.steps[child].depends_on if needed != step_id
        )
        is_last = not children and len(graph.sinks) == 1
        is_narrow = len(children) <= KEPT and len(waits) <= _FEW_WAITS
        counted = is_narrow and bool(children) and plan(graph, "", 0, children).join is not None
        fits = is_narrow and not counted and not is_last
        program.surroundings[step_id] = Surroundings(children, waits) if fits else None
    return program.surroundings[step_id]


def go_on(
    store: Store,
    program: Program,
    facts: ExecutionFacts,
    held: Claim,
    result: Result,
    around: Surroundings,
    worker: Worker,
) -> Advance:
    """Record `held` as completed and go on, as `advance` does, with a single round trip where that is enough."""
    gone_on = steps.complete_and_go_on(
        store, facts.id, held, result, around, queues={worker.queue, CONTROL}, worker_id=worker.id
    )
    if not gone_on.recorded:
        return _LOST
    if not gone_on.settled:
        return advance(store, program, facts.id, End(held.path, None), worker=worker)
    mine = [path for path in gone_on.queued if program.graph.queue_for(path) in (worker.queue, CONTROL)]
    others = [path for path in gone_on.queued if path not in mine]
    planned = plan(program.graph, facts.id, facts.priority, others) if others else None
    return Advance(True, exhausted=gone_on.claim is None, claim=gone_on.claim, kept=tuple(mine), plan=planned)


def replan(store: Store, programs: Programs, execution_id: str) -> Plan | None:
    """Settle an execution from the states of all its steps: recovery, resume and retry are this call."""
    with store.transaction() as connection:
        locked = executions.lock(connection, execution_id)
        if locked is None or locked.status in EXECUTION_TERMINAL:
            return None
        program = programs.get(store, locked.workflow_id, locked.version)
        states = steps.states(connection, execution_id)
        decided = whole_frontier(program.graph, states, _blocked(connection, execution_id, states))
        if decided.skipped:
            steps.skip(connection, execution_id, decided.skipped, decided.blocked)
        return _go_on(connection, program, locked, list(decided.ready), None, frozenset()).plan


def end_early(store: Store, execution_id: str, message: str) -> bool:
    """Fail an execution now, whatever its steps are doing: what has not ended is cancelled."""
    with store.transaction() as connection:
        if executions.lock(connection, execution_id) is None:
            return False
        ended = executions.fail(connection, execution_id, message)
        if ended:
            steps.cancel_all(connection, execution_id)
        return ended


def _follow_up(
    connection: Connection, program: Program, execution_id: str, ended: set[str], states: dict[str, StepStatus]
) -> list[str]:
    """The steps made ready by `ended`; those that are not to run are skipped on the way. `states` is what has
    been read so far."""
    graph = program.graph
    ready: list[str] = []
    while ended:
        unknown = graph.outlook(ended) - states.keys()
        if unknown:
            states |= steps.states(connection, execution_id, unknown)
        outlook = {step_id: states[step_id] for step_id in graph.outlook(ended)}
        decided = frontier(graph, states, ended, _blocked(connection, execution_id, outlook))
        if decided.skipped:
            steps.skip(connection, execution_id, decided.skipped, decided.blocked)
            states |= dict.fromkeys(decided.skipped, StepStatus.SKIPPED)
        ready += [step_id for step_id in decided.ready if step_id not in ready]
        ended = set(decided.skipped)
    return ready


def _blocked(connection: Connection, execution_id: str, states: Mapping[str, StepStatus]) -> frozenset[str]:
    """Which of the skipped ones have a failure upstream, rather than a branch not taken."""
    skipped = [step_id for step_id, status in states.items() if status is StepStatus.SKIPPED]
    return steps.blocked(connection, execution_id, skipped) if skipped else frozenset()


def _go_on(
    connection: Connection,
    program: Program,
    locked: Locked,
    ready: list[str],
    worker: Worker | None,
    rung: frozenset[str],
    *,
    waits_for_others: bool = False,
) -> Advance:
    if not ready:
        # A dependent that still waits for others says already that this is not the end.
        ended = not waits_for_others and _finish_if_done(connection, program, locked)
        return Advance(counted=True, exhausted=ended)
    if locked.status is ExecutionStatus.PAUSED:
        return Advance(counted=True)  # they stay pending; resume plans them
    announced = [step_id for step_id in ready if step_id in rung]
    left = [step_id for step_id in ready if step_id not in rung]
    planned = plan(program.graph, locked.id, locked.priority, left) if left else None
    if planned is not None and worker is not None:
        mine, planned = _keep(planned, worker.queue)
        if mine:
            first, *kept = mine
            others = [step_id for step_id in (*announced, *left) if step_id != first]
            claim = steps.queue_and_follow(connection, locked.id, others, first, worker.id)
            return Advance(counted=True, claim=claim, kept=tuple(kept), plan=planned)
    steps.queue(connection, locked.id, [*announced, *left])
    return Advance(counted=True, plan=planned)


def _keep(planned: Plan, queue: str) -> tuple[tuple[str, ...], Plan | None]:
    """What a worker of `queue` goes on with without a message, and what is left of the plan.

    Of a narrow fork it takes all that it can serve: often that is done before a message would have arrived, and
    what has not begun soon is handed back (workers/runner.py). Of a wide one it takes a branch. The branches of
    a chord are counted by the broker: these go out whole.
    """
    if planned.join is not None:
        return (), planned
    mine = [branch for branch in planned.branches if branch[0].queue in (queue, CONTROL)]
    if not mine:
        return (), planned
    kept = mine if len(mine) <= KEPT else mine[:1]
    others = tuple(branch for branch in planned.branches if branch not in kept)
    starts = tuple(start for branch in kept for start in branch[0].starts)
    return starts, Plan(planned.execution_id, planned.priority, others) if others else None


def _finish_if_done(connection: Connection, program: Program, locked: Locked) -> bool:
    if steps.is_unfinished(connection, locked.id):
        return False
    counting = [
        (path, message)
        for path, message in steps.failures(connection, locked.id)
        if program.graph.steps[path].on_error == "fail"
    ]
    if counting:
        path, message = counting[0]
        executions.fail(connection, locked.id, f"step {path} failed: {message}")
    elif program.outputs is None:
        executions.finish_with_outputs_of(connection, locked.id, program.graph.sinks)
    else:
        _finish_with_outputs(connection, program, locked)
    return True


def _finish_with_outputs(connection: Connection, program: Program, locked: Locked) -> None:
    assert program.outputs is not None
    context: Mapping[str, Any] = {
        "variables": program.variables,
        "input": locked.input,
        "steps": steps.outputs(connection, locked.id, program.outputs.steps),
        "execution": execution_facts(locked.id, locked.workflow_id, locked.version, locked.priority),
        "trigger": {"id": locked.trigger_id},
    }
    try:
        output = program.outputs.render(context)
    except TemplateError as error:
        executions.fail(connection, locked.id, f"outputs: {error}")
    else:
        executions.finish(connection, locked.id, output)


def execution_facts(id: str, workflow_id: str, version: int, priority: int) -> dict[str, Any]:
    """What templates see as `execution`."""
    return {"id": id, "workflow_id": workflow_id, "version": version, "priority": priority}


# --- failed attempts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    kind: str
    message: str
    retryable: bool = True
    input: Any = None
    output: Any = None

    @property
    def result(self) -> Result:
        return Result(self.input, self.output, self.kind, self.message)


def end_failed_attempt(
    store: Store,
    program: Program,
    execution_id: str,
    held: Claim,
    failure: Failure,
    *,
    worker: Worker | None = None,
    rung: frozenset[str] = frozenset(),
) -> Advance:
    """Let the step rest before its next attempt, or fail it for good and settle what follows."""
    policy = program.retry_policy(program.graph.steps[held.path])
    # An attempt that a dying worker took with it says nothing about the step: it does not use up the policy.
    attempt = held.attempt - held.losses
    if failure.retryable and policy.allows(failure.kind, attempt):
        with store.single() as connection:
            delay = policy.delay_after(attempt)
            return Advance(steps.rest(connection, held, failure.result, delay=delay, resumes=False))
    end = End(held.path, held, failure.result, StepStatus.FAILED)
    return advance(store, program, execution_id, end, worker=worker, rung=rung)
