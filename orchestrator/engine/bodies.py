"""Steps inside steps: how the scopes of a body begin, and what follows the end of one.

A step with a body (a loop, a fork of named branches) says which scopes there are to be, and rests; the last one of
them to end wakes it, and it makes its result of theirs. Between the two it holds no worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.definition.graph import Graph
from orchestrator.engine.plan import whole_frontier
from orchestrator.engine.programs import Program
from orchestrator.errors import StepFailed
from orchestrator.lifecycle import StepStatus
from orchestrator.store import bodies, steps

CHUNK = 2000
"""Rows inserted at a time: while the next are on their way, workers are busy with these."""

MAX_ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class Scope:
    """One round of a loop (`name` is its index), or one branch."""

    name: int | str
    loop: Any = None
    """What templates inside see as `loop`."""

    @property
    def body(self) -> str:
        """The name of the body that it is a round of."""
        return "" if isinstance(self.name, int) else self.name

    def of(self, container: str) -> str:
        return f"{container}[{self.name}]" if isinstance(self.name, int) else f"{container}.{self.name}"


def scopes_over(items: Any) -> list[Scope]:
    """The rounds of a loop over a list, or over the entries of a mapping (as `key` and `value`). Raises StepFailed."""
    if isinstance(items, Mapping):
        items = [{"key": key, "value": item} for key, item in items.items()]
    if items is None:
        return []
    if not isinstance(items, (list, tuple)):
        raise StepFailed(
            f"`items` must be a list or a mapping, not {type(items).__name__}", kind="config", retryable=False
        )
    if len(items) > MAX_ITEMS:
        raise StepFailed(
            f"`items` has {len(items):,} items; at most {MAX_ITEMS:,} are possible: divide them among several loops",
            kind="config",
            retryable=False,
        )
    return [Scope(index, {"index": index, "item": item}) for index, item in enumerate(items)]


@dataclass(frozen=True, slots=True)
class Spawn:
    """The scopes that are to run; the step is performed again when they have ended, and then finds `state`.

    `concurrency` limits how many of them run at a time (only for bodies that are declared as limited). With
    `stops_on_failure` the first that fails ends the others.
    """

    scopes: Sequence[Scope]
    state: Any = None
    concurrency: int | None = None
    stops_on_failure: bool = True

    @property
    def noted(self) -> dict[str, Any]:
        """What the step's row keeps while the body runs."""
        return {"own": self.state, "concurrency": self.concurrency, "stops_on_failure": self.stops_on_failure}

    @property
    def begun(self) -> dict[str, Any]:
        """The same while not all scopes are there: who takes over from a worker that died over it begins anew."""
        return self.noted | {"own": None}


def chunks(program: Program, container: str, spawn: Spawn) -> Iterator[list[Graph]]:
    """The graphs of the scopes, about as many at a time as have CHUNK rows."""
    graphs = (program.scopes.at(scope.of(container)) for scope in spawn.scopes)
    first = next(graphs, None)
    if first is None:
        return
    size = max(1, CHUNK // len(first.steps))
    yield [first, *islice(graphs, size - 1)]
    while chunk := list(islice(graphs, size)):
        yield chunk


def loop_inside(program: Program, outer: Any, own: Any) -> Any:
    """What templates in a scope see as `loop`: a branch has that of the loop around it, if there is one."""
    if own is None:
        return outer
    return {**own, "parent": outer} if outer is not None and program.sees_outer_loop else own


def after_scope(connection: Connection, program: Program, execution_id: str, container: str) -> list[str]:
    """What becomes ready when a scope in the body of `container` has ended: the next scopes, or the container."""
    if any(body.limited for body in program.scopes.step(container).bodies.values()):
        more = _next_scopes(connection, program, execution_id, container)
        if more:
            return more
    return [container] if bodies.wake_if_ended(connection, execution_id, container) else []


def _next_scopes(connection: Connection, program: Program, execution_id: str, container: str) -> list[str]:
    """The steps of the scopes that may begin or go on now. Scopes begin in their order, so that those at work stand
    before the others."""
    limit = bodies.container(connection, execution_id, container).concurrency
    if limit is None:
        return []
    sizes = {name: len(body.steps) for name, body in program.scopes.step(container).bodies.items()}
    scopes = bodies.next_scopes(connection, execution_id, container, limit, sizes)
    ready: list[str] = []
    for one in scopes:
        graph = program.scopes.at(one.scope)
        if one.is_untouched:
            ready += graph.roots
        else:
            ready += left_in(connection, graph, execution_id, steps.states(connection, execution_id, graph.steps))
    return ready


def left_in(
    connection: Connection, graph: Graph, execution_id: str, states: Mapping[str, StepStatus]
) -> tuple[str, ...]:
    """The steps of a scope that are ready, by the states of all of them; those that are not to run are skipped."""
    decided = whole_frontier(graph, states, blocked(connection, execution_id, states))
    if decided.skipped:
        steps.skip(connection, execution_id, decided.skipped, decided.blocked)
    return decided.ready


def blocked(connection: Connection, execution_id: str, states: Mapping[str, StepStatus]) -> frozenset[str]:
    """Which of the skipped ones have a failure upstream, rather than a branch not taken."""
    skipped = [path for path, status in states.items() if status is StepStatus.SKIPPED]
    return steps.blocked(connection, execution_id, skipped) if skipped else frozenset()
