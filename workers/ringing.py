"""What beat rings for: the triggers that are due. Reconcile looks for itself; whoever comes first, it is done once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.engine.triggers import Look, fire_due
from workers.dispatch import send_look

if TYPE_CHECKING:
    from workers.process import WorkerProcess


def ring_triggers(process: WorkerProcess) -> None:
    """Fire what is due, until nothing is."""
    more = True
    while more:
        more = False
        for fired in fire_due(process.store, process.programs):
            more = True
            if isinstance(fired, Look):
                send_look(fired.trigger_id)
            else:
                for plan in fired.plans:
                    process.doorbell.ring(plan)
