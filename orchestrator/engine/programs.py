"""A workflow version made ready to run: its graph, and what is the same for each of its executions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

from orchestrator.config import Settings
from orchestrator.definition import build_definition
from orchestrator.definition.graph import Graph
from orchestrator.definition.model import RetryPolicy, Step
from orchestrator.definition.templates import Compiled, compile_value
from orchestrator.lifecycle import StepStatus
from orchestrator.plugins import Catalogue
from orchestrator.store import Store, workflows
from orchestrator.store.executions import StepRows
from orchestrator.store.steps import Surroundings

# A process serves a handful of workflows at a time; a definition of 10,000 steps takes some 20 MB here.
_KEPT = 64


class Program:
    """One immutable workflow version; shared by all threads of a process."""

    def __init__(self, source: Mapping[str, Any], catalogue: Catalogue, settings: Settings) -> None:
        self.definition = build_definition(source, catalogue)
        self.graph = Graph(self.definition.steps)
        self._default_retry = RetryPolicy(
            max_attempts=settings.scheduler.retry.max_attempts,
            initial_delay=settings.scheduler.retry.initial_delay,
            max_delay=settings.scheduler.retry.max_delay,
            backoff_factor=settings.scheduler.retry.backoff_factor,
        )
        self.prepared: dict[str, Any] = {}
        """What the worker keeps of each step, by id; see workers/attempt.py."""
        self.surroundings: dict[str, Surroundings | None] = {}
        """Kept by engine/advance.py, by step id."""
        self.timeout = self.definition.timeout or settings.executor.timeout

    def retry_policy(self, step: Step) -> RetryPolicy:
        return step.retry_policy or self._default_retry

    @cached_property
    def step_rows(self) -> StepRows:
        steps = self.definition.steps
        roots = set(self.graph.roots)
        return StepRows(
            paths=tuple(step.id for step in steps),
            types=tuple(step.type for step in steps),
            queues=tuple(self.graph.queue_for(step.id) for step in steps),
            statuses=tuple(StepStatus.QUEUED if step.id in roots else StepStatus.PENDING for step in steps),
            heights=tuple(self.graph.heights[step.id] for step in steps),
            timeouts=tuple(step.timeout for step in steps),
        )

    @cached_property
    def variables(self) -> Mapping[str, Any]:
        return self.definition.variables or {}

    @cached_property
    def outputs(self) -> Compiled | None:
        return None if self.definition.outputs is None else compile_value(dict(self.definition.outputs))


@dataclass(frozen=True, slots=True)
class ProgramKey:
    workflow_id: str
    version: int


class Programs:
    """The programs this process has used lately. A version never changes, so neither does what is kept."""

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self.catalogue = catalogue
        self.settings = settings
        self.newest: dict[str, int] = {}
        """The newest version of each workflow that this process has seen: a guess, never the truth."""
        self._kept: OrderedDict[ProgramKey, Program] = OrderedDict()
        self._lock = Lock()

    def get(self, store: Store, workflow_id: str, version: int) -> Program:
        key = ProgramKey(workflow_id, version)
        with self._lock:
            program = self._kept.get(key)
            if program is not None:
                self._kept.move_to_end(key)
                return program
        with store.single() as connection:
            source = workflows.definition(connection, workflow_id, version)
        program = Program(source, self.catalogue, self.settings)
        with self._lock:
            self._kept[key] = program
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return program
