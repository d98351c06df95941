"""What the scheduler has to do, who does it, and what is late: for operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config import Settings
from orchestrator.engine.reconcile import DUTY
from orchestrator.store import Store, overview
from orchestrator.store.overview import WaitingQueue, WorkerSeen


@dataclass(frozen=True, slots=True)
class Beat:
    """The clock that holds RedBeat's lock, for `ttl_seconds` more if it does not renew it."""

    holder: str
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class BrokerState:
    """`messages` of each queue by priority, the most urgent ones first; no `beat` if nobody holds the lock."""

    messages: Mapping[str, Sequence[int]]
    beat: Beat | None


Look = Callable[[Sequence[str]], BrokerState]
"""Asks the broker for the messages of some queues, and of those that every deployment has. Raises OSError if it is
away."""


def look_if_there(look: Look, queues: Sequence[str]) -> BrokerState | None:
    """None if the broker is away."""
    try:
        return look(queues)
    except OSError:
        return None


def scheduler_status(store: Store, settings: Settings, look: Look) -> dict[str, Any]:
    """As the API shows it; what only the broker knows is None while that is away."""
    with store.single() as connection:
        waiting = overview.queues(connection)
        workers = overview.workers(connection)
        places = overview.places(connection)
        timers, schedules = overview.timers(connection), overview.schedules(connection)
        reconciler = overview.duty(connection, DUTY)
    named = {queue.name for queue in waiting} | {name for worker in workers for name in worker.queues or ()}
    state = look_if_there(look, sorted(named))
    return {
        "broker": "unreachable" if state is None else "ok",
        "queues": _queues(waiting, workers, state),
        "workers": [asdict(worker) for worker in workers],
        "executions": {**asdict(places), "max_concurrent": settings.scheduler.max_concurrent},
        "timers": {"next_due": timers.next, "overdue_seconds": timers.late},
        "schedules": {"next_due": schedules.next, "lag_seconds": schedules.late},
        "reconciler": asdict(reconciler),
        "beat": None if state is None else _beat(state.beat),
    }


def _queues(
    waiting: Sequence[WaitingQueue], workers: Sequence[WorkerSeen], state: BrokerState | None
) -> list[dict[str, Any]]:
    """Those in which anything waits, or that a worker serves."""
    rows = {queue.name: queue for queue in waiting}
    depths = {} if state is None else {name: sum(counts) for name, counts in state.messages.items()}
    serving: dict[str, int] = {}
    for worker in workers:
        for name in worker.queues or ():
            serving[name] = serving.get(name, 0) + 1
    named = rows.keys() | serving.keys() | {name for name, depth in depths.items() if depth}
    return [
        {
            "name": name,
            "depth": depths.get(name),
            "waiting": rows[name].waiting if name in rows else 0,
            "oldest_seconds": rows[name].oldest_seconds if name in rows else None,
            "workers": serving.get(name, 0),
        }
        for name in sorted(named)
    ]


def _beat(beat: Beat | None) -> dict[str, Any]:
    return {"holder": None, "ttl_seconds": None} if beat is None else asdict(beat)
