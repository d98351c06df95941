"""Step templates: steps that definitions use by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.client.shapes import StepTemplate, StepTemplateDetail
from orchestrator.client.transport import Transport, at

_ROOT = "/api/v1/step-templates"


class StepTemplates:
    def __init__(self, transport: Transport) -> None:
        self._api = transport

    def list(self, **filters: Any) -> Iterator[StepTemplate]:
        """All of them, newest first. Filters: `name`, `sort`."""
        return self._api.items(StepTemplate, _ROOT, **filters)

    def find(self, name: str) -> StepTemplate | None:
        """The one of this name."""
        return next(self.list(name=name), None)

    def get(self, id: str) -> StepTemplateDetail:
        return self._api.get(StepTemplateDetail, at(_ROOT, id))

    def create(self, name: str, step: Mapping[str, Any], **fields: Any) -> StepTemplateDetail:
        """Fields: `parameters`, a JSON Schema of what the step knows as `params`, and `description`."""
        return self._api.post(StepTemplateDetail, _ROOT, {"name": name, "step": step, **fields})

    def update(self, id: str, **fields: Any) -> StepTemplateDetail:
        """Change what is given: `name`, `step`, `parameters`, `description`. Workflow versions that use it stay as they
        are; a workflow that is saved again gets a new one."""
        return self._api.put(StepTemplateDetail, at(_ROOT, id), fields)

    def delete(self, id: str) -> None:
        self._api.delete(at(_ROOT, id))
