"""Performing one step outside of any execution, for the tests of step types."""

from __future__ import annotations

import uuid
from typing import Any

from orchestrator.config import Settings
from orchestrator.definition.templates import compile_value
from workers.steps.contract import StepContext, StepType


def context_of(
    step_type: StepType,
    config: dict[str, Any],
    *,
    settings: Settings | None = None,
    secrets: dict[str, str] | None = None,
    lines: list[tuple[str, str]] | None = None,
    step_execution_id: str | None = None,
    attempt: int = 1,
    **more: Any,
) -> StepContext:
    """What a worker would hand to `perform` for this config, which is loaded by the type's schema. Log lines are
    added to `lines` as (level, text); `more` are fields of StepContext: input, deadline, state."""
    log = [] if lines is None else lines
    return StepContext(
        execution_id="execution",
        step_execution_id=step_execution_id or str(uuid.uuid4()),
        step_id="step",
        path="loop[1].step",
        attempt=attempt,
        config=step_type.Config().load(config),
        settings=settings or Settings(),
        reveal=lambda value: compile_value(value).render({"secrets": secrets or {}}),
        log=lambda line, level="info": log.append((level, line)),
        **{"input": None, **more},
    )
