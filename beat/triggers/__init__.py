"""What starts executions: one file a type. A plugin's own types need nothing but this."""

from beat.triggers.contract import TriggerType
from orchestrator.engine.slots import Every, Timetable
from orchestrator.plugins import Found, Looked, hookimpl

__all__ = ["Every", "Found", "Looked", "Timetable", "TriggerType", "hookimpl"]
