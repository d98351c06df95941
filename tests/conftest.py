"""Fixtures: one deployment for all tests of a pytest process that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployment import Deployment, deployed
from hypothesis import HealthCheck, settings

from orchestrator.config import Settings
from orchestrator.isolation import in_force

# The same examples at every run, however slow the machine is: what fails has been broken by what was changed.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also what takes long")
    parser.addoption("--soak", type=int, default=60, help="executions of the soak; `make chaos` has 1,000")
    parser.addoption("--patience", type=float, default=6, help="times the seconds of a recovery; `make chaos` has 1")
    parser.addoption("--soak-seed", type=int, default=1, help="what its faults are chosen by")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        return
    left = [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)


def pytest_report_header() -> str:
    """Tests of scripts within bubblewrap are skipped where it does not work: not without anybody noticing."""
    return f"scripts are isolated {in_force(Settings())}"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """PostgreSQL and Valkey, the API, and no worker: what is started stays queued."""
    with deployed(tmp_path_factory.mktemp("servers")) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The same with workers for every queue. Tests that kill or flush something make one of their own."""
    with deployed(tmp_path_factory.mktemp("deployment")) as deployment:
        deployment.start_worker("control,cpu")
        deployment.start_worker("io", pool="threads", concurrency=10)
        yield deployment
