"""What processes count of their work, for /metrics.

Counting adds to a dictionary in memory. What has come together there is added to the counters in the database
(`store/counters.py`) with each beat of a worker's lease and at its end. So the counters outlive processes, and are the
same whichever process of the API is asked; a process that is killed takes what it has counted since its last beat with
it.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

Key = tuple[str, tuple[str, ...]]
"""A measure's name, and a value for each of its labels."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What is counted, named as Prometheus has it, but for the prefix `orchestrator_` and the suffix `_total`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


ATTEMPTS = Measure(
    "step_attempts",
    "Attempts at steps that workers have performed; waiting: it rests, and is gone on with later.",
    ("type", "outcome"),
)
SECONDS = Measure("step_seconds_sum", "What they took together.", ("type",))
BUCKETS = Measure("step_seconds_bucket", "As many took so long, and longer than the bound before.", ("type", "le"))
RETRIES = Measure("step_retries", "Failed attempts at steps that another one follows.", ("type",))
LOSSES = Measure("steps_lost", "Attempts at steps that lost their worker.")
TOKENS = Measure("llm_tokens", "Tokens that llm steps used, as the service counts them.", ("model", "kind"))
HOOK_ERRORS = Measure("hook_errors", "Calls of plugins' hooks that raised.", ("plugin", "hook"))
HOOK_DROPS = Measure(
    "hook_calls_dropped", "Calls of plugins' hooks that were not made: too many waited.", ("plugin", "hook")
)
BROKER_ERRORS = Measure("broker_errors", "Times the broker did not take what was to be sent.")
STORE_ERRORS = Measure("store_errors", "Times the database did not answer, or broke off.")
RECONCILE_ERRORS = Measure("reconcile_errors", "What reconcile could not do and tries again, by its acts.", ("act",))

PLAIN = (
    ATTEMPTS, RETRIES, LOSSES, TOKENS, HOOK_ERRORS, HOOK_DROPS, BROKER_ERRORS, STORE_ERRORS, RECONCILE_ERRORS,
)  # fmt: skip
"""Those that are shown as they are counted; the other two make a histogram."""

BOUNDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0, 1800.0)
"""Seconds; what took longer than the last of them is in a bucket `+Inf`."""
LE = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")


class Tally:
    """What a process has counted since it was last asked."""

    def __init__(self) -> None:
        self._clear()
        # A child begins with nothing: what its parent has counted is the parent's to tell, and a lock that some
        # thread of the parent held at that moment would never be free.
        os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        # One that a signal's handler can take while the thread that it interrupts has it.
        self._lock = threading.RLock()
        self._counts: dict[Key, float] = {}

    def add(self, measure: Measure, *labels: str, number: float = 1.0) -> None:
        self.put_back({(measure.name, labels): number})

    def attempt(self, type: str, outcome: str, seconds: float) -> None:
        self.put_back(
            {
                (ATTEMPTS.name, (type, outcome)): 1.0,
                (SECONDS.name, (type,)): seconds,
                (BUCKETS.name, (type, LE[bisect_left(BOUNDS, seconds)])): 1.0,
            }
        )

    def take(self) -> Mapping[Key, float]:
        """All of it; it is then up to the caller."""
        with self._lock:
            taken, self._counts = self._counts, {}
        return taken

    def put_back(self, counts: Mapping[Key, float]) -> None:
        with self._lock:
            for key, number in counts.items():
                self._counts[key] = self._counts.get(key, 0.0) + number


tally = Tally()
"""That of this process."""
