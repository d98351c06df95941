"""What comes to an execution from outside: signals, and decisions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from flask import Response, jsonify

from api.body import Blueprint
from api.schemas import DecisionIn, SignalIn, SignalOut, StepExecutionOut
from api.service import service
from orchestrator.engine import waiting
from orchestrator.engine.start import check_payload
from orchestrator.store import execution_views

blueprint = Blueprint("waiting", __name__, url_prefix="/api/v1", description="Signals and decisions")


@blueprint.route("/executions/<uuid:execution_id>/signals", methods=["POST"])
@blueprint.arguments(SignalIn())
@blueprint.response(202, SignalOut)
def send_signal(given: dict[str, Any], execution_id: UUID) -> Response:
    """Send a named message to an execution: the step that waits for it goes on, now or when it comes to it."""
    here = service()
    check_payload(given["payload"], here.settings.executor.max_payload, "payload")
    signal_id, plan = waiting.send_signal(here.store, here.programs, str(execution_id), given["name"], given["payload"])
    here.send(plan)
    return _accepted({"id": signal_id, "name": given["name"]})


@blueprint.route("/step-executions/<uuid:step_execution_id>/decision", methods=["POST"])
@blueprint.arguments(DecisionIn())
@blueprint.response(202, StepExecutionOut)
def decide(given: dict[str, Any], step_execution_id: UUID) -> Response:
    """Approve or reject what an approval step waits for; 409 if it does not wait (any more), unless it has been told
    the same before."""
    here = service()
    decision = {**given, "decided_at": datetime.now(UTC).isoformat()}
    here.send(waiting.decide(here.store, here.programs, str(step_execution_id), decision))
    with here.store.single() as connection:
        return _accepted(execution_views.get_step(connection, str(step_execution_id)))


def _accepted(body: dict[str, Any]) -> Response:
    response = jsonify(body)
    response.status_code = 202
    return response
