"""The trigger types that come with the orchestrator, registered the way a third party registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from beat.triggers.manual import Manual
from beat.triggers.schedule import Schedule
from orchestrator.plugins import TriggerTypeInfo, hookimpl


@hookimpl
def orchestrator_trigger_types() -> Iterable[TriggerTypeInfo]:
    return [Manual(), Schedule()]
