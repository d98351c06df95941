"""What a step waits for besides its time: a signal, somebody's decision, the end of an execution it started.

Whoever brings it holds the execution's row, as the step that comes to rest does: what arrives in between is found
by the later of the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.engine.admission import plans_of_admitted
from orchestrator.engine.advance import Advance, Worker, go_on_with
from orchestrator.engine.control import pause_below
from orchestrator.engine.plan import Plan, plan
from orchestrator.engine.programs import Program, Programs
from orchestrator.errors import Conflict, NotFound
from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus
from orchestrator.store import Store, admission, cancellations, executions, records, recovery, signals
from orchestrator.store.admission import Met
from orchestrator.store.claims import Claim
from orchestrator.store.executions import AWAITS_CHILD, Locked
from orchestrator.store.records import Result
from orchestrator.store.signals import AWAITS_SIGNAL


def rest(store: Store, program: Program, held: Claim, given: Any, *, delay: float | None, state: Any) -> bool:
    """Let a step rest for `delay` seconds; False if the claim is held no longer. If that is because somebody ended the
    step meanwhile, what its attempt has begun elsewhere is to be cancelled: before its first rest nobody knew of it."""
    with store.single() as connection:
        rests = records.rest(connection, held, Result(given), delay=delay, resumes=True, state=state)
        is_news = held.state is None and state is not None
        if not rests and is_news and program.scopes.step(held.path).type in program.cancellable:
            cancellations.insert(connection, held.id, state, if_given_up=True)
        return rests


def rest_awaiting(
    store: Store,
    program: Program,
    execution_id: str,
    held: Claim,
    given: Any,
    *,
    delay: float | None,
    state: Any,
    awaits: str,
    worker: Worker | None,
) -> Advance:
    """Let a step rest until what it `awaits` is there, or `delay` seconds have passed. If that is there already, the
    `worker` goes on with it."""
    with store.transaction() as connection:
        locked = executions.lock(connection, execution_id)
        if locked is None:
            return Advance(counted=False)
        # Held while this step is brought to rest: its end comes before that, and is seen, or after it, and wakes.
        child = admission.meet_child(connection, state["execution_id"]) if awaits == AWAITS_CHILD else None
        if not records.rest(connection, held, Result(given), delay=delay, resumes=True, state=state, awaits=awaits):
            return Advance(counted=False)
        path = None
        if child is not None:
            if not child.has_ended:
                return _goes_on(connection, locked, state["execution_id"], child)
            signals.wake_parent(connection, held.id)
            path = held.path
        elif awaits.startswith(AWAITS_SIGNAL):
            path = signals.deliver(connection, execution_id, awaits.removeprefix(AWAITS_SIGNAL))
        return Advance(True) if path is None else go_on_with(connection, program, locked, [path], worker)


def _goes_on(connection: Connection, locked: Locked, child_id: str, child: Met) -> Advance:
    """The child that a step of `locked` waits for now: begins if it has waited for that, and shares a pause."""
    plans = plans_of_admitted(recovery.queued(connection, child_id)) if child.admitted else ()
    if locked.status is ExecutionStatus.PAUSED:
        pause_below(connection, [locked.id])
    return Advance(True, plans=tuple(plans), freed=child.freed)


def send_signal(
    store: Store, programs: Programs, execution_id: str, name: str, payload: Any
) -> tuple[str, Plan | None]:
    """Keep a signal for an execution, and wake the step that waits for it; the signal's id, and what to dispatch.

    Raises NotFound; Conflict if the execution has ended.
    """
    with store.transaction() as connection:
        locked = executions.lock(connection, execution_id)
        if locked is None:
            raise NotFound("execution", execution_id)
        if locked.status in EXECUTION_TERMINAL:
            raise Conflict(f"execution {execution_id} is {locked.status} and takes no signals", locked.status)
        signal_id = signals.insert(connection, execution_id, name, payload)
        path = signals.deliver(connection, execution_id, name)
        if path is None:
            return signal_id, None
        program = programs.get(store, locked.workflow_id, locked.version)
        return signal_id, plan(program.scopes, execution_id, locked.priority, [path])


def decide(store: Store, programs: Programs, step_execution_id: str, decision: Any) -> Plan | None:
    """Give a step the decision that it waits for; what to dispatch, None if it was given the same before.

    Raises NotFound; Conflict if the step does not wait for a decision.
    """
    with store.transaction() as connection:
        step = signals.address(connection, step_execution_id)
        locked = executions.lock(connection, step.execution_id)
        assert locked is not None
        if not signals.decide(connection, step_execution_id, decision):
            if signals.was_decided(connection, step_execution_id, decision):
                return None
            status = signals.address(connection, step_execution_id).status
            raise Conflict(f"step {step.path} is {status} and waits for no decision", status)
        program = programs.get(store, locked.workflow_id, locked.version)
        return plan(program.scopes, step.execution_id, locked.priority, [step.path])
