"""Metrics, as Prometheus reads them."""

from __future__ import annotations

import os

import pytest
import sqlalchemy as sa
from deployment import Deployment, deployed, wait_until
from prometheus_client.parser import text_string_to_metric_families
from test_execution import step, workflow
from test_inline_bodies import OneWorker, worker

from orchestrator.config import DatabaseSettings
from orchestrator.metrics import BOUNDS, LE, LOSSES, RETRIES, STORE_ERRORS, Tally, tally
from orchestrator.store import Store, counters

__all__ = ["worker"]  # a fixture


def scraped(deployment: Deployment) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and the values of their labels, in the order of these labels' names."""
    answer = deployment.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_what_ended_is_counted_up(worker: OneWorker):
    before = scraped(worker.servers)
    worker.run(workflow(step("a"), step("b", needs="a")))
    worker.run(workflow(step("a", "fail", retry_policy={"max_attempts": 1}), step("b", needs="a")))
    after = scraped(worker.servers)

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


# --- what workers count -----------------------------------------------------------------------------------------


def test_attempts_retries_and_durations_are_counted_and_outlive_the_workers(
    tmp_path_factory: pytest.TempPathFactory,
):
    policy = {"max_attempts": 3, "initial_delay": "10ms"}
    steps = [step("a"), step("b", needs="a"), step("f", "fail", needs="b", retry_policy=policy)]
    with deployed(tmp_path_factory.mktemp("counting")) as own:
        for times in (1, 2):
            worker = own.start_worker(concurrency=1)
            own.run(workflow(*steps))
            own.stop_worker(worker)
            found = scraped(own)
            assert found["orchestrator_step_attempts_total", ("failed", "fail")] == 3 * times
            assert found["orchestrator_step_attempts_total", ("completed", "noop")] == 2 * times
            assert found["orchestrator_step_retries_total", ("fail",)] == 2 * times
            assert found["orchestrator_step_seconds_count", ("noop",)] == 2 * times
            assert found["orchestrator_step_seconds_bucket", ("+Inf", "noop")] == 2 * times
            assert found["orchestrator_step_seconds_sum", ("noop",)] > 0


def test_what_workers_count_is_shown_while_they_run(deployment: Deployment):
    name = "orchestrator_step_attempts_total", ("completed", "noop")
    before = scraped(deployment).get(name, 0)
    deployment.run(workflow(step("a")))
    wait_until(lambda: scraped(deployment).get(name, 0) > before, what="the beat that brings the counts")


def test_what_cannot_be_told_is_kept_for_the_next_time(servers: Deployment):
    tally.take()
    tally.add(RETRIES, "kept")
    away = Store(servers.settings.database)
    with away.single() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = on")
        with pytest.raises(sa.exc.InternalError, match="read-only"):
            counters.flush(connection)
        connection.exec_driver_sql("RESET default_transaction_read_only")
        tally.add(RETRIES, "kept")
        counters.flush(connection)
        assert counters.read(connection)[RETRIES.name, ("kept",)] == 2
        assert not tally.take()
    away.close()


def test_a_database_that_is_away_is_counted():
    nowhere = Store(DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/nothing"))
    tally.take()
    with pytest.raises(sa.exc.OperationalError), nowhere.single():
        pass
    assert tally.take() == {(STORE_ERRORS.name, ()): 1.0}
    nowhere.close()


def test_a_child_does_not_tell_what_its_parent_has_counted():
    own = Tally()
    own.add(LOSSES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(len(own.take())).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"0"
    assert own.take() == {(LOSSES.name, ()): 1.0}


def test_an_attempt_is_in_the_bucket_of_its_duration():
    own = Tally()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] + 1e-9, BOUNDS[-1] + 1):
        own.attempt("t", "completed", seconds)
    counts = {labels[1]: number for (name, labels), number in own.take().items() if name == "step_seconds_bucket"}
    assert counts == {LE[0]: 2, LE[1]: 1, "+Inf": 1}
