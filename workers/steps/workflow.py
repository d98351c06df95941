"""`workflow`: another workflow's execution as a step of this one."""

from __future__ import annotations

from typing import ClassVar

from marshmallow import Schema, fields, validate

from orchestrator.errors import StepFailed
from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus
from workers.steps.contract import Done, QueueClass, StepContext, StepType, Wait


class Workflow(StepType):
    """Starts an execution of `workflow` (its id or name) with `input` (default: the step's mapped input) and waits
    for its end, holding no worker. When this step is cancelled, so is that execution.

    Output: `execution_id`, `status`, `output`. With `wait: false` it does not wait, and the other one goes its own way.
    A failed execution fails the step with kind `workflow`.
    """

    type: ClassVar[str] = "workflow"
    queue: ClassVar[QueueClass] = "control"
    repeatable: ClassVar[bool] = True

    class Config(Schema):
        workflow = fields.String(required=True, validate=validate.Length(min=1))
        input = fields.Raw(allow_none=True)
        wait = fields.Boolean(load_default=True)

    def perform(self, context: StepContext) -> Done | Wait:
        config, workflows = context.config, context.workflows
        if workflows is None:
            raise StepFailed("other workflows cannot be started from here", kind="config", retryable=False)
        if context.state is None:
            child = workflows.start(config["workflow"], config.get("input", context.input), attached=config["wait"])
            execution_id, outcome = child.execution_id, child.outcome
            if not config["wait"]:
                return Done({"execution_id": execution_id, "status": ExecutionStatus.QUEUED, "output": None})
        else:
            execution_id = context.state["execution_id"]
            outcome = workflows.outcome(execution_id)
        if outcome is None or outcome.status not in EXECUTION_TERMINAL:
            return Wait(None, {"execution_id": execution_id}, awaits="child")
        output = {"execution_id": execution_id, "status": outcome.status, "output": outcome.output}
        if outcome.status is not ExecutionStatus.COMPLETED:
            raise StepFailed(
                f"execution {execution_id} of {config['workflow']} {outcome.status}: {outcome.error_message}",
                kind="workflow",
                retryable=False,
                output=output,
            )
        return Done(output)
