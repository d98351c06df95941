"""Where the steps of an execution stand: the definition's own graph, and one for each scope of each body.

A scope is named by what stands before the dot in its steps' paths:

    ""              the definition's own steps
    loop1[3]        the fourth round of the loop `loop1`
    fork.left       the branch `left` of the step `fork`
    finally         what runs at the end, and likewise on_failure
    compensate      what undoes completed steps, each for itself: compensate.charge undoes charge
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from threading import Lock

from orchestrator.definition.building import COMPENSATE
from orchestrator.definition.graph import Graph
from orchestrator.definition.model import Definition, Step

ON_FAILURE, FINALLY = "on_failure", "finally"
_KEPT = 2048
"""Graphs of scopes kept; making one takes some microseconds a step."""


def scope_of(path: str) -> str:
    return path.rpartition(".")[0]


def phase_of(path: str) -> str:
    """Which part of an execution a step or scope belongs to: "" for its main part."""
    first = path.partition(".")[0]
    return first if first in (COMPENSATE, ON_FAILURE, FINALLY) else ""


class Scopes:
    """The graphs of one definition; shared by all threads of a process."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.root = Graph(definition.steps)
        self._kept: OrderedDict[str, Graph] = OrderedDict()
        self._lock = Lock()

    def of(self, path: str) -> Graph:
        """The graph in which the step `path` stands."""
        if path.startswith(f"{COMPENSATE}."):
            return self._undoing(path)
        return self.at(scope_of(path))

    def at(self, scope: str) -> Graph:
        """The graph of a scope."""
        if not scope:
            return self.root
        with self._lock:
            graph = self._kept.get(scope)
            if graph is not None:
                self._kept.move_to_end(scope)
                return graph
        graph = self._made(scope)
        with self._lock:
            self._kept[scope] = graph
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return graph

    def step(self, path: str) -> Step:
        return self.of(path).steps[path]

    def path_of(self, step_id: str, seen_from: str) -> str | None:
        """The path of the step that a template in the step `seen_from` calls `steps.<step_id>`: it stands in the
        same scope, or in one around it."""
        for graph in self._outwards(seen_from):
            path = graph.path_of(step_id)
            if path in graph.steps:
                return path
        return None

    def upstream(self, path: str) -> Iterator[Step]:
        """The steps that have ended before `path` begins, as far as its scope and those around it say: the
        nearest ones first. What undoes a step sees that one, and what that saw."""
        if path.startswith(f"{COMPENSATE}."):
            path = path.removeprefix(f"{COMPENSATE}.")
            yield self.step(path)
        graph: Graph | None = self.of(path)
        while graph is not None:
            yield from _ancestors(graph, path)
            if graph.container is None:
                graph = None
            else:
                path = graph.container
                graph = self.of(path)

    def around(self, path: str) -> list[str]:
        """The steps in whose bodies a step stands, from the inside out."""
        found: list[str] = []
        while (container := self.of(path).container) is not None:
            found.append(path := container)
        return found

    def _outwards(self, path: str) -> Iterator[Graph]:
        if path.startswith(f"{COMPENSATE}."):
            path = path.removeprefix(f"{COMPENSATE}.")
        graph = self.of(path)
        yield graph
        while graph.container is not None:
            graph = self.of(graph.container)
            yield graph
        if graph is not self.root:
            yield self.root

    def _made(self, scope: str) -> Graph:
        if scope in (ON_FAILURE, FINALLY):
            steps = self.definition.on_failure if scope == ON_FAILURE else self.definition.finally_
            return Graph(_inside(scope, steps), scope=scope)
        container, name = _split(scope)
        body = self.step(container).bodies[name]
        return Graph(_inside(scope, body.steps), scope=scope, container=container, limited=body.limited)

    def _undoing(self, path: str) -> Graph:
        undo = self.step(path.removeprefix(f"{COMPENSATE}.")).compensate
        assert undo is not None
        return Graph([replace(undo, path=path)], scope=scope_of(path))


def _split(scope: str) -> tuple[str, str]:
    """(the step around a scope, the name of its body there)."""
    if scope.endswith("]"):
        return scope[: scope.rindex("[")], ""
    container, _, name = scope.rpartition(".")
    return container, name


def _inside(scope: str, steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        depends_on = tuple(f"{scope}.{id}" for id in step.depends_on)
        yield replace(step, path=f"{scope}.{step.id}", depends_on=depends_on)


def _ancestors(graph: Graph, path: str) -> Iterator[Step]:
    """Breadth first, so that a nearer one comes before one further up."""
    seen: set[str] = set()
    layer = list(graph.steps[path].depends_on)
    while layer:
        above: list[str] = []
        for needed in layer:
            if needed not in seen:
                seen.add(needed)
                yield graph.steps[needed]
                above += graph.steps[needed].depends_on
        layer = above
