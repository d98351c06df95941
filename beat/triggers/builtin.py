"""The trigger types that come with the orchestrator, registered the way a third party registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from beat.triggers.condition import Condition
from beat.triggers.event import Event
from beat.triggers.manual import Manual
from beat.triggers.schedule import Schedule
from beat.triggers.webhook import Webhook
from orchestrator.plugins import TriggerTypeInfo, hookimpl


@hookimpl
def orchestrator_trigger_types() -> Iterable[TriggerTypeInfo]:
    return [Condition(), Event(), Manual(), Schedule(), Webhook()]
