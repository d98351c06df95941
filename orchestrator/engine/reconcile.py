"""Put right what died on the way: lost workers, lost messages, due timers, stalled and overdue executions.

Any one process at a time does this (it holds the duty in PostgreSQL). Every act is a guarded transition, so
that a second reconciler, or a worker that was only slow, does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import inf
from typing import Protocol

import psutil

from orchestrator.config import Settings
from orchestrator.definition.model import Step
from orchestrator.engine import triggers
from orchestrator.engine.admission import admit_all
from orchestrator.engine.advance import Advance, Failure, end_early, end_failed_attempt, replan
from orchestrator.engine.plan import Message, Plan, plan
from orchestrator.engine.programs import Programs
from orchestrator.lifecycle import ExecutionStatus
from orchestrator.store import (
    Store,
    cached_results,
    cancellations,
    executions,
    recovery,
    step_tests,
    workers,
    workflow_ends,
)
from orchestrator.store import triggers as trigger_rows
from orchestrator.store.cancellations import Due
from orchestrator.store.recovery import Orphan, Ring
from orchestrator.store.steps import Claim

logger = logging.getLogger(__name__)

DUTY = "reconcile"
_BATCH = 500
_PURGED = 10_000
"""Rows removed at a time; more of them have time until the next."""
_RING_AGAIN_AFTER = 5.0
"""Seconds that a message may be on its way, from the commit to the worker's claim, when nothing is in front of
it."""
_SLOW_EVERY = 5.0
"""Seconds between the looks at everything that is live; the quick looks use small indexes."""


class Broker(Protocol):
    """What reconcile asks of the broker. Every method raises OSError or a subclass when it is away."""

    def remembers(self) -> bool:
        """Whether the token is there that `remember` left; if not, the broker lost its data."""

    def remember(self) -> None:
        """Leave the token."""

    def empty_queues(self, queues: Sequence[str]) -> Sequence[str]:
        """Those of `queues` that hold no message."""


class Observer(Protocol):
    """Who is told what reconcile ended, after the commit. Neither method raises."""

    def attempt_failed(self, execution_id: str, step: Step, held: Claim, failure: Failure, *, retries: bool) -> None:
        """An attempt that its worker did not end."""

    def execution_ended(self, execution_id: str) -> None: ...


class Reconciler:
    """`send` dispatches a plan and does not raise when the broker is away; nor does `look`, which has a worker look at
    a trigger, nor `cancel`, which has one of a queue see to a row of the table cancellations."""

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
        self._slow_at = 0.0
        self._ticked_at = -inf
        self._leases_count_from = inf

    def tick(self, now: float) -> float:
        """Do what is due at `now` (a monotonic clock's seconds); the seconds until the next tick."""
        interval = self.settings.scheduler.poll_interval
        with self.store.single() as connection:
            holds = workers.hold_duty(connection, DUTY, self.holder, lapse=3 * interval + 2)
        self._notice_gap(now)
        if not holds:
            return interval
        self.find_lost_workers(now)
        self.recover_orphans()
        self.fire_timers()
        self.cancel_elsewhere()
        self.let_in()
        self.end_overdue()
        self.end_workflows()
        self.fire_triggers()
        if now >= self._slow_at:
            self._slow_at = now + _SLOW_EVERY
            self.ring_lost_messages()
            self.restart_stalled()
            self.settle_workflows()
            self.purge()
        return self._until_next(interval)

    def _notice_gap(self, now: float) -> None:
        """While the database was away nobody could keep a lease: after such a gap, and at the start, every
        process has the time of a whole lease to say that it is there."""
        scheduler = self.settings.scheduler
        if now - self._ticked_at > scheduler.lease / 4 + 2 * scheduler.poll_interval:
            self._leases_count_from = now + scheduler.lease
        self._ticked_at = now

    def find_lost_workers(self, now: float) -> None:
        """Take the lease of processes that are gone: known at once on this host, after the lease elsewhere."""
        with self.store.single() as connection:
            here = workers.on_host(connection, self.host)
            gone = [row.id for row in here if not _lives(row.pid, row.born)]
            if gone:
                logger.warning("%d worker processes on this host are gone", len(gone))
                workers.remove(connection, gone)
            if now >= self._leases_count_from:
                expired = workers.remove_expired(connection, self.settings.scheduler.lease)
                if expired:
                    logger.warning("the leases of %d worker processes lapsed", expired)

    def recover_orphans(self) -> None:
        """Steps that nobody will finish: queued again, or failed if that has happened too often."""
        with self.store.single() as connection:
            orphans = recovery.orphans(connection, _BATCH)
        for orphan in orphans:
            if orphan.lost and orphan.claim.losses + 1 < self.settings.scheduler.max_losses:
                self._queue_again(orphan)
            else:
                self._fail(orphan, "the step's time was up and its worker did not end it")

    def _queue_again(self, orphan: Orphan) -> None:
        with self.store.single() as connection:
            won = recovery.lose(connection, orphan.claim)
        if won:
            logger.warning("step %s of %s lost its worker", orphan.claim.path, orphan.execution_id)
            self._ring_one(orphan.execution_id, orphan.claim.path)

    def _fail(self, orphan: Orphan, late: str) -> None:
        if orphan.lost:
            lost = f"its worker was lost {orphan.claim.losses + 1} times while it ran"
            failure = Failure("lost", lost, retryable=False, imposed=True)
        else:
            failure = Failure("timeout", late, imposed=True)
        with self.store.transaction() as connection:
            locked = executions.lock(connection, orphan.execution_id)
            if locked is None:
                return
            program = self.programs.get(self.store, locked.workflow_id, locked.version)
        advanced = end_failed_attempt(self.store, program, orphan.execution_id, orphan.claim, failure)
        if self.observer is not None and advanced.counted:
            step = program.scopes.step(orphan.claim.path)
            self.observer.attempt_failed(orphan.execution_id, step, orphan.claim, failure, retries=advanced.retries)
        self._settle(orphan.execution_id, advanced)

    def fire_timers(self) -> None:
        with self.store.single() as connection:
            self._ring(recovery.wake_due(connection, _BATCH))
            expired = recovery.expire(connection, _BATCH)
        for step in expired:
            self._fail(step, "the step's time was up while it waited (timeout)")

    def cancel_elsewhere(self) -> None:
        """Have workers cancel what steps have begun that nobody wants any more."""
        with self.store.single() as connection:
            due = cancellations.due(connection, _BATCH)
        for one in due:
            if self.cancel is not None:
                self.cancel(one)

    def let_in(self) -> None:
        for planned in admit_all(self.store, self.settings):
            self.send(planned)

    def end_overdue(self) -> None:
        with self.store.single() as connection:
            overdue = executions.overdue(connection, _BATCH)
            abandoned = executions.abandoned(connection, _BATCH)
        for execution_id in overdue:
            self._end_early(execution_id, ExecutionStatus.FAILED, "the execution's time was up")
        for execution_id in abandoned:
            self._end_early(execution_id, ExecutionStatus.CANCELLED, "the step that started it has ended")

    def _end_early(self, execution_id: str, outcome: ExecutionStatus, message: str) -> None:
        self._settle(execution_id, end_early(self.store, self.programs, execution_id, outcome, message))

    def end_workflows(self) -> None:
        """Those whose date has come, before their triggers fire once more."""
        with self.store.single() as connection:
            workflow_ends.settle_past(connection)

    def settle_workflows(self) -> None:
        """What was to be seen to when an execution ended, or when a workflow was retired."""
        with self.store.single() as connection:
            workflow_ends.settle_all(connection)
            retired = executions.of_cancelled_workflows(connection, _BATCH)
        for execution_id in retired:
            self._end_early(execution_id, ExecutionStatus.CANCELLED, "its workflow was cancelled")

    def fire_triggers(self) -> None:
        """What is due by time, what somebody died over, and what waited for its turn."""
        for fired in triggers.fire_due(self.store, self.programs):
            if isinstance(fired, triggers.Look):
                if self.look is not None:
                    self.look(fired.trigger_id)
            else:
                self._send_all(fired.plans)
        for fired in triggers.carry_out_unsettled(self.store, self.programs):
            self._send_all(fired.plans)

    def _send_all(self, plans: Iterable[Plan]) -> None:
        for planned in plans:
            self.send(planned)

    def ring_lost_messages(self) -> None:
        """Ring again for queued steps whose message is certainly gone; a long backlog is no loss."""
        with self.store.single() as connection:
            waited_on = recovery.queues_waited_on(connection)
        try:
            forgotten = not self.broker.remembers()
            empty = self.broker.empty_queues(waited_on)
        except OSError:
            return  # away: there is nobody to ring
        age, queues = (0.0, None) if forgotten else (_RING_AGAIN_AFTER, empty)
        with self.store.single() as connection:
            rings = recovery.ring_again(connection, older_than=age, queues=queues, limit=10 * _BATCH)
        if rings:
            logger.warning("ringing again for %d steps%s", len(rings), ": the broker lost its data" * forgotten)
        self._ring(rings)
        if forgotten and len(rings) < 10 * _BATCH:
            self.broker.remember()

    def restart_stalled(self) -> None:
        with self.store.single() as connection:
            stalled = executions.stalled(connection, _BATCH)
        for execution_id in stalled:
            logger.warning("execution %s had stalled", execution_id)
            self._settle(execution_id, replan(self.store, self.programs, execution_id))

    def purge(self) -> None:
        """Remove rows that nobody looks at any more."""
        with self.store.single() as connection:
            cached_results.purge(connection, _PURGED)
            cancellations.purge(connection, _PURGED)
            step_tests.purge(connection, _PURGED)
            trigger_rows.purge(connection, self.settings.executor.log_retention, _PURGED)

    def _ring(self, rings: Iterable[Ring]) -> None:
        """One message a step: what was lost is few, or a whole broker, where speed is not the question."""
        ordered = sorted(rings, key=lambda ring: (ring.execution_id, ring.queue))
        for (execution_id, queue), group in groupby(ordered, key=lambda ring: (ring.execution_id, ring.queue)):
            members = list(group)
            branches = tuple((Message(queue, (ring.path,)),) for ring in members)
            self.send(Plan(execution_id, members[0].priority, branches))

    def _ring_one(self, execution_id: str, path: str) -> None:
        with self.store.transaction() as connection:
            locked = executions.lock(connection, execution_id)
            if locked is None:
                return
            program = self.programs.get(self.store, locked.workflow_id, locked.version)
        self.send(plan(program.scopes, execution_id, locked.priority, [path]))

    def _settle(self, execution_id: str, advanced: Advance) -> None:
        if self.observer is not None and advanced.ended:
            self.observer.execution_ended(execution_id)
        self._send_all(advanced.plans)

    def _until_next(self, interval: float) -> float:
        with self.store.single() as connection:
            due = (recovery.seconds_to_next_timer(connection), trigger_rows.seconds_to_next_slot(connection))
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
