"""The step types that come with the orchestrator, registered the way a third party registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.plugins import StepTypeInfo, hookimpl
from workers.steps.agent import Agent
from workers.steps.approval import Approval
from workers.steps.condition import Condition
from workers.steps.database import Database
from workers.steps.email import Email
from workers.steps.http import Http
from workers.steps.llm import Llm
from workers.steps.loop import Loop
from workers.steps.mcp import Mcp
from workers.steps.parallel import Parallel
from workers.steps.script import Script
from workers.steps.set import Set
from workers.steps.signal import Signal
from workers.steps.wait import WaitFor
from workers.steps.webhook import Webhook
from workers.steps.workflow import Workflow


@hookimpl
def orchestrator_step_types() -> Iterable[StepTypeInfo]:
    return [
        Agent(),
        Approval(),
        Condition(),
        Database(),
        Email(),
        Http(),
        Llm(),
        Loop(),
        Mcp(),
        Parallel(),
        Script(),
        Set(),
        Signal(),
        WaitFor(),
        Webhook(),
        Workflow(),
    ]
