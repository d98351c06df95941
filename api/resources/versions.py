"""The versions of a workflow: what each says, how two differ, and going back to one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from flask import Response, jsonify

from api.access import version_number
from api.body import Blueprint
from api.resources.paging import page
from api.resources.workflows import TAGGED, shown
from api.schemas import WorkflowDetail
from api.service import service
from api.trigger_secrets import masked_changes, masked_definition
from api.version_schemas import VersionChanges, VersionDetail, VersionPage, VersionQuery
from orchestrator.definition import load_definition
from orchestrator.definition.changes import Change
from orchestrator.engine import triggers
from orchestrator.store import versions, workflows

blueprint = Blueprint(
    "versions", __name__, url_prefix="/api/v1/workflows/<uuid:workflow_id>/versions", description="Versions"
)


@blueprint.route("")
@blueprint.arguments(VersionQuery(), location="query")
@blueprint.response(200, VersionPage)
def version_list(query: dict[str, Any], workflow_id: UUID) -> Response:
    """List a workflow's versions, newest first."""
    with service().store.single() as connection:
        workflows.current(connection, str(workflow_id))
        return page(query, versions.ORDERS, lambda window: versions.listing(connection, window, str(workflow_id)))


@blueprint.route(f"/{version_number('version')}")
@blueprint.response(200, VersionDetail)
def version(workflow_id: UUID, version: int) -> Response:
    """One version with its definition."""
    with service().store.single() as connection:
        found = versions.get(connection, str(workflow_id), version)
    resolved = found["resolved"]
    shown = {
        "definition": masked_definition(found["definition"]),
        "resolved": None if resolved is None else masked_definition(resolved),
    }
    return jsonify({**found, **shown})


@blueprint.route(f"/{version_number('old')}/diff/{version_number('new')}")
@blueprint.response(200, VersionChanges)
def diff(workflow_id: UUID, old: int, new: int) -> Response:
    """What `new` says other than `old`, by path."""
    with service().store.single() as connection:
        was, now = (versions.get(connection, str(workflow_id), version) for version in (old, new))
    written = masked_changes(was["definition"], now["definition"])
    known = {change.path for change in written}
    ran, runs = (version["resolved"] or version["definition"] for version in (was, now))
    resolved = [change for change in masked_changes(ran, runs) if change.path not in known]
    return jsonify(
        {
            "workflow_id": workflow_id,
            "old": old,
            "new": new,
            "changes": _shown(written),
            "resolved": _shown(resolved),
        }
    )


def _shown(found: Iterable[Change]) -> list[dict[str, Any]]:
    return [{"kind": change.kind, "path": change.path, "old": change.old, "new": change.new} for change in found]


@blueprint.route(f"/{version_number('version')}/restore", methods=["POST"])
@blueprint.response(200, WorkflowDetail, headers=TAGGED)
def restore(workflow_id: UUID, version: int) -> Response:
    """Make a new version that says what this one says, its step templates as they were then. What runs stays with the
    version it has; nothing changes if the newest says just that."""
    here = service()
    with here.store.transaction() as connection:
        wanted = versions.get(connection, str(workflow_id), version)
        # A release may refuse what another took.
        load_definition(wanted["resolved"] or wanted["definition"], here.catalogue)
        workflows.update(
            connection, str(workflow_id), {}, wanted["definition"], wanted["resolved"], restored_from=version
        )
        triggers.keep_in_step(connection, here.trigger_types, str(workflow_id), wanted["definition"])
    return shown(workflow_id)
