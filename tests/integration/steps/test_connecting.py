"""The egress rules on real connections: what is denied sees no connection, by whatever client and whatever way."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from performing import context_of

from orchestrator.config import (
    AgentSettings,
    EgressSettings,
    LlmSettings,
    McpServerSettings,
    McpSettings,
    Settings,
)
from orchestrator.errors import StepFailed
from workers.steps.agent import Agent
from workers.steps.contract import StepType
from workers.steps.http import Http
from workers.steps.llm import Llm
from workers.steps.mcp import Mcp
from workers.steps.webhook import Webhook

DENIED = "127.0.0.2"
DENY = EgressSettings(deny=(f"{DENIED}/32",))


class Handler(BaseHTTPRequestHandler):
    """Says what it was asked for; below /to/ it redirects to the rest of the path."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []
    """Addresses, as clients had them."""

    def answer(self) -> None:
        self.asked.append(f"http://{self.headers['Host']}{self.path}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        elsewhere = self.path.startswith("/to/")
        body = b"" if elsewhere else json.dumps({"host": self.headers["Host"]}).encode()
        self.send_response(307 if elsewhere else 200)
        if elsewhere:
            self.send_header("Location", f"http://{self.path.removeprefix('/to/')}")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server on 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def forbidden() -> Iterator[int]:
    """The port of a socket on the denied address. Afterwards, nothing has connected to it."""
    with socket.create_server((DENIED, 0)) as listener:
        listener.setblocking(False)
        yield listener.getsockname()[1]
        with pytest.raises(BlockingIOError):
            listener.accept()


def call(step_type: StepType, config: dict[str, Any], egress: EgressSettings = DENY, url: str = "") -> Any:
    settings = Settings(
        egress=egress,
        llm=LlmSettings(base_url=url, model="m"),
        mcp=McpSettings(servers={"it": McpServerSettings(url=url)}),
        agents={
            "a2a": AgentSettings(url=url),
            "http": AgentSettings(url=url, protocol="http"),
        },
    )
    return step_type.perform(context_of(step_type, config, settings=settings)).output  # type: ignore[union-attr]


def get(url: str, egress: EgressSettings = DENY) -> Any:
    return call(Http(), {"url": url}, egress)


def denial(step_type: StepType, config: dict[str, Any], url: str = "", egress: EgressSettings = DENY) -> str:
    with pytest.raises(StepFailed) as failed:
        call(step_type, config, egress, url)
    assert (failed.value.kind, failed.value.retryable) == ("egress", False)
    return str(failed.value)


CALLS: list[Any] = [
    pytest.param(Http(), {"url": "{url}"}, id="http"),
    pytest.param(Webhook(), {"url": "{url}"}, id="webhook"),
    pytest.param(Llm(), {"prompt": "hello"}, id="llm"),
    pytest.param(Mcp(), {"action": "echo"}, id="mcp"),
    pytest.param(Agent(), {"agent_id": "a2a", "task": "work"}, id="agent-a2a"),
    pytest.param(Agent(), {"agent_id": "http", "task": "work"}, id="agent-http"),
]


def with_url(config: dict[str, Any], url: str) -> dict[str, Any]:
    return {key: value.replace("{url}", url) for key, value in config.items()}


@pytest.mark.parametrize(("step_type", "config"), CALLS)
def test_no_client_connects_to_a_denied_address(step_type: StepType, config: dict[str, Any], forbidden: int) -> None:
    url = f"http://{DENIED}:{forbidden}/x"
    message = denial(step_type, with_url(config, url), url)
    assert f"connecting to {DENIED} is denied: {DENIED} by the rule {DENIED}/32" in message
    assert "egress.allow" in message


@pytest.mark.parametrize(("step_type", "config"), CALLS)
def test_no_client_connects_to_cloud_metadata_without_any_setting(step_type: StepType, config: dict[str, Any]) -> None:
    url = "http://169.254.169.254/latest/meta-data"
    assert "by the rule 169.254.0.0/16" in denial(step_type, with_url(config, url), url, EgressSettings())


@pytest.mark.parametrize(("step_type", "config"), CALLS)
def test_no_client_is_led_to_a_denied_address(
    step_type: StepType, config: dict[str, Any], port: int, forbidden: int
) -> None:
    url = f"http://127.0.0.1:{port}/to/{DENIED}:{forbidden}/{uuid.uuid4()}"
    with pytest.raises(StepFailed):  # as denied, or as an answer that is none where redirects are not followed
        call(step_type, with_url(config, url), url=url)
    assert any(asked.startswith(url) for asked in Handler.asked)


def test_a_redirect_to_a_denied_address_says_which_rule_it_was(port: int, forbidden: int) -> None:
    message = denial(Http(), {"url": f"http://127.0.0.1:{port}/to/{DENIED}:{forbidden}/x"})
    assert f"by the rule {DENIED}/32" in message


def test_a_redirect_to_an_open_address_is_followed(port: int) -> None:
    assert get(f"http://127.0.0.1:{port}/to/localhost:{port}/x")["body"] == {"host": f"localhost:{port}"}


@pytest.mark.parametrize("host", [f"[::ffff:{DENIED}]", "0x7f000002", "2130706434", "127.2"])
def test_a_denied_address_in_another_writing_is_denied(host: str, forbidden: int) -> None:
    assert f"by the rule {DENIED}/32" in denial(Http(), {"url": f"http://{host}:{forbidden}/"})


def test_a_name_that_leads_to_a_denied_address_is_denied(port: int) -> None:
    egress = EgressSettings(deny=("127.0.0.0/8", "::1/128"))
    message = denial(Http(), {"url": f"http://localhost:{port}/"}, egress=egress)
    assert "connecting to localhost is denied" in message
    assert "127.0.0.1 by the rule 127.0.0.0/8" in message


def test_a_denied_name_is_denied_where_its_address_is_open(port: int) -> None:
    egress = EgressSettings(deny=("localhost",))
    assert "by the rule localhost" in denial(Http(), {"url": f"http://localhost:{port}/"}, egress=egress)
    assert get(f"http://127.0.0.1:{port}/", egress)["status_code"] == 200


def test_with_all_denied_an_allowed_name_is_called(port: int) -> None:
    egress = EgressSettings(deny=("*",), allow=("localhost",))
    assert get(f"http://localhost:{port}/", egress)["status_code"] == 200
    assert "by the rule *" in denial(Http(), {"url": f"http://127.0.0.1:{port}/"}, egress=egress)


class Resolver:
    """Answers a name, for which no connection is kept yet, with one list of addresses after another, and repeats the
    last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.name = f"rebound-{uuid.uuid4()}.example"
        self._answers = list(answers)
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *more: Any, **options: Any) -> Any:
        if host not in (self.name, self.name.encode()):
            return self._real(host, port, *more, **options)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [found for address in answer for found in self._real(address, port, *more, **options)]


@pytest.mark.parametrize(("step_type", "config"), CALLS)
def test_what_was_checked_is_what_is_connected_to_though_the_name_leads_elsewhere_by_then(
    step_type: StepType, config: dict[str, Any], port: int, forbidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Resolver(monkeypatch, ["127.0.0.1"], [DENIED]).name
    url = f"http://{name}:{port}/"
    with socket.create_server((DENIED, port)) as listener:
        listener.setblocking(False)
        with contextlib.suppress(StepFailed):  # the server is no agent, say
            call(step_type, with_url(config, url), url=url)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert any(asked.startswith(url) for asked in Handler.asked)
    # From now on the name leads to where nobody may go; at another port, since connections to this one are kept.
    elsewhere = f"http://{name}:{forbidden}/"
    assert f"by the rule {DENIED}/32" in denial(step_type, with_url(config, elsewhere), elsewhere)


@pytest.mark.parametrize("client", ["http", "llm"])
def test_of_several_addresses_the_open_ones_are_tried_in_turn(
    port: int, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on the second.
    url = f"http://{Resolver(monkeypatch, [DENIED, '127.0.0.3', '127.0.0.1']).name}:{port}/"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((DENIED, port)))
        if client == "http":
            assert get(url)["status_code"] == 200
        else:
            with pytest.raises(StepFailed, match="no chat completion"):
                call(Llm(), {"prompt": "hello"}, url=url)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_connections_made_under_other_rules_are_not_used(port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    assert get(url, EgressSettings())["status_code"] == 200
    assert "by the rule 127.0.0.1/32" in denial(Http(), {"url": url}, egress=EgressSettings(deny=("127.0.0.1/32",)))
