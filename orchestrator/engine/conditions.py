"""A condition that is looked at now and then: when its becoming true is worth an execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

Json = Any

TYPE = "condition"
"""The trigger type that these functions serve."""
EXPRESSION_NAMES = frozenset(("output", "error"))
"""What its expression starts from: what came of the probe, and why nothing did."""
MAPPING_NAMES = EXPRESSION_NAMES | {"since", "checked_at"}
"""What the templates of its mapping start from."""
PROBES = ("http", "database")
"""The step types by which it looks; its config names one of them."""
INTERVAL = 60.0
"""Seconds between looks, when its config does not say."""
_EVERY_STATUS = "100-599"
"""An answer that fails a step is something to see for a condition."""
_LONGEST_LOOK = 60.0
_LONGEST_ERROR = 2_000


def probe(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(type, config) of the step that a look performs."""
    if "http" in config:
        return "http", {"expected_status": _EVERY_STATUS, **config["http"]}
    return "database", {"operation": "query", **config["database"]}


def look_timeout(interval: float) -> float:
    """Seconds that a look may take: the next one is to find it ended, or slow ones would pile up."""
    return min(interval, _LONGEST_LOOK)


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a condition, as it is kept with its trigger. Times are ISO 8601 texts."""

    value: bool = False
    """Before the first look it counts as false."""
    since: str | None = None
    """When it was first seen to be as it is."""
    seen_at: str | None = None
    """When it was last seen to be."""
    fired: bool = False
    """Whether this being true has started an execution."""
    checked_at: str | None = None
    error: str | None = None
    """Why the last look found nothing out; the value is then still that of the look before."""

    @classmethod
    def of(cls, kept: Mapping[str, Json] | None) -> State:
        known = kept or {}
        return cls(**{name: known[name] for name in cls.__slots__ if name in known})

    def as_json(self) -> dict[str, Json]:
        return asdict(self)


def is_worth_a_look(state: State, interval: float, now: datetime) -> bool:
    """Messages may come twice, or late and many at once: less than half an interval after a look there is nothing new
    to see."""
    if state.checked_at is None:
        return True
    passed = (now - datetime.fromisoformat(state.checked_at)).total_seconds()
    return not 0 <= passed < interval / 2


def seen(state: State, value: bool, now: datetime) -> State:
    """The state after a look at `now` that found `value`."""
    at = now.isoformat()
    if value == state.value and state.since is not None:
        return replace(state, seen_at=at, checked_at=at, error=None)
    return State(value=value, since=at, seen_at=at, checked_at=at)


def unseen(state: State, error: str, now: datetime) -> State:
    """The state after a look that found nothing out: whether the value has changed is not known, so it has not."""
    return replace(state, checked_at=now.isoformat(), error=error[:_LONGEST_ERROR])


def due_edge(state: State, hold: float) -> str | None:
    """The time since which the condition is true, if it has been seen to be for `hold` seconds and nothing was
    started for it. It names the slot of the fire, so that asking twice is harmless."""
    if not state.value or state.fired or state.since is None or state.seen_at is None:
        return None
    held = datetime.fromisoformat(state.seen_at) - datetime.fromisoformat(state.since)
    return state.since if held >= timedelta(seconds=hold) else None
