"""From a request to a listener."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace

from flask import Response, current_app, request
from werkzeug.exceptions import ServiceUnavailable, Unauthorized

from api.live.formats import Format
from api.live.handover import handed_over
from api.live.hub import Hub
from api.live.listener import Listener
from api.live.selection import Selection
from api.service import service
from orchestrator.access import Principal, Role
from orchestrator.errors import Forbidden
from orchestrator.store import Store, access


def stream(
    selection: Selection, format: Format, *, after: int, upto: int, follows: bool = True, first: bytes = b""
) -> Response:
    """All of the selection from the number `after`, exclusive, to `upto`, and with `follows` what is still to come.

    Raises ServiceUnavailable if this process has as many listeners as it can have.
    """
    here = service()
    hub = _hub()
    if hub.is_full:
        raise ServiceUnavailable("this process has as many listeners as it can have", retry_after=5)
    look_again = _watch(here.store, selection)
    ends_at = time.monotonic() + here.settings.api.stream_lifetime

    def take(connection: socket.socket, is_chunked: bool) -> None:
        hub.add(
            Listener(
                connection,
                selection,
                format,
                at=after,
                needs=upto,
                follows=follows,
                is_chunked=is_chunked,
                ends_at=ends_at,
                look_again=look_again,
            )
        )

    response = Response(handed_over(request.environ, format.opening + first, take), mimetype=format.media_type)
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep what is told until it is a lot
    return response


def _hub() -> Hub:
    hub: Hub = current_app.extensions["live"]
    return hub


def _watch(store: Store, selection: Selection) -> Callable[[], Selection | None]:
    """Asked again and again while a stream goes on: keys are revoked, and projects change hands."""
    authenticate = current_app.extensions["authenticate"]
    authorization = request.headers.get("Authorization", "")

    def look_again() -> Selection | None:
        try:
            principal: Principal = authenticate(authorization)
            if selection.execution_id is None:
                principal.check_somewhere(Role.VIEWER)
                return replace(selection, projects=principal.projects_with(Role.VIEWER))
            with store.single() as connection:
                project_id = access.project_of(connection, "execution", selection.execution_id)
            return selection if project_id is not None and principal.may(Role.VIEWER, project_id) else None
        except (Unauthorized, Forbidden):
            return None

    return look_again
