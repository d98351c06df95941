"""Workflows: their definitions in versions, and what starts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from orchestrator.client.shapes import (
    ExecutionDetail,
    Json,
    StartedMany,
    Version,
    VersionChanges,
    VersionDetail,
    Workflow,
    WorkflowDetail,
    WorkflowStats,
    WorkflowStatus,
)
from orchestrator.client.transport import Transport, at

_ROOT = "/api/v1/workflows"


class Workflows:
    """A definition is a dictionary, as JSON has it. Bodies take whatever fields the API takes, by name."""

    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[Workflow]:
        """All of them, newest first. Filters: `q` (words), `name`, `status`, `tags`, `owner_id`, `is_template`, `sort`;
        `limit` is the size of a page."""
        return self._api.items(Workflow, _ROOT, **filters)

    def find(self, name: str) -> Workflow | None:
        """The newest that has exactly this name and is no template."""
        return next(self.list(name=name, is_template=False, limit=1), None)

    def get(self, id: str) -> WorkflowDetail:
        return self._api.get(WorkflowDetail, at(_ROOT, id))

    def create(self, definition: Json, **fields: Any) -> WorkflowDetail:
        """A draft. Fields: `name`, unless the definition has one, `description`, `tags`, `project`, `owner_id`,
        `is_template`."""
        return self._api.post(WorkflowDetail, _ROOT, {"definition": definition, **fields})

    def update(self, id: str, *, version: int | None, **fields: Any) -> WorkflowDetail:
        """Change what is given; `version` is the one that the change is made of, and Outdated is raised if there is
        another by now. With None, whatever is there is changed."""
        tag = "*" if version is None else f'"{version}"'
        return self._api.put(WorkflowDetail, at(_ROOT, id), fields, {"If-Match": tag})

    def save(self, body: Mapping[str, Any]) -> WorkflowDetail:
        """The active workflow of the name that `body` has, created or changed to be what it says."""
        found = self.find(body["name"])
        saved = self.update(found["id"], version=None, **body) if found else self.create(**body)
        return self.activate(saved["id"]) if saved["status"] == "draft" else saved

    def delete(self, id: str) -> None:
        """Remove it with its versions and executions; Conflict while one of these is live."""
        self._api.delete(at(_ROOT, id))

    def activate(self, id: str) -> WorkflowDetail:
        return self._control(id, "activate")

    def pause(self, id: str) -> WorkflowDetail:
        """Let nothing start it until it is resumed; what runs goes on."""
        return self._control(id, "pause")

    def resume(self, id: str) -> WorkflowDetail:
        return self._control(id, "resume")

    def cancel(self, id: str) -> WorkflowDetail:
        """Retire it for good, and cancel what runs."""
        return self._control(id, "cancel")

    def _control(self, id: str, action: str) -> WorkflowDetail:
        return self._api.post(WorkflowDetail, at(_ROOT, id, action), repeated=True)

    def execute(
        self,
        id: str,
        input: Mapping[str, Any] | None = None,
        *,
        priority: int = 5,
        idempotency_key: str | None = None,
    ) -> ExecutionDetail:
        """Start an execution of the newest version. A key of your own makes a call that is repeated later answer with
        the same execution; without one, a connection that breaks starts it once all the same."""
        body = {"input": input or {}, "priority": priority}
        return self._api.start(ExecutionDetail, at(_ROOT, id, "execute"), body, idempotency_key)

    def execute_many(self, id: str, items: Sequence[Mapping[str, Any]]) -> StartedMany:
        """Start up to 1,000 executions: each item has an `input`, and maybe `priority` and `idempotency_key`."""
        keyed = [{**item, "idempotency_key": item.get("idempotency_key") or str(uuid4())} for item in items]
        return self._api.post(StartedMany, at(_ROOT, id, "execute", "bulk"), {"items": keyed}, repeated=True)

    def dry_run(self, id: str, input: Mapping[str, Any] | None = None) -> Json:
        """What an execution would do, and which templates would fail."""
        return self._api.post(dict[str, Any], at(_ROOT, id, "execute"), {"input": input or {}}, dry_run=True)

    def versions(self, id: str) -> Iterator[Version]:
        return self._api.items(Version, at(_ROOT, id, "versions"))

    def version(self, id: str, version: int) -> VersionDetail:
        return self._api.get(VersionDetail, at(_ROOT, id, "versions", version))

    def diff(self, id: str, old: int, new: int) -> VersionChanges:
        return self._api.get(VersionChanges, at(_ROOT, id, "versions", old, "diff", new))

    def restore(self, id: str, version: int) -> WorkflowDetail:
        """Make a new version that says what this one said."""
        return self._api.post(WorkflowDetail, at(_ROOT, id, "versions", version, "restore"))

    def clone(self, id: str, **fields: Any) -> WorkflowDetail:
        """Another draft of the newest version; `name` and other fields may be its own."""
        return self._api.post(WorkflowDetail, at(_ROOT, id, "clone"), fields)

    def instantiate(self, id: str, name: str, **fields: Any) -> WorkflowDetail:
        """A workflow of a template, with values for its `variables`."""
        return self._api.post(WorkflowDetail, at(_ROOT, id, "instantiate"), {"name": name, **fields})

    def export(self, id: str) -> str:
        """The workflow with its triggers as a YAML document; secrets of triggers are ***."""
        return self._api.send("GET", at(_ROOT, id, "export"), repeated=True).decode()

    def import_(self, document: str, *, enable_triggers: bool = False) -> WorkflowDetail:
        """A draft of an exported YAML document, its triggers not enabled unless it is said."""
        return self._api.post(WorkflowDetail, f"{_ROOT}/import", document, enable_triggers=enable_triggers)

    def status(self, id: str) -> WorkflowStatus:
        return self._api.get(WorkflowStatus, at(_ROOT, id, "status"))

    def stats(self, id: str, window: str = "24h") -> WorkflowStats:
        """What ended within the window, of 1h to 90d."""
        return self._api.get(WorkflowStats, at(_ROOT, id, "stats"), window=window)
