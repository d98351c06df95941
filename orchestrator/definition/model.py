"""What a valid definition is once it has been read: frozen, typed, without a trace of YAML."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
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
        return delay * (1 - self.jitter * random.random())  # noqa: S311  (spreads load, guards nothing)

    def allows(self, kind: str, attempt: int) -> bool:
        """Whether a failure of this `kind` at attempt number `attempt` is followed by another attempt."""
        return attempt < self.max_attempts and (not self.retry_on or kind in self.retry_on)


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the graph. `config` is as written, templates included."""

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
