"""One `run_steps` task: claim > render > perform > record, step after step, for as long as it can go on.

A claim that loses means that somebody else has the step: the lane ends quietly. Whatever a step raises is a
failed attempt, never a failed task. When the store itself fails, the lane gives up what it may hold: reconcile
takes those steps for orphans.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.definition.graph import CONTROL
from orchestrator.definition.scopes import phase_of
from orchestrator.engine.admission import admit, plans_of_admitted
from orchestrator.engine.advance import (
    Advance,
    End,
    Failure,
    Worker,
    advance,
    begin_body,
    end_failed_attempt,
    go_on,
    surroundings,
)
from orchestrator.engine.plan import Plan, plan
from orchestrator.engine.programs import Program
from orchestrator.engine.waiting import rest, rest_awaiting
from orchestrator.lifecycle import StepStatus
from orchestrator.metrics import RETRIES, tally
from orchestrator.store import bodies, claims, executions, records, steps
from orchestrator.store.admission import Freed, all_freed
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.records import Result
from orchestrator.store.session import Call, DatabaseAway, Refused
from workers.attempt import Attempt, Outcome, Skipped
from workers.children import Children
from workers.dispatch import Doorbell
from workers.hooks import Report
from workers.inline import Room
from workers.pending_signals import PendingSignals
from workers.steps.contract import Done, Spawn, Wait

if TYPE_CHECKING:
    from workers.process import WorkerProcess

logger = logging.getLogger(__name__)

INLINE_BUDGET = 5.0
"""Seconds after which a task lets the rest of its run go out as a new message, so that work of a higher
priority and a worker that wants to stop need not wait longer than this and one step."""

PACK_PATIENCE = 0.05
"""Seconds after which the runs of a message that have not begun are handed back, unless they go on fast: they were
packed for steps that take less than their message. Many are in several messages then, with less in each: on a machine
that is slow for a moment, or for good, a message for each made a loop of 10,000 twice as slow an item as one of 100."""

MESSAGE = 0.003
"""Seconds that a step costs more with a message of its own. On a machine that is slow for a moment, whoever handed back
what is done faster than that would keep it slow with messages."""

FORK_PATIENCE = 0.003
"""The same for the branches of a narrow fork, which the worker that came to it kept: about what a message
takes on its way."""

ONWARD_PATIENCE = 0.01
"""The same for the first message of another execution: about what it takes to come to rest before going there."""

AWAY_PATIENCE = 30.0
"""Seconds for which a result is kept that the database was not there to record; workers keep their leases for as long
as nobody can keep any."""

AWAY_PAUSE = 0.2
"""Seconds before it is tried again."""

MOST_SEEN = 256
"""Steps whose outputs a lane has at hand for the templates of others; it may come to ten thousand in its time."""

_THREADS = 32


def run_steps(process: WorkerProcess, execution_id: str, starts: Sequence[str], rung: Iterable[str]) -> None:
    """Perform the runs that begin with `starts`; the canvas itself rings for the steps `rung`."""
    began = time.monotonic()
    lane = Lane(process, execution_id, starts, frozenset(rung))
    try:
        _perform(lane)
        served = lane.served
        while (following := _following(lane, served, began)) is not None:
            lane = following
            _perform(lane)
    except Exception:  # the database went away, most likely; what was under way there is not known
        logger.exception("a task of execution %s was thrown off its way; its steps will run again", lane.execution_id)
        process.lease.disown(lane.execution_id)


def _perform(lane: Lane) -> None:
    is_pack = lane.pack.has_many()
    claim = lane.claim_next()
    if claim is None:
        return
    if lane.queue == "io" and is_pack:
        _side_by_side(lane, claim)
    else:
        lane.hand_back_after(PACK_PATIENCE)
        lane.go(claim)


def _following(lane: Lane, served: Collection[str], began: float) -> Lane | None:
    """What this worker goes on with in another execution, without a message, as long as its time allows: one that its
    lane has started, a step that waited for its end, or one that waits for the place which it has left."""
    process = lane.process
    goes_on = not (lane.rung or process.watch.is_stopping or time.monotonic() - began > INLINE_BUDGET)
    plan = lane.onward.take(served) if goes_on else None
    lane.onward.ring_all()
    let_in = None if lane.freed is None else _let_in(process, lane.freed, served if goes_on and plan is None else ())
    if plan is None:
        return let_in
    return Lane(process, plan.execution_id, plan.branches[0][0].starts, frozenset())


def _let_in(process: WorkerProcess, freed: Freed, served: Collection[str]) -> Lane | None:
    """When an execution has ended, let in the next of those that wait for a place."""
    admitted = admit(process.store, process.settings, freed.keys)
    mine = [one for one in admitted if one.queue in served]
    if not mine:
        process.doorbell.ring_all(plans_of_admitted(admitted))
        return None
    chosen = mine[0].execution_id
    starts = [one.path for one in mine if one.execution_id == chosen]
    taken = {(chosen, start) for start in starts}
    process.doorbell.ring_all(plans_of_admitted(one for one in admitted if (one.execution_id, one.path) not in taken))
    return Lane(process, chosen, starts, frozenset())


def _side_by_side(lane: Lane, claim: Claim) -> None:
    """Steps that wait for the outside world do so at the same time."""
    others = [Lane(lane.process, lane.execution_id, [start], lane.rung) for start in lane.pack.take_all()]
    with ThreadPoolExecutor(min(len(others) + 1, _THREADS)) as pool:
        futures = [pool.submit(lane.go, claim), *(pool.submit(other.claim_and_go) for other in others)]
    for future in futures:
        future.result()
    for other in others:
        other.onward.ring_all()
    lane.freed = all_freed(one.freed for one in (lane, *others))


class Onward:
    """First messages of other executions that the worker may spare itself. What it has not come to soon is sent."""

    def __init__(self, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._plans: list[Plan] = []
        self._lock = threading.Lock()

    def add(self, plan: Plan | None) -> None:
        if plan is not None:
            with self._lock:
                self._plans.append(plan)
            self._doorbell.ring_later(ONWARD_PATIENCE, lambda: self._given_up(plan))

    def take(self, queues: Collection[str]) -> Plan | None:
        """One that begins with a single message, for one of `queues`."""
        with self._lock:
            for plan in self._plans:
                if len(plan.branches) == 1 and plan.branches[0][0].queue in queues:
                    self._plans.remove(plan)
                    return plan
        return None

    def ring_all(self) -> None:
        with self._lock:
            plans, self._plans = self._plans, []
        self._doorbell.ring_all(plans)

    def _given_up(self, plan: Plan) -> Plan | None:
        with self._lock:
            if plan not in self._plans:
                return None
            self._plans.remove(plan)
        return plan


class Pack:
    """The starts that a lane has taken on but not begun. What it has not begun when the patience with it is
    over is handed back, and planned like what has just become ready."""

    def __init__(self) -> None:
        self._starts: deque[str] = deque()
        self._lock = threading.Lock()
        self.taken = 0
        """As many have been begun."""

    def first(self) -> str | None:
        return self._starts[0] if self._starts else None

    def has_many(self) -> bool:
        return len(self._starts) > 1

    def take(self) -> str | None:
        with self._lock:
            if not self._starts:
                return None
            self.taken += 1
            return self._starts.popleft()

    def take_all(self) -> list[str]:
        with self._lock:
            taken = list(self._starts)
            self._starts.clear()
            return taken

    def add(self, starts: Iterable[str]) -> None:
        with self._lock:
            self._starts.extend(starts)


class Lane:
    """Steps that one thread performs one after the other.

    `facts`, `program`, `queue` and how long it may go on are known from the first claim on.
    """

    facts: ExecutionFacts
    program: Program
    queue: str = CONTROL
    ends_at: float | None
    phase: str

    def __init__(self, process: WorkerProcess, execution_id: str, starts: Iterable[str], rung: frozenset[str]) -> None:
        self.process = process
        self.store = process.store
        self.execution_id = execution_id
        self.rung = rung
        self.pack = Pack()
        self.pack.add(starts)
        self.seen: dict[str, dict[str, Any]] = {}
        self.pending_signals = PendingSignals(process.store, execution_id)
        self.onward = Onward(process.doorbell)
        self.freed: Freed | None = None
        """Its execution has ended, or a step of it has come to a child: somebody may be let in for that."""
        self.report: Report | None = None
        """For the plugins that want to be told; None if there are none."""
        self.began = time.monotonic()

    @property
    def served(self) -> frozenset[str]:
        """The queues whose steps it may take on."""
        return frozenset((self.queue, CONTROL))

    def claim_and_go(self) -> None:
        self.go(self.claim_next())

    def go(self, claim: Claim | None) -> None:
        while claim is not None:
            claim = self._perform(claim)

    def _perform(self, claim: Claim) -> Claim | None:
        """Perform a step, and take on what it leads to."""
        self._heed_phase(claim.path)
        hooks = self.process.hooks
        attempt = self._attempt(claim)
        if hooks is not None:
            self.report = hooks.step_taken(self.facts, attempt.step, claim)
        outcome = attempt.perform()
        if self.report is not None:
            self.report.performed(outcome)
        try:
            return self._record_surely(claim, attempt, outcome)
        except Refused:
            return self._perform_again(claim)

    def _record_surely(self, claim: Claim, attempt: Attempt, outcome: Outcome) -> Claim | None:
        """What was performed is not performed again, nor lost, because the database went away over its result: if the
        claim still holds when that is back, nothing has been recorded, and the same is recorded then."""
        patient_until = time.monotonic() + AWAY_PATIENCE
        while True:
            try:
                return self._record(claim, attempt, outcome)
            except DatabaseAway:
                if not self._holds_when_back(claim, patient_until):
                    raise

    def _holds_when_back(self, claim: Claim, patient_until: float) -> bool:
        while time.monotonic() < patient_until:
            time.sleep(AWAY_PAUSE)
            try:
                return self._is_held(claim)
            except DatabaseAway:  # still
                continue
        return False

    def _is_held(self, claim: Claim) -> bool:
        with self.store.single() as connection:
            return bool(claims.held(connection, [claim]))

    def _perform_again(self, claim: Claim) -> Claim | None:
        """What was to be recorded besides is done already, or what it took is somebody else's: the long way, then. Or
        the claim is not held any more."""
        self.seen.pop(claim.path, None)
        if not self._is_held(claim):
            return self._settled(Advance(counted=False))
        attempt = self._attempt(claim, may_repeat=False)
        return self._record_surely(claim, attempt, attempt.perform())

    def _attempt(self, claim: Claim, *, may_repeat: bool = True) -> Attempt:
        catalogue, step = self.process.programs.catalogue, self.program.scopes.step(claim.path)
        # Who wants to be told of each step is told of each.
        inlines = may_repeat and self.process.hooks is None and getattr(catalogue.get(step.type), "repeatable", False)
        secrets = self.process.secrets.of(self.facts.workflow_id)
        besides: list[Call] = []
        return Attempt(
            store=self.store,
            settings=self.process.settings,
            program=self.program,
            step=step,
            claim=claim,
            execution=self.facts,
            catalogue=catalogue,
            secrets=secrets,
            seen=self.seen,
            ends_at=self.ends_at,
            watch=self.process.watch,
            workflows=Children(self.process, self.onward.add, self.facts, claim, secrets, besides if inlines else None),
            room=Room() if inlines else None,
            pending_signals=self.pending_signals if inlines else None,
            besides=besides,
        )

    def hand_back_after(self, seconds: float) -> None:
        if self.pack.first() is not None:
            self.process.doorbell.ring_later(seconds, partial(self._hand_back, seconds, self.pack.taken))

    def _hand_back(self, seconds: float, taken: int) -> Plan | None:
        begun = self.pack.taken - taken
        if begun * MESSAGE > seconds and not self._over_budget():
            self.hand_back_after(seconds)
            return None
        left = self.pack.take_all()
        return plan(self.program.scopes, self.execution_id, self.facts.priority, left) if left else None

    def claim_next(self) -> Claim | None:
        """The next start of the pack that is to be had."""
        while (start := self.pack.take()) is not None:
            claimed = claims.claim(self.store, self.execution_id, start, self.process.lease.current())
            if claimed is None:
                continue
            claim, self.facts = claimed
            if self.facts.begun and self.process.hooks is not None:
                self.process.hooks.execution_began(self.facts)
            self.program = self.process.programs.get(self.store, self.facts.workflow_id, self.facts.version)
            self.queue = self.program.scopes.of(start).queue_for(start)
            left = self.facts.seconds_left
            self._has_left(left, start)
            return claim
        return None

    def _has_left(self, seconds: float | None, path: str) -> None:
        self.ends_at = None if seconds is None else time.monotonic() + seconds
        self.phase = phase_of(path)

    def _heed_phase(self, path: str) -> None:
        """What runs at an execution's end has a time of its own."""
        if phase_of(path) != self.phase:
            with self.store.single() as connection:
                self._has_left(executions.seconds_left(connection, self.execution_id), path)

    # --- what follows an attempt -----------------------------------------------------------------------------

    def _record(self, claim: Claim, attempt: Attempt, outcome: Outcome) -> Claim | None:
        given = attempt.recorded_input
        if isinstance(outcome, Done):
            besides = [*attempt.besides]
            if attempt.body:
                insertion = bodies.insertion_of_ended(self.execution_id, attempt.body, self.process.lease.id)
                besides.append(insertion)
            result = Result(
                given,
                outcome.output,
                variables=attempt.variables,
                besides=tuple(besides),
                signals=tuple(attempt.signals),
            )
            return self._completed(claim, attempt, result, outcome.skip)
        if isinstance(outcome, Wait):
            return self._rested(claim, given, outcome)
        if isinstance(outcome, Spawn):
            return self._settled(
                begin_body(
                    self.store,
                    self.program,
                    self.execution_id,
                    claim,
                    given,
                    outcome,
                    self.process.doorbell.ring,
                    worker=self._keeper(),
                )
            )
        if isinstance(outcome, Skipped):
            end = End(claim.path, claim, Result(error_message=outcome.reason), StepStatus.SKIPPED)
            return self._advanced(end)
        failure = Failure(outcome.kind, str(outcome), outcome.retryable, given, outcome.output)
        advanced = end_failed_attempt(
            self.store, self.program, self.execution_id, claim, failure, worker=self._keeper(), rung=self.rung
        )
        if advanced.counted and advanced.retries:
            tally.add(RETRIES, attempt.step.type)
        return self._settled(advanced)

    def _rested(self, claim: Claim, given: Any, wait: Wait) -> Claim | None:
        delay = None if wait.until is None else max(0.0, (wait.until - datetime.now(UTC)).total_seconds())
        if wait.awaits is None:
            rest(self.store, self.program, claim, given, delay=delay, state=wait.state)
            return self.claim_next()
        return self._settled(
            rest_awaiting(
                self.store,
                self.program,
                self.execution_id,
                claim,
                given,
                delay=delay,
                state=wait.state,
                awaits=wait.awaits,
                worker=self._keeper(),
            )
        )

    def _completed(self, claim: Claim, attempt: Attempt, result: Result, skip: frozenset[str]) -> Claim | None:
        path, graph = claim.path, self.program.scopes.of(claim.path)
        if len(self.seen) >= MOST_SEEN:
            self.seen.clear()  # what is missing is read
        self.seen[path] = steps.as_seen_by_templates("completed", result.output, variables=result.variables)
        if attempt.step.bodies and claim.state is None and not attempt.body:  # it did not come to its bodies
            return self._advanced(End(path, claim, result))
        following = None if skip else self._straight_on(path, alone=bool(result.besides or result.signals))
        if following is not None:
            return self._complete_and_follow(claim, result, following)
        if self._ends_execution(path):
            recorded, finished, self.freed = records.complete_and_finish(self.store, self.execution_id, claim, result)
            if self.report is not None and recorded:
                self.report.recorded(retries=False, ended=finished)
            return None
        keeper = self._keeper()
        around = None if skip or self.rung or keeper is None else surroundings(self.program, path)
        if around is not None and keeper is not None:
            return self._settled(go_on(self.store, self.program, self.facts, claim, result, around, keeper))
        return self._advanced(End(path, claim, result, skip=frozenset(map(graph.path_of, skip))))

    def _advanced(self, end: End) -> Claim | None:
        return self._settled(
            advance(self.store, self.program, self.execution_id, end, worker=self._keeper(), rung=self.rung)
        )

    def _straight_on(self, path: str, *, alone: bool) -> str | None:
        """The step to go on with that takes no look at the others: the next of this run, or (unless `alone`: what is
        taken from the pack cannot be put back) the next run of the pack if whoever waits for this one waits for that
        one too."""
        if self._over_budget():
            return None
        graph = self.program.scopes.of(path)
        following = graph.next_in_run(path, self.queue)
        if following is not None:
            return following
        upcoming = None if alone or not graph.is_waited_for_with_others(path) else self.pack.first()
        if upcoming is None:
            return None
        other = self.program.scopes.of(upcoming)
        *_, last = other.run(upcoming)
        return self.pack.take() if other.dependents(last) == graph.dependents(path) else None

    def _complete_and_follow(self, claim: Claim, result: Result, following: str) -> Claim | None:
        recorded, follower = records.complete_and_follow(
            self.store, self.execution_id, claim, result, following, self.process.lease.id
        )
        if not recorded:
            return None
        if self.report is not None:
            self.report.recorded(retries=False, ended=False)
        if follower is not None:
            return follower
        # The execution is paused or ended, or somebody has that step: look at what this one has made ready.
        return self._advanced(End(claim.path, None))

    def _ends_execution(self, path: str) -> bool:
        """Whether nothing but this step's end is left of an execution that asks for nothing at its end."""
        program, graph = self.program, self.program.scopes.of(path)
        alone = graph is program.scopes.root and graph.is_one_run and not graph.children[path]
        is_plain = program.outputs is None and not program.has_endings and not program.is_counted
        return alone and is_plain and self.facts.parent_step_id is None

    def _settled(self, advanced: Advance) -> Claim | None:
        if not advanced.counted:
            self.seen.clear()  # what it remembers of this step was not recorded
        if self.report is not None and advanced.counted:
            self.report.recorded(retries=advanced.retries, ended=advanced.ended)
        for one in advanced.plans:
            (self.process.doorbell.ring if one.execution_id == self.execution_id else self.onward.add)(one)
        self.freed = all_freed((self.freed, advanced.freed))
        if advanced.kept:
            self.pack.add(advanced.kept)
            self.hand_back_after(self._patience_with(advanced.kept))
        return advanced.claim or self.claim_next() or (None if advanced.exhausted else self._claim_another())

    def _patience_with(self, kept: Iterable[str]) -> float:
        """Control steps take less time than their message, however many there are."""
        scopes = self.program.scopes
        return PACK_PATIENCE if all(scopes.of(path).queue_for(path) == CONTROL for path in kept) else FORK_PATIENCE

    def _claim_another(self) -> Claim | None:
        """A step of this execution that is queued for other workers: what is at hand takes no message. (The
        canvas counts on this task's end, if it has something to ring for.)"""
        if self.rung or self._over_budget():
            return None
        return claims.claim_queued(self.store, self.execution_id, self.served, self.process.lease.current())

    def _keeper(self) -> Worker | None:
        return None if self._over_budget() else Worker(self.process.lease.id, self.queue)

    def _over_budget(self) -> bool:
        return self.process.watch.is_stopping or time.monotonic() - self.began > INLINE_BUDGET
