"""Put right what died on the way: lost workers, lost messages, due timers, stalled and overdue executions.

Any one process at a time does this (it holds the duty in PostgreSQL). Every act is a guarded transition, so
that a second reconciler, or a worker that was only slow, does no harm. And each act stands by itself: what one of
them stumbles over keeps no other from its work.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeVar

import psutil

from orchestrator.config import Settings
from orchestrator.definition.model import Step
from orchestrator.engine import triggers
from orchestrator.engine.admission import admit_all, keep_rates, seconds_to_next_turn
from orchestrator.engine.advance import Advance, Failure, end_early, end_failed_attempt, plans_of, replan
from orchestrator.engine.plan import Plan, going_first, plan
from orchestrator.engine.programs import Programs
from orchestrator.lifecycle import ExecutionStatus
from orchestrator.metrics import BROKER_ERRORS, LOSSES, RECONCILE_ERRORS, RETRIES, tally
from orchestrator.store import (
    Store,
    cached_results,
    cancellations,
    executions,
    recovery,
    stats,
    step_tests,
    untold_ends,
    workers,
    workflow_ends,
)
from orchestrator.store import triggers as trigger_rows
from orchestrator.store.cancellations import Due
from orchestrator.store.claims import Claim
from orchestrator.store.recovery import Orphan, Ring, Unclaimed
from orchestrator.store.session import DatabaseAway

logger = logging.getLogger(__name__)

DUTY = "reconcile"
_BATCH = 500
_PURGED = 10_000
"""Rows removed at a time; more of them have time until the next."""
_ON_ITS_WAY = 3.0
"""Seconds that a message may take from the commit to the broker: a call that retries a thousand executions sends what
it rings for when it has come to the end."""
_LOOK_EVERY = 1.5
"""Seconds at least between two looks for lost messages, and so those that a worker may take from a message to its
claim."""
_FIRST_MESSAGES = 2_000
"""Messages of a list that a look reads, the oldest ones: 30 ms."""
_FIRST_STEPS = _FIRST_MESSAGES // 2
"""Steps whose messages are to be found among those: messages of one list are sent in about the order in which their
steps are marked."""
_RUNG = 1_000
"""Messages sent at a time, which takes about two seconds."""
_SLOW_EVERY = 5.0
"""Seconds between the looks at everything that is live; the quick looks use small indexes."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listed:
    """The steps, (execution id, path), for which the messages that were read have been sent; `is_all` if those were all
    that wait in the queue."""

    steps: frozenset[tuple[str, str]]
    is_all: bool


class Broker(Protocol):
    """What reconcile asks of the broker."""

    def listed(self, queue: str, most: int | None) -> Listed:
        """What waits in `queue`: of each priority the `most` oldest messages (None: all). Raises OSError if the broker
        is away."""


class Observer(Protocol):
    """Who is told what reconcile ended, after the commit. Neither method raises."""

    def attempt_failed(self, execution_id: str, step: Step, held: Claim, failure: Failure, *, retries: bool) -> None:
        """An attempt that its worker did not end."""

    def execution_ended(self, execution_id: str) -> None: ...


class Reconciler:
    """`send` dispatches a plan, `look` has a worker look at a trigger, `cancel` has one cancel what a step has begun
    elsewhere; all raise OSError when the broker is away.

    `stumbled` counts for each act what it could not do for an exception: each is logged, and tried again.
    """

    def __init__(
        self,
        store: Store,
        programs: Programs,
        settings: Settings,
        broker: Broker,
        send: Callable[[Plan], None],
        *,
        holder: str,
        host: str,
        observer: Observer | None = None,
        look: Callable[[str], None] | None = None,
        cancel: Callable[[Due], None] | None = None,
    ) -> None:
        self.store = store
        self.programs = programs
        self.settings = settings
        self.broker = broker
        self.send = send
        self.holder = holder
        self.host = host
        self.observer = observer
        self.look = look
        self.cancel = cancel
        self.stumbled: Counter[str] = Counter()
        self._slow_at = -inf
        self._look_at = -inf
        self._reached_at = -inf
        self._leases_count_from = inf
        self._leases_count = False
        self._broker_answers = True
        self._unlisted: frozenset[Unclaimed] = frozenset()

    def tick(self, now: float) -> float:
        """Do what is due at `now` (a monotonic clock's seconds); the seconds until the next tick."""
        interval = self.settings.scheduler.poll_interval
        with self.store.single() as connection:
            holds = workers.hold_duty(connection, DUTY, self.holder, lapse=3 * interval + 2)
        self._notice_gap(now)
        if not holds:
            return interval
        began = time.monotonic()
        self._broker_answers = True
        for act in self._due(now):
            self._try(act)
        pause = self._until_next(interval)
        self._reached_at = now + time.monotonic() - began
        return pause

    def _due(self, now: float) -> Iterator[Callable[[], None]]:
        yield self.find_lost_workers
        yield self.recover_orphans
        yield self.fire_timers
        yield self.end_expired
        yield self.cancel_elsewhere
        yield self.let_in
        yield self.end_overdue
        yield self.tell_ends
        yield self.end_workflows
        yield self.fire_triggers
        yield self.carry_out_fires
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            yield self.ring_lost_messages
        if now >= self._slow_at:
            self._slow_at = now + _SLOW_EVERY
            yield self.restart_stalled
            yield self.settle_workflows
            yield self.purge

    def _try(self, act: Callable[..., None], *subject: object, letting_out: tuple[type[Exception], ...] = ()) -> None:
        """What is odd about one act keeps no other from being done."""
        try:
            act(*subject)
        except letting_out:
            raise
        except Exception:
            name = act.__name__.strip("_")
            self.stumbled[name] += 1
            tally.add(RECONCILE_ERRORS, name)
            logger.exception("%s failed (%d times so far); the next tick tries again", name, self.stumbled[name])

    def _each(self, act: Callable[[T], None], subjects: Iterable[T]) -> None:
        for subject in subjects:  # a database that is away is so for all of them
            self._try(act, subject, letting_out=DatabaseAway)

    def _notice_gap(self, now: float) -> None:
        """While the database was away nobody could keep a lease: after such a gap, and at the start, every process has
        the time of a whole lease to say that it is there. (A tick that took long is no gap: in that time others could.)
        """
        scheduler = self.settings.scheduler
        if now - self._reached_at > scheduler.lease / 4 + 2 * scheduler.poll_interval:
            self._leases_count_from = now + scheduler.lease
        self._reached_at = now
        self._leases_count = now >= self._leases_count_from

    def find_lost_workers(self) -> None:
        """Take the lease of processes that are gone: known at once on this host, after the lease elsewhere."""
        with self.store.single() as connection:
            here = workers.on_host(connection, self.host)
            gone = [row.id for row in here if not _lives(row.pid, row.born)]
            if gone:
                logger.warning("%d worker processes on this host are gone", len(gone))
                workers.remove(connection, gone)
            if self._leases_count:
                expired = workers.remove_expired(connection, self.settings.scheduler.lease)
                if expired:
                    logger.warning("the leases of %d worker processes lapsed", expired)

    def recover_orphans(self) -> None:
        """Steps that nobody will finish: queued again, or failed if that has happened too often."""
        with self.store.single() as connection:
            orphans = recovery.orphans(connection, _BATCH)
        self._each(self._recover, orphans)

    def _recover(self, orphan: Orphan) -> None:
        if orphan.lost and orphan.claim.losses + 1 < self.settings.scheduler.max_losses:
            self._queue_again(orphan)
        else:
            self._fail(orphan, "the step's time was up and its worker did not end it")

    def _queue_again(self, orphan: Orphan) -> None:
        with self.store.single() as connection:
            won = recovery.lose(connection, orphan.claim)
        if won:
            tally.add(LOSSES)
            logger.warning("step %s of %s lost its worker", orphan.claim.path, orphan.execution_id)
            self._ring_first(orphan.execution_id, orphan.claim.path)

    def _fail(self, orphan: Orphan, too_late: str) -> None:
        if orphan.lost:
            lost = f"its worker was lost {orphan.claim.losses + 1} times while it ran"
            failure = Failure("lost", lost, retryable=False, imposed=True)
        else:
            failure = Failure("timeout", too_late, imposed=True)
        with self.store.single() as connection:
            found = executions.look(connection, orphan.execution_id)
        if found is None:
            return
        program = self.programs.get(self.store, found.workflow_id, found.version)
        advanced = end_failed_attempt(self.store, program, orphan.execution_id, orphan.claim, failure)
        step = program.scopes.step(orphan.claim.path)
        if advanced.counted and orphan.lost:
            tally.add(LOSSES)
        if advanced.counted and advanced.retries:
            tally.add(RETRIES, step.type)
        if self.observer is not None and advanced.counted:
            self.observer.attempt_failed(orphan.execution_id, step, orphan.claim, failure, retries=advanced.retries)
        self._settle(orphan.execution_id, advanced)

    def fire_timers(self) -> None:
        with self.store.single() as connection:
            self._ring(recovery.wake_due(connection, _BATCH))

    def end_expired(self) -> None:
        """Attempts whose time is up while they rest."""
        with self.store.single() as connection:
            expired = recovery.expire(connection, _BATCH)
        self._each(self._end_expired, expired)

    def _end_expired(self, step: Orphan) -> None:
        self._fail(step, "the step's time was up while it waited (timeout)")

    def cancel_elsewhere(self) -> None:
        """What steps have begun elsewhere and nobody wants any more: a worker sees to it."""
        with self.store.single() as connection:
            due = cancellations.due(connection, _BATCH)
        for one in due:
            if self.cancel is not None:
                self._tell(self.cancel, one)

    def let_in(self) -> None:
        self._send_all(admit_all(self.store, self.settings))

    def end_overdue(self) -> None:
        with self.store.single() as connection:
            overdue = executions.overdue(connection, _BATCH)
            abandoned = executions.abandoned(connection, _BATCH)
        self._each(self._end_overdue, overdue)
        self._each(self._end_abandoned, abandoned)

    def _end_overdue(self, execution_id: str) -> None:
        self._end_early(execution_id, ExecutionStatus.FAILED, "the execution's time was up")

    def _end_abandoned(self, execution_id: str) -> None:
        self._end_early(execution_id, ExecutionStatus.CANCELLED, "the step that started it has ended")

    def _end_retired(self, execution_id: str) -> None:
        self._end_early(execution_id, ExecutionStatus.CANCELLED, "its workflow was cancelled")

    def _end_early(self, execution_id: str, outcome: ExecutionStatus, message: str) -> None:
        self._settle(execution_id, end_early(self.store, self.programs, execution_id, outcome, message))

    def tell_ends(self) -> None:
        """Those that came by way of the API. Should this process die over it, they are told again."""
        with self.store.single() as connection:
            untold = untold_ends.first(connection, _BATCH)
        if self.observer is not None:
            for one in untold:
                self.observer.execution_ended(one.execution_id)
        if untold:
            with self.store.single() as connection:
                untold_ends.remove(connection, untold)

    def end_workflows(self) -> None:
        """Those whose date has come, before their triggers fire once more."""
        with self.store.single() as connection:
            workflow_ends.settle_past(connection)

    def settle_workflows(self) -> None:
        """What was to be seen to when an execution ended, or when a workflow was retired."""
        with self.store.single() as connection:
            workflow_ends.settle_all(connection)
            retired = executions.of_cancelled_workflows(connection, _BATCH)
        self._each(self._end_retired, retired)

    def fire_triggers(self) -> None:
        """What is due by time."""
        for fired in triggers.fire_due(self.store, self.programs):
            if isinstance(fired, triggers.Look):
                if self.look is not None:
                    self._tell(self.look, fired.trigger_id)
            else:
                self._send_all(fired.plans)

    def carry_out_fires(self) -> None:
        """What somebody died over, and what waited for its turn."""
        for fired in triggers.carry_out_unsettled(self.store, self.programs):
            self._send_all(fired.plans)

    def _send_all(self, plans: Iterable[Plan]) -> None:
        for planned in plans:
            self._tell(self.send, planned)

    def _tell(self, send: Callable[[T], None], what: T) -> None:
        """A broker that is away for one message is so for all of this tick, and each would take its time to find out.
        What is not sent is found like any lost message."""
        if not self._broker_answers:
            return
        try:
            send(what)
        except OSError as error:
            self._broker_answers = False
            tally.add(BROKER_ERRORS)
            logger.warning("the broker is away: %s; what is queued meanwhile is rung for when it is back", error)

    def ring_lost_messages(self) -> None:
        """Ring again for the queued steps that no message waits for: a message was lost if at two looks in a row its
        step was unclaimed and the message in none of its queue's lists at the broker.

        A long backlog is no loss, since its messages are there to be seen; nor is a message that a worker has just
        taken, since its step is claimed by the second look. What is taken from a list has been there for longer than
        the rest of it: so the lost are sought among the steps that have waited longest, and mostly it is enough to read
        the oldest messages. A step that is not among these is sought in the whole list before it is rung for.
        """
        with self.store.single() as connection:
            steps = recovery.unclaimed(connection, older_than=_ON_ITS_WAY, limit=10 * _BATCH)
        try:
            unlisted = self._unlisted_of(steps, _FIRST_MESSAGES)
            lost = self._unlisted_of([step for step in unlisted if step in self._unlisted], None)
        except OSError:
            self._look_at = -inf  # away: as soon as it is back, there may be much to ring for
            return
        self._unlisted = frozenset(unlisted)
        if lost:
            with self.store.single() as connection:
                rings = recovery.ring_again(connection, lost[:_RUNG])
            logger.warning("ringing again for %d steps whose messages were lost", len(rings))
            self._ring(rings)
        if len(lost) > _RUNG:
            self._look_at = -inf

    def _unlisted_of(self, steps: Iterable[Unclaimed], most: int | None) -> list[Unclaimed]:
        """Those whose messages are not at the broker, as far as that is to be seen from the `most` oldest messages."""
        listed = {queue: self.broker.listed(queue, most) for queue in {step.queue for step in steps}}
        return [
            step
            for step in steps
            if (listed[step.queue].is_all or step.place <= _FIRST_STEPS)
            and (step.execution_id, step.path) not in listed[step.queue].steps
        ]

    def restart_stalled(self) -> None:
        with self.store.single() as connection:
            stalled = executions.stalled(connection, _BATCH)
        self._each(self._restart, stalled)

    def _restart(self, execution_id: str) -> None:
        logger.warning("execution %s had stalled", execution_id)
        self._settle(execution_id, replan(self.store, self.programs, execution_id))

    def purge(self) -> None:
        """Remove rows that nobody looks at any more."""
        with self.store.single() as connection:
            cached_results.purge(connection, _PURGED)
            cancellations.purge(connection, _PURGED)
            step_tests.purge(connection, _PURGED)
            keep_rates(connection, _PURGED)
        with self.store.transaction() as connection:
            stats.merge(connection)

    def _ring(self, rings: Iterable[Ring]) -> None:
        """One message a step: what was lost is few, or a whole broker, where speed is not the question."""
        for ring in rings:
            self._send_all(plans_of(ring))

    def _ring_first(self, execution_id: str, path: str) -> None:
        with self.store.single() as connection:
            found = executions.look(connection, execution_id)
        if found is None:
            return
        program = self.programs.get(self.store, found.workflow_id, found.version)
        self._tell(self.send, going_first(plan(program.scopes, execution_id, found.priority, [path])))

    def _settle(self, execution_id: str, advanced: Advance) -> None:
        if self.observer is not None and advanced.ended:
            self.observer.execution_ended(execution_id)
        self._send_all(advanced.plans)

    def _until_next(self, interval: float) -> float:
        with self.store.single() as connection:
            due = (
                recovery.seconds_to_next_timer(connection),
                trigger_rows.seconds_to_next_slot(connection),
                seconds_to_next_turn(connection),
            )
        return max(0.01, min([interval, *(seconds for seconds in due if seconds is not None)]))


def _lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        # Clocks step: what matters is that a pid which came again was born much later.
        return abs(process.create_time() - born) < 5 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
