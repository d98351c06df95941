"""Workflows and their immutable versions."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.lifecycle import WorkflowStatus
from orchestrator.store.session import run


def current(connection: Connection, workflow_id: str) -> tuple[WorkflowStatus, int]:
    """Status and newest version. Raises NotFound."""
    row = run(
        connection, "SELECT status, version FROM workflows WHERE id = %(id)s::uuid", {"id": workflow_id}
    ).first()
    if row is None:
        raise NotFound("workflow", workflow_id)
    return WorkflowStatus(row.status), row.version


def definition(connection: Connection, workflow_id: str, version: int) -> dict[str, Any]:
    """The document of one version, as it was given. Raises NotFound."""
    source: dict[str, Any] | None = run(
        connection,
        "SELECT definition FROM workflow_versions WHERE workflow_id = %(id)s::uuid AND version = %(version)s",
        {"id": workflow_id, "version": version},
    ).scalar()
    if source is None:
        raise NotFound("workflow version", f"{workflow_id}/{version}")
    return source
