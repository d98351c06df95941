"""Results that later executions of the same workflow may take instead of doing a step again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from orchestrator.store.session import run, to_json


@dataclass(frozen=True, slots=True)
class Key:
    """What a result is kept under: `digest` is that of the rendered key."""

    workflow_id: str
    step_id: str
    digest: str


def key(workflow_id: str, step_id: str, value: Any) -> Key:
    encoded = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return Key(workflow_id, step_id, hashlib.sha256(encoded).hexdigest())


def find(connection: Connection, key: Key) -> tuple[Any] | None:
    """(output,) of a result that has not expired."""
    row = run(
        connection,
        "SELECT output FROM cached_results WHERE workflow_id = %(workflow)s::uuid AND step_id = %(step)s "
        "AND key = %(key)s AND expires_at > clock_timestamp()",
        {"workflow": key.workflow_id, "step": key.step_id, "key": key.digest},
    ).first()
    return None if row is None else (row.output,)


def keep(connection: Connection, key: Key, output: Any, ttl: float) -> None:
    """Keep a result for `ttl` seconds."""
    run(
        connection,
        "INSERT INTO cached_results (workflow_id, step_id, key, output, expires_at) "
        "VALUES (%(workflow)s::uuid, %(step)s, %(key)s, %(output)s::jsonb, "
        "clock_timestamp() + %(ttl)s * interval '1 second') "
        "ON CONFLICT (workflow_id, step_id, key) "
        "DO UPDATE SET output = excluded.output, expires_at = excluded.expires_at",
        {
            "workflow": key.workflow_id,
            "step": key.step_id,
            "key": key.digest,
            "output": to_json(output),
            "ttl": ttl,
        },
    )


def purge(connection: Connection, limit: int) -> int:
    """Remove expired results; how many."""
    return run(
        connection,
        "DELETE FROM cached_results WHERE ctid IN (SELECT ctid FROM cached_results "
        "WHERE expires_at < clock_timestamp() LIMIT %(limit)s)",
        {"limit": limit},
    ).rowcount
