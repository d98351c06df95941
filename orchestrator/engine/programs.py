"""A workflow version made ready to run: its graph, and what is the same for each of its executions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from orchestrator.artifacts import Artifacts
from orchestrator.config import Settings
from orchestrator.definition import build_definition, paths
from orchestrator.definition.document import walk
from orchestrator.definition.model import RetryPolicy, Step
from orchestrator.definition.scopes import FINALLY, ON_FAILURE, Scopes, phase_of
from orchestrator.definition.templates import Compiled, compile_value
from orchestrator.engine.rows import rows_of
from orchestrator.errors import InputError, Problem, TemplateError
from orchestrator.plugins import Catalogue, cancels
from orchestrator.store import Store, workflows
from orchestrator.store.rates import Rate
from orchestrator.store.records import Surroundings
from orchestrator.store.step_rows import StepRows

# A process serves a handful of workflows at a time; a definition of 10,000 steps takes some 20 MB here.
_KEPT = 64


class Program:
    """One immutable workflow version; shared by all threads of a process."""

    def __init__(self, source: Mapping[str, Any], catalogue: Catalogue, settings: Settings) -> None:
        self.definition = build_definition(source, catalogue)
        self.scopes = Scopes(self.definition)
        self._default_retry = RetryPolicy(
            max_attempts=settings.scheduler.retry.max_attempts,
            initial_delay=settings.scheduler.retry.initial_delay,
            max_delay=settings.scheduler.retry.max_delay,
            backoff_factor=settings.scheduler.retry.backoff_factor,
        )
        self.cancellable = frozenset(type for type, info in catalogue.items() if cancels(info))
        """The step types that can cancel what they have begun elsewhere."""
        self.prepared: dict[str, Any] = {}
        """What the worker keeps of each step, by id; see workers/prepared.py."""
        self.surroundings: dict[str, Surroundings | None] = {}
        """Kept by engine/advance.py, by step id."""
        self.only_computes: bool | None = None
        """Kept by workers/inline.py."""
        self.timeout = self.definition.timeout or settings.executor.timeout
        self.artifacts = Artifacts.of(settings.artifacts)

    def retry_policy(self, step: Step) -> RetryPolicy:
        return step.retry_policy or self._default_retry

    @cached_property
    def step_rows(self) -> StepRows:
        return StepRows.of(list(rows_of(self.scopes.root, begins=True)))

    def variables(self, given: Any) -> Mapping[str, Any]:
        """The variables that an execution with this input begins with: what the input has under a variable's name
        takes its place."""
        declared = self.definition.variables or {}
        if not isinstance(given, Mapping) or declared.keys().isdisjoint(given):
            return declared
        return {name: given.get(name, value) for name, value in declared.items()}

    @cached_property
    def outputs(self) -> Compiled | None:
        return None if self.definition.outputs is None else compile_value(dict(self.definition.outputs))

    def checked_input(self, given: Any) -> Any:
        """`given` with the defaults of `inputs` filled in. Raises InputError with all that does not fit."""
        if self._inputs is None:
            return given
        properties = self.definition.inputs.get("properties") if self.definition.inputs else None
        if isinstance(given, dict) and isinstance(properties, Mapping):
            defaults = {
                name: schema["default"]
                for name, schema in properties.items()
                if isinstance(schema, Mapping) and "default" in schema
            }
            given = defaults | given
        problems = [
            Problem(paths.join_all(error.absolute_path, "input"), error.message[:500])
            for error in self._inputs.iter_errors(given)
        ]
        if problems:
            raise InputError(problems)
        return given

    def own_limits(self, workflow_id: str, given: Any) -> tuple[tuple[str, int], ...]:
        """The limits of its own that an execution with this input runs under: (key, as many at a time). Raises
        InputError if the key cannot be made of the input."""
        definition = self.definition
        limits = [] if definition.max_concurrent is None else [(workflow_id, definition.max_concurrent)]
        if definition.concurrency is not None:
            key = self._key_of(self._limit_keys[0], given, "concurrency")
            limits.append((f"{workflow_id}:{key}"[:500], definition.concurrency.limit))
        return tuple(limits)

    def rate(self, workflow_id: str, given: Any) -> Rate | None:
        """The rate limit that an execution with this input runs under. Raises InputError like `own_limits`."""
        limit = self.definition.rate_limit
        if limit is None:
            return None
        key = f"workflow:{workflow_id}"
        if limit.key is not None:
            key = f"{key}:{self._key_of(self._limit_keys[1], given, 'rate limit')}"[:500]
        return Rate(key, limit.limit, limit.per)

    def _key_of(self, compiled: Compiled, given: Any, limit: str) -> Any:
        try:
            return compiled.render({"input": given, "variables": self.variables(given)})
        except TemplateError as error:
            raise InputError([Problem("input", f"makes no {limit} key: {error}")]) from None

    @cached_property
    def _limit_keys(self) -> tuple[Compiled, Compiled]:
        """Those of `concurrency` and of `rate_limit`."""
        limits = (self.definition.concurrency, self.definition.rate_limit)
        concurrency, rate_limit = (compile_value(None if limit is None else limit.key) for limit in limits)
        return concurrency, rate_limit

    @cached_property
    def _inputs(self) -> Draft202012Validator | None:
        schema = self.definition.inputs
        # A registry of its own has nothing to fetch: a $ref to elsewhere is an error, not a request.
        return None if schema is None else Draft202012Validator(schema, registry=Registry())

    @cached_property
    def undoable(self) -> frozenset[str]:
        """The ids of the steps that another can undo."""
        return frozenset(step.id for step in self._all_steps() if step.compensate is not None)

    @cached_property
    def tolerated(self) -> frozenset[str]:
        """The ids of the steps whose failure counts as an end like any other."""
        return frozenset(step.id for step in self._all_steps() if step.on_error == "continue")

    @cached_property
    def has_endings(self) -> bool:
        return bool(self.definition.on_failure or self.definition.finally_ or self.undoable)

    @property
    def is_counted(self) -> bool:
        """Whether the end of an execution may be that of the workflow."""
        return self.definition.run_limit is not None or self.definition.max_failures is not None

    @cached_property
    def sees_loop(self) -> frozenset[str]:
        """The ids of the steps whose templates may speak of `loop`: a text with that word in it."""
        return frozenset(step.id for step in self._all_steps() if _speaks_of(step, "loop"))

    @cached_property
    def sees_outer_loop(self) -> bool:
        """Whether anything may speak of `loop.parent`, however that is written."""
        return any(_speaks_of(step, "parent") for step in self._all_steps())

    # --- variables that steps map their outputs to ---------------------------------------------------------------

    def mappers(self, path: str) -> tuple[str, ...]:
        """The steps before `path` that map their output to variables, the furthest first: the nearest has the last
        word."""
        if not self._has_mappers:
            return ()
        nearest_first = [step.path for step in self.scopes.upstream(path) if step.output_mapping]
        before = self.mappers_of_all() if phase_of(path) in (ON_FAILURE, FINALLY) else ()
        return (*before, *reversed(nearest_first))

    def mappers_of_all(self) -> tuple[str, ...]:
        """Those among the definition's own steps."""
        root = self.scopes.root
        found = [path for path, step in root.steps.items() if step.output_mapping]
        return tuple(sorted(found, key=lambda path: -root.heights[path]))

    def variables_after(self, given: Any, mappers: Collection[str], seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """The variables once `mappers` have ended; `seen` has what templates see of them."""
        if not mappers:
            return self.variables(given)
        variables = dict(self.variables(given))
        for path in mappers:
            variables |= seen.get(path, {}).get("variables", {})
        return variables

    @cached_property
    def _has_mappers(self) -> bool:
        return any(step.output_mapping for step in self._all_steps())

    def _all_steps(self) -> Iterator[Step]:
        """Those in bodies included."""
        left = [*self.definition.steps, *self.definition.on_failure, *self.definition.finally_]
        while left:
            step = left.pop()
            yield step
            for body in step.bodies.values():
                left += body.steps


def _speaks_of(step: Step, word: str) -> bool:
    """Whether a text of the step, or of one in its bodies, holds the word."""
    undo = step.compensate
    parts = [step.config, step.input_mapping, step.when, step.output_mapping, step.cache and step.cache.key]
    parts += [undo.config, undo.input_mapping] if undo else []
    return any(isinstance(text, str) and word in text for part in parts for _, text in walk(part))


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
        self.artifacts = Artifacts.of(settings.artifacts)
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
            source = workflows.runnable(connection, workflow_id, version)
        program = Program(source, self.catalogue, self.settings)
        with self._lock:
            self._kept[key] = program
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return program
