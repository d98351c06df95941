"""What an operator of a Celery deployment sees here: Flower, `celery inspect` and `celery report`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from deployment import PATIENCE, Deployment, wait_until

from orchestrator.config import environment_of

CELERY = [sys.executable, "-m", "celery", "-A", "workers"]


@dataclass(frozen=True)
class Held:
    """An execution whose step `held` waits at a gate."""

    execution_id: str
    worker: str

    @property
    def arguments(self) -> str:
        """Of the task that performs it, as Celery shows them: which execution, which step."""
        return f"('{self.execution_id}', ['held'])"


def environment(deployment: Deployment) -> dict[str, str]:
    return os.environ | environment_of(deployment.settings)


def celery(deployment: Deployment, *arguments: str) -> str:
    """What a celery command of an operator prints."""
    done = subprocess.run(
        [*CELERY, *arguments],
        env=environment(deployment),
        cwd=deployment.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def to_all(deployment: Deployment, command: str, what: str) -> str:
    """What all workers say to it, which are named: else Celery waits for a second, whoever answers."""
    nodes = ",".join(nodes_of(deployment))
    return celery(deployment, command, "--timeout", str(PATIENCE / 2), "--destination", nodes, what)


@pytest.fixture
def held(deployment: Deployment, tmp_path: Path) -> Iterator[Held]:
    gate = tmp_path / "gate"
    step = {"id": "held", "type": "gate", "config": {"file": str(gate)}}
    execution_id = deployment.execute(deployment.create({"steps": [step]}))
    try:
        wait_until(lambda: deployment.statuses(execution_id) == {"held": "running"}, what="the step at the gate")
        ((node,),) = deployment.sql(
            "SELECT node FROM worker_processes WHERE id = "
            "(SELECT worker_id FROM step_executions WHERE execution_id = %(id)s::uuid)",
            id=execution_id,
        )
        yield Held(execution_id, node)
    finally:
        gate.touch()
        deployment.ended(execution_id)


@pytest.fixture(scope="module")
def flower(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Flower that looks at the deployment."""
    log = tmp_path_factory.mktemp("flower") / "flower.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*CELERY, "flower", "--address=127.0.0.1", "--port=0", f"--inspect_timeout={1000 * PATIENCE / 2}"],
            stdout=output,
            stderr=output,
            env=environment(deployment) | {"FLOWER_UNAUTHENTICATED_API": "true"},
            cwd=log.parent,
        )

    def address() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"http://127\.0\.0\.1:\d+", log.read_text())

    try:
        yield wait_until(address, what="Flower's address").group()
    finally:
        process.kill()  # or it would wait for the answers of workers that are not there
        process.wait()


def asked(flower: str, path: str, **query: Any) -> Any:
    answer = requests.get(f"{flower}/api/{path}", params=query, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def nodes_of(deployment: Deployment) -> set[str]:
    return {node for (node,) in deployment.sql("SELECT DISTINCT node FROM worker_processes")}


def shown(flower: str, node: str) -> dict[str, Any]:
    """What Flower knows of a worker that it has just asked; one whose name is given is waited for."""
    found: dict[str, Any] = asked(flower, "workers", refresh=True, workername=node)[node]
    return found


# --- Flower ------------------------------------------------------------------------------------------------


def test_flower_lists_the_workers_with_their_queues_and_the_task(deployment: Deployment, flower: str) -> None:
    workers = {node: shown(flower, node) for node in nodes_of(deployment)}
    queues = {frozenset(queue["name"] for queue in worker["active_queues"]) for worker in workers.values()}
    assert queues == {frozenset({"control", "cpu"}), frozenset({"io"})}
    assert all("run_steps" in worker["registered"] for worker in workers.values())


def test_flower_shows_which_execution_and_step_a_worker_is_busy_with(flower: str, held: Held) -> None:
    tasks = shown(flower, held.worker)["active"]
    assert ("run_steps", held.arguments) in [(task["name"], task["args"]) for task in tasks]


def test_flower_follows_the_tasks_by_their_events(
    deployment: Deployment, flower: str, request: pytest.FixtureRequest
) -> None:
    # Flower itself asks for events every few seconds; `celery control enable_events` is the same, at once.
    to_all(deployment, "control", "enable_events")
    held: Held = request.getfixturevalue("held")

    def seen() -> list[Any]:
        tasks = asked(flower, "tasks", taskname="run_steps", state="STARTED")
        return [task for task in tasks.values() if task["args"] == held.arguments]

    (task,) = wait_until(seen, what="the task in Flower")
    assert task["worker"] == held.worker


def test_flower_counts_what_waits_in_the_queues(deployment: Deployment, flower: str, held: Held) -> None:
    for node in nodes_of(deployment):
        shown(flower, node)
    (queues,) = asked(flower, "queues/length").values()
    # The one message there is has been taken: its step is at the gate.
    assert {queue["name"]: queue["messages"] for queue in queues} == {"control": 0, "cpu": 0, "io": 0}


# --- celery inspect and celery report ----------------------------------------------------------------------


def test_inspect_active_names_the_execution_and_the_step(deployment: Deployment, held: Held) -> None:
    said = to_all(deployment, "inspect", "active")
    assert f"->  {held.worker}: OK" in said
    assert "'name': 'run_steps'" in said
    assert f"'args': ['{held.execution_id}', ['held']]" in said


def test_inspect_report_answers_for_every_worker(deployment: Deployment) -> None:
    said, nodes = to_all(deployment, "inspect", "report"), nodes_of(deployment)
    assert set(re.findall(r"^->  (\S+): OK$", said, re.MULTILINE)) == nodes
    assert said.count("'workers.tasks'") == len(nodes)


def test_report_names_the_broker_and_the_queues(deployment: Deployment) -> None:
    said = celery(deployment, "report")
    host = deployment.settings.broker.url.rpartition("@")[2]
    assert f"broker_url: 'redis://:********@{host}'" in said
    assert all(f"Queue {name} -> " in said for name in ("control", "cpu", "io"))
    password = urlsplit(deployment.settings.broker.url).password
    assert password
    assert password not in said
