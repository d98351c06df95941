"""The audit log, for administrators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flask import Response, current_app
from flask.views import MethodView

from api.access import allowed, project_named
from api.access_schemas import AuditExportQuery, AuditPage, AuditQuery
from api.body import Blueprint
from api.resources.paging import page
from api.service import service
from orchestrator.access import Role
from orchestrator.store import Store, audit
from orchestrator.store.keyset import Window

blueprint = Blueprint("audit", __name__, url_prefix="/api/v1/audit", description="The audit log")

_AT_ONCE = 500


@blueprint.route("")
class Audit(MethodView):
    @blueprint.arguments(AuditQuery(), location="query")
    @blueprint.response(200, AuditPage)
    def get(self, query: dict[str, Any]) -> Response:
        """Who did what, newest first: everything for an administrator of all projects, else what was done in those
        that you administer."""
        which = _filter(query)
        with service().store.single() as connection:
            return page(query, audit.ORDERS, lambda window: audit.listing(connection, window, which))


@blueprint.route("/export")
@blueprint.arguments(AuditExportQuery(), location="query")
@blueprint.response(200, {"type": "string"}, content_type="application/x-ndjson")
def export(query: dict[str, Any]) -> Response:
    """The audit log as newline-delimited JSON, all of it, the oldest first."""
    lines = _lines(service().store, _filter(query))
    return Response(
        lines, mimetype="application/x-ndjson", headers={"Content-Disposition": "attachment; filename=audit.ndjson"}
    )


def _filter(query: dict[str, Any]) -> audit.Filter:
    known = audit.Filter.__dataclass_fields__.keys()
    given = {name: value for name, value in query.items() if name in known}
    if "project" in query:
        given["project_id"] = project_named(query["project"], Role.ADMIN, "project")
    return audit.Filter(projects=allowed(Role.ADMIN), **given)


def _lines(store: Store, which: audit.Filter) -> Iterator[bytes]:
    """In chunks, so that neither memory nor a transaction grows with the log."""
    encode = current_app.json.dumps
    order = audit.ORDERS["at"]
    window = Window(order, _AT_ONCE)

    def chunks() -> Iterator[bytes]:
        here = window
        while True:
            with store.single() as connection:
                rows = audit.listing(connection, here, which)
            yield b"".join(encode(row).encode() + b"\n" for row in rows)
            if len(rows) < _AT_ONCE:
                return
            here = replace(here, after=order.place(rows[-1]))

    return chunks()
