"""What starts executions: one file a type. A plugin's own types need nothing but this."""

from beat.triggers.contract import TriggerType
from orchestrator.plugins import hookimpl

__all__ = ["TriggerType", "hookimpl"]
