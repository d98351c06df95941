"""What nobody wants any more is cancelled at the agent: by a real deployment, at a real A2A agent and a plain one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from deployment import PATIENCE, Deployment, deployed, wait_until
from test_agent_step import A2AServer, Handler, Told, running_a2a

from orchestrator.config import AgentSettings, Settings
from orchestrator.store.cancellations import MAX_TRIES

TASK = "DELETE /t1"


@pytest.fixture(scope="module")
def a2a() -> Iterator[A2AServer]:
    with running_a2a() as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Iterator[Told]:
    server = Told()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, a2a: A2AServer, plain: Told) -> Iterator[Deployment]:
    def with_agents(settings: Settings) -> Settings:
        known = {
            "a2a": AgentSettings(url=a2a.url, protocol="a2a", poll_interval=600),
            "plain": AgentSettings(url=f"{plain.url}/", protocol="http", poll_interval=600),
            "restless": AgentSettings(url=f"{plain.url}/", protocol="http", poll_interval=0.1),
        }
        return replace(settings, agents=known)

    with deployed(tmp_path_factory.mktemp("agents"), adjusted=with_agents) as deployment:
        deployment.start_worker("control,io", pool="threads", concurrency=4)
        yield deployment


@pytest.fixture
def told(plain: Told) -> Told:
    plain.requests.clear()
    plain.answers.clear()
    plain.answers |= {"POST /": (202, {"task_id": "t1"}), "GET /t1": {"status": "running"}, TASK: {}}
    return plain


def asking(agent_id: str, **more: Any) -> dict[str, Any]:
    config = {"agent_id": agent_id, "task": "long {{ input.name | default('work') }}"}
    return {"id": "ask", "type": "agent", "config": config, "retry_policy": {"max_attempts": 1}, **more}


def started(deployment: Deployment, *steps: dict[str, Any], path: str = "ask") -> str:
    """An execution whose agent is at it."""
    execution_id = deployment.execute(deployment.create({"steps": list(steps)}))
    wait_until(lambda: deployment.statuses(execution_id).get(path) == "waiting", what="the step to rest")
    return execution_id


def cancel(deployment: Deployment, execution_id: str) -> None:
    assert deployment.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code == 200


def cancellations(told: Told) -> int:
    return [what for what, *_ in told.requests].count(TASK)


def nothing_is_left(deployment: Deployment) -> bool:
    return not deployment.sql("SELECT 1 FROM cancellations")


def test_a_cancelled_execution_has_its_a2a_task_cancelled(agents: Deployment, a2a: A2AServer):
    execution_id = started(agents, asking("a2a"))
    ((state,),) = agents.sql("SELECT state FROM step_executions WHERE execution_id = %(id)s::uuid", id=execution_id)
    cancel(agents, execution_id)
    wait_until(lambda: a2a.worker.cancelled == [state["task_id"]], what="the agent to be told")
    wait_until(lambda: nothing_is_left(agents), what="the row to go")
    ((line,),) = agents.sql(
        "SELECT message FROM step_logs WHERE execution_id = %(id)s::uuid ORDER BY id DESC LIMIT 1", id=execution_id
    )
    assert line == f"the task {state['task_id']} was cancelled at the agent"


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ({"id": "each", "type": "loop", "config": {"items": [1], "steps": [asking("plain")]}}, "each[0].ask"),
        (asking("plain"), "ask"),
    ],
    ids=["of the loop around it", "of the step"],
)
def test_a_timeout_cancels_the_task(agents: Deployment, told: Told, step: dict[str, Any], path: str):
    limited = {**step, "timeout": "1h", "retry_policy": {"max_attempts": 1}}
    execution_id = started(agents, limited, path=path)
    wait_until(lambda: agents.statuses(execution_id)[step["id"]] == "waiting", what="the limited step to rest")
    agents.sql(
        "UPDATE step_executions SET deadline = now() WHERE execution_id = %(e)s::uuid AND deadline IS NOT NULL",
        e=execution_id,
    )
    execution = agents.ended(execution_id)
    assert execution["error_message"].endswith("the step's time was up while it waited (timeout)")
    wait_until(lambda: cancellations(told) == 1, what="the agent to be told")
    wait_until(lambda: nothing_is_left(agents), what="the row to go")


def test_the_first_failure_of_a_body_cancels_the_tasks_of_the_others(agents: Deployment, told: Told):
    branches = {"left": [asking("plain")], "right": [{"id": "ok", "type": "approval", "config": {}}]}
    fork = {"id": "fork", "type": "parallel", "config": {"branches": branches}}
    execution_id = started(agents, fork, path="fork.left.ask")
    id = next(row["id"] for row in agents.execution(execution_id)["step_executions"] if row["path"] == "fork.right.ok")
    agents.client.post(f"/api/v1/step-executions/{id}/decision", json={"approved": False})
    assert agents.ended(execution_id)["status"] == "failed"
    wait_until(lambda: cancellations(told) == 1, what="the agent to be told")


def test_a_cancel_that_comes_while_a_worker_looks_at_the_task_reaches_the_agent(agents: Deployment, told: Told):
    looking = threading.Event()

    def hold(handler: Handler) -> None:
        looking.set()
        handler.server.closing.wait(PATIENCE)
        handler.close_connection = True

    told.answers["GET /t1"] = hold
    execution_id = agents.execute(agents.create({"steps": [asking("restless")]}))
    assert looking.wait(PATIENCE)
    cancel(agents, execution_id)
    wait_until(lambda: cancellations(told) == 1, what="the agent to be told")
    wait_until(lambda: nothing_is_left(agents), what="the row to go")
    assert cancellations(told) == 1


def test_a_cancel_that_comes_before_the_task_is_known_here_reaches_the_agent(agents: Deployment, told: Told):
    def cancelled_meanwhile(handler: Handler) -> None:
        ((execution_id,),) = agents.sql("SELECT id::text FROM executions WHERE status = 'running'")
        cancel(agents, execution_id)
        handler.server.answers["POST /"] = (202, {"task_id": "t1"})
        body = b'{"task_id": "t1"}'
        handler.send_response(202)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    told.answers["POST /"] = cancelled_meanwhile
    execution = agents.run({"steps": [asking("plain")]})
    assert execution["status"] == "cancelled"
    wait_until(lambda: cancellations(told) == 1, what="the agent to be told")


def test_a_task_that_has_ended_or_is_unknown_is_left_alone(agents: Deployment, told: Told):
    told.answers[TASK] = (404, {})
    cancel(agents, started(agents, asking("plain")))
    wait_until(lambda: cancellations(told) == 1, what="the agent to be told")
    wait_until(lambda: nothing_is_left(agents), what="the row to go")


def again(deployment: Deployment, until: Callable[[], bool]) -> None:
    """Let the pauses between tries pass."""

    def passed() -> bool:
        deployment.sql(
            "UPDATE cancellations SET next_try_at = now() WHERE tries > 0 AND next_try_at > now() RETURNING 1"
        )
        return until()

    wait_until(passed, what="more tries")


def test_a_cancellation_that_fails_is_tried_again(agents: Deployment, told: Told):
    def fails_once(handler: Handler) -> None:
        handler.server.answers[TASK] = {}
        handler.send_error(503)

    told.answers[TASK] = fails_once
    cancel(agents, started(agents, asking("plain")))
    again(agents, lambda: nothing_is_left(agents))
    assert cancellations(told) >= 2


def test_a_cancellation_that_always_fails_is_given_up(agents: Deployment, told: Told):
    told.answers[TASK] = (503, {})
    cancel(agents, started(agents, asking("plain")))
    again(agents, lambda: nothing_is_left(agents))
    assert cancellations(told) == MAX_TRIES


def test_a_failure_that_will_not_change_is_not_tried_again(agents: Deployment, told: Told):
    told.answers[TASK] = (403, {})
    cancel(agents, started(agents, asking("plain")))
    wait_until(lambda: cancellations(told) == 1, what="the agent to be told")
    wait_until(lambda: nothing_is_left(agents), what="the row to go")
    assert cancellations(told) == 1
