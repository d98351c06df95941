"""Why an execution or a step is not running now: one reason, with the facts that it follows from.

It is read from the rows as they are, statement by statement: what moves on meanwhile may be told as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection

from orchestrator.definition.building import COMPENSATE
from orchestrator.engine.overview import Look, look_if_there
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import DUTY
from orchestrator.lifecycle import EXECUTION_TERMINAL, STEP_TERMINAL, ExecutionStatus, StepStatus
from orchestrator.store import Store, admission, bodies, executions, overview, rate_line, steps, why
from orchestrator.store.control import PARENT, WORKFLOW
from orchestrator.store.executions import AWAITS_BODY, AWAITS_CHILD
from orchestrator.store.overview import WorkerSeen
from orchestrator.store.rates import AWAITS_RATE, Turn
from orchestrator.store.signals import AWAITS_DECISION, AWAITS_SIGNAL
from orchestrator.store.why import ExecutionSeen, StepSeen

_ON_ITS_WAY = 5.0
"""Seconds that a message may take; after that reconcile looks whether it is lost."""
_SHOWN = 20
"""Of a list of steps; and of executions, five times as many."""


class Why(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    """By itself, or together with the execution whose step waits for it."""
    WORKFLOW_PAUSED = "workflow_paused"
    """It was still to be given a place when its workflow was paused."""
    LIMIT_REACHED = "limit_reached"
    """As many executions run as the service may have."""
    HELD_BY_LIMIT = "held_by_limit"
    """As many run as its workflow, or its key, may have."""
    RATE_LIMITED = "rate_limited"
    """As many have begun as its workflow's, its key's or its connection's rate limit lets begin in that time."""
    NO_WORKER = "no_worker"
    """No live worker process serves the queue."""
    BUSY = "busy"
    """Those that serve it have all that they can do."""
    BROKER_UNREACHABLE = "broker_unreachable"
    MESSAGE_ON_ITS_WAY = "message_on_its_way"
    MESSAGE_LATE = "message_late"
    """Workers are free, and nobody has taken it."""
    RETRY_AT = "retry_at"
    WAITING_FOR_TIME = "waiting_for_time"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_CHILD = "waiting_for_child"
    WAITING_FOR_BODY = "waiting_for_body"
    WAITING_FOR_TURN = "waiting_for_turn"
    """In a loop that limits how many rounds run at a time."""
    WAITING_FOR_DEPENDENCIES = "waiting_for_dependencies"
    ADVANCING = "advancing"
    """Between the end of one step and the beginning of the next, or of one execution and another's."""


@dataclass(frozen=True, slots=True)
class Reason:
    """`detail` is one sentence for people; `since` is None where nothing says it."""

    reason: Why
    detail: str
    since: datetime | None
    facts: dict[str, Any] = field(default_factory=dict)


def why_execution(store: Store, programs: Programs, look: Look, execution_id: str) -> Reason:
    """Of an execution that runs while none of its steps does: the reason of the step that has the longest wait behind
    it. Raises NotFound."""
    with store.single() as connection:
        return _Inquiry(store, connection, programs, look).of_execution(why.execution(connection, execution_id))


def why_step(store: Store, programs: Programs, look: Look, step_execution_id: str) -> Reason:
    """Raises NotFound."""
    with store.single() as connection:
        step = why.step(connection, step_execution_id)
        execution = why.execution(connection, step.execution_id)
        return _Inquiry(store, connection, programs, look).of_step(step, execution)


@dataclass(frozen=True, slots=True)
class _Inquiry:
    store: Store
    connection: Connection
    programs: Programs
    look: Look

    def of_execution(self, execution: ExecutionSeen) -> Reason:
        if execution.status in EXECUTION_TERMINAL:
            return _ended_execution(execution)
        if execution.status is ExecutionStatus.PAUSED:
            return _paused(execution)
        if execution.admitted_at is None:
            return self._without_place(execution)
        live = why.live_steps(self.connection, execution.id, _SHOWN)
        running = [step for step in live if step.status is StepStatus.RUNNING]
        if running:
            return _at_work(running)
        if not live:
            return _advancing(execution.started_at)
        reason = self.of_step(live[0], execution)
        shown = {"id": live[0].id, "path": live[0].path, "type": live[0].type, "status": live[0].status}
        return Reason(
            reason.reason, f"step {live[0].path}: {reason.detail}", reason.since, {"step": shown, **reason.facts}
        )

    def of_step(self, step: StepSeen, execution: ExecutionSeen) -> Reason:
        if step.status in STEP_TERMINAL:
            return _ended_step(step)
        if step.status is StepStatus.RUNNING:
            return _running(step)
        if execution.status is ExecutionStatus.PAUSED:
            return _paused(execution)
        if step.status is StepStatus.WAITING:
            return self._waiting(step, execution)
        if step.status is StepStatus.PENDING:
            return self._pending(step, execution)
        return self._without_place(execution) if execution.admitted_at is None else self._queued(step, execution)

    # --- places ----------------------------------------------------------------------------------------------

    def _without_place(self, execution: ExecutionSeen) -> Reason:
        if execution.paced:
            return self._paced(execution)
        if execution.held:
            return self._held(execution)
        running = overview.places(self.connection).running
        most = self.programs.settings.scheduler.max_concurrent
        ahead = why.ahead_in_backlog(self.connection, execution.id)
        facts = {"running": running, "max_concurrent": most, "ahead": ahead}
        if running + ahead < most:
            return _about_to_be_let_in(execution, facts)
        detail = f"{running} of {most} places are taken (scheduler.max_concurrent); waiting before it: {ahead}"
        return Reason(Why.LIMIT_REACHED, detail, execution.created_at, facts)

    def _held(self, execution: ExecutionSeen) -> Reason:
        limits = why.own_limits(self.connection, execution.id)
        if execution.step_comes_later or not limits:
            return _held_for_its_step(execution)
        limit = next((one for one in limits if one.is_reached), limits[0])
        of_workflow = limit.key == execution.workflow_id
        name = "its workflow" if of_workflow else f"the key '{limit.key.partition(':')[2]}'"
        facts = {
            "limit_of": "workflow" if of_workflow else "key",
            "key": limit.key if of_workflow else limit.key.partition(":")[2],
            "limit": limit.limit,
            "executions": list(limit.executions[: 5 * _SHOWN]),
            "ahead": limit.ahead,
        }
        if len(limit.executions) + limit.ahead < limit.limit:
            return _about_to_be_let_in(execution, facts)
        taken = f"{len(limit.executions)} of the {limit.limit} places of {name} are taken"
        detail = f"{taken}; held before it: {limit.ahead}"
        return Reason(Why.HELD_BY_LIMIT, detail, execution.created_at, facts)

    def _paced(self, execution: ExecutionSeen) -> Reason:
        turn = admission.turn_of(self.connection, execution.id)
        key = turn.rate.key.removeprefix(f"workflow:{execution.workflow_id}").removeprefix(":")
        name = f"the key '{key}'" if key else "its workflow"
        facts = {"limit_of": "key" if key else "workflow", "key": key or execution.workflow_id}
        return _rate_limited(name, turn, execution.created_at, facts)

    # --- queued ----------------------------------------------------------------------------------------------

    def _queued(self, step: StepSeen, execution: ExecutionSeen) -> Reason:
        since = step.rung_at or execution.admitted_at
        lease = self.programs.settings.scheduler.lease
        live = [one for one in overview.workers(self.connection) if one.seen_seconds <= lease]
        serving = [one for one in live if one.serves(step.queue)]
        if not serving:
            return _no_worker(step.queue, live, since)
        state = look_if_there(self.look, [step.queue])
        facts = {
            "queue": step.queue,
            "workers": len(serving),
            "ahead": why.ahead_in_queue(self.connection, step.id),
            "messages": None if state is None else sum(state.messages[step.queue]),
        }
        if all(one.is_busy for one in serving):
            return _busy(serving, since, facts)
        if state is None:
            return Reason(
                Why.BROKER_UNREACHABLE, "the broker does not answer; it is rung for again later", since, facts
            )
        age = (overview.now(self.connection) - since).total_seconds() if since else 0.0
        if age < _ON_ITS_WAY:
            return Reason(Why.MESSAGE_ON_ITS_WAY, f"its message was sent {age:.1f} s ago", since, facts)
        detail = f"its message was sent {age:.0f} s ago and no worker has taken it; reconcile sends a lost one again"
        return Reason(Why.MESSAGE_LATE, f"{detail} ({self._reconciler()})", since, facts)

    # --- waiting ---------------------------------------------------------------------------------------------

    def _waiting(self, step: StepSeen, execution: ExecutionSeen) -> Reason:
        if step.awaits is None:
            return self._resting(step, execution)
        if step.awaits.startswith(AWAITS_SIGNAL):
            return self._for_signal(step, step.awaits.removeprefix(AWAITS_SIGNAL))
        tellers = {
            AWAITS_BODY: self._for_body,
            AWAITS_CHILD: self._for_child,
            AWAITS_DECISION: self._for_decision,
            AWAITS_RATE: self._for_rate,
        }
        if step.awaits in tellers:
            return tellers[step.awaits](step)
        # A third party's type made up a word that nobody brings: only its time ends that.
        return self._timed(Why.WAITING_FOR_TIME, f"it waits for '{step.awaits}'", step, {})

    def _resting(self, step: StepSeen, execution: ExecutionSeen) -> Reason:
        if step.resumes:
            return self._timed(Why.WAITING_FOR_TIME, "it rests", step, {})
        program = self.programs.get(self.store, execution.workflow_id, execution.version)
        most = program.retry_policy(program.scopes.step(step.path)).max_attempts
        facts = {
            "attempt": step.attempt,
            "counted": step.counted,
            "max_attempts": most,
            "kind": step.error_kind,
            "message": step.error_message,
        }
        told = f"attempt {step.counted} of {most} failed ({step.error_kind}: {step.error_message})"
        return self._timed(Why.RETRY_AT, told, step, facts)

    def _for_body(self, step: StepSeen) -> Reason:
        ended, made = why.scopes(self.connection, step.execution_id, step.path)
        word = "rounds" if step.type == "loop" else "branches"
        detail = f"{ended} of its {made} {word} have ended"
        return Reason(Why.WAITING_FOR_BODY, detail, step.started_at, {"ended": ended, "of": made})

    def _for_child(self, step: StepSeen) -> Reason:
        child = str(step.state["execution_id"])
        outcome = executions.outcome(self.connection, child)
        status = None if outcome is None else outcome.status
        detail = f"it waits for execution {child}, which is {status or 'gone'}"
        return Reason(Why.WAITING_FOR_CHILD, detail, step.started_at, {"execution_id": child, "status": status})

    def _for_decision(self, step: StepSeen) -> Reason:
        told = f"somebody is to decide: POST /api/v1/step-executions/{step.id}/decision"
        return self._timed(Why.WAITING_FOR_APPROVAL, told, step, {})

    def _for_rate(self, step: StepSeen) -> Reason:
        turn = rate_line.turn_of(self.connection, step.id)
        if turn is None:
            return _advancing(step.started_at)
        facts = {"limit_of": "connection", "key": turn.rate.key}
        return _rate_limited(f"the connection '{turn.rate.key}'", turn, step.started_at, facts)

    def _for_signal(self, step: StepSeen, name: str) -> Reason:
        told = f"it waits for the signal '{name}': POST /api/v1/executions/{step.execution_id}/signals"
        return self._timed(Why.WAITING_FOR_SIGNAL, told, step, {"name": name})

    def _timed(self, reason: Why, told: str, step: StepSeen, facts: dict[str, Any]) -> Reason:
        """Of a step that goes on at a time of its own, if it has one."""
        due = step.next_attempt_at
        facts = {**facts, "next_attempt_at": due}
        if due is None:
            return Reason(reason, told, step.started_at, facts)
        late = (overview.now(self.connection) - due).total_seconds()
        told = f"{told}; it goes on at {due.astimezone(UTC).isoformat(timespec='seconds')}"
        if late > 1:
            told += f", which is {late:.0f} s ago ({self._reconciler()})"
        return Reason(reason, told, step.started_at, {**facts, "overdue_seconds": max(0.0, late)})

    def _reconciler(self) -> str:
        kept = overview.duty(self.connection, DUTY).kept_seconds_ago
        return "nobody reconciles" if kept is None else f"somebody reconciled {kept:.0f} s ago"

    # --- pending ---------------------------------------------------------------------------------------------

    def _pending(self, step: StepSeen, execution: ExecutionSeen) -> Reason:
        graph = self.programs.get(self.store, execution.workflow_id, execution.version).scopes.of(step.path)
        since = _made_at(step.id)
        needed = graph.steps[step.path].depends_on
        if step.container == COMPENSATE:
            told = "what completed is undone one after the other; this is done when those before it have ended"
            return Reason(Why.WAITING_FOR_TURN, told, since, {"container": COMPENSATE, "concurrency": 1})
        if not needed and step.container is not None:
            return self._for_turn(step, step.container, since)
        states = steps.states(self.connection, execution.id, needed)
        left = [path for path in needed if states.get(path) not in STEP_TERMINAL]
        facts = {
            "trigger_rule": graph.steps[step.path].trigger_rule,
            "dependencies": [{"path": path, "status": states.get(path)} for path in needed],
        }
        if not left:
            return _advancing(since, facts)
        shown = ", ".join(f"{path} ({states.get(path)})" for path in left[:_SHOWN])
        return Reason(
            Why.WAITING_FOR_DEPENDENCIES, f"it waits for {shown}{' ...' * (len(left) > _SHOWN)}", since, facts
        )

    def _for_turn(self, step: StepSeen, path: str, since: datetime) -> Reason:
        container = bodies.container(self.connection, step.execution_id, path)
        if container.status in (StepStatus.PENDING, StepStatus.QUEUED):
            dependencies = [{"path": path, "status": container.status}]
            detail = f"it stands in the body of {path}, which is {container.status}"
            return Reason(Why.WAITING_FOR_DEPENDENCIES, detail, since, {"dependencies": dependencies})
        concurrency = container.concurrency
        if concurrency is None:
            return _advancing(since)
        detail = f"{concurrency} rounds of {path} run at a time; this one begins when others have ended"
        return Reason(Why.WAITING_FOR_TURN, detail, since, {"container": path, "concurrency": concurrency})


def _ended_execution(execution: ExecutionSeen) -> Reason:
    message = execution.error_message
    detail = f"it {execution.status}" + (f": {message}" if message else "")
    return Reason(Why(execution.status), detail, execution.finished_at, {"message": message})


def _ended_step(step: StepSeen) -> Reason:
    message = step.error_message
    detail = f"it {'was ' * (step.status is not StepStatus.COMPLETED)}{step.status}" + (
        f": {message}" if message else ""
    )
    if step.status is StepStatus.FAILED:
        detail = f"attempt {step.attempt} failed ({step.error_kind}: {message}), and there is no other"
    facts = {"attempt": step.attempt, "kind": step.error_kind, "message": message}
    return Reason(Why(step.status), detail, step.finished_at, facts)


def _held_for_its_step(execution: ExecutionSeen) -> Reason:
    parent = execution.parent_id
    detail = f"it was tried again with execution {parent}, and begins when the step there comes to it"
    return Reason(Why.WAITING_FOR_DEPENDENCIES, detail, execution.created_at, {"execution_id": parent})


def _paused(execution: ExecutionSeen) -> Reason:
    if execution.paused_with == WORKFLOW:
        workflow_id = execution.workflow_id
        detail = f"its workflow is paused: POST /api/v1/workflows/{workflow_id}/resume lets it begin"
        return Reason(Why.WORKFLOW_PAUSED, detail, execution.paused_at, {"workflow_id": workflow_id})
    paused, which = execution.id, "its execution"
    if execution.paused_with == PARENT and execution.parent_id is not None:
        paused, which = execution.parent_id, "the execution that started it"
    detail = f"{which} is paused: POST /api/v1/executions/{paused}/resume lets it go on"
    return Reason(Why.PAUSED, detail, execution.paused_at, {"execution_id": paused})


def _running(step: StepSeen) -> Reason:
    where = step.node or "a worker process that is gone; reconcile queues it again"
    facts = {"attempt": step.attempt, "losses": step.losses, "worker_id": step.worker_id, "node": step.node}
    return Reason(Why.RUNNING, f"it runs on {where}", step.started_at, facts)


def _at_work(running: Sequence[StepSeen]) -> Reason:
    facts = {
        "steps": [
            {"id": one.id, "path": one.path, "type": one.type, "node": one.node, "since": one.started_at}
            for one in running
        ]
    }
    paths = ", ".join(one.path for one in running)
    return Reason(Why.RUNNING, f"at work: {paths}", min(one.started_at for one in running if one.started_at), facts)


def _about_to_be_let_in(execution: ExecutionSeen, facts: dict[str, Any]) -> Reason:
    detail = "there is room for it, and whoever made that is about to let it in; else reconcile does within 5 s"
    return Reason(Why.ADVANCING, detail, execution.created_at, facts)


def _advancing(since: datetime | None, facts: dict[str, Any] | None = None) -> Reason:
    detail = "what it waited for has ended, and whoever ended that is about to go on; else reconcile does within 5 s"
    return Reason(Why.ADVANCING, detail, since, facts or {})


def _rate_limited(name: str, turn: Turn, since: datetime | None, facts: dict[str, Any]) -> Reason:
    rate, at = turn.rate, turn.at.astimezone(UTC).isoformat(timespec="seconds")
    detail = f"{rate.limit} in {rate.per:g} s is the rate limit of {name}; before it: {turn.ahead}; let in at {at}"
    return Reason(
        Why.RATE_LIMITED,
        detail,
        since,
        {**facts, "limit": rate.limit, "per": rate.per, "ahead": turn.ahead, "let_in_at": turn.at},
    )


def _no_worker(queue: str, live: Sequence[WorkerSeen], since: datetime | None) -> Reason:
    served = sorted({name for worker in live for name in worker.queues or ()})
    detail = f"no live worker process serves the queue '{queue}'; start one with -Q {queue}"
    return Reason(Why.NO_WORKER, detail, since, {"queue": queue, "workers": len(live), "served": served})


def _busy(serving: Sequence[WorkerSeen], since: datetime | None, facts: dict[str, Any]) -> Reason:
    performed: list[dict[str, Any]] = [
        {
            "node": worker.node,
            "execution_id": step.execution_id,
            "path": step.path,
            "type": step.type,
            "seconds": step.seconds,
        }
        for worker in serving
        for step in worker.steps
    ]
    performed.sort(key=lambda step: float(step["seconds"]), reverse=True)
    detail = (
        f"all worker processes that serve the queue '{facts['queue']}' are busy ({len(serving)}); "
        f"steps before it: {facts['ahead']}"
    )
    return Reason(Why.BUSY, detail, since, {**facts, "performing": performed[:_SHOWN]})


def _made_at(id: str) -> datetime:
    """Ids are UUIDv7: they begin with the milliseconds of their time (RFC 9562, 5.7)."""
    return datetime.fromtimestamp((UUID(id).int >> 80) / 1000, UTC)
