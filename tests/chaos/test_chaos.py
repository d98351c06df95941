"""Processes are killed, servers lose their data: every execution still ends right, every result once."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from deployment import PATIENCE, Deployment, deployed, wait_until
from kombu import Exchange, Queue

from orchestrator.embedded import wait_ready
from orchestrator.engine.plan import Message, Plan

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("chaos")) as deployment:
        yield deployment


@pytest.fixture
def chaos(stack: Deployment) -> Deployment:
    """The stack with a worker for each pool, as in a deployment: what a test has ended is made good for the next."""
    for worker in [one for one in stack.workers if one.poll() is not None]:
        stack.workers.remove(worker)
    if not stack.workers:
        stack.start_worker("control,cpu", concurrency=2)
        stack.start_worker("io", pool="threads", concurrency=10)
    return stack


def step(id: str, type: str = "noop", needs: str = "", **config: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "depends_on": needs.split(), "config": config}


def chain(marks: Path, length: int, seconds: float = 0.0) -> dict[str, Any]:
    steps = [step("s0", "mark", file=str(marks), seconds=seconds)]
    for n in range(1, length):
        steps.append(step(f"s{n}", "mark", f"s{n - 1}", file=str(marks), seconds=seconds))
    return {"steps": steps}


def fan_out(marks: Path, width: int) -> dict[str, Any]:
    middle = [step(f"s{n}", "mark", "a", file=str(marks)) for n in range(width)]
    ends = " ".join(one["id"] for one in middle)
    return {"steps": [step("a", "io_noop"), *middle, step("z", "mark", ends, file=str(marks))]}


def over_queues(marks: Path) -> dict[str, Any]:
    file = str(marks)
    return {
        "steps": [
            step("a", "mark", file=file),
            step("b", "io_noop", "a"),
            step("c", "mark", "b", file=file),
            step("d", "io_noop", "a"),
            step("e", "mark", "c d", file=file),
        ]
    }


def bodies(marks: Path) -> dict[str, Any]:
    """A loop of branches that rest, a limited loop, and what runs at the end."""
    mark = {"file": str(marks)}
    branches = {"left": [step("l", "mark", **mark)], "right": [{**step("r", "wait"), "config": {"duration": "50ms"}}]}
    fork = {**step("fork", "parallel"), "config": {"branches": branches}}
    few = [step("f1", "mark", **mark), step("f2", "io_noop", "f1")]
    return {
        "steps": [
            {**step("wide", "loop"), "config": {"items": [1, 2, 3, 4], "steps": [fork]}},
            {**step("few", "loop", "wide"), "config": {"items": [1, 2, 3, 4, 5], "concurrency": 2, "steps": few}},
            step("last", "mark", "few", **mark),
        ],
        "finally": [step("tidy", "mark", **mark)],
    }


def start_many(deployment: Deployment, count: int, *definitions: dict[str, Any]) -> list[str]:
    workflows = [deployment.create(definition) for definition in definitions]
    return [deployment.execute(workflows[n % len(workflows)]) for n in range(count)]


def half_done(deployment: Deployment, count: int, *definitions: dict[str, Any]) -> list[str]:
    """So many executions and more, of which some have completed and others have not."""
    ids = start_many(deployment, count, *definitions)
    wait_until(lambda: counted(deployment, ids)["completed"] >= count / 10, what="the first of them")
    if counted(deployment, ids)["completed"] < count:
        return ids
    return [*ids, *half_done(deployment, count, *definitions)]


def counted(deployment: Deployment, ids: list[str]) -> Counter[str]:
    """How many of the executions are in each status."""
    return Counter(
        dict(
            map(
                tuple,
                deployment.sql(
                    "SELECT status, count(*)::int FROM executions WHERE id = ANY(%(ids)s::uuid[]) GROUP BY status",
                    ids=ids,
                ),
            )
        )
    )


def assert_all_complete(deployment: Deployment, ids: list[str], seconds: float = 2 * PATIENCE) -> None:
    try:
        wait_until(lambda: sum(counted(deployment, ids)[s] for s in ("completed", "failed")) == len(ids), seconds)
    except AssertionError:
        left = deployment.sql(
            "SELECT execution_id, path, status, queue, attempt, losses, worker_id, rung_at FROM step_executions "
            "WHERE execution_id = ANY(%(ids)s::uuid[]) AND status IN ('queued', 'running', 'waiting')",
            ids=ids,
        )
        raise AssertionError(f"{counted(deployment, ids)}; left are {left[:10]}") from None
    assert counted(deployment, ids) == {"completed": len(ids)}
    states = deployment.sql(
        "SELECT DISTINCT status FROM step_executions WHERE execution_id = ANY(%(ids)s::uuid[])", ids=ids
    )
    assert states == [("completed",)]


def rows(deployment: Deployment, ids: list[str], where: str = "true") -> dict[tuple[str, str], int]:
    """(execution, path) -> attempt."""
    found = deployment.sql(
        "SELECT execution_id::text, path, attempt FROM step_executions "
        f"WHERE execution_id = ANY(%(ids)s::uuid[]) AND {where}",
        ids=ids,
    )
    return {(execution_id, path): attempt for execution_id, path, attempt in found}


def performed(marks: Path) -> Counter[tuple[str, str, int]]:
    """How often each (execution, path, attempt) was performed."""
    lines = [line.split() for line in marks.read_text().splitlines()]
    return Counter((execution_id, path, int(attempt)) for execution_id, path, attempt in lines)


def assert_performed_once(deployment: Deployment, ids: list[str], marks: Path) -> None:
    attempts = {
        (execution_id, path, attempt)
        for (execution_id, path), attempt in rows(deployment, ids, "type = 'mark'").items()
    }
    assert {attempt for *_, attempt in attempts} == {1}
    assert performed(marks) == Counter(attempts)


# --- messages ----------------------------------------------------------------------------------------------


def test_a_message_that_comes_five_times_is_performed_once(chaos: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    names = [f"s{n}" for n in range(10)]
    roots = [step(name, "mark", file=str(marks), seconds=0.01) for name in names]
    join = step("z", "mark", " ".join(names), file=str(marks))
    execution_id = chaos.execute(chaos.create({"steps": [*roots, join]}))
    from workers.canvas import dispatch

    for _ in range(5):
        dispatch(Plan(execution_id, 5, tuple((Message("cpu", (name,)),) for name in names)))
    assert_all_complete(chaos, [execution_id])
    assert_performed_once(chaos, [execution_id], marks)


def test_a_broker_that_forgets_everything_loses_no_execution(chaos: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    ids = half_done(chaos, 200, chain(marks, 5, 0.005), fan_out(marks, 8), over_queues(marks), bodies(marks))
    broker(chaos).flushall()
    assert_all_complete(chaos, ids)
    assert_performed_once(chaos, ids, marks)


def test_a_broker_that_dies_with_executions_queued_loses_none(chaos: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    ids = start_many(chaos, 60, chain(marks, 5, 0.01), fan_out(marks, 8))
    valkey = chaos.servers.valkey
    assert valkey is not None
    valkey.kill()
    valkey.start()
    wait_ready(valkey)
    assert_all_complete(chaos, ids)
    assert_performed_once(chaos, ids, marks)


def test_a_message_that_outlives_its_connection_costs_no_consumer(chaos: Deployment, caplog: pytest.LogCaptureFixture):
    """The order in which a consumer does things that loses the broker while it waits for its next message: none of it
    raises anything, and nothing is dumped to a file."""
    valkey = chaos.servers.valkey
    assert valkey is not None
    _ = chaos.client  # points the app at this deployment
    from workers.app import app

    connection = app.connection_for_read()
    channel = connection.channel()
    messages: list[Any] = []
    queue = Queue("outlived", Exchange(""), routing_key="outlived")
    connection.Consumer([queue], channel=channel, on_message=messages.append).consume()
    connection.Producer(channel).publish("a message", exchange="", routing_key="outlived")
    while not messages:
        connection.drain_events(timeout=PATIENCE)
    connection.transport.cycle.on_poll_start()
    valkey.kill()
    valkey.start()
    wait_ready(valkey)
    lost = connection.connection_errors
    with suppress(*lost):
        connection.collect(socket_timeout=1)
    connection.close()
    channel.close()
    messages[0].ack()
    assert "UNABLE TO RESTORE" not in caplog.text


def broker(deployment: Deployment) -> Any:
    return redis.Redis.from_url(deployment.settings.broker.url)


# --- the database ------------------------------------------------------------------------------------------


def test_executions_survive_a_database_that_dies(chaos: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    ids = half_done(chaos, 60, chain(marks, 6, 0.01), fan_out(marks, 8), over_queues(marks), bodies(marks))
    restart_database(chaos)
    done = rows(chaos, ids, "status = 'completed' AND type = 'mark'")
    assert_all_complete(chaos, ids)
    assert_recorded_once(chaos, ids, marks, done)


def restart_database(deployment: Deployment) -> None:
    """SIGKILL, and a start that recovers from the log."""
    postgres = deployment.servers.postgres
    assert postgres is not None
    backends = psutil.Process(postgres.pid).children(recursive=True)
    postgres.kill()
    psutil.wait_procs(backends, 10)
    postgres.start()
    wait_ready(postgres)
    # The connections of the test itself and of the API in it: each finds out by a statement that fails.
    deployment.store.close()
    wait_until(lambda: deployment.client.get("/api/v1/workflows").status_code == 200, what="the API")


def assert_recorded_once(deployment: Deployment, ids: list[str], marks: Path, done: dict[tuple[str, str], int]) -> None:
    """Each attempt was performed at most once, and none followed the one that was recorded."""
    times = performed(marks)
    assert set(times.values()) == {1}
    recorded = rows(deployment, ids, "type = 'mark'")
    for execution_id, path, attempt in times:
        assert attempt <= recorded[execution_id, path]
    for key, attempt in recorded.items():
        assert (*key, attempt) in times
    assert {key: recorded[key] for key in done} == done


# --- workers -----------------------------------------------------------------------------------------------


def test_the_step_of_a_killed_child_runs_again(chaos: Deployment):
    execution = chaos.run({"steps": [step("a"), step("b", "die", "a", until_attempt=2), step("c", needs="b")]})
    assert execution["status"] == "completed"
    attempts = {row["path"]: row["attempt"] for row in execution["step_executions"]}
    assert attempts == {"a": 1, "b": 2, "c": 1}


def test_a_step_that_kills_its_worker_every_time_fails_as_lost(chaos: Deployment):
    execution = chaos.run({"steps": [step("a", "die"), step("b", needs="a"), step("other")]})
    assert execution["status"] == "failed"
    states = {row["path"]: row for row in execution["step_executions"]}
    assert (states["a"]["status"], states["a"]["error_kind"], states["a"]["attempt"]) == ("failed", "lost", 3)
    assert (states["b"]["status"], states["other"]["status"]) == ("skipped", "completed")


def test_another_worker_ends_what_a_killed_one_began(chaos: Deployment, tmp_path: Path):
    marks = tmp_path / "marks"
    victim = chaos.workers[0]
    chaos.start_worker(concurrency=2)
    ids = half_done(chaos, 40, chain(marks, 5, 0.02), fan_out(marks, 8), bodies(marks))
    chaos.kill_worker(victim)
    done = rows(chaos, ids, "status = 'completed' AND type = 'mark'")
    assert_all_complete(chaos, ids)
    assert_recorded_once(chaos, ids, marks, done)


def test_a_frozen_worker_that_wakes_up_records_nothing_over_the_new_result(chaos: Deployment, tmp_path: Path):
    for worker in list(chaos.workers):
        chaos.kill_worker(worker)
    for _ in range(2):
        chaos.start_worker(concurrency=1)
    gate = tmp_path / "gate"
    execution_id = chaos.execute(chaos.create({"steps": [step("a", "gate", file=str(gate)), step("b", needs="a")]}))
    frozen = wait_until(lambda: performer(chaos, execution_id), what="a worker that waits at the gate")
    (other,) = (worker for worker in chaos.workers if worker is not frozen)

    each(chaos, frozen, lambda process: process.send_signal(signal.SIGSTOP))
    try:
        wait_until(lambda: performer(chaos, execution_id) is other, what="the other worker at the gate")
        gate.touch()
        chaos.ended(execution_id)
        before = snapshot(chaos, execution_id)
    finally:
        gate.touch()
        chaos.kill_worker(other)
        each(chaos, frozen, lambda process: process.send_signal(signal.SIGCONT))

    # Its only process is through with the old step when it has done something new, at the first attempt: it has taken
    # a lease anew before that.
    (done,) = chaos.run({"steps": [step("a", "mark", file=str(tmp_path / "marks"))]})["step_executions"]
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert snapshot(chaos, execution_id) == before
    assert [(row[0], row[1], row[2]) for row in before] == [("a", "completed", 2), ("b", "completed", 1)]


def performer(deployment: Deployment, execution_id: str) -> subprocess.Popen[bytes] | None:
    """The worker that performs the step `a`."""
    found = deployment.sql(
        "SELECT w.pid FROM step_executions s JOIN worker_processes w ON w.id = s.worker_id "
        "WHERE s.execution_id = %(id)s::uuid AND s.path = 'a' AND s.status = 'running'",
        id=execution_id,
    )
    pids = {pid for (pid,) in found}
    for worker in deployment.workers:
        if pids & {child.pid for child in deployment.children_of(worker)}:
            return worker
    return None


def each(deployment: Deployment, worker: subprocess.Popen[bytes], act: Callable[[psutil.Process], None]) -> None:
    for process in [psutil.Process(worker.pid), *deployment.children_of(worker)]:
        act(process)


def snapshot(deployment: Deployment, execution_id: str) -> list[Any]:
    return deployment.sql(
        "SELECT path, status, attempt, output, worker_id, finished_at FROM step_executions "
        "WHERE execution_id = %(id)s::uuid ORDER BY path",
        id=execution_id,
    )
