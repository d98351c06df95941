"""Statistics: kept by every end of an execution, whoever makes it, and read fast."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from deployment import Deployment
from test_execution import step, workflow

from orchestrator.store import stats
from orchestrator.store.stats import Which


def shown(deployment: Deployment, workflow_id: str, **query: Any) -> dict[str, Any]:
    answer = deployment.client.get(f"/api/v1/workflows/{workflow_id}/stats", query_string=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def test_what_ended_is_counted_and_measured(deployment: Deployment):
    definition = workflow(step("a", value="{{ input.x }}"), step("b", needs="a", value="{{ 6 // input.x }}"))
    workflow_id = deployment.create(definition)
    for x in (1, 2, 3, 0):
        deployment.ended(deployment.execute(workflow_id, {"x": x}))
    found = shown(deployment, workflow_id)
    assert found["counts"] == {"completed": 3, "failed": 1, "cancelled": 0}
    assert found["success_rate"] == 0.75
    assert found["success_rate_change"] is None
    assert sum(point["completed"] for point in found["series"]) == 3
    assert sum(bucket["count"] for bucket in found["duration"]["histogram"]) == 4
    assert 0 < found["duration"]["p50"] <= found["duration"]["p99"] < 30
    assert found["queue_wait"]["p95"] > 0
    assert found["error_kinds"] == {"template": 1}
    steps = {row["step_id"]: row for row in found["steps"]}
    assert (steps["b"]["completed"], steps["b"]["failed"], steps["a"]["completed"]) == (3, 1, 4)
    seen = deployment.client.get(f"/api/v1/workflows/{workflow_id}").json
    assert (seen["execution_count"], seen["success_rate"]) == (4, 0.75)
    assert seen["last_executed"] is not None


def test_retries_are_told_from_those_that_helped(deployment: Deployment):
    policy = {"max_attempts": 2, "initial_delay": "10ms"}
    helps = {**step("helps", "fail", until_attempt=2), "retry_policy": policy}
    not_so = {**step("not_so", "fail"), "retry_policy": policy, "on_error": "continue"}
    workflow_id = deployment.create(workflow(helps, not_so))
    deployment.ended(deployment.execute(workflow_id))
    found = shown(deployment, workflow_id)
    assert found["retries"] == {"steps": 2, "completed": 1, "success_rate": 0.5}


def test_an_execution_that_is_retried_has_not_ended_after_all(deployment: Deployment):
    b = step("b", "fail", needs="a", until_attempt=2, retry_policy={"max_attempts": 1})
    workflow_id = deployment.create(workflow(step("a"), b))
    execution_id = deployment.execute(workflow_id)
    assert deployment.ended(execution_id)["status"] == "failed"
    assert shown(deployment, workflow_id)["counts"] == {"completed": 0, "failed": 1, "cancelled": 0}
    assert deployment.client.post(f"/api/v1/executions/{execution_id}/retry").status_code == 200
    assert deployment.ended(execution_id)["status"] == "completed"
    found = shown(deployment, workflow_id)
    assert found["counts"] == {"completed": 1, "failed": 0, "cancelled": 0}
    assert sum(bucket["count"] for bucket in found["duration"]["histogram"]) == 1
    assert {row["step_id"]: row["completed"] + row["failed"] for row in found["steps"]} == {"a": 1, "b": 2}
    assert deployment.client.get(f"/api/v1/workflows/{workflow_id}").json["execution_count"] == 1


def test_a_cancelled_execution_is_counted(servers: Deployment):
    workflow_id = servers.create(workflow(step("a")))
    execution_id = servers.execute(workflow_id)
    assert servers.client.get(f"/api/v1/workflows/{workflow_id}").json["execution_count"] == 1
    servers.client.post(f"/api/v1/executions/{execution_id}/cancel")
    found = shown(servers, workflow_id)
    assert (found["counts"]["cancelled"], found["success_rate"]) == (1, 0)
    assert servers.client.get(f"/api/v1/workflows/{workflow_id}").json["execution_count"] == 1


def test_old_slots_are_merged_and_nothing_is_lost(servers: Deployment):
    workflow_id = servers.create(workflow(step("a")))
    for _ in range(3):
        servers.client.post(f"/api/v1/executions/{servers.execute(workflow_id)}/cancel")
    mine = "workflow_id = %(id)s::uuid"
    for table in ("execution_stats", "step_stats"):
        columns = [
            name
            for (name,) in servers.sql(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0 "
                "AND attname NOT IN ('slot', 'shard')", table=table,
            )
        ]  # fmt: skip
        names = ", ".join(columns)
        for days, shard in ((2, 7), (2, 8), (30, 7), (30, 9)):
            servers.sql(
                f"INSERT INTO {table} (slot, shard, {names}) SELECT date_trunc('day', now(), 'UTC') "
                f"- {days} * interval '1 day' + {shard} * interval '1 minute', {shard}, {names} FROM {table} "
                f"WHERE {mine} AND slot > now() - interval '1 hour' LIMIT 1",
                id=workflow_id,
            )
    servers.sql(f"UPDATE step_stats SET failed = 2, retried = 1, error_kind = 'timeout' WHERE {mine}", id=workflow_id)
    which, since = Which(workflow_id), datetime.now(UTC) - timedelta(days=60)

    def all_of_it() -> Any:
        with servers.store.single() as connection:
            _, ended = stats.ended(connection, which, since, timedelta(days=90).total_seconds())
            # Sums of floats depend on the order in which they are made.
            return [replace(row, seconds=round(row.seconds, 6)) for row in ended], stats.steps(connection, which, since)

    def of_all() -> Any:
        with servers.store.single() as connection:
            counts = stats.counts(connection, Which(), since, datetime.now(UTC))
            return counts, stats.trouble(connection, Which(), since), stats.totals(connection)

    before, together = all_of_it(), of_all()
    assert sum(row.number for row in before[0]) >= 4
    with servers.store.single() as connection:
        for _ in range(2):
            stats.merge(connection)
    assert (all_of_it(), of_all()) == (before, together)
    rows = servers.sql(
        f"SELECT shard, slot = date_trunc('hour', slot, 'UTC'), slot = date_trunc('day', slot, 'UTC'), "
        f"slot < now() - interval '8 days' FROM execution_stats WHERE {mine} AND slot < now() - interval '1 day'",
        id=workflow_id,
    )
    assert len(rows) == 2
    assert {(shard, hourly, daily or not old) for shard, hourly, daily, old in rows} == {
        (0, True, True),
        (-1, True, True),
    }


@pytest.mark.parametrize("window", ["59m", "91d", "soon", "-1h", "1h 2h"])
def test_a_window_that_is_none_is_refused(servers: Deployment, window: str):
    answer = servers.client.get("/api/v1/stats", query_string={"window": window})
    assert answer.status_code == 422
    assert answer.json["errors"][0]["path"] == "window"


def test_the_statistics_of_all_are_of_all(servers: Deployment):
    before = servers.client.get("/api/v1/stats", query_string={"window": "1h"}).json["counts"]["cancelled"]
    for _ in range(2):
        workflow_id = servers.create(workflow(step("a")))
        servers.client.post(f"/api/v1/executions/{servers.execute(workflow_id)}/cancel")
    after = servers.client.get("/api/v1/stats", query_string={"window": "90d"}).json
    assert after["counts"]["cancelled"] >= before + 2
    assert "steps" not in after


def test_what_an_older_release_has_merged_counts_for_all(servers: Deployment):
    rows = """
        INSERT INTO execution_stats (workflow_id, slot, shard, status, number, seconds, durations, waits)
            SELECT gen_random_uuid(), now() - age * interval '1 day', shard, 'failed', 2, 3.5, 5000000000000, 5
            FROM (VALUES (0, 9), (0, 1), (0, 1), (3, 0), (20, -1), (20, -1)) AS rows (age, shard);
        INSERT INTO step_stats (workflow_id, slot, shard, step_id, error_kind, completed, failed, skipped, cancelled,
                                retried, retried_completed, seconds)
            SELECT workflow_id, slot, shard, 'a', 'timeout', 1, number, 0, 0, 1, 1, 1 FROM execution_stats;
    """
    since = datetime.now(UTC) - timedelta(days=60)
    with servers.older("0025", rows) as store, store.single() as connection:
        _, (failed,) = stats.ended(connection, Which(), since, 86400)
        assert (failed.number, failed.seconds, stats.buckets(failed.durations)) == (12, 21, [0, 30])
        assert stats.trouble(connection, Which(), since) == stats.Trouble({"timeout": 12}, 6, 6)
        assert stats.totals(connection)["executions"] == {"failed": 12}
