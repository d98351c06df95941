"""Events: CloudEvents that start whatever is triggered by them."""

from __future__ import annotations

from collections import defaultdict

from flask import Response, jsonify, request
from werkzeug.exceptions import BadRequest

from api.access import allowed
from api.audit import tell
from api.body import Blueprint, raw_body
from api.errors import MEDIA_TYPE, ProblemSchema
from api.examples import EVENT
from api.inbound_schemas import CloudEvent, EventsTaken
from api.service import service
from orchestrator.access import Role
from orchestrator.engine import cloudevents, events
from orchestrator.engine.start import check_payload

blueprint = Blueprint("events", __name__, url_prefix="/api/v1/events", description="Events")

# Of a list as one body among several, or of a body of any type, openapi-python-client makes calls that always fail. So
# the third form, several events at once, is in words alone, and an object stands for data of any type.
_BODY = {
    "description": "One event, or the data of one whose attributes are headers",
    "required": True,
    "content": {
        cloudevents.STRUCTURED: {"schema": CloudEvent, "example": EVENT},
        "application/json": {"schema": {"type": "object"}, "example": EVENT["data"]},
    },
}
_HEADERS = [
    {
        "name": f"ce-{name}",
        "in": "header",
        "schema": {"type": "string"},
        "description": f"`{name}` of the event whose data the body is",
    }
    for name in ("id", "source", "specversion", "type", "subject", "time", "dataschema")
]


@blueprint.route("", methods=["POST"])
@blueprint.doc(requestBody=_BODY, parameters=_HEADERS)
@blueprint.response(202, EventsTaken)
@blueprint.alt_response(422, schema=ProblemSchema, content_type=MEDIA_TYPE, description="An event is not valid")
def send_events() -> Response:
    """Start what the events trigger. An event that was sent before, by its source and id, starts nothing again.

    Up to 1,000 events are sent at once as a list, of the type application/cloudevents-batch+json."""
    here = service()
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        given = cloudevents.from_http(headers, raw_body(request))
    except cloudevents.NoEvent as error:
        raise BadRequest(str(error)) from None
    for index, event in enumerate(given):
        check_payload(event, here.settings.executor.max_payload, f"[{index}]" if len(given) > 1 else "event")
    taken, started = [], defaultdict[str, list[str]](list)
    for received in events.receive(here.store, here.programs, given, allowed(Role.OPERATOR)):
        for plan in received.fired.plans:
            here.send(plan)
        taken.append(
            {
                "event_id": received.event["id"],
                "trigger_id": received.trigger.id,
                "execution_id": received.fired.execution_id,
                "outcome": received.fired.outcome,
                "reason": received.fired.reason,
            }
        )
        started[received.trigger.project_id].append(received.fired.fire_id)
    tell({project_id: {"fires": fires} for project_id, fires in started.items()})
    response = jsonify({"fired": taken})
    response.status_code = 202
    return response
