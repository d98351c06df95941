"""The API as a Python object: what the command line needs of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from orchestrator.definition import Document, read_definition
from orchestrator.errors import DefinitionError, InputError, OrchestratorError, Problem

TERMINAL = frozenset(("completed", "failed", "cancelled"))

Json = Any


class RequestFailed(OrchestratorError):
    """The service could not be reached, or refused the request; the message says what to do."""


@dataclass(frozen=True, slots=True)
class DefinitionFile:
    """A workflow in a file: a definition itself, or an object whose `definition` is one."""

    path: Path
    document: Document

    @classmethod
    def read(cls, path: Path) -> DefinitionFile:
        """Raises DefinitionError, and RequestFailed if the file cannot be read."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise RequestFailed(f"cannot read {path}: {reason}") from error
        return cls(path, read_definition(text, "json" if path.suffix.lower() == ".json" else "yaml"))

    @property
    def body(self) -> dict[str, Json]:
        """What the API is sent; the name defaults to the file's. Raises DefinitionError."""
        data = self.document.data
        if not isinstance(data, dict):
            raise DefinitionError([Problem("", "must be an object with `steps`", 1)])
        whole = data if self._wrapped else {"definition": data}
        named = data.get("name") or (data["definition"].get("name") if self._wrapped else None)
        return {**whole, "name": named or self.path.stem}

    def problems(self, problems: Sequence[Problem]) -> Iterator[str]:
        """`FILE:LINE: path: message` of each; the line is looked up here, for the API saw no text."""
        for problem in problems:
            path = problem.path if self._wrapped else problem.path.removeprefix("definition").lstrip(".")
            line = problem.line or self.document.line_of(path) or 1
            yield f"{self.path}:{line}: {path or 'definition'}: {problem.message}"

    @property
    def _wrapped(self) -> bool:
        data = self.document.data
        return isinstance(data, dict) and "steps" not in data and isinstance(data.get("definition"), dict)


class Client:
    """A connection to one service. Methods raise RequestFailed; InputError if the answer has problems."""

    def __init__(self, url: str, key: str, *, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        # Ours, not what .netrc or a proxy of the environment says: the service is usually on this machine.
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {key}"

    def save(self, body: dict[str, Json]) -> Json:
        """The active workflow of this name, created or changed to be what `body` says."""
        found = self._call("GET", "/api/v1/workflows", params={"name": body["name"], "is_template": "false"})["items"]
        same = [workflow for workflow in found if workflow["name"] == body["name"]]
        if same:
            # Whatever it is by now: what the file says is what is wanted.
            workflow = self._call("PUT", f"/api/v1/workflows/{same[0]['id']}", json=body, headers={"If-Match": "*"})
        else:
            workflow = self._call("POST", "/api/v1/workflows", json=body)
        if workflow["status"] == "draft":
            workflow = self._call("POST", f"/api/v1/workflows/{workflow['id']}/activate")
        return workflow

    def execute(self, workflow_id: str, given: Json) -> Json:
        """The execution, just started."""
        return self._call("POST", f"/api/v1/workflows/{workflow_id}/execute", json={"input": given})

    def execution(self, execution_id: str) -> Json:
        return self._call("GET", f"/api/v1/executions/{execution_id}")

    def follow(self, execution_id: str, changed: Callable[[Json], None]) -> Json:
        """The execution at its end. `changed` is called with each step execution that has moved."""
        seen: dict[str, tuple[str, int]] = {}
        while True:
            asked = time.monotonic()
            execution = self.execution(execution_id)
            for step in execution["step_executions"]:
                state = (step["status"], step["attempt"])
                if seen.get(step["path"]) != state and step["status"] != "pending":
                    seen[step["path"]] = state
                    changed(step)
            if execution["status"] in TERMINAL:
                return execution
            # A large execution takes the service longer to show: ask for it in proportion.
            time.sleep(min(2.0, max(0.1, 5 * (time.monotonic() - asked))))

    def _call(self, method: str, path: str, **arguments: Any) -> Json:
        try:
            response = self._session.request(method, self.url + path, timeout=self._timeout, **arguments)
        except requests.RequestException as error:
            raise RequestFailed(
                f"cannot reach the service at {self.url}: {_cause(error)}. Check the address, and that "
                "`orchestrator up` runs there."
            ) from error
        if response.ok:
            return response.json()
        try:
            problem = response.json()
            detail = problem.get("detail") or problem.get("title") or response.reason
            listed = problem.get("errors") or []
        except (ValueError, AttributeError):
            detail, listed = response.reason, []
        if response.status_code == 401:
            raise RequestFailed(
                f"{self.url} does not accept the key: set ORCHESTRATOR_ADMIN_KEY to the one in the service's "
                "data folder (file admin-key)."
            )
        if listed:
            raise InputError([Problem(item["path"], item["message"], item.get("line")) for item in listed])
        raise RequestFailed(f"{method} {self.url}{path}: {response.status_code} {detail}")


def _cause(error: BaseException) -> str:
    """The system's own words, from below the layers of exceptions that the HTTP library puts around them."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        reason = getattr(found, "reason", None) or (found.args[0] if found.args else None)
        found = found.__cause__ or found.__context__ or (reason if isinstance(reason, BaseException) else None)
    return str(error)
