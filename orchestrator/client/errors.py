"""Every error of the client.

ClientError
├── Unreachable          nothing answered, or not in time
└── Refused              the service answered, but did not do it
    ├── Invalid          400, 413, 415, 422: the request is wrong; `problems` says where
    ├── Unauthorized     401: the key is missing or not valid
    ├── Forbidden        403: it takes another role, `role`
    ├── NotFound         404: it is not there, or not for the caller to see
    ├── Conflict         409: its present state, `state`, does not allow it
    ├── Outdated         412: it has changed since the caller saw it
    ├── TooManyRequests  429: try again in `retry_after` seconds
    └── Unavailable      500 and more: the service has failed, or cannot answer now
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import responses
from typing import Any

from orchestrator.errors import OrchestratorError, Problem


class ClientError(OrchestratorError):
    """The base of all of them; the message says what is wrong, where, and what to do."""


class Unreachable(ClientError):
    """Nothing answered at the address, or not in time."""


class Refused(ClientError):
    """The service answered, but did not do it. `status` is that of HTTP, `problems` all that is wrong with a body."""

    def __init__(self, call: str, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self.status = status
        self.detail: str = body.get("detail") or responses.get(status, "an answer that says no more")
        self.problems = tuple(Problem(one["path"], one["message"], one.get("line")) for one in body.get("errors", ()))
        found = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{call}: {status} {self.detail}{found}")
        self.role: str | None = body.get("role")
        self.state: str | None = body.get("state")
        wait = headers.get("Retry-After", "")
        self.retry_after = float(wait) if wait.isdigit() else None


class Invalid(Refused):
    """The request is wrong; `problems` says where."""


class Unauthorized(Refused):
    """The key is missing or not valid."""

    def __str__(self) -> str:
        return (
            f"{super().__str__()}. Set ORCHESTRATOR_KEY, or ORCHESTRATOR_ADMIN_KEY, to a key that is valid there, such "
            "as the one in the file admin-key of the service's data folder."
        )


class Forbidden(Refused):
    """It takes another role, which `role` names."""


class NotFound(Refused):
    """It is not there, or not for the caller to see."""


class Conflict(Refused):
    """Its present state does not allow it; `state` names that."""


class Outdated(Refused):
    """It has changed since the caller saw it: get it, look, and try again."""


class TooManyRequests(Refused):
    """Too many calls; the next is answered in `retry_after` seconds."""


class Unavailable(Refused):
    """The service has failed, or cannot answer now."""


_OF_STATUS: Mapping[int, type[Refused]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Outdated,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: TooManyRequests,
}


def refusal(call: str, status: int, content: bytes, headers: Mapping[str, str]) -> Refused:
    """The error that an answer is; one of a proxy in between says no more than its status."""
    is_ours = headers.get("Content-Type", "").startswith("application/problem+json")
    kind = _OF_STATUS.get(status, Unavailable if status >= 500 else Refused)
    return kind(call, status, json.loads(content) if is_ours else {}, headers)
