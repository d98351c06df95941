"""Executions and their steps: following them, controlling them, and why they do not run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

from orchestrator.client.errors import ClientError
from orchestrator.client.events import Event
from orchestrator.client.shapes import Execution, ExecutionDetail, LogEvent, LogLine, Reason, Signal, StepExecution
from orchestrator.client.transport import Transport, at

TERMINAL = frozenset(("completed", "failed", "cancelled"))

_ROOT = "/api/v1/executions"
_STEPS = "/api/v1/step-executions"
_SOON, _LATE = 0.1, 2.0
"""Seconds between two looks at what goes on, where no stream tells."""
_QUIET = 20.0
"""Seconds in which a stream says something, and be it a heartbeat."""


class Executions:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[Execution]:
        """All of them, newest first, without their steps. Filters: `workflow_id`, `status`, `rerun_of`,
        `created_after`, `created_before`, `sort`; `limit` is the size of a page."""
        return self._api.items(Execution, _ROOT, **filters)

    def get(self, id: str) -> ExecutionDetail:
        """With its `step_executions`."""
        return self._api.get(ExecutionDetail, at(_ROOT, id))

    def follow(self, id: str, changed: Callable[[StepExecution], None]) -> ExecutionDetail:
        """The execution at its end. `changed` is called with each step execution that has moved."""
        seen: dict[str, tuple[str, int]] = {}
        for execution in self._looks(id, "execution,step"):
            for step in execution["step_executions"]:
                state = (step["status"], step["attempt"])
                if seen.get(step["path"]) != state and step["status"] != "pending":
                    seen[step["path"]] = state
                    changed(step)
        return execution

    def wait(self, id: str, timeout: float | None = None) -> ExecutionDetail:
        """The execution at its end. Raises TimeoutError if that has not come within `timeout` seconds."""
        for execution in self._looks(id, "execution", timeout):
            if execution["status"] in TERMINAL:
                return execution
        raise TimeoutError(f"execution {id} has not ended within {timeout:g} s; it goes on")

    def _looks(self, id: str, kinds: str, timeout: float | None = None) -> Iterator[ExecutionDetail]:
        """The execution now and whenever something has become of it, until its end or for `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        for _ in self._bells(id, kinds, until):
            asked = time.monotonic()
            execution = self.get(id)
            yield execution
            now = time.monotonic()
            if execution["status"] in TERMINAL or (until is not None and now >= until):
                return
            # A large execution takes the service longer to show: ask for it in proportion.
            time.sleep(min(_LATE, 5 * (now - asked)))

    def _bells(self, id: str, kinds: str, until: float | None) -> Iterator[None]:
        """When to look: now, whenever the stream of its events says something, and every now and then once there is no
        stream, or one that is held back on its way."""
        yield
        after, said = None, True
        with suppress(ClientError):
            while said:
                said = False
                quiet = _QUIET if until is None else min(_QUIET, max(until - time.monotonic(), _SOON))
                for told in self._api.stream(at(_ROOT, id, "events"), after=after, quiet=quiet, kinds=kinds):
                    if told:
                        after, said = told[-1].id, True
                        yield
                        if until is not None and time.monotonic() + quiet > until:
                            break  # the next stream is as patient as there is time left
        pause = _SOON
        while True:
            time.sleep(pause if until is None else min(pause, max(until - time.monotonic(), 0)))
            yield
            pause = min(_LATE, pause * 1.2)

    def logs(self, id: str, **filters: Any) -> Iterator[LogLine]:
        """The lines that its steps have written, in their order. Filters: `step_id`, `level` (at least), `since`,
        `until`, `sort`."""
        return self._api.items(LogLine, at(_ROOT, id, "logs"), **filters)

    def follow_logs(self, id: str, **filters: Any) -> Iterator[LogEvent]:
        """The same lines, and then those that are still written, until it has ended. Filters: `step_id`, `level`,
        `since`, `until`."""
        for event in self._api.events(at(_ROOT, id, "logs"), follow=True, **filters):
            if event.kind == "log":
                yield cast(LogEvent, event.data)

    def events(
        self, id: str, *, kinds: Iterable[str] = ("execution", "step"), after: str | None = None
    ) -> Iterator[Event]:
        """What has become of it, and then what becomes of it, until an `end` event; with `after`, the id of an event,
        from there on. Kinds: `execution`, `step`, `log`."""
        return self._api.events(at(_ROOT, id, "events"), after=after, kinds=",".join(kinds))

    def delete(self, id: str) -> None:
        """Remove it with its steps and their logs; Conflict while it is live."""
        self._api.delete(at(_ROOT, id))

    def pause(self, id: str) -> ExecutionDetail:
        """Let no step of it begin any more; those that run come to their end."""
        return self._control(id, "pause")

    def resume(self, id: str) -> ExecutionDetail:
        return self._control(id, "resume")

    def cancel(self, id: str) -> ExecutionDetail:
        """End it within seconds. What undoes its steps, and what runs at its end, still runs."""
        return self._control(id, "cancel")

    def retry(self, id: str) -> ExecutionDetail:
        """Do again what failed or was cancelled; what completed is kept."""
        return self._control(id, "retry")

    def _control(self, id: str, action: str) -> ExecutionDetail:
        return self._api.post(ExecutionDetail, at(_ROOT, id, action), repeated=True)

    def rerun(self, id: str, *, idempotency_key: str | None = None, **changes: Any) -> ExecutionDetail:
        """A new execution that does this one again. Changes: `from_step`, before which results are kept, `input`,
        `version`, `priority`."""
        return self._api.start(ExecutionDetail, at(_ROOT, id, "rerun"), changes, idempotency_key)

    def why(self, id: str) -> Reason:
        """Why it is not running now."""
        return self._api.get(Reason, at(_ROOT, id, "why"))

    def signal(self, id: str, name: str, payload: Any = None) -> Signal:
        """Send a message to the step that waits for this name, now or when it comes to it."""
        return self._api.post(Signal, at(_ROOT, id, "signals"), {"name": name, "payload": payload})

    def bulk(self, action: str, *, limit: int = 1000, **which: Any) -> Mapping[str, Any]:
        """`cancel`, `retry` or `delete` many, the oldest first. Which: `ids`, `workflow_id`, `status`, `created_after`,
        `created_before`."""
        return self._api.post(dict[str, Any], f"{_ROOT}/bulk", {"action": action, "filter": which, "limit": limit})


class Steps:
    """Step executions, by their own ids."""

    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def get(self, id: str) -> StepExecution:
        return self._api.get(StepExecution, at(_STEPS, id))

    def output(self, id: str) -> Any:
        return self._api.get(dict[str, Any], at(_STEPS, id, "output"))["output"]

    def why(self, id: str) -> Reason:
        """Why it is not running now."""
        return self._api.get(Reason, at(_STEPS, id, "why"))

    def retry(self, id: str) -> StepExecution:
        """Do it again after it failed or was cancelled, and what hangs on it."""
        return self._api.post(StepExecution, at(_STEPS, id, "retry"), repeated=True)

    def decide(self, id: str, *, approved: bool, comment: str | None = None, by: str | None = None) -> StepExecution:
        """Approve or reject what an approval step waits for."""
        body = {"approved": approved, "comment": comment, "by": by}
        return self._api.post(StepExecution, at(_STEPS, id, "decision"), body)
