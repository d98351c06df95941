"""A step that waits for a silent other side lets go of it when its execution is cancelled, also in a thread that nobody
can interrupt: whatever the client, the connection is closed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from deployment import Deployment, wait_until
from performing import context_of
from test_connecting import CALLS

from orchestrator.config import AgentSettings, EmailSettings, LlmSettings, McpServerSettings, McpSettings, Settings
from workers.steps.contract import StepType
from workers.steps.email import Email
from workers.stopping import Watch

EMAIL = {"to": "a@example.com", "subject": "s", "text": "t"}


class Silent:
    """A server that takes one connection and all that comes over it, and says nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.has_client = threading.Event()
        self.is_left = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        self.has_client.set()
        with client:
            try:
                while client.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        self.is_left.set()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def settings_for(port: int) -> Settings:
    url = f"http://127.0.0.1:{port}"
    return Settings(
        email=EmailSettings(host="127.0.0.1", port=port, security="none", sender="b@example.com", timeout=600),
        llm=LlmSettings(base_url=url, model="m"),
        mcp=McpSettings(servers={"it": McpServerSettings(url=url)}),
        agents={"a2a": AgentSettings(url=url), "http": AgentSettings(url=url, protocol="http")},
    )


@pytest.mark.parametrize(("step_type", "config"), [*CALLS, pytest.param(Email(), EMAIL, id="email")])
def test_cancelling_lets_go_of_a_silent_other_side(
    servers: Deployment, silent: Silent, step_type: StepType, config: dict[str, Any]
) -> None:
    execution_id = servers.execute(servers.create({"steps": [{"id": "a", "type": "noop"}]}))
    claimed = servers.claim(execution_id, "a")
    assert claimed is not None
    given = {key: value.replace("{url}", f"http://127.0.0.1:{silent.port}/x") for key, value in config.items()}
    if "timeout" in step_type.Config().fields:
        given["timeout"] = "10m"
    context = replace(context_of(step_type, given, settings=settings_for(silent.port)), deadline=None)
    watch = Watch(servers.store, lambda _plan: None)

    def perform() -> None:
        with watch.over(claimed[0]), suppress(Exception):  # what it raises is for nobody any more
            step_type.perform(context)

    performer = threading.Thread(target=perform, daemon=True)
    performer.start()
    try:
        wait_until(silent.has_client.is_set, what="the call")
        assert performer.is_alive()
        assert servers.client.post(f"/api/v1/executions/{execution_id}/cancel").status_code == 200
        wait_until(silent.is_left.is_set, what="the end of the connection")
        performer.join(30)
        assert not performer.is_alive()
    finally:
        watch.close()
