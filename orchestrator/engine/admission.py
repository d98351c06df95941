"""Letting in those that wait, when an execution has ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.config import Settings
from orchestrator.engine.plan import Message, Plan
from orchestrator.store import Store, admission
from orchestrator.store.admission import Admitted

_KEYS = 100


def admit(store: Store, settings: Settings, freed: Collection[str] = ()) -> list[Admitted]:
    """Admit what may run now; the first steps of it."""
    return admission.admit(store, settings.scheduler.max_concurrent, freed)


def admit_all(store: Store, settings: Settings) -> list[Plan]:
    """For reconcile: let in whoever waits although there is room, since the one that was to say so died."""
    with store.single() as connection:
        keys = admission.keys_with_room(connection, _KEYS)
        if not keys and not admission.is_asked_for(connection):
            return []
    return plans_of_admitted(admit(store, settings, keys))


def plans_of_admitted(admitted: Iterable[Admitted]) -> list[Plan]:
    """The messages for the first steps of executions that have been admitted: one for each execution and queue."""
    starts: dict[tuple[str, int], dict[str, list[str]]] = {}
    for one in admitted:
        starts.setdefault((one.execution_id, one.priority), {}).setdefault(one.queue, []).append(one.path)
    return [
        Plan(execution_id, priority, tuple((Message(queue, tuple(paths)),) for queue, paths in queues.items()))
        for (execution_id, priority), queues in starts.items()
    ]
