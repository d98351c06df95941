"""The rows of the steps of a graph, as they are first inserted."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from orchestrator.definition.graph import Graph
from orchestrator.lifecycle import StepStatus
from orchestrator.store.step_rows import StepRow


def rows_of(
    graph: Graph, *, begins: bool, loop: Any = None, sees_loop: Collection[str] = frozenset()
) -> Iterator[StepRow]:
    """The rows of a scope; its first steps are queued if it `begins` at once."""
    for path, step in graph.steps.items():
        queued = begins and not step.depends_on
        status = StepStatus.QUEUED if queued else StepStatus.PENDING
        yield row_of(graph, path, status, loop=loop, sees_loop=sees_loop)


def row_of(graph: Graph, path: str, status: StepStatus, *, loop: Any, sees_loop: Collection[str]) -> StepRow:
    step = graph.steps[path]
    return StepRow(
        path,
        step.id,
        graph.scope,
        graph.container,
        step.type,
        graph.queue_for(path),
        status,
        graph.heights[path],
        step.priority,
        step.timeout,
        loop if step.id in sees_loop else None,
    )
