"""The Procfile's server, as an operator starts it: it listens where the settings say, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from deployment import Deployment, own_port, wait_until

from orchestrator.config import environment_of
from orchestrator.exposure import netloc
from orchestrator.processes import Child
from orchestrator.supervisor import procfile, read_procfile

TESTS = Path(__file__).parents[1]


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).headers["Content-Type"] == "application/json"
    except requests.RequestException:
        return False


@pytest.fixture
def port() -> Iterator[int]:
    with own_port() as port:
        yield port


def test_a_port_that_is_set_alone_or_in_the_file_opens_no_other_address(
    servers: Deployment, tmp_path: Path, port: int
) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(f"services: {{orchestrator: {{port: {port}}}}}")
    environment = os.environ | environment_of(servers.settings) | {"ORCHESTRATOR_CONFIG": str(settings)}
    for name in ("ORCHESTRATOR_HOST", "ORCHESTRATOR_PORT"):
        del environment[name]
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), environment.get("PYTHONPATH", "")])
    log = tmp_path / "web.log"
    command = read_procfile(procfile())["web"]
    child = Child("web", ["/bin/sh", "-c", f"exec {command}"], log=log, environment=environment, folder=servers.folder)
    child.start()
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}") or child.exit_code is not None, what="the API")
        assert child.exit_code is None, log.read_text()
        bound = psutil.Process(child.pid).net_connections("inet")
        assert [one.laddr for one in bound if one.status == psutil.CONN_LISTEN] == [("127.0.0.1", port)]
    finally:
        child.kill()


def test_an_address_of_ipv6_is_written_in_brackets() -> None:
    assert [netloc(host, 80) for host in ("::1", "[::1]", "127.0.0.1", "localhost")] == [
        "[::1]:80", "[::1]:80", "127.0.0.1:80", "localhost:80",
    ]  # fmt: skip
