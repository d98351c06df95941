"""Statistics of a workflow, and of all that one may see."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from flask import Response, jsonify
from marshmallow import ValidationError, fields

from api.access import allowed
from api.body import Blueprint
from api.schemas import _In, _Out
from api.service import service
from orchestrator.definition.durations import parse_duration
from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus
from orchestrator.store import stats, workflows
from orchestrator.store.stats import Point, Which

blueprint = Blueprint("stats", __name__, url_prefix="/api/v1", description="Statistics")

SLOT = 300.0
"""Seconds that counts are kept by: a window begins with one."""
_SHORTEST, _LONGEST = 3600.0, 90 * 86400.0
_WIDTHS = (SLOT, 3600.0, 6 * 3600.0, 86400.0)
_POINTS = 60
"""Points of a series at most."""
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Window(fields.Field[float]):
    """A duration from an hour to 90 days, in seconds."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if not _SHORTEST <= seconds <= _LONGEST:
            raise ValidationError("must be from 1h to 90d")
        return seconds


class StatsQuery(_In):
    window = Window(load_default=86400.0, metadata={"type": "string", "default": "24h", "description": "1h to 90d"})


class CountsOut(_Out):
    completed = fields.Integer()
    failed = fields.Integer()
    cancelled = fields.Integer()


class PointOut(CountsOut):
    begins = fields.DateTime()
    success_rate = fields.Float(allow_none=True)


class BucketOut(_Out):
    up_to = fields.Float(metadata={"description": "seconds"})
    count = fields.Integer()


class QuantilesOut(_Out):
    """Seconds, to within a tenth."""

    p50 = fields.Float(allow_none=True)
    p95 = fields.Float(allow_none=True)
    p99 = fields.Float(allow_none=True)


class DurationOut(QuantilesOut):
    mean = fields.Float(allow_none=True)
    histogram = fields.List(fields.Nested(BucketOut))


class StepStatsOut(CountsOut):
    step_id = fields.String()
    skipped = fields.Integer()
    retried = fields.Integer(metadata={"description": "took more than one attempt"})
    retried_completed = fields.Integer()
    mean_duration = fields.Float(allow_none=True)


class RetriesOut(_Out):
    steps = fields.Integer(metadata={"description": "that took more than one attempt"})
    completed = fields.Integer()
    success_rate = fields.Float(allow_none=True)


class StatsOut(_Out):
    """What ended in the window."""

    since = fields.DateTime()
    until = fields.DateTime()
    counts = fields.Nested(CountsOut)
    success_rate = fields.Float(allow_none=True, metadata={"description": "completed share, 0..1"})
    success_rate_change = fields.Float(
        allow_none=True, metadata={"description": "against the window of the same length before this one"}
    )
    series = fields.List(fields.Nested(PointOut))
    duration = fields.Nested(DurationOut, metadata={"description": "of what completed or failed"})
    queue_wait = fields.Nested(QuantilesOut, metadata={"description": "from the start to the first step"})
    error_kinds = fields.Dict(keys=fields.String(), values=fields.Integer())
    retries = fields.Nested(RetriesOut)


class WorkflowStatsOut(StatsOut):
    steps = fields.List(fields.Nested(StepStatsOut))


@blueprint.route("/workflows/<uuid:workflow_id>/stats")
@blueprint.arguments(StatsQuery(), location="query")
@blueprint.response(200, WorkflowStatsOut)
def of_workflow(query: dict[str, Any], workflow_id: UUID) -> Response:
    """What became of a workflow's executions, how long they took and waited, and which steps failed how."""
    with service().store.single() as connection:
        workflows.current(connection, str(workflow_id))  # raises NotFound
        which = Which(str(workflow_id))
        shown = _shown(connection, which, query["window"])
        return jsonify(shown | {"steps": stats.steps(connection, which, shown["since"])})


@blueprint.route("/stats")
@blueprint.arguments(StatsQuery(), location="query")
@blueprint.response(200, StatsOut)
def of_all(query: dict[str, Any]) -> Response:
    """Statistics of all executions that you may see."""
    with service().store.single() as connection:
        return jsonify(_shown(connection, Which(projects=allowed()), query["window"]))


def _shown(connection: Any, which: Which, window: float) -> dict[str, Any]:
    until = datetime.now(UTC)
    since = _slot(until - timedelta(seconds=window))
    width = next((width for width in _WIDTHS if window / width <= _POINTS), _WIDTHS[-1])
    points, ended = stats.ended(connection, which, since, width)
    counts = _counts((row.status, row.number) for row in ended)
    before = stats.counts(connection, which, since - timedelta(seconds=window), since)
    rate, rate_before = _rate(counts), _rate(_counts(before.items()))
    measured = [row for row in ended if row.status != ExecutionStatus.CANCELLED]
    number = sum(row.number for row in measured)
    durations = stats.buckets(sum(row.durations for row in measured))
    trouble = stats.trouble(connection, which, since)
    retried, completed = trouble.retried, trouble.retried_completed
    return {
        "since": since,
        "until": until,
        "counts": counts,
        "success_rate": rate,
        "success_rate_change": None if rate is None or rate_before is None else round(rate - rate_before, 6),
        "series": _series(points),
        "duration": {
            "mean": sum(row.seconds for row in measured) / number if number > 0 else None,
            **_quantiles(durations),
            "histogram": [
                {"up_to": round(stats.upper_bound(bucket), 6), "count": count}
                for bucket, count in enumerate(durations)
                if count > 0
            ],
        },
        "queue_wait": _quantiles(stats.buckets(sum(row.waits for row in measured))),
        "error_kinds": trouble.error_kinds,
        "retries": {"steps": retried, "completed": completed, "success_rate": completed / retried if retried else None},
    }


def _series(points: Iterable[Point]) -> list[dict[str, Any]]:
    series = []
    for begins, rows in groupby(points, key=lambda point: point.begins):
        counts = _counts((row.status, row.number) for row in rows)
        series.append({"begins": begins, **counts, "success_rate": _rate(counts)})
    return series


def _counts(numbers: Iterable[tuple[str, int]]) -> dict[str, int]:
    """By each status that an end can have."""
    counts: dict[str, int] = dict.fromkeys(sorted(EXECUTION_TERMINAL), 0)
    for status, number in numbers:
        counts[status] += number
    return counts


def _slot(moment: datetime) -> datetime:
    """The beginning of the slot that it lies in."""
    return datetime.fromtimestamp(moment.timestamp() // SLOT * SLOT, UTC)


def _rate(counts: dict[str, Any]) -> float | None:
    ended = sum(counts[status] for status in EXECUTION_TERMINAL)
    return counts[ExecutionStatus.COMPLETED] / ended if ended > 0 else None


def _quantiles(buckets: Any) -> dict[str, float | None]:
    return {name: stats.quantile(buckets, share) for name, share in _SHARES.items()}
