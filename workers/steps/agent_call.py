"""What `agent` steps have in common, whatever the agent speaks: bounded calls, and what they come to.

Every exchange is an `http_call`: it ends in time, reads a bounded answer and leaves its thread free, also where
an asynchronous library is on top of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson
import requests

from orchestrator.errors import StepFailed
from workers.steps.contract import StepContext, config_mistake
from workers.steps.http_call import Response, encoded, may_pass, send, shown

_LONGEST_ID = 1000
_LONGEST_QUOTE = 500
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Running:
    """The agent is at it; `task` is what finds the task again: `task_id`, and what else the protocol needs."""

    task: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Finished:
    output: Mapping[str, Any]


class RemoteAgent(Protocol):
    """An agent, in its protocol. A task that failed there is a StepFailed of kind `agent`; other kinds say that
    the exchange itself came to nothing."""

    def begin(self) -> Running | Finished: ...

    def look(self, task: Mapping[str, str]) -> Running | Finished: ...

    def cancel(self, task: Mapping[str, str]) -> None: ...


@dataclass(frozen=True, slots=True)
class AgentCalls:
    """HTTP exchanges with one agent, of `seconds` each at most."""

    context: StepContext
    agent_id: str
    url: str
    seconds: float
    headers: Mapping[str, str] = field(repr=False)
    """The settings' own, credentials most likely."""

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """The answer, of a status below 300. Raises StepFailed of the kinds of `http_call` and `http_status`."""
        if self.headers and _origin(url) != _origin(self.url):
            raise config_mistake(
                f"agent {self.agent_id!r} at {shown(self.url)} sends its callers to {shown(url)}, where the headers "
                "of its settings do not go; set its url to that place if they may"
            )
        response = send(
            requests.Request(method, url, self._headers(headers), data=body),
            egress=self.context.settings.egress.rules,
            seconds=self.context.within(self.seconds),
            max_bytes=self.context.settings.executor.max_response,
            redirects=False,
        )
        if response.status >= 300:
            raise self._refused(f"{method} {shown(url)}", response)
        return response

    def _headers(self, headers: Mapping[str, str]) -> Mapping[str, str | bytes]:
        merged = requests.structures.CaseInsensitiveDict({**headers, "User-Agent": "orchestrator"})
        merged.update(self.headers)
        return encoded(merged)

    def _refused(self, what: str, response: Response) -> StepFailed:
        return StepFailed(
            f"agent {self.agent_id!r}: {what} answered {response.said}",
            kind="http_status",
            retryable=may_pass(response.status),
            output={"status_code": response.status},
        )

    def malformed(self, why: str) -> StepFailed:
        return StepFailed(
            f"the answer of agent {self.agent_id!r} cannot be understood: {quoted(why)}", kind="agent_protocol"
        )

    def known_id(self, value: object, name: str = "task_id") -> str:
        """`value`, if it is fit to be kept as the id of a task."""
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID or "\0" in value:
            raise self.malformed(f"{name} must be a text of 1 to {_LONGEST_ID} characters")
        return value


def output(
    result: Any, *, text: str = "", artifacts: list[dict[str, Any]] | None = None, task_id: str | None, state: str
) -> dict[str, Any]:
    """The output of an `agent` step, the same for every protocol."""
    return {"result": result, "text": text, "artifacts": artifacts or [], "task_id": task_id, "state": state}


def parsed(text: str) -> Any:
    """What a text says: JSON, if it is an object or an array; else the text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    return text


def quoted(said: object) -> str:
    """What an agent said, as far as a message can hold it."""
    text = said if isinstance(said, str) else orjson.dumps(said).decode()
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None, None
