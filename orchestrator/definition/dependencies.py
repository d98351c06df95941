"""Who comes before whom, among steps that may still depend on nonsense."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence


class Dependencies:
    """The graph of steps by id; dependencies that do not exist, or on the step itself, are left out.

    What is upstream of a step is kept as the bits of one integer: 10,000 steps in a row need 6 MB, where sets
    of ids would need gigabytes.
    """

    def __init__(self, depends_on: Mapping[str, Sequence[str]]) -> None:
        self.position = {step_id: index for index, step_id in enumerate(depends_on)}
        self.depends_on = {
            step_id: [other for other in others if other in self.position and other != step_id]
            for step_id, others in depends_on.items()
        }
        self.order = self._ordered()
        self._upstream: dict[str, int] = {}
        for step_id in self.order:
            bits = 0
            for other in self.depends_on[step_id]:
                bits |= self._upstream[other] | 1 << self.position[other]
            self._upstream[step_id] = bits

    def is_upstream(self, other: str, step_id: str) -> bool:
        """Whether `other` is done before `step_id` starts. True as well in and behind a cycle, which is
        reported by itself."""
        bits = self._upstream.get(step_id)
        return bits is None or bool(bits >> self.position[other] & 1)

    def cycles(self) -> list[list[str]]:
        """Cycles that share no step, each from a step back to itself; at least one if there is any."""
        placed = set(self.order)
        left = [step_id for step_id in self.position if step_id not in placed]
        seen: dict[str, int] = {}
        found: list[list[str]] = []
        for walk, start in enumerate(left):
            trail: list[str] = []
            step_id = start
            # Each step that is left waits for another that is, so that the walk ends where it has been.
            while step_id not in seen:
                seen[step_id] = walk
                trail.append(step_id)
                step_id = next(other for other in self.depends_on[step_id] if other not in placed)
            if seen[step_id] == walk:
                found.append([*trail[trail.index(step_id) :], step_id])
        return found

    def _ordered(self) -> list[str]:
        """The steps in topological order, without those in or behind a cycle (Kahn's algorithm)."""
        waiting = {step_id: len(others) for step_id, others in self.depends_on.items()}
        dependents: dict[str, list[str]] = {step_id: [] for step_id in self.depends_on}
        for step_id, others in self.depends_on.items():
            for other in others:
                dependents[other].append(step_id)
        ready = deque(step_id for step_id, count in waiting.items() if count == 0)
        order: list[str] = []
        while ready:
            step_id = ready.popleft()
            order.append(step_id)
            for dependent in dependents[step_id]:
                waiting[dependent] -= 1
                if waiting[dependent] == 0:
                    ready.append(dependent)
        return order
