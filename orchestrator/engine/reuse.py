"""What is kept of an execution that is done again from one of its steps on.

A step is known again by its path, and a round of a loop by its place and its item. What stands before `from_step` is
kept as far as it came to a good end; what did not, what is new in the version, and all that depends on these is done
again, so that no result is older than what it was made of. If `from_step` stands in a body, the steps around it are
performed again and find there what is kept of their bodies, the other rounds and branches included; which rounds there
are to be is found out here, so that a step which will not be there is refused at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, pairwise
from types import MappingProxyType
from typing import Any, NoReturn

from sqlalchemy.engine import Connection

from orchestrator.definition.complaints import Hints
from orchestrator.definition.graph import Graph
from orchestrator.definition.scopes import Scopes, scope_of
from orchestrator.definition.templates import Compiled, compile_expression, compile_value
from orchestrator.definition.truth import is_true
from orchestrator.engine.bodies import Scope, loop_inside, scopes_over
from orchestrator.engine.endings import execution_facts, trigger_facts
from orchestrator.engine.programs import Program
from orchestrator.errors import ArtifactGone, Conflict, InputError, Problem, StepFailed, TemplateError
from orchestrator.lifecycle import EXECUTION_TERMINAL, StepStatus
from orchestrator.store import executions, reruns, steps
from orchestrator.store.reruns import Original, Was
from orchestrator.store.session import to_json

_LOOP, _PARALLEL = "loop", "parallel"
_NAMED = 20
"""Steps that a message lists."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How the steps ended of which the results are kept; and the scopes of the bodies that are gone on with, in their
    order, each with what its templates see as `loop`."""

    ends: Mapping[str, StepStatus] = field(default_factory=dict)
    loops: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class New:
    """The execution that does the original again."""

    id: str
    program: Program
    version: int
    input: Any
    priority: int


def kept(connection: Connection, original: Original, before: Program, new: New, from_step: str) -> Kept:
    """What `new` keeps of `original`, of which `before` is the program, to go on from a step.

    Raises InputError if the step or the version does not fit, Conflict if the original has not ended or what would be
    kept of it has been undone.
    """
    _check_step(new, from_step)
    if original.status not in EXECUTION_TERMINAL:
        raise Conflict(
            f"execution {original.id} is {original.status}; it can be done again from a step once it has ended",
            original.status,
        )
    found = _Keeping(connection, original, before.scopes, new, from_step).all()
    undone = [
        path
        for path in sorted(reruns.undone(connection, original.id))
        if not found.ends.keys().isdisjoint((path, *before.scopes.around(path)))
    ]
    if undone:
        raise Conflict(
            f"of what would be kept, steps have been undone by their compensate: {_listed(undone)}; do the whole "
            "execution again, without from_step",
            original.status,
        )
    return found


def _check_step(new: New, path: str) -> None:
    scopes = new.program.scopes
    known = scopes.root.steps if _outermost(path) not in scopes.root.steps else _steps_beside(scopes, path)
    if path not in known:
        hint = Hints()(path, known, f"; its steps are {_listed(known)}")
        _refuse("from_step", f"version {new.version} has no step '{path}'{hint}")


def _steps_beside(scopes: Scopes, path: str) -> Collection[str]:
    try:
        return scopes.of(path).steps
    except (KeyError, ValueError):  # a step around it is not there, or has no such body
        return scopes.root.steps


class _Keeping:
    """Goes through the scopes that `from_step` stands in, from the outside in."""

    def __init__(self, connection: Connection, original: Original, before: Scopes, new: New, from_step: str) -> None:
        self._connection = connection
        self._original = original
        self._before = before
        self._new = new
        self._program = new.program
        self._scopes = new.program.scopes
        self._is_other = (new.version, new.input) != (original.version, original.input)
        self._way = [*reversed(self._scopes.around(from_step)), from_step]
        self._starts = {scope_of(path): path for path in self._way}
        self._found: dict[str, dict[str, Was]] = {}
        for path, was in reruns.found(connection, original.id, self._way[:-1]).items():
            self._found.setdefault(scope_of(path), {})[path] = was
        self._ends: dict[str, StepStatus] = {}
        self._loops: dict[str, Any] = {}
        self._past: dict[str, Mapping[str, StepStatus]] = {}
        """The rounds of a `while` before the one that is gone on with, and how their steps ended."""

    def all(self) -> Kept:
        self._keep("")
        for container, inside in pairwise(self._way):
            self._check_reached(container)
            rounds = self._rounds(container, scope_of(inside))
            if scope_of(inside) not in rounds:
                self._refuse_round(container, scope_of(inside))
            self._loops |= rounds
            for scope in rounds:
                self._keep(scope)
        return Kept(self._ends, self._loops)

    # --- steps -----------------------------------------------------------------------------------------------

    def _keep(self, scope: str) -> None:
        """Of a scope, what ended well and depends on nothing that is done again."""
        graph, start, ends = self._scopes.at(scope), self._starts.get(scope), self._ends_in(scope)
        self._check_version(graph, ends, start)
        left = [path for path in graph.steps if path not in ends]
        again = _with_what_follows(graph, left if start is None else [start, *left])
        self._ends |= {path: ends[path] for path in graph.steps if path not in again}

    def _ends_in(self, scope: str) -> Mapping[str, StepStatus]:
        if scope in self._past:
            return self._past[scope]
        if not self._is_same(scope, self._loops.get(scope)):
            return {}
        return {path: was.status for path, was in self._found.get(scope, {}).items() if self._is_good(path, was)}

    def _is_good(self, path: str, was: Was) -> bool:
        """It completed, was not wanted, or failed without harm."""
        if was.status is StepStatus.FAILED:
            return path.rpartition(".")[2] in self._program.tolerated
        return was.status is StepStatus.COMPLETED or (was.status is StepStatus.SKIPPED and not was.is_blocked)

    def _check_version(self, graph: Graph, ends: Mapping[str, StepStatus], start: str | None) -> None:
        """Refuse a version that lacks a step whose result would be kept."""
        missing = {path for path, status in ends.items() if status is not StepStatus.SKIPPED} - graph.steps.keys()
        if missing and start is not None:
            old = self._before.at(graph.scope)
            missing -= _with_what_follows(old, {start} & old.steps.keys())
        if missing:
            version = self._new.version
            message = f"version {version} lacks steps whose results would be kept: {_listed(sorted(missing))}"
            _refuse("version", f"{message}; take one that has them, or leave out from_step")

    def _check_reached(self, container: str) -> None:
        """Refuse to go on in the body of a step that waits for others which are done again."""
        graph = self._scopes.of(container)
        left = [path for path in graph.steps if path not in self._ends and path != container]
        if container in _with_what_follows(graph, left):
            _refuse_to_enter(
                container, f"'{container}' follows a step that did not come to a good end, and is done again as well"
            )

    # --- rounds and branches -----------------------------------------------------------------------------------

    def _rounds(self, container: str, wanted: str) -> Mapping[str, Any]:
        """The scopes of its body, each with what its templates see as `loop`."""
        step, outer = self._scopes.step(container), self._loops.get(scope_of(container))
        if step.type == _PARALLEL:
            return {f"{container}.{name}": outer for name in step.bodies}
        if step.type == _LOOP and "while" in step.config:
            return dict(self._rounds_until(container, wanted, outer))
        if not self._is_other:
            inside = (scope for scope in self._found if scope and self._scopes.at(scope).container == container)
            return {scope: self._loop_of(scope) for scope in inside}
        if step.type != _LOOP:
            _refuse_to_enter(container, f"the body of '{container}' may be another with other input or another version")
        items = self._evaluated(container, _compiled(step.config["items"]), outer)
        try:
            rounds = scopes_over(json.loads(to_json(items)))
        except StepFailed as error:
            _refuse_to_enter(container, f"'{container}' has no rounds: {error}")
        return {one.of(container): loop_inside(self._program, outer, one.loop) for one in rounds}

    def _rounds_until(self, container: str, wanted: str, outer: Any) -> Iterator[tuple[str, Any]]:
        """Those of a `while` up to the one `wanted`. Each follows from the one before: so what came before it is kept
        as it ended, and what came after it is to be found anew."""
        step, last = self._scopes.step(container), None
        for index in count():
            scope, seen = Scope(index).of(container), {"index": index, "last": last}
            graph, found = self._scopes.at(scope), self._found.get(scope, {})
            if not (self._goes_on(container, seen, outer) if self._is_other else found):
                return
            loop = loop_inside(self._program, outer, seen)
            yield scope, loop
            is_over = all(path in found and found[path].has_ended for path in graph.steps)
            if scope == wanted or not is_over or not self._is_same(scope, loop):
                return
            ends = {was.status for path, was in found.items() if not self._is_good(path, was)}
            has_failed = StepStatus.FAILED in ends
            goes_on = step.config.get("on_item_error") == "continue" if has_failed else not ends
            if not goes_on:
                return
            self._past[scope] = {path: _as_past(was.status) for path, was in found.items()}
            last = None if has_failed else self._result(graph)

    def _result(self, graph: Graph) -> Any:
        """Of a round that completed, as `loop.last` has it."""
        outputs = reruns.outputs(self._connection, self._original.id, graph.sinks)
        if len(graph.sinks) == 1:
            return outputs[graph.sinks[0]]
        return {graph.steps[path].id: outputs[path] for path in graph.sinks}

    def _goes_on(self, container: str, seen: Mapping[str, Any], outer: Any) -> bool:
        """What `while` says before a round; steps of the body are seen as the round before has left them."""
        step, before = self._scopes.step(container), Scope(seen["index"] - 1).of(container)
        inner = {one.id: f"{before}.{one.id}" for one in step.bodies[""].steps}
        compiled = _compiled(step.config["while"], is_expression=True)
        return is_true(self._evaluated(container, compiled, outer, inner, {"loop": self._lazily(seen)}))

    def _loop_of(self, scope: str) -> Any:
        """What the original's templates saw as `loop` there; None if none of them spoke of it."""
        return next((was.loop for was in self._found.get(scope, {}).values() if was.loop is not None), None)

    def _is_same(self, scope: str, now: Any) -> bool:
        """Whether it is the same round that sees `now` as `loop`, as far as that can be told."""
        was = self._loop_of(scope)
        return was is None or now is None or all(was[name] == now[name] for name in was.keys() & now.keys())

    def _refuse_round(self, container: str, scope: str) -> NoReturn:
        if not self._is_other:
            message = f"execution {self._original.id} has no step '{self._way[-1]}'"
            _refuse("from_step", f"{message}; GET it to see which there are")
        _refuse_to_enter(container, f"with this input and version there is no '{scope}' to go on with")

    # --- what the steps around see -------------------------------------------------------------------------------

    def _evaluated(
        self,
        container: str,
        compiled: Compiled,
        outer: Any,
        inner: Mapping[str, str] = MappingProxyType({}),
        names: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """What a worker will make of a template of the step `container`: the steps that it names have been kept, or
        stand in the round before (`inner`: id -> path)."""
        if "secrets" in compiled.roots:
            _refuse_to_enter(container, f"the rounds of '{container}' depend on secrets, which only workers know")
        program, original, new = self._program, self._original, self._new
        paths = {id: inner.get(id) or self._scopes.path_of(id, container) for id in compiled.steps}
        mappers = program.mappers(container) if "variables" in compiled.roots else ()
        wanted = {path for path in (*paths.values(), *mappers) if path is not None}
        seen = steps.outputs(self._connection, original.id, wanted)
        context = {
            "variables": program.variables_after(new.input, mappers, seen),
            "input": new.input,
            "steps": {id: self._lazily(seen[path]) for id, path in paths.items() if path in seen},
            "trigger": trigger_facts(executions.trigger_data(self._connection, original.id)),
            "execution": execution_facts(new.id, original.workflow_id, new.version, new.priority),
            **({} if outer is None else {"loop": self._lazily(outer)}),
            **names,
        }
        try:
            return compiled.render(context)
        except (TemplateError, ArtifactGone) as error:
            _refuse_to_enter(container, f"it cannot be told which rounds '{container}' has: {error}")

    def _lazily(self, seen: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._program.artifacts.lazily(self._original.id, seen)


def _as_past(status: StepStatus) -> StepStatus:
    """What was cancelled because its round failed is to stay undone, as what an ended attempt leaves is not."""
    return StepStatus.SKIPPED if status is StepStatus.CANCELLED else status


def _compiled(value: Any, *, is_expression: bool = False) -> Compiled:
    return compile_expression(value) if is_expression and isinstance(value, str) else compile_value(value)


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


def _refuse_to_enter(container: str, why: str) -> NoReturn:
    _refuse("from_step", f"{why}; start from '{container}'")


def _refuse(field: str, message: str) -> NoReturn:
    raise InputError([Problem(field, message)])
