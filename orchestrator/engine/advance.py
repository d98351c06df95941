"""What follows the end of an attempt: record it, find what became ready, end the execution when nothing is left.

One transaction under the execution's row lock. So whoever looks from outside never sees a step that could run
and for which nobody was told, nor an execution that has ended in all its steps but not itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.definition.graph import CONTROL, Graph
from orchestrator.definition.model import TriggerRule
from orchestrator.definition.scopes import phase_of, scope_of
from orchestrator.engine import bodies as engine_bodies
from orchestrator.engine import endings
from orchestrator.engine.bodies import Spawn
from orchestrator.engine.plan import Message, Plan, frontier, plan
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.rows import rows_of
from orchestrator.lifecycle import EXECUTION_TERMINAL, STEP_TERMINAL, ExecutionStatus, StepStatus
from orchestrator.store import (
    Store,
    admission,
    bodies,
    cancellations,
    control,
    executions,
    records,
    steps,
    untold_ends,
    workflow_ends,
)
from orchestrator.store.admission import Freed
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.executions import AWAITS_BODY, Locked
from orchestrator.store.records import EMPTY, Result, Surroundings
from orchestrator.store.recovery import Ring
from orchestrator.store.step_rows import StepRow

_AT_WORK = frozenset({StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.WAITING})

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

    `claim` is what the worker goes on with, `kept` what it may go on with after that; `plans` are to be dispatched.
    `freed` says that somebody may be let in now, since the execution has ended, for example (see engine/admission.py).
    `exhausted` says that there is nothing else to claim: the execution is over, or a look at it found nothing.
    `ended` is True if this is what ended the execution, `retries` if the failed step has another attempt to come.
    """

    counted: bool
    exhausted: bool = False
    ended: bool = False
    retries: bool = False
    claim: Claim | None = None
    kept: tuple[str, ...] = ()
    plans: tuple[Plan, ...] = ()
    freed: Freed | None = None


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
    imposed: bool = False
    """See Failure."""


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
    graph = program.scopes.of(end.path)
    outlook = graph.outlook({end.path, *end.skip})
    with records.ending(store, execution_id, end.held, end.result, end.status, outlook) as opened:
        if opened is None:
            return _LOST
        connection, locked, states = opened
        if locked.status in EXECUTION_TERMINAL:
            return Advance(counted=True, exhausted=True)
        going = _Going(connection, program, locked, worker, rung)
        # One that ends before it comes to its bodies may have some: of an attempt before it, or of another execution.
        is_early = end.held is not None and end.held.state is None and bool(graph.steps[end.path].bodies)
        if end.held is not None and (end.imposed or is_early):
            _end_what_it_began(connection, program, execution_id, end.held)
        if _stops_the_others(connection, program, execution_id, end):
            return going.beyond(graph)
        states[end.path] = end.status
        if end.skip:
            steps.skip(connection, execution_id, dict.fromkeys(end.skip, f"{end.path} took another branch"))
            states |= dict.fromkeys(end.skip, StepStatus.SKIPPED)
        ready = _follow_up(connection, graph, execution_id, {end.path, *end.skip}, states)
        if ready:
            return going.on(ready)
        if any(status not in STEP_TERMINAL for status in states.values()):
            return Advance(counted=True)  # a dependent that waits for others says already that this is not the end
        return going.beyond(graph)


def surroundings(program: Program, path: str) -> Surroundings | None:
    """What `go_on` looks at after the step `path`; None if it is not for that step: a wide fork, one that a chord
    counts, or a join of many, where the general advance costs no more; dependents with rules of their own; or the
    last step of a scope."""
    if path not in program.surroundings:
        graph = program.scopes.of(path)
        children = graph.children[path]
        waits = tuple(
            (child, needed) for child in children for needed in graph.steps[child].depends_on if needed != path
        )
        is_last = not children and (graph is not program.scopes.root or len(graph.sinks) == 1)
        is_narrow = len(children) <= KEPT and len(waits) <= _FEW_WAITS
        is_plain = all(graph.steps[child].trigger_rule is TriggerRule.ALL_SUCCESS for child in children)
        counted = is_narrow and bool(children) and plan(graph, "", 0, children).join is not None
        fits = is_narrow and is_plain and not counted and not is_last
        if graph is not program.scopes.root:
            return Surroundings(children, waits) if fits else None  # not kept: there is no end of scopes
        program.surroundings[path] = Surroundings(children, waits) if fits else None
    return program.surroundings[path]


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
    gone_on = records.complete_and_go_on(
        store, facts.id, held, result, around, queues={worker.queue, CONTROL}, worker_id=worker.id
    )
    if not gone_on.recorded:
        return _LOST
    if not gone_on.settled:
        return advance(store, program, facts.id, End(held.path, None), worker=worker)
    served = (worker.queue, CONTROL)
    mine = [path for path in gone_on.queued if program.scopes.of(path).queue_for(path) in served]
    others = [path for path in gone_on.queued if path not in mine]
    plans = (plan(program.scopes, facts.id, facts.priority, others),) if others else ()
    return Advance(True, exhausted=gone_on.claim is None, claim=gone_on.claim, kept=tuple(mine), plans=plans)


def begin_body(
    store: Store,
    program: Program,
    execution_id: str,
    held: Claim,
    given: Any,
    spawn: Spawn,
    ring: Callable[[Plan], None],
    *,
    worker: Worker | None,
) -> Advance:
    """Insert the scopes of a step's body and let the step rest until they have ended. What is ready of a long body
    is rung for while the rest of it is on its way."""
    container = held.path
    limit = len(spawn.scopes) if spawn.concurrency is None else spawn.concurrency
    loops = iter(spawn.scopes)
    begun = 0
    stopped = is_again = False

    def rows(graphs: list[Graph]) -> tuple[list[StepRow], list[str]]:
        nonlocal begun
        made: list[StepRow] = []
        starts: list[str] = []
        for graph in graphs:
            begins = begun < limit and not stopped
            begun += 1
            loop = engine_bodies.loop_inside(program, held.loop, next(loops).loop)
            made += rows_of(graph, begins=begins, loop=loop, sees_loop=program.sees_loop)
            starts += graph.roots if begins else ()
        return made, starts

    chunks = engine_bodies.chunks(program, container, spawn)
    chunk = next(chunks, [])
    is_long = False
    for number, following in enumerate(chunks):
        is_long = True
        made, starts = rows(chunk)
        with store.transaction() as connection:
            if number == 0 and not bodies.note(connection, held, spawn.begun):
                return _LOST
            inserted = bodies.insert(connection, execution_id, made, held=held)
            if inserted is None:
                return _LOST
            is_again = is_again or inserted < len(made)
            locked = executions.look(connection, execution_id)
            stopped = bodies.container(connection, execution_id, container).stopped
        if starts and locked is not None:
            ring(plan(program.scopes, execution_id, locked.priority, starts))
        chunk = following
    made, starts = rows(chunk)
    with store.transaction() as connection:
        locked = executions.lock(connection, execution_id)
        if locked is None or locked.status in EXECUTION_TERMINAL:
            return _LOST
        inserted = bodies.insert(connection, execution_id, made, held=held)
        stopped = is_long and bodies.container(connection, execution_id, container).stopped
        result = Result(given)
        if not records.rest(connection, held, result, delay=None, resumes=True, state=spawn.noted, awaits=AWAITS_BODY):
            return _LOST
        is_again = is_again or (inserted is not None and inserted < len(made))
        if stopped:
            steps.cancel_all(connection, execution_id, inside=container, cancellable=program.cancellable)
        going = _Going(connection, program, locked, worker, frozenset())
        if held.state is None and is_again and not stopped:
            # An attempt before this one was ended, and with it what stood in its bodies: what completed there is kept.
            control.reset_inside(connection, execution_id, container)
            return going.on(_all_ready(connection, program, execution_id, inside=container))
        is_limited = spawn.concurrency is not None
        # Of rows that were there before, all may have ended, or wait to be let begin: an earlier attempt had come as
        # far. And rounds may have ended before those were there that follow them.
        if stopped or not made or inserted != len(made) or (is_long and is_limited):
            more = engine_bodies.after_scope(connection, program, execution_id, container)
            if stopped or container in more:
                return going.on(more)
            starts = list(dict.fromkeys([*starts, *more]))
        return going.on(starts, join=None if is_long or is_limited else container)


def replan(store: Store, programs: Programs, execution_id: str, *, untold: bool = False) -> Advance:
    """Settle an execution from the states of all its steps: recovery, resume and retry are this call. `untold`: the
    caller has no plugins to tell if this ends it."""
    with store.transaction() as connection:
        locked = executions.lock(connection, execution_id)
        if locked is None or locked.status in EXECUTION_TERMINAL:
            return _LOST
        program = programs.get(store, locked.workflow_id, locked.version)
        return go_on_with_all(connection, program, locked, untold=untold)


def go_on_with_all(connection: Connection, program: Program, locked: Locked, *, untold: bool) -> Advance:
    """The same in a transaction that holds the execution's row."""
    ready = _all_ready(connection, program, locked.id)
    going = _Going(connection, program, locked, None, frozenset())
    advanced = going.on(ready) if ready else going.beyond(program.scopes.root)
    if untold and advanced.ended:
        untold_ends.leave(connection, locked.id)
    return advanced


def go_on_with(
    connection: Connection, program: Program, locked: Locked, ready: list[str], worker: Worker | None
) -> Advance:
    """The same with steps that are known to be ready; they may have been queued already."""
    return _Going(connection, program, locked, worker, frozenset()).on(ready)


def _all_ready(connection: Connection, program: Program, execution_id: str, inside: str = "") -> list[str]:
    """What may begin now of all that there is, or of what stands in the bodies of the step `inside`; that step itself,
    if there is nothing left to do in them."""
    around = (f"{inside}.", f"{inside}[") if inside else ""
    by_scope: dict[str, dict[str, StepStatus]] = {}
    for path, status in steps.states(connection, execution_id).items():
        if path.startswith(around):
            by_scope.setdefault(scope_of(path), {})[path] = status
    ready: list[str] = []
    for scope, states in by_scope.items():
        if phase_of(scope) == COMPENSATE or StepStatus.PENDING not in states.values():
            continue
        graph = program.scopes.at(scope)
        if graph.limited and not _AT_WORK.intersection(states.values()):
            continue  # whether it may begin or go on is for its container to say, below or when that begins anew
        ready += engine_bodies.left_in(connection, graph, execution_id, states)
    for container in bodies.waiting_containers(connection, execution_id):
        if container != inside and not container.startswith(around):
            continue
        ready += engine_bodies.after_scope(connection, program, execution_id, container)
    return ready


def end_early(
    store: Store,
    programs: Programs,
    execution_id: str,
    outcome: ExecutionStatus,
    message: str,
    *,
    again: bool = True,
    untold: bool = False,
) -> Advance:
    """End an execution now, whatever its steps are doing: what has not ended is cancelled. What runs at its end
    still runs; if that is what is ended early, it is over, unless it is not to be ended `again`. What was still waiting
    for its place needs no end. `untold`: the caller has no plugins to tell of it."""
    with store.transaction() as connection:
        advanced = _end_early(connection, store, programs, execution_id, outcome, message, again=again)
        if untold and advanced.ended:
            untold_ends.leave(connection, execution_id)
        return advanced


def _end_early(
    connection: Connection,
    store: Store,
    programs: Programs,
    execution_id: str,
    outcome: ExecutionStatus,
    message: str,
    *,
    again: bool,
) -> Advance:
    locked = executions.lock(connection, execution_id)
    if locked is None or locked.status in EXECUTION_TERMINAL:
        return _LOST
    if locked.outcome is not None and not again:
        return _LOST
    program = programs.get(store, locked.workflow_id, locked.version)
    steps.cancel_all(connection, execution_id, cancellable=program.cancellable)
    if locked.outcome is None and program.has_endings and not executions.is_untouched(connection, execution_id):
        executions.settle_outcome(connection, execution_id, outcome, message)
        locked = executions.lock(connection, execution_id)
        assert locked is not None
        return _Going(connection, program, locked, None, frozenset()).beyond(program.scopes.root)
    if outcome is ExecutionStatus.CANCELLED:
        executions.cancel(connection, execution_id, message)
    else:
        executions.fail(connection, execution_id, message)
    plans = plans_of(endings.wake_parent(connection, locked))
    freed = admission.freed(connection, execution_id)
    if program.is_counted:
        workflow_ends.settle(connection, locked.workflow_id)
    return Advance(True, exhausted=True, ended=True, plans=plans, freed=freed)


def plans_of(ring: Ring | None) -> tuple[Plan, ...]:
    """The message for a step of an execution about which nothing else is known."""
    return () if ring is None else (Plan(ring.execution_id, ring.priority, ((Message(ring.queue, (ring.path,)),),)),)


def _stops_the_others(connection: Connection, program: Program, execution_id: str, end: End) -> bool:
    """Whether this failure ends all that is under way in the body that the step stands in; if so, that is done."""
    graph = program.scopes.of(end.path)
    if end.status is not StepStatus.FAILED or graph.container is None or graph.steps[end.path].on_error != "fail":
        return False
    if not bodies.container(connection, execution_id, graph.container).stops_on_failure:
        return False
    bodies.stop(connection, execution_id, graph.container)
    steps.cancel_all(connection, execution_id, inside=graph.container, cancellable=program.cancellable)
    return True


def _end_what_it_began(connection: Connection, program: Program, execution_id: str, held: Claim) -> None:
    """An attempt was ended that did not end by itself: so is what is under way for it, in its bodies and elsewhere. The
    executions that it waits for are cancelled by reconcile."""
    step = program.scopes.step(held.path)
    if step.bodies:
        steps.cancel_all(connection, execution_id, inside=held.path, cancellable=program.cancellable)
    if held.state is not None and step.type in program.cancellable:
        cancellations.insert(connection, held.id, held.state)


def _follow_up(
    connection: Connection, graph: Graph, execution_id: str, ended: set[str], states: dict[str, StepStatus]
) -> list[str]:
    """The steps made ready by `ended`; those that are not to run are skipped on the way. `states` is what has
    been read so far."""
    ready: list[str] = []
    while ended:
        unknown = graph.outlook(ended) - states.keys()
        if unknown:
            states |= steps.states(connection, execution_id, unknown)
        outlook = {step_id: states[step_id] for step_id in graph.outlook(ended)}
        decided = frontier(graph, states, ended, engine_bodies.blocked(connection, execution_id, outlook))
        if decided.skipped:
            steps.skip(connection, execution_id, decided.skipped, decided.blocked)
            states |= dict.fromkeys(decided.skipped, StepStatus.SKIPPED)
        ready += [step_id for step_id in decided.ready if step_id not in ready]
        ended = set(decided.skipped)
    return ready


@dataclass(frozen=True, slots=True)
class _Going:
    """How an advance goes on, in its transaction."""

    connection: Connection
    program: Program
    locked: Locked
    worker: Worker | None
    rung: frozenset[str]

    def beyond(self, graph: Graph) -> Advance:
        """Nothing of this scope is left for this end to move on: what does that mean for what is around it?"""
        if graph.container is not None:
            return self.on(engine_bodies.after_scope(self.connection, self.program, self.locked.id, graph.container))
        if self.locked.status is ExecutionStatus.PAUSED:
            return Advance(counted=True)  # nothing begins, nor ends; resume finds that nothing is left
        after = endings.after_part(self.connection, self.program, self.locked)
        if after.ready:
            return self.on(list(after.ready))
        return Advance(True, exhausted=after.ended, ended=after.ended, plans=plans_of(after.parent), freed=after.freed)

    def on(self, ready: list[str], join: str | None = None) -> Advance:
        """Queue what is ready, and let the worker claim of it what it can go on with."""
        if not ready or self.locked.status is ExecutionStatus.PAUSED:
            return Advance(counted=True)  # when paused they stay pending; resume plans them
        announced = [path for path in ready if path in self.rung]
        left = [path for path in ready if path not in self.rung]
        locked = self.locked
        # So few are kept by this worker for a moment, which takes no counting.
        counted = join if self.worker is None or len(left) > KEPT else None
        planned = plan(self.program.scopes, locked.id, locked.priority, left, counted) if left else None
        if planned is not None and self.worker is not None:
            mine, planned = _keep(planned, self.worker.queue)
            if mine:
                first, *kept = mine
                others = [path for path in (*announced, *left) if path != first]
                claim = steps.queue_and_follow(self.connection, locked.id, others, first, self.worker.id)
                return Advance(True, claim=claim, kept=tuple(kept), plans=(planned,) if planned else ())
        steps.queue(self.connection, locked.id, [*announced, *left])
        return Advance(True, plans=(planned,) if planned else ())


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


# --- failed attempts -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    kind: str
    message: str
    retryable: bool = True
    input: Any = None
    output: Any = None
    imposed: bool = False
    """It was not whoever performs the step that said so: something may be under way for it still."""

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
    policy = program.retry_policy(program.scopes.step(held.path))
    if failure.retryable and policy.allows(failure.kind, held.counted):
        rests = _rest_before_next(store, program, execution_id, held, failure, policy.delay_after(held.counted))
        return Advance(counted=rests, retries=rests)
    end = End(held.path, held, failure.result, StepStatus.FAILED, imposed=failure.imposed)
    return advance(store, program, execution_id, end, worker=worker, rung=rung)


def _rest_before_next(
    store: Store, program: Program, execution_id: str, held: Claim, failure: Failure, delay: float
) -> bool:
    if not failure.imposed:
        with store.single() as connection:
            return records.rest(connection, held, failure.result, delay=delay, resumes=False)
    with store.transaction() as connection:
        executions.lock(connection, execution_id)
        rests = records.rest(connection, held, failure.result, delay=delay, resumes=False)
        if rests:
            _end_what_it_began(connection, program, execution_id, held)
            control.let_go(connection, held.id)
        return rests
