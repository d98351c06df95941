"""The shape of a definition, or of a body in it: who waits for whom, and which steps form a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Protocol

from orchestrator.definition.model import EARLY, Step, TriggerRule


class Graphs(Protocol):
    """Where to find the graph that a step stands in."""

    def of(self, path: str) -> Graph: ...


CONTROL = "control"
"""The queue class of steps that the engine decides by itself; they take no time and go along anywhere."""


class Graph:
    """An acyclic graph of steps, by their paths, in the order in which the definition lists them.

    `scope` is what stands before the dot in all of these paths ("" for a definition's own steps), `container` the
    path of the step that the scope belongs to, if it does. `limited`: not all of its scopes need run at a time.
    """

    def __init__(
        self, steps: Iterable[Step], *, scope: str = "", container: str | None = None, limited: bool = False
    ) -> None:
        self.scope = scope
        self.container = container
        self.limited = limited
        self.steps: dict[str, Step] = {step.path: step for step in steps}
        children: dict[str, list[str]] = {path: [] for path in self.steps}
        for step in self.steps.values():
            for dependency in dict.fromkeys(step.depends_on):
                children[dependency].append(step.path)
        self.children: dict[str, tuple[str, ...]] = {id: tuple(ids) for id, ids in children.items()}
        self._queues: dict[str, str] = {}

    @cached_property
    def roots(self) -> tuple[str, ...]:
        return tuple(path for path, step in self.steps.items() if not step.depends_on)

    @cached_property
    def sinks(self) -> tuple[str, ...]:
        return tuple(path for path in self.steps if not self.children[path])

    def of(self, path: str) -> Graph:  # noqa: ARG002  (see Graphs)
        return self

    def path_of(self, step_id: str) -> str:
        """The path of a step of this graph."""
        return f"{self.scope}.{step_id}" if self.scope else step_id

    def dependents(self, path: str) -> tuple[str, ...]:
        """What waits for the end of `path`: other steps, or for a last one the step around it, unless that has to
        look at each scope's end."""
        if self.children[path] or self.container is None:
            return self.children[path]
        return (path,) if self.limited else (self.container,)

    def is_waited_for_with_others(self, path: str) -> bool:
        """Whether the dependents of `path` begin when all that they wait for has ended: as long as others of that are
        at work, its own end leads to nothing."""
        return not any(self.steps[child].trigger_rule in EARLY for child in self.children[path])

    @cached_property
    def heights(self) -> dict[str, int]:
        """Of each step, the steps on the longest path that hangs on it, itself included. Whoever has a choice
        takes the highest first, as in critical-path list scheduling (Hu 1961)."""
        waiting = {id: len(ids) for id, ids in self.children.items()}
        settled = [id for id, count in waiting.items() if count == 0]
        heights = dict.fromkeys(self.steps, 1)
        for id in settled:  # grows on the way: a step follows the last of its dependents
            for needed in dict.fromkeys(self.steps[id].depends_on):
                heights[needed] = max(heights[needed], heights[id] + 1)
                waiting[needed] -= 1
                if waiting[needed] == 0:
                    settled.append(needed)
        return heights

    def only_child(self, step_id: str) -> str | None:
        """The one dependent of `step_id`, if it waits for nothing else and runs once that has completed."""
        children = self.children[step_id]
        if len(children) != 1 or len(set(self.steps[children[0]].depends_on)) != 1:
            return None
        return children[0] if self.steps[children[0]].trigger_rule is not TriggerRule.ONE_FAILED else None

    def next_in_run(self, step_id: str, queue: str) -> str | None:
        """The step that a worker of `queue` goes straight on with after `step_id`. Repeated calls walk
        through a run: steps in a row that this queue serves, and control steps between them."""
        child = self.only_child(step_id)
        if child is None or self.steps[child].queue not in (queue, CONTROL):
            return None
        return child

    def queue_for(self, start: str) -> str:
        """The queue that serves the run from `start` on: that of its first step which needs a certain one."""
        passed: list[str] = []
        step_id: str | None = start
        queue = CONTROL
        while step_id is not None:
            queue = self._queues.get(step_id) or self.steps[step_id].queue
            if step_id in self._queues or queue != CONTROL:
                break
            passed.append(step_id)
            step_id = self.only_child(step_id)
        self._queues.update(dict.fromkeys(passed, queue))
        return queue

    def run(self, start: str) -> Iterator[str]:
        """The steps of the run that begins with `start`."""
        queue, step_id = self.queue_for(start), start
        yield step_id
        while (following := self.next_in_run(step_id, queue)) is not None:
            step_id = following
            yield step_id

    @cached_property
    def is_one_run(self) -> bool:
        """Whether a single run covers every step and ends with the first failure, so that the completion of its
        last step is the completion of all."""
        if len(self.roots) != 1 or any(step.trigger_rule is TriggerRule.ALL_DONE for step in self.steps.values()):
            return False
        return sum(1 for _ in self.run(self.roots[0])) == len(self.steps)

    def outlook(self, step_ids: Iterable[str]) -> set[str]:
        """The steps whose states decide whether a dependent of `step_ids` is ready: those dependents and
        everything they wait for."""
        dependents = {child for step_id in step_ids for child in self.children[step_id]}
        return dependents | {needed for child in dependents for needed in self.steps[child].depends_on}
