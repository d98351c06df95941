"""What the service measures of itself, in the text format of Prometheus.

Everything is read from the database and the broker when it is asked for: every process of the API answers the same, and
nothing is lost when one of them ends. What workers count is in the database within a few seconds: see
orchestrator/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from flask import Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from api.body import Blueprint
from api.service import service
from orchestrator.engine.overview import scheduler_status
from orchestrator.metrics import BUCKETS, LE, PLAIN, SECONDS, Key
from orchestrator.store import counters, removals, stats, workflows

blueprint = Blueprint("metrics", __name__, description="Metrics")


@blueprint.route("/metrics")
@blueprint.response(
    200,
    {"type": "string"},
    content_type="text/plain",
    description="See https://prometheus.io/docs/instrumenting/exposition_formats/",
)
def metrics() -> Response:
    """What runs, waits and has ended, for Prometheus. It asks for a key like any other call (`authorization` in a
    scrape configuration)."""
    from workers.broker import look

    here = service()
    with here.store.single() as connection:
        totals = stats.totals(connection)
        removed = removals.numbers(connection)
        total, active = workflows.counts(connection)
        counters.flush(connection)
        counted = counters.read(connection)
    status = scheduler_status(here.store, here.settings, look)
    registry = CollectorRegistry()
    registry.register(
        _Read(
            [
                _counter("executions", "Executions that ended.", totals["executions"], "status"),
                _counter("execution_seconds", "What they took together.", totals["seconds"], "status"),
                _counter("steps", "Steps of executions that ended.", totals["steps"], "status"),
                *_counted(counted),
                *_now(status),
                _counter("removed", "What was removed after it had been kept long enough.", removed, "kind"),
                _gauge("workflows", "Workflows.", {"active": active, "all": total}, "which"),
            ]
        )
    )
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Read(Collector):
    """Metrics that have been read already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _counted(counted: Mapping[Key, float]) -> Iterator[Metric]:
    """What workers have counted, and how long attempts took them."""
    for measure in PLAIN:
        counter = CounterMetricFamily(f"orchestrator_{measure.name}", measure.help, labels=measure.labels)
        for (name, labels), value in counted.items():
            if name == measure.name:
                counter.add_metric(labels, value)
        yield counter
    seconds = HistogramMetricFamily("orchestrator_step_seconds", SECONDS.help, labels=SECONDS.labels)
    for (name, labels), total in counted.items():
        if name == SECONDS.name:
            numbers = accumulate(counted.get((BUCKETS.name, (*labels, le)), 0.0) for le in LE)
            seconds.add_metric(labels, list(zip(LE, numbers, strict=True)), total)
    yield seconds


def _now(status: Mapping[str, Any]) -> Iterator[Metric]:
    executions = {name: status["executions"][name] for name in ("running", "queued", "held")}
    yield _gauge(
        "live_executions", "Executions that have a place, wait for one, or are held by a limit.", executions, "state"
    )
    yield _gauge("places", "Executions that may run at a time.", {"": status["executions"]["max_concurrent"]})
    yield _gauge("broker_up", "Whether the broker answers.", {"": int(status["broker"] == "ok")})
    queues = {queue["name"]: queue for queue in status["queues"]}
    for name, help in (
        ("depth", "Messages in a queue."),
        ("waiting", "Steps that wait in a queue."),
        ("oldest_seconds", "How long the first of them has waited."),
        ("workers", "Worker processes that serve a queue."),
    ):
        known = {queue: row[name] for queue, row in queues.items() if row[name] is not None}
        yield _gauge(f"queue_{name}", help, known, "queue")
    slots: dict[str, int] = {}
    busy: dict[str, int] = {}
    for worker in status["workers"]:
        slots[worker["node"]] = slots.get(worker["node"], 0) + (worker["slots"] or 1)
        busy[worker["node"]] = busy.get(worker["node"], 0) + len(worker["steps"])
    yield _gauge("worker_slots", "Steps that a worker performs at a time.", slots, "worker")
    yield _gauge("worker_busy", "Steps that a worker performs now.", busy, "worker")
    yield _gauge(
        "timers_overdue_seconds",
        "How late the timer is that is due longest.",
        {"": status["timers"]["overdue_seconds"]},
    )
    yield _gauge(
        "schedules_lag_seconds",
        "How late the schedule is that is due longest.",
        {"": status["schedules"]["lag_seconds"]},
    )


def _counter(name: str, help: str, values: Mapping[str, float], label: str) -> CounterMetricFamily:
    counter = CounterMetricFamily(f"orchestrator_{name}", help, labels=[label])
    for key, value in values.items():
        counter.add_metric([key], value)
    return counter


def _gauge(name: str, help: str, values: Mapping[str, float], label: str = "") -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"orchestrator_{name}", help, labels=[label] if label else [])
    for key, value in values.items():
        gauge.add_metric([key] if label else [], value)
    return gauge
