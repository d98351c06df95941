"""Do an execution again, from its beginning or from one of its steps on, perhaps with other input or another version.

The new execution is one like any other and waits for its place. From a step on, it keeps of the original what stands
before that (engine/reuse.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.engine.admission import admit, plans_of_admitted
from orchestrator.engine.advance import replan
from orchestrator.engine.plan import Frontier, Plan, whole_frontier
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.reuse import Kept, New, kept
from orchestrator.engine.rows import row_of
from orchestrator.engine.start import check_payload, check_startable
from orchestrator.errors import InputError, NotFound, Problem
from orchestrator.lifecycle import StepStatus
from orchestrator.store import Store, executions, new_id, reruns, steps
from orchestrator.store.reruns import Original
from orchestrator.store.step_rows import StepRow


@dataclass(frozen=True, slots=True)
class Wanted:
    """From which step on (None: all of it), and what is to be other than in the original (None: nothing)."""

    from_step: str | None = None
    input: Any = None
    version: int | None = None
    priority: int | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Rerun:
    """`is_new` unless the execution was there already under the same idempotency key. `plans` are to be dispatched."""

    execution_id: str
    is_new: bool
    plans: tuple[Plan, ...] = ()


def rerun(store: Store, programs: Programs, execution_id: str, wanted: Wanted) -> Rerun:
    """A new execution that does `execution_id` again.

    Raises NotFound; InputError if the input, the version or the step does not fit; PayloadTooLarge; Conflict if the
    workflow may not be executed, and, from a step on, if the original has not ended or what would be kept of it has
    been undone.
    """
    if wanted.input is not None:
        check_payload(wanted.input, programs.settings.executor.max_payload)
    own_id = new_id()
    if wanted.from_step is not None:
        # Before there is an execution that refers to them. If there will be none, they are swept.
        programs.artifacts.copy(execution_id, own_id)
    with store.transaction() as connection:
        original = reruns.original(connection, execution_id)
        existing = _existing(connection, original, wanted)
        if existing is not None:
            return Rerun(existing, is_new=False)
        check_startable(original.workflow_id, original.workflow_status, original.is_template)
        new = _new(store, programs, original, own_id, wanted)
        found = Kept()
        if wanted.from_step is not None:
            before = programs.get(store, original.workflow_id, original.version)
            found = kept(connection, original, before, new, wanted.from_step)
        is_new, decided = _insert(connection, original, new, found, wanted.idempotency_key)
        if not is_new:  # another call with this key was quicker
            existing = _existing(connection, original, wanted)
            assert existing is not None
            return Rerun(existing, is_new=False)
    plans = plans_of_admitted(admit(store, programs.settings))
    if not decided.ready:  # the branch of the step was not taken, so this is the end already
        plans += replan(store, programs, own_id, untold=True).plans
    return Rerun(own_id, True, tuple(plans))


def _existing(connection: Connection, original: Original, wanted: Wanted) -> str | None:
    key = wanted.idempotency_key
    return None if key is None else executions.id_by_idempotency_key(connection, original.workflow_id, key)


def _new(store: Store, programs: Programs, original: Original, own_id: str, wanted: Wanted) -> New:
    version = original.version if wanted.version is None else wanted.version
    try:
        program = programs.get(store, original.workflow_id, version)
    except NotFound:
        message = f"the workflow has no version {version}; its newest is {original.newest_version}"
        raise InputError([Problem("version", message)]) from None
    given = program.checked_input(original.input if wanted.input is None else wanted.input)
    return New(own_id, program, version, given, original.priority if wanted.priority is None else wanted.priority)


def _insert(
    connection: Connection, original: Original, new: New, found: Kept, key: str | None
) -> tuple[bool, Frontier]:
    """False if another execution has this idempotency key; and what is decided of its own steps."""
    program, root = new.program, new.program.scopes.root
    decided = whole_frontier(root, {path: found.ends.get(path, StepStatus.PENDING) for path in root.steps})
    states = {**found.ends, **dict.fromkeys(decided.ready, StepStatus.QUEUED)}
    is_new = reruns.insert(
        connection,
        original,
        new.id,
        new.version,
        new.input,
        list(_rows(program, found.loops, states)),
        kept=found.ends.keys(),
        priority=new.priority,
        timeout=program.timeout,
        limits=program.own_limits(original.workflow_id, new.input),
        rate=program.rate(original.workflow_id, new.input),
        idempotency_key=key,
    )
    if is_new and decided.skipped:
        steps.skip(connection, new.id, decided.skipped, decided.blocked)
    return is_new, decided


def _rows(program: Program, loops: Mapping[str, Any], states: Mapping[str, StepStatus]) -> Iterator[StepRow]:
    """The definition's own steps, and those of the scopes that are gone on with."""
    for scope, loop in {"": None, **loops}.items():
        graph = program.scopes.at(scope)
        for path in graph.steps:
            status = states.get(path, StepStatus.PENDING)
            yield row_of(graph, path, status, loop=loop, sees_loop=program.sees_loop)
