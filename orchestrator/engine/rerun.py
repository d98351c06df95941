"""Do an execution again, from its beginning or from one of its steps on, perhaps with other input or another version.

The new execution is one like any other and waits for its place. From a step on, it keeps of the original what stands
before that: the results of steps that completed, branches that were not taken, failures that were tolerated. What
depends on a step that is done again is done again as well, so that no result is older than what it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.complaints import Hints
from orchestrator.definition.graph import Graph
from orchestrator.definition.scopes import scope_of
from orchestrator.engine.admission import admit, plans_of_admitted
from orchestrator.engine.advance import replan
from orchestrator.engine.plan import Frontier, Plan, whole_frontier
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.start import check_payload, check_startable
from orchestrator.errors import Conflict, InputError, NotFound, Problem
from orchestrator.lifecycle import EXECUTION_TERMINAL, StepStatus
from orchestrator.store import Store, executions, new_id, reruns, steps
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
        version = original.version if wanted.version is None else wanted.version
        program = _program(store, programs, original, version)
        kept = _Kept()
        if wanted.from_step is not None:
            before = programs.get(store, original.workflow_id, original.version)
            is_other = version != original.version or wanted.input not in (None, original.input)
            kept = _kept(connection, original, before, _After(program, version, wanted.from_step, is_other))
        is_new, decided = _insert(connection, original, own_id, wanted, program, version, kept)
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


def _program(store: Store, programs: Programs, original: Original, version: int) -> Program:
    try:
        return programs.get(store, original.workflow_id, version)
    except NotFound:
        message = f"the workflow has no version {version}; its newest is {original.newest_version}"
        raise InputError([Problem("version", message)]) from None


def _insert(
    connection: Connection,
    original: Original,
    own_id: str,
    wanted: Wanted,
    program: Program,
    version: int,
    kept: _Kept,
) -> tuple[bool, Frontier]:
    given = program.checked_input(original.input if wanted.input is None else wanted.input)
    graph = program.scopes.root
    states = {path: kept.ends.get(path, StepStatus.PENDING) for path in graph.steps}
    decided = whole_frontier(graph, states)
    states |= dict.fromkeys(decided.ready, StepStatus.QUEUED)
    is_new = reruns.insert(
        connection,
        original,
        own_id,
        version,
        given,
        replace(program.step_rows, statuses=tuple(states[path] for path in program.step_rows.paths)),
        kept=kept.ends.keys(),
        inner=kept.inner,
        priority=original.priority if wanted.priority is None else wanted.priority,
        timeout=program.timeout,
        limits=program.own_limits(original.workflow_id, given),
        rate=program.rate(original.workflow_id, given),
        idempotency_key=wanted.idempotency_key,
    )
    if is_new and decided.skipped:
        steps.skip(connection, own_id, decided.skipped, decided.blocked)
    return is_new, decided


# --- what is kept --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _After:
    """What the new execution goes on with."""

    program: Program
    version: int
    from_step: str
    is_other: bool
    """With other input, or another version, than the original."""

    @property
    def graph(self) -> Graph:
        return self.program.scopes.root


@dataclass(frozen=True, slots=True)
class _Kept:
    """How the steps ended of which the results are kept; and, in their order, all those that stand in bodies of which
    some are."""

    ends: Mapping[str, StepStatus] = field(default_factory=dict)
    inner: Sequence[str] = ()


def _kept(connection: Connection, original: Original, before: Program, after: _After) -> _Kept:
    """With each of the steps that are kept, all that it depends on."""
    start = _outermost(after.from_step)
    _check_step(after, start)
    if original.status not in EXECUTION_TERMINAL:
        raise Conflict(
            f"execution {original.id} is {original.status}; it can be done again from a step once it has ended",
            original.status,
        )
    ends = _good_ends(after.program, reruns.ends(connection, original.id))
    _check_version(before.scopes.root, after, ends)
    if start == after.from_step:
        kept = _Kept(_before(after.graph, ends, start))
    else:
        kept = _kept_with_bodies(connection, original, after, ends)
    undone = [
        path
        for path in sorted(reruns.undone(connection, original.id))
        if not kept.ends.keys().isdisjoint((path, *before.scopes.around(path)))
    ]
    if undone:
        raise Conflict(
            f"of what would be kept, steps have been undone by their compensate: {_listed(undone)}; do the whole "
            "execution again, without from_step",
            original.status,
        )
    return kept


def _good_ends(program: Program, ends: Mapping[str, StepStatus | None]) -> dict[str, StepStatus]:
    """Of those that completed, were not wanted, or failed without harm."""
    return {
        path: status
        for path, status in ends.items()
        if status in (StepStatus.COMPLETED, StepStatus.SKIPPED)
        or (status is StepStatus.FAILED and path.rpartition(".")[2] in program.tolerated)
    }


def _before(graph: Graph, ends: Mapping[str, StepStatus], start: str | None) -> dict[str, StepStatus]:
    """What is kept of a graph that goes on from `start`, if that stands in it."""
    left = [path for path in graph.steps if path not in ends]
    again = _with_what_follows(graph, left if start is None else [start, *left])
    return {path: ends[path] for path in graph.steps if path not in again}


def _kept_with_bodies(
    connection: Connection, original: Original, after: _After, ends: Mapping[str, StepStatus]
) -> _Kept:
    """The same where the step stands in a body: the steps around it are performed again, and find there what is kept
    of their bodies, the other rounds and branches included."""
    scopes = after.program.scopes
    if not reruns.stands_in_a_body(connection, original.id, after.from_step):
        message = f"execution {original.id} has no step '{after.from_step}'; GET it to see which there are"
        raise InputError([Problem("from_step", message)])
    around = scopes.around(after.from_step)
    found = reruns.inside(connection, original.id, around)
    starts = {scope_of(path): path for path in (after.from_step, *around)}
    by_scope: dict[str, dict[str, StepStatus]] = {"": dict(ends)}
    for path in found:
        by_scope.setdefault(scope_of(path), {})
    for path, end in _good_ends(after.program, found).items():
        by_scope[scope_of(path)][path] = end
    for container in around:
        _check_container(scopes.of(container), by_scope[scope_of(container)], container)
    kept: dict[str, StepStatus] = {}
    for scope, good in by_scope.items():
        kept |= _before(scopes.at(scope), good, starts.get(scope))
    return _Kept(kept, tuple(found))


def _check_container(graph: Graph, ends: Mapping[str, StepStatus], container: str) -> None:
    """Refuse to go on in a body that may not be what it was."""
    if "while" in graph.steps[container].config:
        message = f"the rounds of '{container}' follow from each other (while)"
    elif container in _with_what_follows(graph, [path for path in graph.steps if path not in {*ends, container}]):
        message = f"'{container}' follows a step that did not come to a good end, and is done again as well"
    else:
        return
    raise InputError([Problem("from_step", f"{message}; start from '{container}'")])


def _check_step(after: _After, start: str) -> None:
    if start not in after.graph.steps:
        hint = Hints()(after.from_step, after.graph.steps, f"; its steps are {_listed(after.graph.steps)}")
        message = f"version {after.version} has no step '{after.from_step}'{hint}"
    elif start != after.from_step and after.is_other:
        message = (
            f"'{after.from_step}' stands in the body of '{start}', which may be another with other input or another "
            f"version; start from '{start}'"
        )
    else:
        return
    raise InputError([Problem("from_step", message)])


def _check_version(before: Graph, after: _After, ends: Mapping[str, StepStatus]) -> None:
    """Refuse a version that lacks a step whose result would be kept."""
    start = _outermost(after.from_step)
    follows = _with_what_follows(before, [start]) if start in before.steps else set()
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
