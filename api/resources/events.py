"""Events: CloudEvents that start whatever is triggered by them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from flask import Response, jsonify, request
from werkzeug.exceptions import BadRequest

from api.access import allowed
from api.audit import tell
from api.body import Blueprint, raw_body
from api.examples import EVENT
from api.inbound_schemas import EventsTaken
from api.service import service
from orchestrator.access import Role
from orchestrator.engine import cloudevents, events
from orchestrator.engine.start import check_payload

blueprint = Blueprint("events", __name__, url_prefix="/api/v1/events", description="Events")

_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "source", "specversion", "type"],
    "properties": {
        "id": {"type": "string"},
        "source": {"type": "string", "format": "uri-reference"},
        "specversion": {"const": "1.0"},
        "type": {"type": "string"},
        "subject": {"type": "string"},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"type": "string"},
        "dataschema": {"type": "string", "format": "uri"},
        "data": {},
        "data_base64": {"type": "string"},
    },
}
_BODY = {
    "description": "One event, several, or the data of one whose attributes are headers (ce-id, ce-source, ...)",
    "required": True,
    "content": {
        cloudevents.STRUCTURED: {"schema": _EVENT, "example": EVENT},
        cloudevents.BATCH: {
            "schema": {"type": "array", "items": _EVENT, "maxItems": cloudevents.MAX_BATCH},
            "example": [EVENT],
        },
        # The data may be of any type; JSON stands for all, since generators of clients know no `*/*`.
        "application/json": {"schema": {}, "example": EVENT["data"]},
    },
}


@blueprint.route("", methods=["POST"])
@blueprint.doc(requestBody=_BODY)
@blueprint.response(202, EventsTaken)
def send_events() -> Response:
    """Start what the events trigger. An event that was sent before, by its source and id, starts nothing again."""
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
