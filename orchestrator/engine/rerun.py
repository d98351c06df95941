"""Do an execution again, from its beginning or from one of its steps on, perhaps with other input or another version.

The new execution is one like any other and waits for its place. From a step on, it keeps of the original what stands
before that: the results of steps that completed, branches that were not taken, failures that were tolerated. What
depends on a step that is done again is done again as well, so that no result is older than what it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.complaints import Hints
from orchestrator.definition.graph import Graph
from orchestrator.engine.admission import admit, plans_of_admitted
from orchestrator.engine.advance import replan
from orchestrator.engine.plan import Frontier, Plan, whole_frontier
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.start import check_payload, check_startable
from orchestrator.errors import Conflict, InputError, NotFound, Problem
from orchestrator.lifecycle import EXECUTION_TERMINAL, StepStatus
from orchestrator.store import Store, executions, reruns, steps
from orchestrator.store.reruns import Original

_NAMED = 20
"""Steps that a message lists."""


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
    with store.transaction() as connection:
        original = reruns.original(connection, execution_id)
        existing = _existing(connection, original, wanted)
        if existing is not None:
            return Rerun(existing, is_new=False)
        check_startable(original.workflow_id, original.workflow_status, original.is_template)
        version = original.version if wanted.version is None else wanted.version
        program = _program(store, programs, original, version)
        kept: Mapping[str, StepStatus] = {}
        if wanted.from_step is not None:
            before = programs.get(store, original.workflow_id, original.version)
            kept = _kept(connection, original, before, _After(program, version, wanted.from_step))
        new_id, decided = _insert(connection, original, wanted, program, version, kept)
        if new_id is None:  # another call with this key was quicker
            existing = _existing(connection, original, wanted)
            assert existing is not None
            return Rerun(existing, is_new=False)
    plans = plans_of_admitted(admit(store, programs.settings))
    if not decided.ready:  # the branch of the step was not taken, so this is the end already
        plans += replan(store, programs, new_id, untold=True).plans
    return Rerun(new_id, True, tuple(plans))


def _existing(connection: Connection, original: Original, wanted: Wanted) -> str | None:
    key = wanted.idempotency_key
    return None if key is None else executions.id_by_idempotency_key(connection, original.workflow_id, key)


def _program(store: Store, programs: Programs, original: Original, version: int) -> Program:
    try:
        return programs.get(store, original.workflow_id, version)
    except NotFound:
        message = f"the workflow has no version {version}; its newest is {original.newest_version}"
        raise InputError([Problem("version", message)]) from None


def _insert(
    connection: Connection,
    original: Original,
    wanted: Wanted,
    program: Program,
    version: int,
    kept: Mapping[str, StepStatus],
) -> tuple[str | None, Frontier]:
    given = program.checked_input(original.input if wanted.input is None else wanted.input)
    graph = program.scopes.root
    states = {path: kept.get(path, StepStatus.PENDING) for path in graph.steps}
    decided = whole_frontier(graph, states)
    states |= dict.fromkeys(decided.ready, StepStatus.QUEUED)
    new_id = reruns.insert(
        connection,
        original,
        version,
        given,
        replace(program.step_rows, statuses=tuple(states[path] for path in program.step_rows.paths)),
        kept=kept,
        priority=original.priority if wanted.priority is None else wanted.priority,
        timeout=program.timeout,
        limits=program.own_limits(original.workflow_id, given),
        rate=program.rate(original.workflow_id, given),
        idempotency_key=wanted.idempotency_key,
    )
    if new_id is not None and decided.skipped:
        steps.skip(connection, new_id, decided.skipped, decided.blocked)
    return new_id, decided


# --- what is kept --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _After:
    """What the new execution goes on with."""

    program: Program
    version: int
    from_step: str

    @property
    def graph(self) -> Graph:
        return self.program.scopes.root


def _kept(connection: Connection, original: Original, before: Program, after: _After) -> Mapping[str, StepStatus]:
    """How the steps ended of which the results are kept: with each of them, all that it depends on."""
    _check_step(after)
    if original.status not in EXECUTION_TERMINAL:
        raise Conflict(
            f"execution {original.id} is {original.status}; it can be done again from a step once it has ended",
            original.status,
        )
    ends = {
        path: status
        for path, status in reruns.ends(connection, original.id).items()
        if status in (StepStatus.COMPLETED, StepStatus.SKIPPED)
        or (status is StepStatus.FAILED and path in after.program.tolerated)
    }
    _check_version(before.scopes.root, after, ends)
    graph = after.graph
    again = _with_what_follows(graph, [after.from_step, *(path for path in graph.steps if path not in ends)])
    kept = {path: ends[path] for path in graph.steps if path not in again}
    undone = sorted(reruns.undone(connection, original.id), key=_outermost)
    undone = [path for path in undone if _outermost(path) in kept]
    if undone:
        raise Conflict(
            f"of what would be kept, steps have been undone by their compensate: {_listed(undone)}; do the whole "
            "execution again, without from_step",
            original.status,
        )
    return kept


def _check_step(after: _After) -> None:
    wanted, known = after.from_step, after.graph.steps
    if wanted in known:
        return
    outer = _outermost(wanted)
    if outer in known:
        message = f"'{wanted}' stands in the body of '{outer}', which is done as a whole; start from '{outer}'"
    else:
        hint = Hints()(wanted, known, f"; its steps are {_listed(known)}")
        message = f"version {after.version} has no step '{wanted}'{hint}"
    raise InputError([Problem("from_step", message)])


def _check_version(before: Graph, after: _After, ends: Mapping[str, StepStatus]) -> None:
    """Refuse a version that lacks a step whose result would be kept."""
    follows = _with_what_follows(before, [after.from_step]) if after.from_step in before.steps else set()
    missing = [
        path
        for path, status in ends.items()
        if path not in after.graph.steps and path not in follows and status is not StepStatus.SKIPPED
    ]
    if missing:
        message = f"version {after.version} lacks steps whose results would be kept: {_listed(sorted(missing))}"
        raise InputError([Problem("version", f"{message}; take one that has them, or leave out from_step")])


def _with_what_follows(graph: Graph, starts: Iterable[str]) -> set[str]:
    """`starts`, and all that depends on them, near and far."""
    found = set(starts)
    left = list(found)
    while left:
        following = [child for child in graph.children[left.pop()] if child not in found]
        found.update(following)
        left += following
    return found


def _outermost(path: str) -> str:
    """The definition's own step that a step is, or stands in the bodies of."""
    return path.partition(".")[0].partition("[")[0]


def _listed(paths: Iterable[str]) -> str:
    named = list(paths)
    return ", ".join(named[:_NAMED]) + (", ..." if len(named) > _NAMED else "")
