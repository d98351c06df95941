"""Statistics: kept by every end of an execution, whoever makes it, and read fast."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment
from test_execution import step, workflow

from orchestrator.access import DEFAULT_PROJECT
from orchestrator.store import stats, workflows
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

    def together() -> Any:
        with servers.store.single() as connection:
            now = datetime.now(UTC)
            return stats.totals(connection), [
                (stats.counts(connection, which, since, now), stats.trouble(connection, which, since))
                for which in (Which(), Which(projects=[DEFAULT_PROJECT]))
            ]

    before = all_of_it(), together()
    assert sum(row.number for row in before[0][0]) >= 4
    merge(servers)
    merge(servers)
    assert (all_of_it(), together()) == before
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


# --- projects -------------------------------------------------------------------------------------------------


def merge(deployment: Deployment) -> None:
    with deployment.store.transaction() as connection:
        stats.merge(connection)


def project(deployment: Deployment) -> str:
    name = uuid4().hex
    return str(deployment.client.post("/api/v1/projects", json={"name": name, "description": ""}).json["id"])


def in_project(deployment: Deployment, project_id: str, cancelled: int) -> str:
    """A workflow with so many cancelled executions, which ended an hour ago."""
    workflow_id = deployment.create(workflow(step("a")))
    give(deployment, workflow_id, project_id)
    for _ in range(cancelled):
        deployment.client.post(f"/api/v1/executions/{deployment.execute(workflow_id)}/cancel")
    for table in ("execution_stats", "step_stats"):
        deployment.sql(
            f"UPDATE {table} SET slot = slot - interval '1 hour' WHERE workflow_id = %(id)s::uuid", id=workflow_id
        )
    return workflow_id


def give(deployment: Deployment, workflow_id: str, project_id: str) -> None:
    name = deployment.client.get(f"/api/v1/projects/{project_id}").json["name"]
    address = f"/api/v1/workflows/{workflow_id}"
    answer = deployment.client.put(address, json={"project": name}, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text


def cancelled(deployment: Deployment, *project_ids: str) -> int:
    """Cancelled executions and cancelled steps of these projects, which are as many."""
    since, which = datetime.now(UTC) - timedelta(days=60), Which(projects=project_ids)
    with deployment.store.single() as connection:
        counts = stats.counts(connection, which, since, datetime.now(UTC))
        steps = sum(row["cancelled"] for row in stats.steps(connection, which, since))
    assert steps == counts.get("cancelled", 0)
    return int(steps)


def test_what_a_workflow_did_counts_for_the_project_that_it_is_in(servers: Deployment):
    former, present = project(servers), project(servers)
    workflow_id, other = in_project(servers, former, 3), in_project(servers, former, 1)
    assert cancelled(servers, former) == 4
    merge(servers)
    assert cancelled(servers, former) == 4
    rows = servers.sql("SELECT number FROM execution_stats WHERE workflow_id = %(id)s::uuid", id=former)
    assert sum(number for (number,) in rows) == 4
    servers.client.post(f"/api/v1/executions/{servers.execute(workflow_id)}/cancel")
    give(servers, workflow_id, present)
    assert (cancelled(servers, former), cancelled(servers, present)) == (1, 4)
    assert cancelled(servers, former, present) == 5
    assert servers.client.delete(f"/api/v1/workflows/{workflow_id}").status_code == 204
    assert (cancelled(servers, former), cancelled(servers, present)) == (1, 0)
    give(servers, other, present)
    assert servers.client.delete(f"/api/v1/projects/{former}").status_code == 204
    assert servers.sql("SELECT FROM step_stats WHERE workflow_id = %(id)s::uuid", id=former) == []
    assert cancelled(servers, present) == 1


def test_what_is_merged_after_its_workflow_has_gone_counts_for_all_alone(servers: Deployment):
    theirs = project(servers)
    workflow_id = in_project(servers, theirs, 2)
    since, now = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC)

    def of_all() -> int:
        with servers.store.single() as connection:
            return stats.counts(connection, Which(), since, now)["cancelled"]

    before = of_all()
    assert servers.client.delete(f"/api/v1/workflows/{workflow_id}").status_code == 204
    merge(servers)
    assert (of_all(), cancelled(servers, theirs)) == (before, 0)
    assert servers.sql("SELECT FROM execution_stats WHERE workflow_id = %(id)s::uuid", id=workflow_id) == []


def test_nothing_is_merged_while_a_workflow_moves(servers: Deployment):
    former, present = project(servers), project(servers)
    workflow_id = in_project(servers, former, 2)
    with servers.store.transaction() as connection:
        workflows.update(connection, workflow_id, {"project_id": present}, None)
        merge(servers)
    assert (cancelled(servers, former), cancelled(servers, present)) == (0, 2)
    merge(servers)
    assert (cancelled(servers, former), cancelled(servers, present)) == (0, 2)


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


def test_what_an_older_release_has_merged_counts_for_all_and_for_projects(servers: Deployment):
    rows = """
        INSERT INTO workflows (id, name, version, terms)
            SELECT gen_random_uuid(), 'workflow ' || n, 1, '' FROM generate_series(1, 4) n;
        INSERT INTO execution_stats (workflow_id, slot, shard, status, number, seconds, durations, waits)
            SELECT coalesce(id, gen_random_uuid()), now() - age * interval '1 day', shard, 'failed', 2, 3.5,
                   5000000000000, 5
            FROM (VALUES (1, 0, 9), (2, 0, 1), (3, 0, 1), (4, 3, 0), (5, 20, -1), (6, 20, -1))
                AS rows (place, age, shard) LEFT JOIN workflows ON name = 'workflow ' || place;
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
        default = Which(projects=[DEFAULT_PROJECT])
        assert stats.counts(connection, default, since, datetime.now(UTC)) == {"failed": 8}
        assert stats.trouble(connection, default, since) == stats.Trouble({"timeout": 8}, 4, 4)
