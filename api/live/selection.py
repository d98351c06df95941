"""Which entries of the feed a listener is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.store.feed import KINDS, Entry, Kind


@dataclass(frozen=True, slots=True)
class Selection:
    """Entries for which all of this is so; what is None does not matter. What is said of lines is asked of lines."""

    kinds: frozenset[Kind] = frozenset(KINDS)
    execution_id: str | None = None
    workflow_id: str | None = None
    projects: frozenset[str] | None = None
    """Those that the listener may see."""
    step_id: str | None = None
    levels: frozenset[str] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def read(self) -> frozenset[Kind]:
        """The kinds that it takes to tell this, and when it ends."""
        return self.kinds if self.execution_id is None else self.kinds | {"execution"}

    def has(self, entry: Entry) -> bool:
        return (
            entry.kind in self.kinds
            and (self.execution_id is None or entry.execution_id == self.execution_id)
            and (self.workflow_id is None or entry.workflow_id == self.workflow_id)
            and (self.projects is None or entry.project_id in self.projects)
            and (entry.level is None or self._has_line(entry))
        )

    def _has_line(self, line: Entry) -> bool:
        return (
            (self.step_id is None or line.step_id == self.step_id)
            and (self.levels is None or line.level in self.levels)
            and (self.since is None or (line.at is not None and line.at >= self.since))
            and (self.until is None or (line.at is not None and line.at < self.until))
        )
