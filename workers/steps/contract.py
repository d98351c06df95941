"""What a step type is: a name, a checked configuration, a queue class, and `perform`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol

import marshmallow

from orchestrator.config import Settings
from orchestrator.engine.bodies import Scope, Spawn
from orchestrator.errors import StepFailed, StepTimeout
from orchestrator.plugins import BodyInfo
from orchestrator.store.executions import Outcome
from orchestrator.store.rates import Rate

__all__ = [
    "BodyInfo",
    "Child",
    "Done",
    "Outcome",
    "QueueClass",
    "Rate",
    "Round",
    "Scope",
    "Spawn",
    "StepContext",
    "StepType",
    "Wait",
    "Workflows",
    "config_mistake",
]

Json = Any
QueueClass = Literal["control", "io", "cpu"]
LogLevel = Literal["debug", "info", "warning", "error"]
SchemaClass = type[marshmallow.Schema]


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one scope of a body. `output` is that of its last step; with several last steps, theirs by
    id. A large one is a reference to it (orchestrator/artifacts.py), and is itself again in what the step returns.
    `error` says which step failed and how."""

    name: int | str
    status: Literal["completed", "failed", "cancelled"]
    output: Json = None
    error: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """An execution that a step has started; `outcome` if it is known that it has ended already."""

    execution_id: str
    outcome: Outcome | None = None


class Workflows(Protocol):
    """What a step may do with other workflows."""

    def start(self, workflow: str, input: Json, *, attached: bool) -> Child:
        """Start an execution of a workflow, named by its id or name. One that is `attached` is cancelled when this step
        is. Called again by the same step of the same execution, it finds the one that it started. Raises StepFailed."""

    def outcome(self, execution_id: str) -> Outcome:
        """What came of it, as far as it has. Raises StepFailed if it is gone."""


def _nothing_to_evaluate(field: str, **_: Json) -> Json:
    raise LookupError(f"{field} is not among this type's deferred_fields")


def _as_it_is(value: Json) -> Json:
    return value


def _no_signal(name: str) -> Json:  # noqa: ARG001
    return None


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
    mask: Callable[[Any], Any] = _as_it_is
    """A value without secrets, for what is shown elsewhere than in outputs, errors and log lines, which are masked."""
    deadline: float | None = None
    """On time.monotonic()'s clock: when the attempt's time is up."""
    state: Json = None
    """What the Wait or Spawn before this performance left; None at the first performance of an attempt. What the
    step waited for is in it: `signal`, or `decision`."""
    evaluate: Callable[..., Json] = _nothing_to_evaluate
    """`evaluate(field, **names)`: the value of one of the config's `deferred_fields`, with more names to start
    from (or others in the place of `loop`)."""
    body: Callable[..., Sequence[Round]] = tuple
    """What became of the scopes of this step's body, in their order: `body()` of all, `body(*names)` of some."""
    take_signal: Callable[[str], Json] = _no_signal
    """The oldest signal of a name that nobody has taken: its `payload` and `sent_at`. None if there is none."""
    workflows: Workflows | None = None
    """Other workflows; None where a step is only tried out."""

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

    def within(self, seconds: float) -> float:
        """`seconds`, or what is left if that is less. Raises StepTimeout when nothing is."""
        remaining = self.remaining()
        return seconds if remaining is None else min(seconds, remaining)


def config_mistake(message: str) -> StepFailed:
    """The failure of a step whose config, or what the settings have for it, is wrong: it will not get better."""
    return StepFailed(message, kind="config", retryable=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The step is finished; `skip` names dependents that are not to run (the branch not taken)."""

    output: Json
    skip: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Wait:
    """The step rests without a worker until `until`, and is then performed again as the same attempt, with
    `state` (JSON, small: an id on the other side, say) as its context's state.

    It goes on earlier if what it `awaits` comes: "decision", "signal:NAME", or "child" (the end of the execution
    that `state["execution_id"]` names). With None as `until` it waits for nothing else.
    """

    until: datetime | None
    state: Json = None
    awaits: str | None = None


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

    pure: ClassVar[bool] = False
    """`perform` computes with what it is given and touches nothing outside, so that performing it twice, or for
    nothing, does no harm. Bodies of nothing but such steps (on the queue `control`) are performed in one go."""

    repeatable: ClassVar[bool] = False
    """`perform` touches nothing outside but through its `context`, so that it may be performed again when it turns out
    that what it asked for there was somebody else's. It takes one signal at most, and comes to a Done with it. What it
    asked for then takes effect together with its result; for other types, at once."""

    raw_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config that are handed over as written, not rendered (a program's source, say)."""

    expression_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config whose text is an expression even without braces around it; `perform` finds the
    value. A dotted path passes through the items of lists: `cases.when` is `when` of each of `cases`."""

    deferred_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config whose text is an expression that `perform` evaluates itself, by `context.evaluate`."""

    unchecked_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config in which `Config` takes any value. A config that has templates in none but these is checked
    once, not at each attempt, with None for their values."""

    @abstractmethod
    def perform(self, context: StepContext) -> Done | Wait | Spawn:
        """Do it. Raises StepFailed (or StepTimeout) when the attempt failed; anything else that is raised is
        taken for a failed attempt of kind `error`."""

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:  # noqa: ARG002
        """The rate limit of the connection that `perform` will use; None if it has none. An attempt begins when that
        allows it."""
        return None

    def cancel(self, context: StepContext) -> None:  # noqa: B027
        """Cancel what an attempt has begun elsewhere, which nobody wants any more: it was ended, by a user, by its
        timeout or with what is around it, after it had rested. `context` is what `perform` had, with the state of that
        rest and a deadline of its own. A type that has something to cancel overrides this. It may be called more than
        once, and when there is nothing left to cancel, both of which is no failure; it is called again, a few times,
        if it raises StepFailed (unless that is not retryable) or anything else."""

    @property
    def cancels(self) -> bool:
        """Whether there is something to cancel."""
        return type(self).cancel is not StepType.cancel

    def references(self, config: Mapping[str, object]) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """(path within config, step id) of each step that `config` names; those must depend on this one."""
        return ()

    def bodies(self, config: Mapping[str, object]) -> Iterable[BodyInfo]:  # noqa: ARG002
        """The steps that stand in `config`, which may not be valid."""
        return ()
