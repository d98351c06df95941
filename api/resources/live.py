"""Server-sent events: what becomes of an execution, or of all that the caller may see."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response
from werkzeug.exceptions import ServiceUnavailable

from api.access import allowed
from api.body import Blueprint
from api.live.formats import EVENT_STREAM
from api.live.selection import Selection
from api.live.stream import stream
from api.live_schemas import EVENT, EVENT_EXAMPLE, EventsQuery, ExecutionEventsQuery, ResumeHeaders
from api.service import service
from orchestrator.store import execution_views, feed

blueprint = Blueprint("live", __name__, url_prefix="/api/v1", description="Live updates as server-sent events")

_FURTHEST = 50_000
"""Numbers by which a stream of everything can be behind and still be resumed: ten seconds of a service at its limit, a
day of most. Each page of it costs a look at all that has changed since."""


@blueprint.route("/executions/<uuid:execution_id>/events")
@blueprint.arguments(ExecutionEventsQuery(), location="query")
@blueprint.arguments(ResumeHeaders(), location="headers", unknown="exclude")
@blueprint.response(200, EVENT, content_type="text/event-stream", example=EVENT_EXAMPLE)
@blueprint.alt_response(204, description="It has ended, and all of it has been told by `Last-Event-ID`")
def of_execution(query: dict[str, Any], headers: dict[str, Any], execution_id: UUID) -> Response:
    """What has become of an execution so far, and then what becomes of it: `execution`, `step` and `log` events with
    ids, and `end` when it has ended. `Last-Event-ID` resumes after that event."""
    id, after = str(execution_id), headers.get("after", feed.START)
    with service().store.single() as connection:
        execution_views.assert_exists(connection, id)
        upto, end = feed.last_number(connection), feed.end_of(connection, id)
    if end is not None and "after" in headers and end.seq <= after:
        return Response(status=204)  # which tells a browser not to come again
    return stream(Selection(kinds=frozenset(query["kinds"]), execution_id=id), EVENT_STREAM, after=after, upto=upto)


@blueprint.route("/events/stream")
@blueprint.arguments(EventsQuery(), location="query")
@blueprint.arguments(ResumeHeaders(), location="headers", unknown="exclude")
@blueprint.response(200, EVENT, content_type="text/event-stream", example=EVENT_EXAMPLE)
def of_all(query: dict[str, Any], headers: dict[str, Any]) -> Response:
    """What becomes of the executions that you may see, from now on or from `Last-Event-ID`."""
    workflow_id = query.get("workflow_id")
    selection = Selection(
        kinds=frozenset(query["kinds"]),
        workflow_id=None if workflow_id is None else str(workflow_id),
        projects=allowed(),
    )
    upto = feed.settled(service().store)
    if upto is None:
        raise ServiceUnavailable("somebody has been writing to the database for long; try again", retry_after=5)
    after = headers.get("after", upto)
    if upto - _FURTHEST <= after <= upto:
        return stream(selection, EVENT_STREAM, after=after, upto=upto)
    return stream(selection, EVENT_STREAM, after=upto, upto=upto, first=EVENT_STREAM.gap())
