"""What every operation in /openapi.json has, whatever its view says: a name of its own, and the errors that any of them
may answer with."""

from __future__ import annotations

import re
from typing import Any

from apispec import BasePlugin

_PART = re.compile(r"[A-Za-z0-9]+")


class EveryOperation(BasePlugin):
    def operation_helper(self, path: str | None = None, operations: dict[str, Any] | None = None, **_: object) -> None:
        assert path is not None
        for method, operation in (operations or {}).items():
            operation.setdefault("operationId", _name(method, path))
            for status, name in _errors(path, operation):
                operation["responses"].setdefault(status, name)


def _name(method: str, path: str) -> str:
    """Such as get_workflows_by_workflow_id_versions, which a client generator makes a function's name of."""
    words = []
    for part in path.removeprefix("/api/v1").split("/"):
        words += [*(["by"] if part.startswith("{") else []), *_PART.findall(part)]
    return "_".join([method, *words])


def _errors(path: str, operation: dict[str, Any]) -> list[tuple[str, str]]:
    """(status, name of the response) of what stands before the view: api/guard.py, and Flask itself."""
    found = []
    if operation.get("security") != []:
        found += [("401", "UNAUTHORIZED"), ("403", "FORBIDDEN"), ("429", "TOO_MANY_REQUESTS")]
    if "{" in path:
        found.append(("404", "NOT_FOUND"))
    if "requestBody" in operation:
        found += [("400", "BAD_REQUEST"), ("413", "REQUEST_ENTITY_TOO_LARGE"), ("415", "UNSUPPORTED_MEDIA_TYPE")]
    return found
