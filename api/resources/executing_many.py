"""One call that starts many executions of a workflow."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response, jsonify

from api.audit import came_to
from api.body import Blueprint
from api.schemas import ExecuteManyIn, ExecuteManyOut
from api.service import service
from orchestrator.engine.start import Started
from orchestrator.engine.start_many import Outcome, Wanted, start_executions
from orchestrator.errors import InputError

blueprint = Blueprint("executing_many", __name__, url_prefix="/api/v1/workflows", description="Workflows")


@blueprint.route("/<uuid:workflow_id>/execute/bulk", methods=["POST"])
@blueprint.arguments(ExecuteManyIn())
@blueprint.response(200, ExecuteManyOut)
@blueprint.doc(operationId="bulk_execute_workflow")
def execute_many(given: dict[str, Any], workflow_id: UUID) -> Response:
    """Start an execution of the newest version for each input. What is wrong with one keeps no other back; those that
    were started are stored when this answers, whatever dies afterwards."""
    here = service()
    wanted = [Wanted(**item) for item in given["items"]]
    outcomes = start_executions(here.store, here.programs, str(workflow_id), wanted)
    started = [outcome for outcome in outcomes if isinstance(outcome, Started)]
    here.send_all([one.plan for one in started if one.plan is not None])
    new = [one.execution_id for one in started if one.is_new]
    came_to({"executions": new})
    return jsonify(
        {
            "items": [_shown(outcome) for outcome in outcomes],
            "started": len(new),
            "existing": len(started) - len(new),
            "refused": len(outcomes) - len(started),
        }
    )


def _shown(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Started):
        return {"id": outcome.execution_id, "is_new": outcome.is_new, "detail": None, "errors": []}
    problems = outcome.problems if isinstance(outcome, InputError) else ()
    detail = "the input is not valid" if problems else str(outcome)
    errors = [{"path": problem.path, "message": problem.message} for problem in problems]
    return {"id": None, "is_new": False, "detail": detail, "errors": errors}
