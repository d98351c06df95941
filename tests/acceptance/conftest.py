"""One whole service for the tests that only use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_cli_up import Up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`orchestrator up` with its real processes, on a folder of its own."""
    up = Up(tmp_path_factory.mktemp("run") / "data", "--port", "0")
    up.wait_ready()
    yield up
    up.end()
