"""What a step type is: a name, a checked configuration, a queue class, and `perform`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

import marshmallow

from orchestrator.config import Settings
from orchestrator.errors import StepTimeout

Json = Any
QueueClass = Literal["control", "io", "cpu"]
LogLevel = Literal["debug", "info", "warning", "error"]
SchemaClass = type[marshmallow.Schema]


@dataclass(frozen=True, slots=True)
class StepContext:
    """All that `perform` gets to know. Ids are texts; `config` has been rendered and loaded by the schema."""

    execution_id: str
    step_execution_id: str
    step_id: str
    path: str
    attempt: int
    """1 for the first attempt."""
    config: Mapping[str, Any]
    input: Json
    """The rendered input_mapping; without one, the execution's input."""
    settings: Settings
    reveal: Callable[[Any], Any]
    """A value from the settings, with every `{{ secrets.name }}` in its texts filled in. Raises StepFailed for a
    secret that is not there."""
    log: Callable[[str, LogLevel], None]
    """Adds a line to the step's log; it is in the store within about a second."""
    deadline: float | None = None
    """On time.monotonic()'s clock: when the attempt's time is up."""
    state: Json = None
    """What the Wait before this performance left; None at the first performance of an attempt."""

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step in this execution; hand it to the other side."""
        return f"{self.execution_id}:{self.path}"

    def remaining(self) -> float | None:
        """Seconds left, None if there is no limit. Raises StepTimeout when none are."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise StepTimeout("the step's time is up")
        return left


@dataclass(frozen=True, slots=True)
class Done:
    """The step is finished; `skip` names dependents that are not to run (the branch not taken)."""

    output: Json
    skip: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Wait:
    """The step rests without a worker until `until`, and is then performed again as the same attempt, with
    `state` (JSON, small: an id on the other side, say) as its context's state."""

    until: datetime
    state: Json = None


class StepType(ABC):
    """The base of every step type. One instance serves a whole process and many threads: keep no state of a
    single execution on it."""

    type: ClassVar[str]
    queue: ClassVar[QueueClass] = "io"
    Config: SchemaClass
    """Checks `config`: at save time as far as it holds no templates, and whole after rendering."""

    extra: ClassVar[str] = ""
    """The optional extra of this package that the type needs, and `modules` what that must have installed: a
    definition that uses the type where it is not is refused. `perform` imports them, this module does not."""

    modules: ClassVar[tuple[str, ...]] = ()

    raw_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config that are handed over as written, not rendered (a program's source, say)."""

    expression_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config whose text is an expression even without braces around it; `perform` finds the
    value. A dotted path passes through the items of lists: `cases.when` is `when` of each of `cases`."""

    @abstractmethod
    def perform(self, context: StepContext) -> Done | Wait:
        """Do it. Raises StepFailed (or StepTimeout) when the attempt failed; anything else that is raised is
        taken for a failed attempt of kind `error`."""

    def references(self, config: Mapping[str, object]) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """(path within config, step id) of each step that `config` names; those must depend on this one."""
        return ()
