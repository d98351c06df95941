"""Metrics, as Prometheus reads them."""

from __future__ import annotations

from deployment import Deployment
from prometheus_client.parser import text_string_to_metric_families
from test_execution import step, workflow


def scraped(deployment: Deployment) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and the values of their labels."""
    answer = deployment.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_what_ended_is_counted_up(deployment: Deployment):
    before = scraped(deployment)
    deployment.run(workflow(step("a"), step("b", needs="a")))
    deployment.run(workflow(step("a", "fail"), step("b", needs="a")))
    after = scraped(deployment)

    def more(name: str, status: str) -> float:
        return after[name, (status,)] - before.get((name, (status,)), 0)

    assert more("orchestrator_executions_total", "completed") == 1
    assert more("orchestrator_executions_total", "failed") == 1
    assert more("orchestrator_steps_total", "completed") == 2
    assert more("orchestrator_steps_total", "failed") == 1
    assert more("orchestrator_steps_total", "skipped") == 1
    assert more("orchestrator_execution_seconds_total", "completed") > 0


def test_what_is_there_now_is_shown(deployment: Deployment):
    found = scraped(deployment)
    assert found["orchestrator_broker_up", ()] == 1
    assert found["orchestrator_places", ()] == deployment.settings.scheduler.max_concurrent
    assert found["orchestrator_queue_workers", ("cpu",)] >= 1
    assert found["orchestrator_queue_depth", ("io",)] >= 0
    assert sum(value for (name, _), value in found.items() if name == "orchestrator_worker_slots") >= 3
    assert found["orchestrator_timers_overdue_seconds", ()] >= 0


def test_metrics_ask_for_a_key(servers: Deployment):
    assert servers.client.application.test_client().get("/metrics").status_code == 401
