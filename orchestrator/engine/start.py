"""Start an execution: everything it is, in one statement; the doorbell after the commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from orchestrator.engine.plan import Plan, plan
from orchestrator.engine.programs import Program, Programs
from orchestrator.errors import Conflict, InputError, PayloadTooLarge, Problem
from orchestrator.lifecycle import STARTABLE, WorkflowStatus
from orchestrator.store import Store, executions, workflows
from orchestrator.store.audit import Entry
from orchestrator.store.executions import Limits, Parent


@dataclass(frozen=True, slots=True)
class Started:
    """`is_new` unless the execution was there already under the same idempotency key; `plan` is None then, and while
    it waits for a place."""

    execution_id: str
    is_new: bool
    plan: Plan | None


def start_execution(
    store: Store,
    programs: Programs,
    workflow_id: str,
    input: Any,
    *,
    priority: int = 5,
    idempotency_key: str | None = None,
    parent: Parent | None = None,
    trigger: Mapping[str, Any] | None = None,
    log: Entry | None = None,
) -> Started:
    """Store an execution of the workflow's newest version, and with it, if it is new, the entry `log` of the audit log;
    the caller dispatches the plan.

    Raises NotFound; Conflict if the workflow's status does not allow it, or it is a template; InputError if the input
    does not fit the workflow's `inputs`; PayloadTooLarge.
    """
    check_payload(input, programs.settings.executor.max_payload)
    version = programs.newest.get(workflow_id, 0)
    while True:
        # With the version that this process saw last: a newer one is told by the insert itself, which then
        # inserts nothing.
        if version:
            program = programs.get(store, workflow_id, version)
            given = program.checked_input(input)
            inserted = executions.insert(
                store,
                workflow_id,
                version,
                given,
                program.step_rows,
                priority=priority,
                timeout=program.timeout,
                limits=limits_of(programs, program, workflow_id, given),
                idempotency_key=idempotency_key,
                parent=parent,
                trigger=trigger,
                log=log,
            )
            status, newest, is_template = inserted.status, inserted.version, inserted.is_template
            if inserted.id is not None:
                return Started(inserted.id, True, first_plan(program, inserted.id, priority, inserted.admitted))
        else:
            with store.single() as connection:
                status, newest = workflows.current(connection, workflow_id)
            is_template = False  # the insert knows
        existing = _existing(store, workflow_id, idempotency_key)
        if existing is not None:
            return Started(existing, False, None)
        check_startable(workflow_id, status, is_template)
        version = programs.newest[workflow_id] = newest


def limits_of(programs: Programs, program: Program, workflow_id: str, given: Any) -> Limits:
    """What an execution with this input runs under. Raises InputError like Program.own_limits."""
    return Limits(
        programs.settings.scheduler.max_concurrent,
        program.own_limits(workflow_id, given),
        program.rate(workflow_id, given),
    )


def first_plan(program: Program, execution_id: str, priority: int, admitted: bool) -> Plan | None:
    """An execution that waits for a place is rung for by whoever admits it."""
    return plan(program.scopes, execution_id, priority, program.scopes.root.roots) if admitted else None


def _existing(store: Store, workflow_id: str, idempotency_key: str | None) -> str | None:
    if idempotency_key is None:
        return None
    with store.single() as connection:
        return executions.id_by_idempotency_key(connection, workflow_id, idempotency_key)


def check_startable(workflow_id: str, status: WorkflowStatus, is_template: bool) -> None:
    """Raise Conflict unless such a workflow may be executed."""
    if is_template:
        raise Conflict(
            f"workflow {workflow_id} is a template and cannot be executed; make a workflow of it with "
            "POST .../instantiate",
            "template",
        )
    if status not in STARTABLE:
        retired = status is WorkflowStatus.CANCELLED
        hint = "make a new one of its definition" if retired else "activate or resume it first"
        raise Conflict(f"workflow {workflow_id} is {status} and cannot be executed; {hint}", status)


def check_payload(value: Any, limit: int, path: str = "input") -> None:
    """Raise InputError or PayloadTooLarge unless `value` is JSON of at most `limit` bytes."""
    size = len(encoded(value, path))
    if size > limit:
        raise PayloadTooLarge(
            [Problem(path, f"has {size:,} bytes as JSON; the limit (executor.max_payload) is {limit:,}")]
        )


def encoded(value: Any, path: str) -> bytes:
    """`value` as JSON. Raises InputError if that is not possible."""
    try:
        encoded = orjson.dumps(value)
    except TypeError as error:
        raise InputError([Problem(path, f"is not JSON: {error}")]) from None
    if b"\\u0000" in encoded and b"\\u0000" in encoded.replace(b"\\\\", b""):
        raise InputError([Problem(path, "holds a NUL character (\\u0000), which cannot be stored; remove it")])
    return encoded
