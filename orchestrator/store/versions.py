"""The versions of a workflow, which never change."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.errors import NotFound
from orchestrator.store import models as tables
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.session import as_dicts

_v = tables.workflow_versions
_LISTED = (_v.c.workflow_id, _v.c.version, _v.c.restored_from, _v.c.created_at)

ORDERS = both_ways(version=(_v.c.version,))


def listing(connection: Connection, window: Window, workflow_id: str) -> list[dict[str, Any]]:
    """A workflow's versions without their definitions."""
    return as_dicts(connection.execute(window.of(sa.select(*_LISTED).where(_v.c.workflow_id == workflow_id))).all())


def get(connection: Connection, workflow_id: str, version: int) -> dict[str, Any]:
    """One with its `definition`, and `resolved`, the same with its step templates written out (None if it has none).
    Raises NotFound."""
    query = sa.select(*_LISTED, _v.c.definition, _v.c.resolved)
    row = connection.execute(query.where(_v.c.workflow_id == workflow_id, _v.c.version == version)).first()
    if row is None:
        raise NotFound("workflow version", f"{workflow_id}/{version}")
    return row._asdict()
