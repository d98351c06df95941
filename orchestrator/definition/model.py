"""What a valid definition is once it has been read: frozen, typed, without a trace of YAML."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a step is tried and how long it rests in between (delays in seconds).

    Exponential backoff: the delay before attempt n+1 is initial_delay * backoff_factor**(n-1), at most
    max_delay, of which `jitter` (0..1) is the share chosen at random.
    """

    max_attempts: int = 3
    initial_delay: float = 30.0
    max_delay: float = 300.0
    backoff_factor: float = 2.0
    jitter: float = 0.0
    retry_on: tuple[str, ...] = ()
    """Kinds of failure worth another attempt; empty means all of them."""

    def delay_after(self, attempt: int) -> float:
        """Seconds to rest after attempt number `attempt` (1-based) failed."""
        # The exponent is bounded: past it every delay is max_delay, and a float must not overflow.
        delay = min(self.max_delay, self.initial_delay * self.backoff_factor ** min(attempt - 1, 64))
        return delay * (1 - self.jitter * random.random())  # noqa: S311  # nosec B311 # spreads load, guards nothing

    def allows(self, kind: str, attempt: int) -> bool:
        """Whether a failure of this `kind` at attempt number `attempt` is followed by another attempt."""
        return attempt < self.max_attempts and (not self.retry_on or kind in self.retry_on)


class TriggerRule(StrEnum):
    """What of its dependencies lets a step run (the names are Airflow's). A failure with `on_error: continue` is a
    success here, and a step that was skipped because of a failure further up counts as failed."""

    ALL_SUCCESS = "all_success"
    """All have ended, none failed, and at least one was not skipped: branches of a condition meet again."""
    ALL_DONE = "all_done"
    """All have ended, however."""
    ONE_SUCCESS = "one_success"
    """One has succeeded; it does not wait for the others."""
    ONE_FAILED = "one_failed"
    """One has failed; it does not wait for the others."""
    NONE_FAILED = "none_failed"
    """All have ended and none failed; all may be skipped."""


EARLY = (TriggerRule.ONE_SUCCESS, TriggerRule.ONE_FAILED)
"""Rules by which a step may begin while others that it depends on are still at it."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A step's result is taken from an earlier one with the same key, if that is not older than `ttl` seconds."""

    key: Any
    ttl: float


@dataclass(frozen=True, slots=True)
class Body:
    """Steps inside a step. `limited`: how many of its scopes run at a time may be limited."""

    steps: tuple[Step, ...]
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a graph. `config` is as written, templates included.

    `id` is unique in the definition. `path` is the step's address in an execution: the id, or within a body that
    and the scope before it, as in `loop1[3].fetch`; `depends_on` has paths.
    """

    id: str
    type: str
    queue: str
    name: str = ""
    config: Mapping[str, Any] = None  # type: ignore[assignment]
    depends_on: tuple[str, ...] = ()
    input_mapping: Mapping[str, Any] | None = None
    retry_policy: RetryPolicy | None = None
    timeout: float | None = None
    """Seconds one attempt may take; None leaves it to the type and the execution."""
    on_error: Literal["fail", "continue"] = "fail"
    path: str = ""
    when: Any = None
    """An expression; the step is skipped if it is not true."""
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS
    output_mapping: Mapping[str, Any] | None = None
    priority: int | None = None
    """Of its messages; None leaves it to the execution."""
    cache: Cache | None = None
    compensate: Step | None = None
    """What undoes it."""
    bodies: Mapping[str, Body] = field(default_factory=dict)
    """By the name of the branch; a loop has one, named by the empty text."""

    def __post_init__(self) -> None:
        if not self.path:
            object.__setattr__(self, "path", self.id)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Of the executions for which `key` comes to the same, `limit` may run at a time."""

    key: Any
    limit: int


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Of the executions for which `key` comes to the same (of all, without one), `limit` may begin in any `per`
    seconds."""

    limit: int
    per: float
    key: Any = None


@dataclass(frozen=True, slots=True)
class Definition:
    """A whole workflow. `source` is the document as it was given, which is what is stored and shown."""

    steps: tuple[Step, ...]
    source: Mapping[str, Any]
    version: str = "1.0"
    name: str = ""
    description: str = ""
    variables: Mapping[str, Any] = None  # type: ignore[assignment]
    outputs: Mapping[str, Any] | None = None
    timeout: float | None = None
    """Seconds an execution may take; None leaves it to the settings."""
    inputs: Mapping[str, Any] | None = None
    """The JSON Schema of an execution's input."""
    max_concurrent: int | None = None
    """Executions of it that may run at a time."""
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None
    run_limit: int | None = None
    """Executions after whose end the workflow is completed."""
    max_failures: int | None = None
    """Executions that fail in a row, after which the workflow has failed."""
    on_failure: tuple[Step, ...] = ()
    finally_: tuple[Step, ...] = ()
