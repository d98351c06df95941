"""Pause, resume, cancel, retry: what they do to what runs, and what they refuse."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from deployment import SOON, Deployment, deployed, wait_until
from test_execution import rows_of, states_of, step, workflow

from orchestrator.config import ConnectionSettings, Settings
from orchestrator.engine.programs import Programs
from orchestrator.engine.start import start_execution
from orchestrator.engine.waiting import rest_awaiting
from orchestrator.plugins import load_catalogue
from orchestrator.store.executions import Parent


def call(deployment: Deployment, execution_id: str, what: str, status: int = 200) -> Any:
    answer = deployment.client.post(f"/api/v1/executions/{execution_id}/{what}")
    assert answer.status_code == status, answer.text
    return answer.json


def held(deployment: Deployment, gate: Path, *more: dict[str, Any], **keys: Any) -> str:
    """An execution whose first step is at a gate."""
    definition = workflow(step("held", "gate", file=str(gate)), *more, **keys)
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "running", what="the step at the gate")
    return execution_id


# --- pause ---------------------------------------------------------------------------------------------------


def test_a_pause_takes_effect_before_the_next_step(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    execution_id = held(deployment, gate, step("next", needs="held"))
    assert call(deployment, execution_id, "pause")["status"] == "paused"
    assert call(deployment, execution_id, "pause")["status"] == "paused"
    gate.touch()
    wait_until(lambda: deployment.statuses(execution_id) == {"held": "completed", "next": "pending"}, what="the pause")
    call(deployment, execution_id, "resume")
    assert deployment.ended(execution_id)["status"] == "completed"
    assert call(deployment, execution_id, "resume", 409)["state"] == "completed"
    assert call(deployment, execution_id, "pause", 409)["state"] == "completed"


def test_what_was_paused_before_it_began_begins_when_it_is_resumed(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"))))
    call(servers, execution_id, "pause")
    assert call(servers, execution_id, "resume")["status"] == "queued"
    assert call(servers, execution_id, "resume")["status"] == "queued"


def test_the_time_of_a_pause_does_not_count(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"), timeout="1h")))
    call(servers, execution_id, "pause")
    servers.sql(
        "UPDATE executions SET started_at = now(), deadline = now() + interval '1h', "
        "paused_at = now() - interval '1 day' "
        "WHERE id = %(id)s::uuid",
        id=execution_id,
    )
    assert call(servers, execution_id, "resume")["status"] == "running"
    ((hours,),) = servers.sql(
        "SELECT round(extract(epoch FROM deadline - now()) / 3600)::int FROM executions WHERE id = %(id)s::uuid",
        id=execution_id,
    )
    assert hours == 25


def test_a_loop_is_paused_between_its_rounds(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    body = [step("held", "gate", file=str(gate))]
    loop = {"id": "each", "type": "loop", "config": {"items": [1, 2, 3], "concurrency": 1, "steps": body}}
    execution_id = deployment.execute(deployment.create(workflow(loop)))
    wait_until(lambda: deployment.statuses(execution_id).get("each[0].held") == "running", what="the first round")
    call(deployment, execution_id, "pause")
    gate.touch()
    wait_until(lambda: deployment.statuses(execution_id)["each[0].held"] == "completed", what="the end of the round")
    assert deployment.statuses(execution_id)["each[1].held"] == "pending"
    call(deployment, execution_id, "resume")
    assert deployment.ended(execution_id)["output"]["each"]["count"] == 3


@pytest.fixture
def family(deployment: Deployment, tmp_path: Path) -> Iterator[list[str]]:
    """An execution whose step waits for another one, whose step waits for a third, which is at a gate; in this order,
    with the steps after it."""
    gate = tmp_path / "gate"
    ids = [deployment.create(workflow(step("held", "gate", file=str(gate)), step("next", needs="held")))]
    for _ in range(2):
        child = {"id": "child", "type": "workflow", "config": {"workflow": ids[-1]}}
        ids.append(deployment.create(workflow(child, step("next", needs="child"))))
    deployment.execute(ids[-1])
    running = "SELECT FROM step_executions s JOIN executions e ON e.id = s.execution_id WHERE s.status = 'running' "
    wait_until(lambda: deployment.sql(running + "AND e.workflow_id = %(id)s::uuid", id=ids[0]), what="the last of them")
    found = "SELECT id::text FROM executions WHERE workflow_id = ANY(%(ids)s::uuid[]) ORDER BY depth"
    yield [id for (id,) in deployment.sql(found, ids=ids)]
    gate.touch()


def statuses(deployment: Deployment, execution_ids: list[str]) -> list[str]:
    return [deployment.execution(id)["status"] for id in execution_ids]


def test_a_pause_is_shared_by_the_executions_that_it_waits_for_however_deep(
    deployment: Deployment, family: list[str], tmp_path: Path
):
    call(deployment, family[0], "pause")
    assert statuses(deployment, family) == ["paused"] * 3
    (tmp_path / "gate").touch()
    wait_until(lambda: deployment.statuses(family[2])["held"] == "completed", what="the end of what ran")
    assert deployment.statuses(family[2])["next"] == "pending"
    call(deployment, family[0], "resume")
    assert deployment.ended(family[0])["status"] == "completed"


def test_what_was_paused_by_itself_stays_so_when_its_parent_goes_on(deployment: Deployment, family: list[str]):
    call(deployment, family[1], "pause")
    call(deployment, family[0], "pause")
    call(deployment, family[0], "resume")
    assert statuses(deployment, family) == ["running", "paused", "paused"]
    call(deployment, family[1], "resume")
    assert statuses(deployment, family) == ["running"] * 3


def test_a_pause_of_its_own_outlasts_the_one_it_shared(deployment: Deployment, family: list[str]):
    call(deployment, family[0], "pause")
    call(deployment, family[1], "pause")
    call(deployment, family[0], "resume")
    assert statuses(deployment, family) == ["running", "paused", "paused"]


def test_a_child_may_go_on_alone(deployment: Deployment, family: list[str], tmp_path: Path):
    call(deployment, family[0], "pause")
    call(deployment, family[1], "resume")
    assert statuses(deployment, family) == ["paused", "running", "running"]
    (tmp_path / "gate").touch()
    assert deployment.ended(family[1])["status"] == "completed"
    assert statuses(deployment, family[:1]) == ["paused"]
    call(deployment, family[0], "resume")
    assert deployment.ended(family[0])["status"] == "completed"


def test_a_child_of_one_that_was_paused_while_it_was_started_is_paused(servers: Deployment):
    """The pause comes before the child, and finds none."""
    child_of = servers.create(workflow(step("a")))
    wait_for_it = {"id": "child", "type": "workflow", "config": {"workflow": child_of}}
    workflow_id = servers.create(workflow(wait_for_it))
    parent = servers.execute(workflow_id)
    programs = Programs(load_catalogue("sample_steps"), servers.settings)
    claimed = servers.claim(parent, "child")
    assert claimed is not None
    call(servers, parent, "pause")
    child = start_execution(servers.store, programs, child_of, {}, parent=Parent(claimed[0].id, 0)).execution_id
    assert statuses(servers, [child]) == ["queued"]
    rest_awaiting(
        servers.store, programs.get(servers.store, workflow_id, 1), parent, claimed[0], None,
        delay=None, state={"execution_id": child}, awaits="child", worker=None,
    )  # fmt: skip
    assert statuses(servers, [child]) == ["paused"]
    call(servers, parent, "resume")
    assert statuses(servers, [child]) == ["queued"]


# --- a workflow that is paused -------------------------------------------------------------------------------


def test_what_waits_for_a_place_waits_for_its_paused_workflow_as_well(tmp_path: Path):
    with deployed(tmp_path, max_concurrent=1) as servers:
        workflow_id, other = (servers.create(workflow(step("a"))) for _ in range(2))
        move(servers, workflow_id, "activate")
        first, second = (servers.execute(workflow_id) for _ in range(2))
        third = servers.execute(other)
        move(servers, workflow_id, "pause")
        move(servers, workflow_id, "pause")
        # The one that has a place goes on; the other workflow gets the next.
        assert statuses(servers, [first, second, third]) == ["queued", "paused", "queued"]
        assert admitted(servers) == {first}
        call(servers, first, "cancel")
        assert admitted(servers) == {third}
        told = servers.client.get(f"/api/v1/executions/{second}/why").json
        assert (told["reason"], told["facts"]) == ("workflow_paused", {"workflow_id": workflow_id})
        call(servers, third, "cancel")
        assert admitted(servers) == set()
        move(servers, workflow_id, "resume")
        assert admitted(servers) == {second}


def test_one_of_a_paused_workflow_may_go_on_alone(tmp_path: Path):
    with deployed(tmp_path, max_concurrent=1) as servers:
        workflow_id = servers.create(workflow(step("a")))
        move(servers, workflow_id, "activate")
        first, second, third = (servers.execute(workflow_id) for _ in range(3))
        move(servers, workflow_id, "pause")
        call(servers, second, "resume")
        call(servers, third, "pause")
        move(servers, workflow_id, "activate")
        assert statuses(servers, [first, second, third]) == ["queued", "queued", "paused"]


def move(deployment: Deployment, workflow_id: str, what: str) -> None:
    answer = deployment.client.post(f"/api/v1/workflows/{workflow_id}/{what}")
    assert answer.status_code == 200, answer.text


def admitted(deployment: Deployment) -> set[str]:
    sql = "SELECT id::text FROM executions WHERE admitted_at IS NOT NULL AND finished_at IS NULL"
    return {id for (id,) in deployment.sql(sql)}


# --- cancel --------------------------------------------------------------------------------------------------


def test_a_cancelled_execution_begins_nothing_more(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    execution_id = held(deployment, gate, step("next", needs="held"))
    cancelled = call(deployment, execution_id, "cancel")
    assert (cancelled["status"], cancelled["error_message"]) == ("cancelled", "cancelled by a user")
    assert states_of(cancelled) == {"held": "cancelled", "next": "cancelled"}
    assert call(deployment, execution_id, "cancel")["status"] == "cancelled"
    gate.touch()
    assert call(deployment, execution_id, "pause", 409)["state"] == "cancelled"


def test_what_completed_is_undone_when_an_execution_is_cancelled(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    undo = {"type": "noop", "config": {"value": "undone"}}
    definition = workflow(
        {**step("a"), "compensate": undo},
        step("held", "gate", needs="a", file=str(gate)),
        **{"finally": [step("tidy", value="{{ execution.status }}")], "on_failure": [step("alarm")]},
    )
    execution_id = deployment.execute(deployment.create(definition))
    wait_until(lambda: deployment.statuses(execution_id)["held"] == "running", what="the step at the gate")
    call(deployment, execution_id, "cancel")
    execution = deployment.ended(execution_id)
    gate.touch()
    rows = rows_of(execution)
    assert execution["status"] == "cancelled"
    assert rows["compensate.a"]["output"] == {"result": "undone"}
    assert rows["on_failure.alarm"]["status"] == "completed"
    assert rows["finally.tidy"]["output"] == {"result": "cancelled"}


def cancelled_soon(deployment: Deployment, execution_id: str, ended: Any) -> None:
    call(deployment, execution_id, "cancel")
    wait_until(ended, SOON, "the end of what ran")


def test_cancelling_ends_a_script_and_its_children(deployment: Deployment, tmp_path: Path):
    pids = tmp_path / "pids"
    source = f"sleep 300 & echo $! > {pids}.tmp; echo $$ >> {pids}.tmp; mv {pids}.tmp {pids}; wait"
    script = {"id": "long", "type": "script", "config": {"runtime": "bash", "source": source}}
    execution_id = deployment.execute(deployment.create(workflow(script)))
    wait_until(pids.exists, what="the script")
    processes = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    cancelled_soon(deployment, execution_id, lambda: not any(lives(process) for process in processes))


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def silent_server() -> Iterator[tuple[str, list[bool]]]:
    """It answers nothing; a True is added to the list when a client has gone away."""
    gone: list[bool] = []

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gone.append(False)
            gone.append(self.rfile.read(1) == b"")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", gone
    server.shutdown()
    server.server_close()


def test_cancelling_ends_the_executions_that_it_had_started_however_deep(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "gate"
    ids = [deployment.create(workflow(step("held", "gate", file=str(gate))))]
    for _ in range(3):
        child = {"id": "child", "type": "workflow", "config": {"workflow": ids[-1]}}
        ids.append(deployment.create(workflow(child)))
    execution_id = deployment.execute(ids[-1])
    running = "SELECT FROM executions WHERE workflow_id = %(id)s::uuid AND status = 'running'"
    wait_until(lambda: deployment.sql(running, id=ids[0]), what="the last of them")
    call(deployment, execution_id, "cancel")
    # As this answers: nobody has to find out, level by level.
    statuses = deployment.sql("SELECT status FROM executions WHERE workflow_id = ANY(%(ids)s::uuid[])", ids=ids)
    assert statuses == [("cancelled",)] * 4
    gate.touch()


def test_cancelling_ends_an_http_call(deployment: Deployment):
    with silent_server() as (url, gone):
        call_it = {"id": "call", "type": "http", "config": {"url": url, "timeout": "5m"}}
        execution_id = deployment.execute(deployment.create(workflow(call_it)))
        wait_until(lambda: gone == [False], what="the call")
        cancelled_soon(deployment, execution_id, lambda: gone == [False, True])


def test_cancelling_ends_a_statement_in_a_database(tmp_path: Path):
    def with_own_database(settings: Settings) -> Settings:
        return replace(settings, connections={"own": ConnectionSettings(url=settings.database.url)})

    with deployed(tmp_path, adjusted=with_own_database) as deployment:
        deployment.start_worker("control,io", pool="threads")
        query = {"connection": "own", "operation": "query", "sql": "SELECT pg_sleep(300)", "timeout": "10m"}
        definition = workflow({"id": "sleep", "type": "database", "config": query})
        execution_id = deployment.execute(deployment.create(definition))

        def sleeping() -> bool:
            return bool(deployment.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))

        wait_until(sleeping, what="the statement")
        cancelled_soon(deployment, execution_id, lambda: not sleeping())


def test_cancelling_interrupts_a_function_in_its_process(deployment: Deployment, tmp_path: Path):
    gate = tmp_path / "never"
    execution_id = held(deployment, gate)
    worker_id = deployment.sql(
        "SELECT worker_id::text FROM step_executions WHERE execution_id = %(id)s::uuid", id=execution_id
    )[0][0]
    call(deployment, execution_id, "cancel")

    # The same process takes the next step, although the gate has not opened.
    def taken_on() -> bool:
        return bool(
            deployment.sql(
                "SELECT 1 FROM step_executions WHERE worker_id = %(worker)s::uuid AND status = 'completed' "
                "AND started_at > (SELECT finished_at FROM executions WHERE id = %(id)s::uuid)",
                worker=worker_id, id=execution_id,
            )
        )  # fmt: skip

    workflow_id = deployment.create(workflow(step("quick")))

    def runs_something() -> bool:
        deployment.execute(workflow_id)
        return taken_on()

    wait_until(runs_something, what="the process to go on")


# --- retry ---------------------------------------------------------------------------------------------------


def test_a_retry_keeps_what_completed(deployment: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    definition = workflow(
        step("a", "mark", file=str(marks)),
        step(
            "b", "script", needs="a", source=f"import os, sys; sys.exit(not os.path.exists({str(tmp_path / 'ok')!r}))"
        ),
        step("c", "mark", needs="b", file=str(marks)),
        **{"finally": [step("tidy", "mark", file=str(marks))]},
    )
    execution_id = deployment.execute(deployment.create(definition))
    assert states_of(deployment.ended(execution_id)) == {
        "a": "completed", "b": "failed", "c": "skipped", "finally.tidy": "completed",
    }  # fmt: skip
    (tmp_path / "ok").touch()
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    assert execution["error_message"] is None
    performed = [line.split()[1] for line in marks.read_text().splitlines()]
    assert performed == ["a", "finally.tidy", "c", "finally.tidy"]
    assert call(deployment, execution_id, "retry", 409)["state"] == "completed"


def test_a_retry_does_the_rounds_of_a_loop_again_that_failed(deployment: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    ok = str(tmp_path / "ok")
    source = f"import json, os, sys; sys.exit(json.load(sys.stdin)['n'] == 2 and not os.path.exists({ok!r}))"
    body = [
        step("one", "mark", file=str(marks)),
        {**step("two", "script", needs="one", source=source), "input_mapping": {"n": "{{ loop.item }}"}},
    ]
    loop = {"id": "each", "type": "loop", "config": {"items": [1, 2, 3], "concurrency": 1, "steps": body}}
    execution_id = deployment.execute(deployment.create(workflow(loop, step("after", needs="each"))))
    assert deployment.ended(execution_id)["status"] == "failed"
    (tmp_path / "ok").touch()
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    performed = [line.split()[1] for line in marks.read_text().splitlines()]
    assert performed == ["each[0].one", "each[1].one", "each[2].one"]


def test_a_single_step_is_retried_with_what_hangs_on_it(deployment: Deployment, tmp_path: Path):
    def check(name: str) -> str:
        return f"import os, sys; sys.exit(not os.path.exists({str(tmp_path / name)!r}))"

    definition = workflow(
        step("a", "script", source=check("a")), step("after_a", needs="a"), step("b", "script", source=check("b"))
    )
    execution_id = deployment.execute(deployment.create(definition))
    execution = deployment.ended(execution_id)
    (tmp_path / "a").touch()
    step_id = rows_of(execution)["a"]["id"]
    answer = deployment.client.post(f"/api/v1/step-executions/{step_id}/retry")
    assert answer.status_code == 200, answer.text
    execution = deployment.ended(execution_id)
    assert states_of(execution) == {"a": "completed", "after_a": "completed", "b": "failed"}
    assert execution["status"] == "failed"
    again = deployment.client.post(f"/api/v1/step-executions/{step_id}/retry")
    assert (again.status_code, again.json["state"]) == (409, "completed")


def completed_all_the_same(deployment: Deployment, ok: Path) -> str:
    """An execution that failed behind a loop which had gone on past the failure of an item."""
    check = f"import os, sys; sys.exit(not os.path.exists({str(ok)!r}))"
    body = [step("one"), step("two", "script", needs="one", source=check)]
    loop = {"id": "each", "type": "loop", "config": {"items": [1, 2], "on_item_error": "continue", "steps": body}}
    execution = deployment.run(workflow(loop, step("after", "script", needs="each", source=check)))
    assert execution["status"] == "failed"
    assert rows_of(execution)["each"]["output"]["failed"] == 2
    return str(execution["id"])


def test_a_retry_leaves_a_loop_as_it_is_that_completed_all_the_same(deployment: Deployment, tmp_path: Path):
    execution_id = completed_all_the_same(deployment, tmp_path / "ok")
    (tmp_path / "ok").touch()
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    assert states_of(execution) == {
        "each": "completed", "each[0].one": "completed", "each[0].two": "failed",
        "each[1].one": "completed", "each[1].two": "failed", "after": "completed",
    }  # fmt: skip


def test_a_step_in_a_loop_that_completed_all_the_same_is_not_retried(deployment: Deployment, tmp_path: Path):
    execution_id = completed_all_the_same(deployment, tmp_path / "ok")
    step_id = rows_of(deployment.execution(execution_id))["each[1].two"]["id"]
    answer = deployment.client.post(f"/api/v1/step-executions/{step_id}/retry")
    assert (answer.status_code, answer.json["state"]) == (409, "completed")
    assert f"/api/v1/executions/{execution_id}/rerun with from_step 'each[1].two'" in answer.json["detail"]
    assert deployment.execution(execution_id)["status"] == "failed"


def test_many_who_retry_at_once_have_it_done_once(deployment: Deployment, tmp_path: Path):
    marks, ok, again = tmp_path / "marks", tmp_path / "ok", tmp_path / "again"
    source = f"""
        import os, sys, time
        print('x', file=open({str(marks)!r}, 'a'))
        if not os.path.exists({str(ok)!r}):
            sys.exit(1)
        while not os.path.exists({str(again)!r}):
            time.sleep(0.01)
        """
    execution_id = deployment.run(workflow(step("a", "script", source=dedent(source))))["id"]
    ok.touch()

    def retry(_: int) -> int:
        client = deployment.client.application.test_client()
        key = {"Authorization": deployment.client.environ_base["HTTP_AUTHORIZATION"]}
        return int(client.post(f"/api/v1/executions/{execution_id}/retry", headers=key).status_code)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(retry, range(8))) == [200] * 8
    again.touch()
    assert deployment.ended(execution_id)["status"] == "completed"
    assert marks.read_text().split() == ["x", "x"]  # the failure, and the retry


def test_a_retry_counts_its_attempts_on_and_has_all_of_its_policy_again(deployment: Deployment):
    policy = {"max_attempts": 2, "initial_delay": "10ms"}
    execution_id = deployment.run(workflow(step("a", "fail", until_attempt=4, retry_policy=policy)))["id"]
    assert rows_of(deployment.execution(execution_id))["a"]["attempt"] == 2
    call(deployment, execution_id, "retry")
    execution = deployment.ended(execution_id)
    assert execution["status"] == "completed", execution["error_message"]
    assert rows_of(execution)["a"]["attempt"] == 4
    # What the policy has tried again is counted once: the steps that the user had tried again are no news of it.
    ((retried,),) = deployment.sql(
        "SELECT sum(retried)::int FROM step_stats JOIN executions USING (workflow_id) WHERE id = %(id)s::uuid",
        id=execution_id,
    )
    assert retried == 2


def test_a_repeated_retry_of_a_step_answers_as_the_first(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"), step("b", needs="a"), step("c"))))
    call(servers, execution_id, "cancel")
    a, c = (rows_of(servers.execution(execution_id))[path]["id"] for path in "ac")
    for _ in range(2):
        answer = servers.client.post(f"/api/v1/step-executions/{a}/retry")
        assert (answer.status_code, answer.json["status"]) == (200, "queued")
    # Of this execution, not all is tried again.
    assert call(servers, execution_id, "retry", 409)["state"] == "queued"
    assert servers.client.post(f"/api/v1/step-executions/{c}/retry").status_code == 200
    other = servers.execute(servers.create(workflow(step("a"))))
    never_failed = rows_of(servers.execution(other))["a"]["id"]
    answer = servers.client.post(f"/api/v1/step-executions/{never_failed}/retry")
    assert (answer.status_code, answer.json["state"]) == (409, "queued")


def test_a_retry_is_in_force_until_the_execution_ends(servers: Deployment):
    execution_id = servers.execute(servers.create(workflow(step("a"))))
    assert call(servers, execution_id, "retry", 409)["state"] == "queued"
    call(servers, execution_id, "cancel")
    for _ in range(2):
        assert call(servers, execution_id, "retry")["status"] == "queued"
    call(servers, execution_id, "pause")
    assert call(servers, execution_id, "retry")["status"] == "paused"
    servers.sql(
        "UPDATE executions SET status = 'completed', finished_at = now() WHERE id = %(id)s::uuid", id=execution_id
    )
    assert call(servers, execution_id, "retry", 409)["state"] == "completed"


def test_what_was_undone_is_not_retried(deployment: Deployment):
    definition = workflow({**step("a"), "compensate": {"type": "noop"}}, step("boom", "fail", needs="a"))
    execution = deployment.run(definition)
    refusal = call(deployment, execution["id"], "retry", 409)
    assert "start a new execution" in refusal["detail"]


@pytest.mark.parametrize("what", ["pause", "resume", "cancel", "retry"])
def test_what_is_not_there_is_not_found(servers: Deployment, what: str):
    call(servers, "00000000-0000-7000-8000-000000000000", what, 404)
