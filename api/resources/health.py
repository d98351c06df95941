"""Whether the service can do its work. The one call that needs no key."""

from __future__ import annotations

import logging

from flask import Response, jsonify
from sqlalchemy.exc import SQLAlchemyError

from api.body import Blueprint
from api.schemas import HealthOut
from api.service import service
from orchestrator.engine.reconcile import DUTY
from orchestrator.store import execution_views, workers, workflows

logger = logging.getLogger(__name__)
blueprint = Blueprint("health", __name__, description="Health")


@blueprint.route("/health")
@blueprint.response(200, HealthOut)
@blueprint.alt_response(503, schema=HealthOut)
@blueprint.doc(security=[])
def health() -> Response:
    """Whether the service can do its work. `scheduler` is whoever reconciles and fires timers, `executor` the worker
    processes. `script_isolation` says how many of these run scripts in `bubblewrap`, and how many by `limits` alone;
    /scheduler/status says which."""
    checks, stats, isolation = _looked_at()
    healthy = all(check == "ok" for check in checks.values())
    response = jsonify(
        {
            "status": "healthy" if healthy else "unhealthy",
            "checks": checks,
            "stats": stats,
            "script_isolation": isolation,
        }
    )
    response.status_code = 200 if healthy else 503
    return response


def _looked_at() -> tuple[dict[str, str], dict[str, int], dict[str, int] | None]:
    here = service()
    scheduler = here.settings.scheduler
    try:
        with here.store.single() as connection:
            kept = workers.seconds_since_duty(connection, DUTY)
            beat = workers.seconds_since_newest_beat(connection)
            running, queued = execution_views.live_counts(connection)
            total, active = workflows.counts(connection)
            isolation = workers.script_isolation(connection)
    except SQLAlchemyError:
        logger.warning("the database does not answer", exc_info=True)
        return {"database": "unreachable", "scheduler": "unknown", "executor": "unknown"}, {}, None
    checks = {
        "database": "ok",
        "scheduler": _fresh(kept, scheduler.poll_interval * 5 + 5, "nobody reconciles"),
        "executor": _fresh(beat, scheduler.lease, "no worker process is alive"),
    }
    stats = {
        "active_executions": running,
        "queued_executions": queued,
        "total_workflows": total,
        "active_workflows": active,
    }
    return checks, stats, isolation


def _fresh(seconds: float | None, limit: float, otherwise: str) -> str:
    return "ok" if seconds is not None and seconds <= limit else otherwise
