"""Many executions cancelled, retried or deleted by one call, and one deleted by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment
from test_control import held
from test_execution import step, workflow

from orchestrator.store import bulk
from orchestrator.store.bulk import Selection

NOBODY = "00000000-0000-7000-8000-000000000000"


def many(deployment: Deployment, action: str, code: int = 200, limit: int | None = None, **which: Any) -> Any:
    body = {"action": action, "filter": which} | ({} if limit is None else {"limit": limit})
    answer = deployment.client.post("/api/v1/executions/bulk", json=body)
    assert answer.status_code == code, answer.text
    return answer.json


def started(servers: Deployment, *statuses: str) -> tuple[str, list[str]]:
    """A workflow, and executions of it in these statuses."""
    workflow_id = servers.create(workflow(step("a")))
    ids = [servers.execute(workflow_id) for _ in statuses]
    for id, status in zip(ids, statuses, strict=True):
        servers.sql(
            "UPDATE executions SET status = %(status)s, started_at = now(), paused_at = now(), "
            "finished_at = CASE WHEN %(ended)s THEN now() END WHERE id = %(id)s::uuid",
            id=id, status=status, ended=status in ("completed", "failed", "cancelled"),
        )  # fmt: skip
    return workflow_id, ids


ALL = ("queued", "running", "paused", "completed", "failed", "cancelled")


def statuses(servers: Deployment, ids: list[str]) -> list[str | None]:
    rows = servers.sql("SELECT id::text, status FROM executions WHERE id = ANY(%(ids)s::uuid[])", ids=ids)
    found = dict(tuple(row) for row in rows)
    return [found.get(id) for id in ids]


def remove(deployment: Deployment, execution_id: str, status: int = 204) -> Any:
    answer = deployment.client.delete(f"/api/v1/executions/{execution_id}")
    assert answer.status_code == status, answer.text
    return answer.json if status == 409 else None


# --- which ----------------------------------------------------------------------------------------------------


def test_an_action_is_done_to_those_that_it_is_for(servers: Deployment):
    workflow_id, ids = started(servers, *ALL)
    assert many(servers, "cancel", workflow_id=workflow_id) == {"matched": 3, "done": 3, "refused": []}
    assert statuses(servers, ids) == ["cancelled"] * 3 + ["completed", "failed", "cancelled"]
    assert many(servers, "cancel", workflow_id=workflow_id)["matched"] == 0
    assert many(servers, "retry", workflow_id=workflow_id)["done"] == 5
    assert statuses(servers, ids) == ["queued"] * 3 + ["completed", "queued", "queued"]
    assert many(servers, "delete", workflow_id=workflow_id) == {"matched": 1, "done": 1, "refused": []}
    assert statuses(servers, ids)[3] is None


def test_a_status_chooses_among_them(servers: Deployment):
    workflow_id, ids = started(servers, *ALL)
    assert many(servers, "delete", workflow_id=workflow_id, status="failed")["done"] == 1
    assert statuses(servers, ids) == [*ALL[:4], None, ALL[5]]
    refused = many(servers, "delete", workflow_id=workflow_id, status="running")
    assert (refused["matched"], refused["done"]) == (1, 0)
    assert refused["refused"] == [
        {"id": ids[1], "state": "running", "detail": "an execution that is running cannot be deleted; cancel it first"}
    ]


def test_those_that_are_named_are_each_answered_for(servers: Deployment):
    _, ids = started(servers, *ALL)
    answer = many(servers, "retry", ids=[*ids, NOBODY, ids[0]])
    assert (answer["matched"], answer["done"]) == (6, 2)
    refused = {one["id"]: (one["state"], one["detail"]) for one in answer["refused"]}
    assert refused == {
        NOBODY: (None, f"there is no execution {NOBODY}"),
        **{
            id: (state, f"an execution that is {state} cannot be retried")
            for id, state in zip(ids[:4], ALL[:4], strict=True)
        },
    }
    assert statuses(servers, ids)[4:] == ["queued", "queued"]


def test_the_limit_takes_the_oldest(servers: Deployment):
    workflow_id, ids = started(servers, *["completed"] * 5)
    assert many(servers, "delete", limit=3, workflow_id=workflow_id) == {"matched": 3, "done": 3, "refused": []}
    assert statuses(servers, ids) == [None, None, None, "completed", "completed"]


def test_they_are_chosen_by_the_time_at_which_they_were_created(servers: Deployment):
    workflow_id, ids = started(servers, *["completed"] * 3)
    for days, id in zip((30, 20, 10), ids, strict=True):
        servers.sql(
            "UPDATE executions SET created_at = now() - %(days)s * interval '1 day' WHERE id = %(id)s::uuid",
            days=days, id=id,
        )  # fmt: skip
    ago = {days: (datetime.now(UTC) - timedelta(days=days)).isoformat() for days in (15, 25)}
    found = many(
        servers, "delete", workflow_id=workflow_id, created_after=ago[25], created_before=ago[15]
    )  # the one in the middle
    assert found["done"] == 1
    assert statuses(servers, ids) == ["completed", None, "completed"]
    assert many(servers, "delete", workflow_id=workflow_id, created_before=ago[25])["done"] == 1
    assert statuses(servers, ids) == [None, None, "completed"]


def test_a_thousand_are_deleted_at_once_and_no_more(servers: Deployment):
    workflow_id, (first,) = started(servers, "completed")
    servers.sql(
        "INSERT INTO executions (id, workflow_id, version, status, input, finished_at) "
        "SELECT gen_random_uuid(), workflow_id, version, status, input, finished_at "
        "FROM executions, generate_series(1, 1000) WHERE id = %(id)s::uuid",
        id=first,
    )
    assert many(servers, "delete", workflow_id=workflow_id)["done"] == 1000
    assert many(servers, "delete", workflow_id=workflow_id)["done"] == 1


# --- what it does ---------------------------------------------------------------------------------------------


def test_many_are_cancelled_while_they_run_and_retried(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    first = held(deployment, gate)
    workflow_id = str(deployment.execution(first)["workflow_id"])
    ids = [first, *(deployment.execute(workflow_id) for _ in range(3))]
    assert many(deployment, "cancel", workflow_id=workflow_id)["done"] == 4
    assert statuses(deployment, ids) == ["cancelled"] * 4
    gate.touch()
    assert many(deployment, "retry", workflow_id=workflow_id)["done"] == 4
    assert {deployment.ended(id)["status"] for id in ids} == {"completed"}


def test_what_is_in_the_way_of_one_keeps_no_other_from_it(deployment: Deployment):
    workflow_id = deployment.create(
        workflow({**step("a"), "compensate": {"type": "noop"}}, step("b", "fail", "a", message="{{ input.m }}"))
    )
    undone = deployment.ended(deployment.execute(workflow_id, {"m": "x"}))["id"]
    other = deployment.run(workflow(step("b", "fail")))["id"]
    answer = many(deployment, "retry", ids=[str(undone), str(other)])
    assert answer["done"] == 1
    (refused,) = answer["refused"]
    assert (refused["id"], refused["state"]) == (str(undone), "failed")
    assert "have been undone" in refused["detail"]


# --- delete ---------------------------------------------------------------------------------------------------


def test_a_deleted_execution_is_gone_with_its_steps_and_logs(deployment: Deployment):
    execution_id = str(deployment.run(workflow(step("a", "talk", lines=["hello"])))["id"])
    remove(deployment, execution_id)
    assert deployment.client.get(f"/api/v1/executions/{execution_id}").status_code == 404
    for table in ("step_executions", "step_logs"):
        assert deployment.sql(f"SELECT 1 FROM {table} WHERE execution_id = %(id)s::uuid", id=execution_id) == []
    remove(deployment, execution_id, 404)


@pytest.mark.parametrize("status", ["queued", "running", "paused"])
def test_a_live_execution_is_not_deleted(servers: Deployment, status: str):
    _, (execution_id,) = started(servers, status)
    refusal = remove(servers, execution_id, 409)
    assert refusal["state"] == status
    assert refusal["detail"] == f"an execution that is {status} cannot be deleted; cancel it first"
    assert statuses(servers, [execution_id]) == [status]


def test_an_execution_stays_while_another_needs_it(servers: Deployment):
    _, (parent, child) = started(servers, "running", "completed")
    servers.sql(
        "UPDATE executions SET parent_step_id = (SELECT id FROM step_executions WHERE execution_id = %(parent)s::uuid) "
        "WHERE id = %(child)s::uuid",
        parent=parent, child=child,
    )  # fmt: skip
    assert "waits for this execution" in remove(servers, child, 409)["detail"]
    servers.client.post(f"/api/v1/executions/{parent}/cancel")
    servers.sql("UPDATE executions SET status = 'running', finished_at = NULL WHERE id = %(id)s::uuid", id=child)
    assert "an execution that it started, has not ended" in remove(servers, parent, 409)["detail"]
    servers.client.post(f"/api/v1/executions/{child}/cancel")
    remove(servers, parent)
    remove(servers, child)


def test_a_rerun_outlives_its_original(servers: Deployment):
    _, (original,) = started(servers, "completed")
    answer = servers.client.post(f"/api/v1/executions/{original}/rerun", json={})
    remove(servers, original)
    assert servers.client.get(f"/api/v1/executions/{answer.json['id']}").json["rerun_of"] == original


def test_one_that_is_retried_meanwhile_is_not_deleted(servers: Deployment):
    _, (execution_id,) = started(servers, "failed")
    with servers.store.single() as connection:
        (id,) = bulk.matching(connection, Selection(ids=(execution_id,)), 10)
        servers.client.post(f"/api/v1/executions/{execution_id}/retry")
        assert bulk.delete(connection, [id]) == set()
    assert statuses(servers, [execution_id]) == ["queued"]


# --- bad input ------------------------------------------------------------------------------------------------


def test_a_call_for_everything_is_refused(servers: Deployment):
    answer = many(servers, "delete", 422)
    assert answer["errors"] == [
        {
            "path": "filter",
            "message": "give at least one of ids, workflow_id, status, created_after, created_before",
        }
    ]
    assert many(servers, "delete", ids=[]) == {"matched": 0, "done": 0, "refused": []}


def test_what_is_wrong_is_told_all_at_once(servers: Deployment):
    wrong = {"ids": ["x"], "status": "done", "created_before": "2030-01-01T00:00:00", "colour": "red"}
    answer = many(servers, "explode", 422, limit=1001, **wrong)
    assert {problem["path"] for problem in answer["errors"]} == {
        "action", "limit", "filter.ids[0]", "filter.status", "filter.created_before", "filter.colour",
    }  # fmt: skip
    assert many(servers, "delete", 422, ids=[NOBODY] * 1001)["errors"][0]["path"] == "filter.ids"
