"""What a trigger type is: how its config is checked, when it is due if time has a say, and how it may overlap itself.

What fires it is elsewhere: reconcile for what is due by a timetable, the API for what comes from outside, and all of
them by orchestrator/engine/triggers.py, which records each fire once.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import marshmallow

from orchestrator.engine.slots import Timetable
from orchestrator.plugins import Looked, Missed, Overlap


class TriggerType(ABC):
    """The base of all of them. `config` is always as the user wrote it, and valid, unless said otherwise."""

    type: ClassVar[str]

    class Config(marshmallow.Schema):
        """The shape of `config`; keys that are not in it are errors."""

    secret_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the config (dotted paths) that nobody is shown."""

    looks: ClassVar[bool] = False
    """What is due by its timetable is a look, taken by a worker; nothing is started before that says so."""

    def look(self, config: Mapping[str, Any], state: Any) -> Looked:
        """What there is to be found since the look that left `state` (None before the first). A worker calls it, in the
        time of its other work; what it raises is logged, and the next look begins with the same state. So does one
        whose worker died before all that was found had been fired."""
        raise NotImplementedError(f"the trigger type {self.type} says that it looks, and has no look()")

    def check(self, config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """(path within config, what is wrong) of what the schema does not see; it has found nothing."""
        return ()

    def input(self, config: Mapping[str, Any]) -> Any:
        """What an execution gets as its input when nothing else says: what `input` in the config says."""
        return config.get("input") or {}

    def overlap(self, config: Mapping[str, Any]) -> Overlap:
        """What happens when it fires while an execution that it started has not ended: `allow` starts another, `skip`
        does not, `queue_one` lets one wait for it, `cancel_other` ends it."""
        overlap: Overlap = config.get("overlap") or "allow"
        return overlap

    def timetable(self, config: Mapping[str, Any], trigger_id: str) -> Timetable | None:  # noqa: ARG002
        """When it is due by time; None if time is not what fires it."""
        return None

    def missed(self, config: Mapping[str, Any]) -> Missed:  # noqa: ARG002
        """What is done about slots that passed while nothing could fire."""
        return Missed()
