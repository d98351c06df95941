"""Letting in those that wait, when an execution has ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy.engine import Connection

from orchestrator.config import Settings
from orchestrator.engine.plan import Message, Plan
from orchestrator.store import Store, admission, rate_line, rates
from orchestrator.store.admission import Admitted
from orchestrator.store.recovery import Ring

_KEYS = 100


def admit(store: Store, settings: Settings, freed: Collection[str] = ()) -> list[Admitted]:
    """Admit what may run now; the first steps of it."""
    return admission.admit(store, settings.scheduler.max_concurrent, freed)


def admit_all(store: Store, settings: Settings) -> list[Plan]:
    """For reconcile: let in whoever waits although there is room, since the one that was to say so died, and whom a
    rate limit does not hold any longer: executions, and steps of those that run."""
    with store.single() as connection:
        woken = plans_of_admitted(rate_line.wake(connection))
        freed = admission.keys_with_room(connection, _KEYS)
        opened = admission.rates_that_let_in(connection, _KEYS)
        if not freed and not opened and not admission.is_asked_for(connection):
            return woken
    places = settings.scheduler.max_concurrent
    return [*woken, *plans_of_admitted(admission.admit(store, places, freed, opened))]


def seconds_to_next_turn(connection: Connection) -> float | None:
    """Until a rate limit lets in an execution or a step that waits for it; None if none does."""
    due = (admission.seconds_to_next_opening(connection), rate_line.seconds_to_next_turn(connection))
    return min((seconds for seconds in due if seconds is not None), default=None)


def keep_rates(connection: Connection, limit: int) -> None:
    """Remove what rate limits are no longer counted from, and who does not wait any more; overlook nobody who does."""
    admission.look_at_forgotten(connection)
    rates.purge(connection, limit)
    rate_line.purge(connection)


def plans_of_admitted(admitted: Iterable[Admitted | Ring]) -> list[Plan]:
    """The messages for the first steps of executions that have been admitted: one for each execution and queue."""
    starts: dict[tuple[str, int], dict[str, list[str]]] = {}
    for one in admitted:
        starts.setdefault((one.execution_id, one.priority), {}).setdefault(one.queue, []).append(one.path)
    return [
        Plan(execution_id, priority, tuple((Message(queue, tuple(paths)),) for queue, paths in queues.items()))
        for (execution_id, priority), queues in starts.items()
    ]
