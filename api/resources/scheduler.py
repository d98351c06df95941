"""What operators look at: the scheduler, a workflow as a whole, and why something does not run."""

from __future__ import annotations

from uuid import UUID

from flask import Response, jsonify

from api.body import Blueprint
from api.overview_schemas import ReasonOut, SchedulerStatus, WorkflowStatusOut
from api.service import service
from orchestrator.engine.overview import scheduler_status
from orchestrator.engine.why import Reason, why_execution, why_step
from orchestrator.store import overview

blueprint = Blueprint("scheduler", __name__, url_prefix="/api/v1", description="What happens, and why not")


@blueprint.route("/scheduler/status")
@blueprint.response(200, SchedulerStatus)
def status() -> Response:
    """Queues, workers and what they do, and what is late. What only the broker knows is null while that is away."""
    from workers.broker import look

    return jsonify(scheduler_status(service().store, service().settings, look))


@blueprint.route("/workflows/<uuid:workflow_id>/status")
@blueprint.response(200, WorkflowStatusOut)
def workflow_status(workflow_id: UUID) -> Response:
    """A workflow's status, and what its executions add up to."""
    with service().store.single() as connection:
        return jsonify(overview.workflow(connection, str(workflow_id)))


@blueprint.route("/executions/<uuid:execution_id>/why")
@blueprint.response(200, ReasonOut)
def execution_why(execution_id: UUID) -> Response:
    """Why an execution is not running now; of one that runs while none of its steps does, why that step does not which
    it waits for."""
    from workers.broker import look

    here = service()
    return _told(why_execution(here.store, here.programs, look, str(execution_id)))


@blueprint.route("/step-executions/<uuid:step_execution_id>/why")
@blueprint.response(200, ReasonOut)
def step_why(step_execution_id: UUID) -> Response:
    """Why a step is not running now."""
    from workers.broker import look

    here = service()
    return _told(why_step(here.store, here.programs, look, str(step_execution_id)))


def _told(reason: Reason) -> Response:
    return jsonify({"reason": reason.reason, "detail": reason.detail, "facts": reason.facts, "since": reason.since})
