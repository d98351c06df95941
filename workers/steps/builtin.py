"""The step types that come with the orchestrator, registered the way a third party registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.plugins import StepTypeInfo, hookimpl
from workers.steps.condition import Condition
from workers.steps.http import Http
from workers.steps.script import Script
from workers.steps.set import Set


@hookimpl
def orchestrator_step_types() -> Iterable[StepTypeInfo]:
    return [Condition(), Http(), Script(), Set()]
