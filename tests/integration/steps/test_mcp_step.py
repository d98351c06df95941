"""`mcp` against real servers: ones made with the official SDK, and others that misbehave."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployment import SOON, wait_until
from marshmallow import ValidationError
from performing import context_of

from orchestrator.config import ExecutorSettings, McpServerSettings, McpSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from workers.secrets import Secrets
from workers.steps import processes
from workers.steps.mcp import Mcp

SERVER = str(Path(__file__).parents[2] / "mcp_server.py")
STDIO = McpServerSettings(command=(sys.executable, SERVER, "stdio"))


def listening() -> Iterator[McpServerSettings]:
    with subprocess.Popen([sys.executable, SERVER, "http"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield McpServerSettings(url=f"http://127.0.0.1:{int(process.stdout.readline())}/mcp")
        process.kill()


@pytest.fixture(scope="module")
def http() -> Iterator[McpServerSettings]:
    yield from listening()


@pytest.fixture
def mortal() -> Iterator[McpServerSettings]:
    yield from listening()


def call(server: McpServerSettings, /, *, max_response: int = 10**6, **more: Any) -> dict[str, Any]:
    """The output of a call with this config; `more` may hold fields of the context too."""
    settings = Settings(mcp=McpSettings(servers={"it": server}), executor=ExecutorSettings(max_response=max_response))
    about = {
        name: more.pop(name) for name in ("secrets", "lines", "deadline", "step_execution_id", "attempt") & more.keys()
    }
    output = Mcp().perform(context_of(Mcp(), more, settings=settings, **about)).output
    assert isinstance(output, dict)
    return output


def failure(server: McpServerSettings, /, **more: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        call(server, **more)
    return failed.value


def no_calls_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "mcp-call"]


# -- what a tool gets and gives --------------------------------------------------------------------------------------


def test_the_other_keys_of_the_config_are_the_tools_arguments(http: McpServerSettings) -> None:
    output = call(http, action="create_session", user_id="u1", agent_id="helper")
    session = {"session_id": "u1/helper", "turns": 0, "ends": None}
    assert output["structured"] == session
    assert json.loads(output["text"]) == session
    assert output["content"] == [{"type": "text", "text": output["text"]}]


def test_an_argument_named_like_a_field_stands_in_arguments(http: McpServerSettings) -> None:
    output = call(http, action="echo", arguments={"server": "inner"}, server="it", value={"a": [1, None, "é"]})
    assert output["text"] == '{"a": [1, null, "é"]}\nserver=inner'
    assert output["structured"] is None


def test_a_block_that_is_no_text_comes_as_mcp_writes_it(http: McpServerSettings) -> None:
    output = call(http, action="picture")
    assert output == {
        "content": [{"type": "image", "data": "iVBORw==", "mimeType": "image/png"}],
        "text": "",
        "structured": None,
    }


def test_headers_with_a_secret_arrive_and_the_call_has_an_idempotency_key(http: McpServerSettings) -> None:
    server = McpServerSettings(url=http.url, headers={"Authorization": "Bearer {{ secrets.token }}"})
    seen = call(server, action="seen", secrets={"token": "t0ken"})["structured"]
    assert seen["headers"]["authorization"] == "Bearer t0ken"
    assert seen["meta"]["idempotencyKey"] == "execution:loop[1].step"
    assert "idempotency-key" not in seen["headers"]


def test_what_the_server_logs_and_its_progress_become_log_lines(http: McpServerSettings) -> None:
    lines: list[tuple[str, str]] = []
    assert call(http, action="report", lines=lines)["text"] == "done"
    assert lines == [("info", "work: starting"), ("info", "progress 1 of 2: half"), ("error", '{"disk":"full"}')]


def test_a_tools_error_fails_the_step_and_its_output_is_kept(http: McpServerSettings) -> None:
    failed = failure(http, action="fail", message="no seats left")
    assert (failed.kind, failed.retryable) == ("tool", True)
    assert str(failed) == f"the tool 'fail' of the MCP server 'it' ({http.url}) failed: no seats left"
    assert failed.output == {
        "content": [{"type": "text", "text": "no seats left"}],
        "text": "no seats left",
        "structured": None,
    }


def test_a_secret_that_the_tool_repeats_is_masked_with_the_rest(http: McpServerSettings) -> None:
    secrets = Secrets({"key": "hush-hush"})
    failed = failure(http, action="fail", message="hush-hush is not valid")
    assert secrets.mask(str(failed)).endswith("failed: *** is not valid")
    assert secrets.mask(failed.output)["text"] == "*** is not valid"


def test_an_error_of_the_protocol_is_of_kind_mcp(http: McpServerSettings) -> None:
    failed = failure(http, action="refuse")
    assert (failed.kind, failed.retryable) == ("mcp", True)
    assert str(failed).endswith("refused the call of 'refuse': the quota is used up (error -32000)")


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_an_unknown_tool_is_told_with_the_known_ones_and_not_retried(http: McpServerSettings, transport: str) -> None:
    failed = failure(http if transport == "http" else STDIO, action="creat_session", user_id="u")
    assert (failed.kind, failed.retryable) == ("mcp", False)
    assert "has no tool 'creat_session'; it has block, chatter, create_session, " in str(failed)
    assert str(failed).endswith(" more")


# -- time and size ---------------------------------------------------------------------------------------------------


def test_a_tool_that_never_answers_is_left_in_time(http: McpServerSettings) -> None:
    started = time.monotonic()
    failed = failure(http, action="hang", timeout="500ms")
    assert isinstance(failed, StepTimeout)
    assert 0.5 <= time.monotonic() - started < SOON
    assert str(failed) == f"the MCP server 'it' ({http.url}) did not answer within 0.5 s"
    wait_until(no_calls_left)


def test_the_steps_deadline_bounds_the_call_too(http: McpServerSettings) -> None:
    started = time.monotonic()
    assert isinstance(failure(http, action="hang", timeout="1h", deadline=started + 0.4), StepTimeout)
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_an_answer_over_the_limit_fails_for_good(http: McpServerSettings, transport: str) -> None:
    failed = failure(http if transport == "http" else STDIO, action="huge", size=10**6, max_response=10**5)
    assert (failed.kind, failed.retryable) == ("response_too_large", False)
    assert str(failed).endswith("sent more than executor.max_response, 100000 bytes")


# -- servers that are in trouble -------------------------------------------------------------------------------------


def test_a_server_that_dies_in_the_middle_of_a_call_is_a_connection_failure(mortal: McpServerSettings) -> None:
    failed = failure(mortal, action="die")
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert str(failed) == f"the MCP server 'it' ({mortal.url}): Server disconnected without sending a response."


def test_a_server_that_is_not_there_is_named_without_credentials(mortal: McpServerSettings) -> None:
    failure(mortal, action="die")
    url = mortal.url.replace("//", "//user:hush@") + "?key=hush"
    failed = wait_until(
        lambda: (found := failure(McpServerSettings(url=url), action="x")).kind == "connection" and found
    )
    assert failed.retryable
    assert str(failed) == f"the MCP server 'it' ({mortal.url}): Connection refused"


class Odd(ThreadingHTTPServer):
    """Speaks MCP of 2025 over JSON, until a tool is called; then does what its path says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OddHandler)
        self.closing = threading.Event()
        self.methods: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is expected here."""


class OddHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Odd

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.methods.append(message["method"])
        answers = {
            "initialize": {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "odd", "version": "1"},
            },
            "tools/list": {"tools": [{"name": "odd", "inputSchema": {"type": "object"}}]},
        }
        if "id" not in message:
            self.reply(202, b"", "text/plain")
        elif message["method"] in answers:
            self.result(message, answers[message["method"]])
        elif message["method"] == "tools/call":
            getattr(self, "path" + self.path.replace("/", "_"))(message)
        else:
            self.reply(404, b"nothing here", "text/plain")

    def do_GET(self) -> None:
        self.reply(405, b"", "text/plain")

    def path_fine(self, message: Any) -> None:
        self.result(message, {"content": [{"type": "text", "text": "fine"}]})

    def path_shapeless(self, message: Any) -> None:
        self.result(message, {"content": "no list"})

    def path_garbage(self, message: Any) -> None:
        self.reply(200, b"{oops", "application/json")

    def path_page(self, message: Any) -> None:
        self.reply(200, b"<h1>Welcome</h1>", "text/html")

    def path_packed(self, message: Any) -> None:
        self.reply(200, gzip.compress(b"x" * 10**6), "application/json", Content_Encoding="gzip")

    def path_401(self, message: Any) -> None:
        self.reply(401, b'{"detail": "who are you"}', "application/json")

    def path_503(self, message: Any) -> None:
        self.reply(503, b"later", "text/plain")

    def path_429(self, message: Any) -> None:
        self.reply(429, b"slower", "text/plain")

    def path_elsewhere(self, message: Any) -> None:
        self.reply(307, b"", "text/plain", Location="http://localhost:1/mcp?key=hush")

    def path_silent(self, message: Any) -> None:
        self.server.closing.wait(30)

    def path_drip(self, message: Any) -> None:
        self.stream("application/json", b" ", 0.05)

    def path_drip_events(self, message: Any) -> None:
        self.stream("text/event-stream", b": still here\n\n", 0.05)

    def path_endless(self, message: Any) -> None:
        self.stream("application/json", b" " * 65536, 0)

    def path_endless_event(self, message: Any) -> None:
        self.stream("text/event-stream", b"data: " + b" " * 65536, 0)

    def path_no_answer(self, message: Any) -> None:
        self.reply(200, b": that was it\n\n", "text/event-stream")

    def path_cut(self, message: Any) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        self.close_connection = True

    def result(self, message: Any, result: Any) -> None:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        self.reply(200, json.dumps(answer).encode(), "application/json")

    def reply(self, status: int, body: bytes, content_type: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, content_type: str, piece: bytes, pause: float) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        while not self.server.closing.wait(pause):
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[Odd]:
    server = Odd()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def at(server: Odd, path: str) -> McpServerSettings:
    return McpServerSettings(url=f"http://127.0.0.1:{server.server_address[1]}/{path}")


def test_a_server_of_the_older_protocol_is_understood(odd: Odd) -> None:
    assert call(at(odd, "fine"), action="odd")["text"] == "fine"
    assert odd.methods == ["server/discover", "initialize", "notifications/initialized", "tools/call", "tools/list"]


@pytest.mark.parametrize("path", ["silent", "drip", "drip/events"])
def test_an_answer_that_never_ends_is_left_in_time(odd: Odd, path: str) -> None:
    started = time.monotonic()
    assert isinstance(failure(at(odd, path), action="odd", timeout=0.5), StepTimeout)
    assert time.monotonic() - started < SOON
    wait_until(no_calls_left)


@pytest.mark.parametrize("path", ["endless", "endless/event"])
def test_an_endless_answer_is_not_kept(odd: Odd, path: str) -> None:
    assert failure(at(odd, path), action="odd", max_response=10**5).kind == "response_too_large"
    wait_until(no_calls_left)


@pytest.mark.parametrize(
    ("path", "kind", "retryable", "words"),
    [
        ("401", "http_status", False, "answered 401"),
        ("429", "http_status", True, "answered 429"),
        ("503", "http_status", True, "answered 503"),
        ("garbage", "mcp", True, "Failed to parse JSON response"),
        ("shapeless", "mcp", True, "gave no valid answer"),
        ("page", "mcp", False, "Unexpected content type: text/html"),
        ("packed", "mcp", False, "content-encoding gzip, which was not accepted"),
        ("elsewhere", "mcp", False, "Redirect to http://localhost:1/mcp not followed"),
        ("no/answer", "connection", True, "went away before it answered"),
        ("cut", "connection", True, "peer closed connection"),
    ],
)
def test_an_answer_that_is_none_fails_with_its_kind(
    odd: Odd, path: str, kind: str, retryable: bool, words: str
) -> None:
    failed = failure(at(odd, path), action="odd")
    assert (failed.kind, failed.retryable) == (kind, retryable)
    assert words in str(failed)
    assert "hush" not in str(failed)
    assert len(str(failed)) < 800


# -- programs --------------------------------------------------------------------------------------------------------


def program(source: str, **env: str) -> McpServerSettings:
    return McpServerSettings(command=(sys.executable, "-S", "-E", "-c", source), env=env)


def test_a_program_is_asked_too_and_has_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_SECRET_TOKEN", "hush")
    server = McpServerSettings(command=STDIO.command, env={"API_KEY": "{{ secrets.key }}", "LANG": "C"})
    seen = call(server, action="seen", secrets={"key": "k3y"})["structured"]
    environment = seen["environment"]
    assert (environment["API_KEY"], environment["LANG"], environment["PATH"]) == ("k3y", "C", os.environ["PATH"])
    assert environment["HOME"] not in (os.environ.get("HOME"), os.getcwd())
    assert not Path(environment["HOME"]).exists()
    assert "ORCHESTRATOR_SECRET_TOKEN" not in environment
    assert seen["meta"]["idempotencyKey"] == "execution:loop[1].step"


def test_what_a_program_writes_beside_its_messages_becomes_log_lines() -> None:
    hello = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "a", "version": "1"},
    }
    answers = {"initialize": hello, "tools/call": {"content": []}, "tools/list": {"tools": []}}
    source = (
        "import json, sys\n"
        "print('Welcome!', flush=True)\n"
        "print('careful', file=sys.stderr, flush=True)\n"
        f"answers = {answers!r}\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if 'id' in asked:\n"
        "        found = answers.get(asked['method'])\n"
        "        outcome = {'result': found} if found else {'error': {'code': -32601, 'message': 'what?'}}\n"
        "        print(json.dumps({'jsonrpc': '2.0', 'id': asked['id'], **outcome}), flush=True)\n"
        "print('bye', file=sys.stderr)\n"
    )
    lines: list[tuple[str, str]] = []
    assert call(program(source), action="any", lines=lines)["content"] == []
    assert sorted(lines) == [("info", "bye"), ("info", "careful"), ("warning", "on stdout, but no message: Welcome!")]


def test_a_program_that_dies_is_told_with_its_last_words() -> None:
    failed = failure(STDIO, action="die")
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert str(failed) == (
        "the MCP server 'it' went away before it answered; it ended with exit code 3; it last said: out of cheese"
    )


def test_a_program_that_ends_at_once_is_a_connection_failure() -> None:
    failed = failure(program("raise SystemExit('no licence')"), action="any")
    assert failed.kind == "connection"
    assert str(failed).endswith("; it ended with exit code 1; it last said: no licence")


def test_a_program_that_minds_nothing_is_killed_with_its_children_in_time(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    for seconds in (3, 12, 48):  # one of them is enough for it to begin
        started = time.monotonic()
        assert isinstance(failure(STDIO, action="block", note=str(note), timeout=seconds), StepTimeout)
        assert time.monotonic() - started < seconds + SOON
        if note.exists():
            break
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(runs, pids)))
    wait_until(no_calls_left)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_from_a_program_is_ended(stream: str) -> None:
    source = f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"
    started = time.monotonic()
    wanted, seconds = {"stdout": ("response_too_large", 60), "stderr": ("timeout", 2)}[stream]
    failed = failure(program(source), action="any", timeout=seconds, max_response=10**5)
    assert failed.kind == wanted
    assert time.monotonic() - started < SOON
    assert len(str(failed)) < 10_000
    wait_until(no_calls_left)


def test_an_earlier_attempts_program_is_ended_before_the_next() -> None:
    step = str(uuid.uuid4())
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARKER: processes.new_mark(step)})
    failure(program("pass"), action="any", step_execution_id=step, attempt=2)
    assert left.wait(SOON) == -9


@pytest.mark.parametrize("command", ["/no/such/program", "nul\0", __file__])
def test_a_program_that_cannot_be_started_is_a_mistake_in_the_settings(command: str) -> None:
    failed = failure(McpServerSettings(command=(command,)), action="any")
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "the MCP server 'it' cannot be started as " in str(failed)


# -- settings and config ---------------------------------------------------------------------------------------------


def test_the_server_is_the_named_one_or_the_default_or_the_only_one(http: McpServerSettings) -> None:
    nowhere = McpServerSettings(url="http://127.0.0.1:1/")
    for settings, config in (
        (McpSettings(servers={"a": nowhere, "b": http}), {"server": "b"}),
        (McpSettings(servers={"a": nowhere, "b": http}, default_server="b"), {}),
        (McpSettings(servers={"b": http}), {}),
    ):
        context = context_of(Mcp(), {"action": "echo", "value": 1, **config}, settings=Settings(mcp=settings))
        assert Mcp().perform(context).output["text"].startswith("1\n")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (McpSettings(), "no MCP server is configured; add one to mcp.servers"),
        (McpSettings(servers={"a": STDIO, "b": STDIO}), "there are a, b"),
        (McpSettings(servers={"a": STDIO}, default_server="b"), "there is no MCP server 'b' in mcp.servers"),
        (McpSettings(servers={"a": McpServerSettings()}), "needs either a url or a command (mcp.servers.a)"),
        (McpSettings(servers={"a": McpServerSettings(url="example.com/mcp")}), "is not valid (mcp.servers)"),
    ],
)
def test_a_mistake_in_the_settings_says_what_to_change(settings: McpSettings, words: str) -> None:
    with pytest.raises(StepFailed) as failed:
        Mcp().perform(context_of(Mcp(), {"action": "any"}, settings=Settings(mcp=settings)))
    assert (failed.value.kind, failed.value.retryable) == ("config", False)
    assert words in str(failed.value)


def test_a_header_that_cannot_be_sent_is_a_mistake_in_the_settings_too(http: McpServerSettings) -> None:
    for value in ("hush\r\nY: 1", "hüsh\u4e2d"):
        failed = failure(McpServerSettings(url=http.url, headers={"X": value}), action="any")
        assert (failed.kind, failed.retryable) == ("config", False)
        assert str(failed).endswith("its url or one of its headers is not valid (mcp.servers)")


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({}, {"action"}),
        ({"action": "", "timeout": "soon", "arguments": [1]}, {"action", "timeout", "arguments"}),
        ({"action": "a", "server": ""}, {"server"}),
        ({"action": "a", "user": 1, "agent": 2, "arguments": {"user": 1, "agent": 3}}, {"user", "agent"}),
    ],
)
def test_every_mistake_in_a_config_is_told_at_its_field(config: dict[str, Any], wrong: set[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Mcp.Config().load(config)
    assert set(refused.value.messages_dict) == wrong
