"""How workflows come to their end: by themselves, or retired by a user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, wait_until
from test_control import held
from test_execution import step, workflow

from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.plugins import load_catalogue
from orchestrator.store import executions, new_id, workflow_ends

NOBODY = "00000000-0000-7000-8000-000000000000"
FAILS_IF_ASKED = {"source": "import json, sys; sys.exit(json.load(sys.stdin)['fail'])"}


def active(deployment: Deployment, definition: dict[str, Any]) -> str:
    workflow_id = deployment.create(definition)
    move(deployment, workflow_id, "activate")
    return workflow_id


def move(deployment: Deployment, workflow_id: str, what: str, status: int = 200) -> Any:
    answer = deployment.client.post(f"/api/v1/workflows/{workflow_id}/{what}")
    assert answer.status_code == status, answer.text
    return answer.json


def change(deployment: Deployment, workflow_id: str, definition: dict[str, Any]) -> None:
    answer = deployment.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": definition})
    assert answer.status_code == 200, answer.text


def status(deployment: Deployment, workflow_id: str) -> tuple[str, str | None]:
    shown = deployment.client.get(f"/api/v1/workflows/{workflow_id}").json
    return shown["status"], shown["status_reason"]


def refusal(deployment: Deployment, workflow_id: str) -> Any:
    answer = deployment.client.post(f"/api/v1/workflows/{workflow_id}/execute", json={})
    assert answer.status_code == 409, answer.text
    return answer.json


def end(servers: Deployment, workflow_id: str, *outcomes: str) -> None:
    """Executions that begin one after the other and end so, as if versions without limits had been theirs."""
    for outcome in outcomes:
        servers.sql(
            "UPDATE executions SET status = %(outcome)s, finished_at = now() WHERE id = %(id)s::uuid",
            id=servers.execute(workflow_id), outcome=outcome,
        )  # fmt: skip


def settled(servers: Deployment, workflow_id: str) -> str:
    with servers.store.transaction() as connection:
        workflow_ends.settle(connection, workflow_id)
    return status(servers, workflow_id)[0]


class NoBroker:
    def listed(self, queue: str, most: int | None) -> Any:
        raise AssertionError


def reconciled(servers: Deployment) -> None:
    programs = Programs(load_catalogue(servers.settings.plugins), servers.settings)
    sent: list[Any] = []
    reconciler = Reconciler(
        servers.store, programs, servers.settings, NoBroker(), sent.append, holder=new_id(), host="here"
    )
    reconciler.end_workflows()
    reconciler.settle_workflows()


# --- after so many executions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, {"outputs": {"x": 1}}, {"finally": [step("tidy")]}],
    ids=["one run", "outputs", "finally"],
)
def test_a_workflow_is_completed_by_the_last_of_its_executions(deployment: Deployment, more: dict[str, Any]):
    workflow_id = active(deployment, workflow(step("a"), step("b", needs="a"), run_limit=2, **more))
    deployment.ended(deployment.execute(workflow_id))
    assert status(deployment, workflow_id) == ("active", None)
    deployment.ended(deployment.execute(workflow_id))
    assert status(deployment, workflow_id) == ("completed", "its run_limit of 2 is reached")
    assert refusal(deployment, workflow_id)["state"] == "completed"


def test_the_runs_of_a_draft_do_not_count(deployment: Deployment):
    workflow_id = deployment.create(workflow(step("a"), run_limit=1))
    deployment.ended(deployment.execute(workflow_id))
    assert status(deployment, workflow_id)[0] == "draft"
    move(deployment, workflow_id, "activate")
    assert status(deployment, workflow_id)[0] == "active"
    deployment.ended(deployment.execute(workflow_id))
    assert status(deployment, workflow_id)[0] == "completed"


def test_a_workflow_that_is_activated_again_begins_to_count_anew(deployment: Deployment):
    workflow_id = active(deployment, workflow(step("a"), run_limit=1))
    deployment.ended(deployment.execute(workflow_id))
    assert move(deployment, workflow_id, "activate")["status_reason"] is None
    assert settled(deployment, workflow_id) == "active"
    deployment.ended(deployment.execute(workflow_id))
    assert status(deployment, workflow_id)[0] == "completed"


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_executions_that_fail_or_are_cancelled_count_as_well(deployment: Deployment, tmp_path: Path, outcome: str):
    gate = tmp_path / "gate"
    workflow_id = active(deployment, workflow(step("held", "gate", file=str(gate)), step("bad", "fail"), run_limit=1))
    execution_id = deployment.execute(workflow_id)
    if outcome == "cancelled":
        deployment.client.post(f"/api/v1/executions/{execution_id}/cancel")
    gate.touch()
    assert deployment.ended(execution_id)["status"] == outcome
    assert status(deployment, workflow_id)[0] == "completed"


def test_a_paused_workflow_is_completed_by_what_still_ran(servers: Deployment):
    workflow_id = active(servers, workflow(step("a"), run_limit=1))
    execution_id = servers.execute(workflow_id)
    move(servers, workflow_id, "pause")
    servers.client.post(f"/api/v1/executions/{execution_id}/cancel")
    assert status(servers, workflow_id)[0] == "completed"


def test_another_limit_counts_from_when_it_was_given(servers: Deployment):
    workflow_id = active(servers, workflow(step("a")))
    end(servers, workflow_id, *["completed"] * 3)
    change(servers, workflow_id, workflow(step("a"), run_limit=2))
    assert settled(servers, workflow_id) == "active"
    end(servers, workflow_id, "completed")
    change(servers, workflow_id, workflow(step("a", value=1), run_limit=2))
    end(servers, workflow_id, "completed")
    assert settled(servers, workflow_id) == "completed"


def test_of_two_executions_that_end_at_once_the_later_one_sees_the_other(servers: Deployment):
    from threading import Thread

    workflow_id = active(servers, workflow(step("a"), run_limit=2))
    ids = [servers.execute(workflow_id) for _ in range(2)]

    def end_second() -> None:
        with servers.store.transaction() as connection:
            executions.fail(connection, ids[1], "over")
            workflow_ends.settle(connection, workflow_id)

    other = Thread(target=end_second)
    with servers.store.transaction() as connection:
        executions.fail(connection, ids[0], "over")
        workflow_ends.settle(connection, workflow_id)
        other.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory'"
        wait_until(lambda: servers.sql(waits), what="the second")
    other.join()
    assert status(servers, workflow_id)[0] == "completed"


def test_an_end_does_not_wait_for_who_changes_the_workflow(servers: Deployment):
    workflow_id = active(servers, workflow(step("a"), run_limit=1))
    execution_id = servers.execute(workflow_id)
    with servers.store.transaction() as connection:
        connection.exec_driver_sql("SELECT FROM workflows WHERE id = %(id)s::uuid FOR UPDATE", {"id": workflow_id})
        assert servers.client.post(f"/api/v1/executions/{execution_id}/cancel").json["status"] == "cancelled"
    assert status(servers, workflow_id)[0] == "active"
    reconciled(servers)
    assert status(servers, workflow_id)[0] == "completed"


def test_reconcile_sees_to_executions_whose_version_had_no_limit(servers: Deployment):
    workflow_id = active(servers, workflow(step("a")))
    change(servers, workflow_id, workflow(step("a"), run_limit=1))
    end(servers, workflow_id, "completed")
    reconciled(servers)
    assert status(servers, workflow_id) == ("completed", "its run_limit of 1 is reached")


# --- after so many failures -----------------------------------------------------------------------------------


def test_a_workflow_fails_after_failures_in_a_row(deployment: Deployment):
    definition = workflow(step("a", "script", **FAILS_IF_ASKED, retry_policy={"max_attempts": 1}), max_failures=2)
    workflow_id = active(deployment, definition)
    for fails in (1, 0, 1):
        deployment.ended(deployment.execute(workflow_id, {"fail": fails}))
        assert status(deployment, workflow_id) == ("active", None)
    deployment.ended(deployment.execute(workflow_id, {"fail": 1}))
    assert status(deployment, workflow_id) == ("failed", "its max_failures of 2 in a row is reached")
    assert refusal(deployment, workflow_id)["state"] == "failed"
    move(deployment, workflow_id, "activate")
    deployment.ended(deployment.execute(workflow_id, {"fail": 1}))
    assert status(deployment, workflow_id)[0] == "active"


def test_what_was_cancelled_neither_breaks_the_row_nor_lengthens_it(servers: Deployment):
    workflow_id = active(servers, workflow(step("a"), max_failures=2))
    end(servers, workflow_id, "failed", "cancelled", "cancelled")
    assert settled(servers, workflow_id) == "active"
    end(servers, workflow_id, "failed")
    assert settled(servers, workflow_id) == "failed"


def test_the_row_is_that_of_their_beginnings(servers: Deployment):
    workflow_id = active(servers, workflow(step("a"), max_failures=2))
    late = servers.execute(workflow_id)
    end(servers, workflow_id, "failed", "completed", "failed")
    servers.sql("UPDATE executions SET status = 'failed', finished_at = now() WHERE id = %(id)s::uuid", id=late)
    assert settled(servers, workflow_id) == "active"


def test_without_a_limit_a_workflow_may_fail_for_ever(servers: Deployment):
    workflow_id = active(servers, workflow(step("a")))
    end(servers, workflow_id, *["failed"] * 10)
    assert settled(servers, workflow_id) == "active"


# --- at a date ------------------------------------------------------------------------------------------------


def test_a_workflow_is_completed_at_its_end_date(servers: Deployment):
    workflow_id = active(servers, workflow(step("a"), end_date="2099-01-01T08:00:00+01:00"))
    ((stored,),) = servers.sql(
        "SELECT (end_date AT TIME ZONE 'UTC')::text FROM workflows WHERE id = %(id)s::uuid", id=workflow_id
    )
    assert stored == "2099-01-01 07:00:00"
    reconciled(servers)
    assert status(servers, workflow_id)[0] == "active"
    servers.sql("UPDATE workflows SET end_date = now() WHERE id = %(id)s::uuid", id=workflow_id)
    reconciled(servers)
    assert status(servers, workflow_id) == ("completed", "its end_date has passed")
    assert "end_date" in move(servers, workflow_id, "activate", 409)["detail"]
    change(servers, workflow_id, workflow(step("a")))
    assert move(servers, workflow_id, "activate")["status"] == "active"


def test_a_workflow_whose_date_has_passed_is_not_activated(servers: Deployment):
    workflow_id = servers.create(workflow(step("a"), end_date="2020-01-01T00:00:00Z"))
    answer = move(servers, workflow_id, "activate", 409)
    assert "give it a later one" in answer["detail"]
    assert answer["state"] == "draft"


def test_workers_complete_a_workflow_at_its_date(deployment: Deployment):
    workflow_id = active(deployment, workflow(step("a"), end_date="2099-01-01T00:00:00Z"))
    deployment.sql("UPDATE workflows SET end_date = now() WHERE id = %(id)s::uuid", id=workflow_id)
    wait_until(lambda: status(deployment, workflow_id)[0] == "completed", what="the end of the workflow")


def test_wrong_limits_are_told_all_at_once(servers: Deployment):
    wrong = workflow(step("a"), run_limit=0, max_failures="3", end_date="2030-01-01")
    answer = servers.client.post("/api/v1/workflows", json={"name": "w", "definition": wrong})
    assert answer.status_code == 422
    found = {problem["path"]: problem["message"] for problem in answer.json["errors"]}
    assert found == {
        "definition.run_limit": "must be a whole number from 1 to 10000, not 0",
        "definition.max_failures": "must be a whole number from 1 to 10000, not '3'",
        "definition.end_date": "'2030-01-01' is not a moment; write it with its offset: 2030-01-01T08:00:00+01:00",
    }


@pytest.mark.parametrize("date", [5, "soon", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_what_is_no_moment_is_no_end_date(servers: Deployment, date: Any):
    answer = servers.client.post(
        "/api/v1/workflows", json={"name": "w", "definition": workflow(step("a"), end_date=date)}
    )
    assert answer.status_code == 422
    assert "is not a moment" in answer.json["errors"][0]["message"]


# --- retired --------------------------------------------------------------------------------------------------


def test_a_cancelled_workflow_starts_nothing_and_what_runs_is_cancelled(deployment: Deployment, tmp_path: Path):
    execution_id = held(deployment, tmp_path / "never", **{"finally": [step("tidy")]})
    workflow_id = str(deployment.execution(execution_id)["workflow_id"])
    assert move(deployment, workflow_id, "cancel")["status"] == "cancelled"
    execution = deployment.ended(execution_id)
    assert (execution["status"], execution["error_message"]) == ("cancelled", "its workflow was cancelled")
    assert deployment.statuses(execution_id) == {"held": "cancelled", "finally.tidy": "completed"}
    assert "cannot be executed; make a new one" in refusal(deployment, workflow_id)["detail"]
    answer = deployment.client.post(f"/api/v1/executions/{execution_id}/retry")
    assert (answer.status_code, answer.json["state"]) == (409, "cancelled")
    for what in ("activate", "resume", "pause"):
        assert move(deployment, workflow_id, what, 409)["state"] == "cancelled"
    assert move(deployment, workflow_id, "cancel")["status"] == "cancelled"


@pytest.mark.parametrize("was", ["draft", "active", "paused", "completed", "failed"])
def test_a_workflow_is_cancelled_whatever_it_was(servers: Deployment, was: str):
    workflow_id = servers.create(workflow(step("a")))
    execution_id = servers.execute(workflow_id)
    servers.sql("UPDATE workflows SET status = %(was)s WHERE id = %(id)s::uuid", was=was, id=workflow_id)
    assert move(servers, workflow_id, "cancel")["status"] == "cancelled"
    assert servers.execution(execution_id)["status"] == "cancelled"


def test_what_started_while_a_workflow_was_cancelled_is_cancelled_by_reconcile(servers: Deployment):
    workflow_id = servers.create(workflow(step("a")))
    execution_id = servers.execute(workflow_id)
    servers.sql("UPDATE workflows SET status = 'cancelled' WHERE id = %(id)s::uuid", id=workflow_id)
    reconciled(servers)
    execution = servers.execution(execution_id)
    assert (execution["status"], execution["error_message"]) == ("cancelled", "its workflow was cancelled")


def test_a_workflow_that_is_not_there_is_not_cancelled(servers: Deployment):
    move(servers, NOBODY, "cancel", 404)
