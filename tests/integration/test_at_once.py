"""The same request a hundred times at once, at the API as it is deployed: several processes, many threads."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from deployment import KEY, PATIENCE, Deployment, own_port, wait_until

from orchestrator.config import environment_of
from orchestrator.processes import Child

AT_ONCE = 100
NOOP = {"steps": [{"id": "a", "type": "noop"}]}


@pytest.fixture(scope="module")
def api(servers: Deployment) -> Iterator[str]:
    """The address of a gunicorn of two processes."""
    with own_port() as port, gunicorn(servers, port) as address:
        yield address


@contextmanager
def gunicorn(servers: Deployment, port: int) -> Iterator[str]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = Child(
        "api",
        [sys.executable, "-m", "gunicorn", "api:create_app()", "--bind", f"127.0.0.1:{port}", "--backlog", "512",
         "--worker-class", "gthread", "--workers", "2", "--threads", "50"],
        log=servers.folder / "gunicorn.log",
        environment=os.environ | environment_of(servers.settings) | {"PYTHONPATH": path},
        folder=servers.folder,
    )  # fmt: skip
    child.start()
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(address) or child.exit_code is not None, what="the API")
        assert child.exit_code is None, (servers.folder / "gunicorn.log").read_text()
        yield address
    finally:
        child.kill()


def answers(address: str) -> bool:
    """Whatever it says: it may well miss a worker."""
    try:
        requests.get(f"{address}/health", timeout=5)
    except requests.RequestException:
        return False
    return True


def all_at_once(post: Callable[[], requests.Response]) -> list[requests.Response]:
    start = threading.Barrier(AT_ONCE)

    def wait_and_post(_: int) -> requests.Response:
        start.wait(PATIENCE)
        return post()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(wait_and_post, range(AT_ONCE)))


def executions_of(servers: Deployment, workflow_id: str) -> int:
    ((count,),) = servers.sql("SELECT count(*) FROM executions WHERE workflow_id = %(id)s::uuid", id=workflow_id)
    return int(count)


def test_a_hundred_posts_at_once_with_one_key_make_one_execution(servers: Deployment, api: str):
    workflow_id = servers.create(NOOP)
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "once"}
    address = f"{api}/api/v1/workflows/{workflow_id}/execute"
    replies = all_at_once(lambda: requests.post(address, json={}, headers=headers, timeout=PATIENCE))
    assert Counter(reply.status_code for reply in replies) == {202: 1, 200: AT_ONCE - 1}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert executions_of(servers, workflow_id) == 1


def test_a_hundred_deliveries_at_once_with_one_id_make_one_execution(servers: Deployment, api: str):
    workflow_id = servers.create(NOOP)
    path = f"/api/v1/workflows/{workflow_id}"
    assert servers.client.post(f"{path}/activate").status_code == 200
    trigger = {"type": "webhook", "name": "hook", "config": {"path": "at-once"}}
    assert servers.client.post(f"{path}/triggers", json=trigger).status_code == 201
    headers = {"webhook-id": "delivery 1"}
    replies = all_at_once(lambda: requests.post(f"{api}/webhook/at-once", json={}, headers=headers, timeout=PATIENCE))
    assert {reply.status_code for reply in replies} == {202}
    assert len({(reply.json()["execution_id"], reply.json()["fire_id"]) for reply in replies}) == 1
    assert executions_of(servers, workflow_id) == 1
