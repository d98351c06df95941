"""Log lines: in pages, followed, or all of them as a file."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response

from api.body import Blueprint
from api.live.formats import EVENT_STREAM, NDJSON, TEXT, Format
from api.live.selection import Selection
from api.live.stream import stream
from api.live_schemas import EVENT, LINE_EXAMPLE, ResumeHeaders
from api.resources.paging import page
from api.schemas import LogPage, LogQuery
from api.service import service
from orchestrator.store import execution_views, feed, logs

blueprint = Blueprint("logs", __name__, url_prefix="/api/v1", description="Log lines of executions")

_FORMATS: dict[str, Format] = {"json": EVENT_STREAM, "text": TEXT, "ndjson": NDJSON}
_STREAMED = {
    EVENT_STREAM.media_type: {
        "schema": EVENT,
        "example": {"id": "311", "event": "log", "data": LINE_EXAMPLE},
    },
    TEXT.media_type: {
        "schema": {"type": "string"},
        "example": "2030-01-01T08:00:00.123Z info    fetch: 3 pages\n",
    },
    NDJSON.media_type: {"schema": {"type": "string"}, "example": f"{LINE_EXAMPLE}\n"},
}


@blueprint.route("/executions/<uuid:execution_id>/logs")
@blueprint.arguments(LogQuery(), location="query")
@blueprint.arguments(ResumeHeaders(), location="headers", unknown="exclude")
@blueprint.response(200, LogPage)
@blueprint.doc(responses={200: {"content": _STREAMED}})
def of_execution(query: dict[str, Any], headers: dict[str, Any], execution_id: UUID) -> Response:
    """The log lines of an execution's steps, in the order in which they were written."""
    id = str(execution_id)
    with service().store.single() as connection:
        execution_views.assert_exists(connection, id)
    form = query.get("format") or "json"
    if query["follow"] or form != "json":
        return _streamed(id, _FORMATS[form], query, headers.get("after", feed.START))
    wanted = {name: query.get(name) for name in ("step_id", "level", "since", "until")}
    with service().store.single() as connection:
        return page(query, logs.ORDERS, lambda window: logs.listing(connection, window, id, **wanted))


def _streamed(execution_id: str, form: Format, query: dict[str, Any], after: int) -> Response:
    level = query.get("level")
    selection = Selection(
        kinds=frozenset({"log"}),
        execution_id=execution_id,
        step_id=query.get("step_id"),
        levels=None if level is None else frozenset(logs.at_least(level)),
        since=query.get("since"),
        until=query.get("until"),
    )
    with service().store.single() as connection:
        upto = feed.last_number(connection)
    follows = query["follow"]
    response = stream(selection, form, after=after, upto=upto, follows=follows)
    if not follows:
        response.headers["Content-Disposition"] = f'attachment; filename="{execution_id}.log"'
    return response
