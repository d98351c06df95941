"""The four lifecycle hooks: a JSON line for each event, appended to a file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from orchestrator.plugins import ExecutionEvent, StepEvent, hookimpl


class LoggingPlugin:
    """Writes to the file that ACME_EVENT_LOG names; without it, nothing."""

    @hookimpl
    def workflow_started(self, execution: ExecutionEvent) -> None:
        self._write("workflow_started", execution)

    @hookimpl
    def step_started(self, step: StepEvent) -> None:
        self._write("step_started", step)

    @hookimpl
    def step_completed(self, step: StepEvent) -> None:
        self._write("step_completed", step)

    @hookimpl
    def workflow_completed(self, execution: ExecutionEvent) -> None:
        self._write("workflow_completed", execution)

    def _write(self, hook: str, event: Any) -> None:
        path = os.environ.get("ACME_EVENT_LOG")
        if not path:
            return
        line = {"hook": hook, "at": datetime.now(UTC).isoformat(), "pid": os.getpid(), **asdict(event)}
        # One write to a file opened for appending: the lines of several processes do not mix.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)


plugin = LoggingPlugin()
