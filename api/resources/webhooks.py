"""Webhooks: whoever knows the path, and the secret if there is one, starts an execution. No key is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flask import Response, jsonify, request
from werkzeug.exceptions import BadRequest, MethodNotAllowed

from api.audit import about
from api.body import Blueprint, raw_body
from api.errors import MEDIA_TYPE, ProblemSchema, problem
from api.inbound_schemas import WebhookAccepted, WebhookResult
from api.service import service
from orchestrator.engine import webhooks
from orchestrator.engine.signatures import Unsigned, verify
from orchestrator.engine.start import check_payload
from orchestrator.engine.triggers import Fired
from orchestrator.engine.webhooks import Delivery
from orchestrator.errors import NotFound, StepFailed
from orchestrator.lifecycle import EXECUTION_TERMINAL, FireOutcome
from orchestrator.store import executions, triggers
from orchestrator.store.executions import Outcome
from orchestrator.store.triggers import Trigger

blueprint = Blueprint("webhooks", __name__, description="Webhooks")

_SOON, _LATE = 0.02, 0.5
"""Seconds between looks for the result: a twentieth of what it has taken so far, within these."""


@blueprint.route("/webhook/<path:path>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
@blueprint.response(202, WebhookAccepted)
@blueprint.alt_response(200, schema=WebhookResult, description="`respond: result`, and it ended in time")
@blueprint.alt_response(400, schema=ProblemSchema, content_type=MEDIA_TYPE, description="The body cannot be read")
@blueprint.alt_response(401, schema=ProblemSchema, content_type=MEDIA_TYPE, description="The signature is not right")
@blueprint.alt_response(404, schema=ProblemSchema, content_type=MEDIA_TYPE, description="No webhook has this path")
@blueprint.alt_response(405, schema=ProblemSchema, content_type=MEDIA_TYPE, description="... with this method")
@blueprint.alt_response(409, schema=ProblemSchema, content_type=MEDIA_TYPE, description="The workflow is not active")
@blueprint.alt_response(
    422, schema=ProblemSchema, content_type=MEDIA_TYPE, description="It is no input of the workflow"
)
@blueprint.doc(security=[])
def receive(path: str) -> Response:
    """Start the workflow whose webhook trigger has this path and method. A delivery that came before, by the id in
    its headers, is answered as it was then and starts nothing."""
    here = service()
    trigger = _trigger(path)
    config: dict[str, Any] = here.trigger_types[trigger.type].Config().load(trigger.config)
    delivery = _delivery(path)
    try:
        verify(config, delivery.headers, delivery.body)
        delivery_id = webhooks.delivery_id(config, delivery)
        payload = webhooks.payload(config, delivery, webhooks.content(delivery))
    except Unsigned as error:
        about("trigger", trigger.id)
        return problem(401, str(error))
    except ValueError as error:
        raise BadRequest(str(error)) from None
    check_payload(payload, here.settings.executor.max_payload, "payload")
    fired = webhooks.fire_for(here.store, here.programs, trigger, config, payload, delivery_id)
    for plan in fired.plans:
        here.send(plan)
    return _answer(fired, config)


def _trigger(path: str) -> Trigger:
    """The one that this request is for."""
    route = webhooks.route(path)
    with service().store.single() as connection:
        found = {} if route is None else triggers.webhooks_at(connection, route)
    if not found:
        raise NotFound("webhook", f"/webhook/{path}")
    trigger = found.get(request.method)
    if trigger is None:
        raise MethodNotAllowed(sorted(found), f"this webhook takes {' or '.join(sorted(found))}, not {request.method}")
    return trigger


def _delivery(path: str) -> Delivery:
    return Delivery(
        request.method,
        path,
        {name.lower(): value for name, value in request.headers.items()},
        webhooks.flat(request.args.to_dict(flat=False)),
        raw_body(request),
    )


def _answer(fired: Fired, config: Mapping[str, Any]) -> Response:
    body = {"fire_id": fired.fire_id, "execution_id": fired.execution_id}
    if fired.execution_id is None:
        return _not_started(fired, body)
    ended = _awaited(fired.execution_id, config["timeout"]) if config["respond"] == "result" else None
    if ended is None:
        return _accepted(body)
    here, output = service(), ended.output
    with suppress(StepFailed):  # else the references will do
        output = here.programs.artifacts.expand(fired.execution_id, output, here.settings.executor.max_output)
    return jsonify({**body, "status": ended.status, "output": output, "error_message": ended.error_message})


def _not_started(fired: Fired, body: dict[str, Any]) -> Response:
    reason = fired.reason or "nothing was started"
    if fired.outcome == FireOutcome.SKIPPED:
        return problem(409, reason, **body)
    if fired.outcome == FireOutcome.FAILED:
        return problem(422, reason, **body)
    return _accepted(body)


def _accepted(body: dict[str, Any]) -> Response:
    response = jsonify(body)
    response.status_code = 202
    return response


def _awaited(execution_id: str, seconds: float) -> Outcome | None:
    """What came of it, if it ends within the time."""
    began = time.monotonic()
    while True:
        with service().store.single() as connection:
            found = executions.outcome(connection, execution_id)
        passed = time.monotonic() - began
        if found is None or found.status in EXECUTION_TERMINAL:
            return found
        if passed > seconds:
            return None
        time.sleep(min(max(_SOON, passed / 20), _LATE))
