"""The log lines of an attempt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator.store.logs import LogLine
from workers.outcomes import storable_text
from workers.steps.contract import LogLevel

if TYPE_CHECKING:
    from workers.attempt import Attempt

logger = logging.getLogger(__name__)


class LogBuffer:
    """Log lines on their way to where they are kept: at most half a second apart from it, many at a time."""

    _LINES = 200
    _SECONDS = 0.5

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._lines: list[LogLine] = []
        self._left = attempt.settings.executor.max_log
        self._lock = threading.Lock()
        self._keeping = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, message: str, level: LogLevel = "info") -> None:
        message = str(message)  # a type that hands over an exception is understood
        with self._lock:
            if self._left <= 0:
                return
            self._left -= len(message) + 1
            if self._left <= 0:
                message, level = "the log is longer than executor.max_log; the rest is dropped", "warning"
            clean = storable_text(self._attempt.secrets.mask(message))
            self._lines.append(LogLine(datetime.now(UTC), level, clean))
            full = len(self._lines) >= self._LINES
            if not full and self._timer is None:
                self._timer = threading.Timer(self._SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()
        if full:
            self.flush()

    def flush(self) -> None:
        # One at a time: lines stay in their order, and who closes the log leaves none on their way.
        with self._keeping:
            self._keep(self._taken())

    def _taken(self) -> list[LogLine]:
        with self._lock:
            lines, self._lines = self._lines, []
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        return lines

    def _keep(self, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        try:
            self._attempt.keep_log(lines)
        except Exception:  # a step does not fail for its log
            logger.warning("%d log lines of step %s were lost", len(lines), self._attempt.claim.path, exc_info=True)

    def close(self) -> None:
        self.flush()
