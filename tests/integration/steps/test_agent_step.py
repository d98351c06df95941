"""`agent` against a real A2A agent (the SDK's own server), one that speaks the plain contract, and servers that
misbehave in the ways servers do."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn
from a2a.helpers import (
    get_data_parts,
    get_text_parts,
    new_data_message,
    new_data_part,
    new_message,
    new_raw_part,
    new_task_from_user_message,
    new_text_message,
    new_text_part,
    new_url_part,
)
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from deployment import SOON, own_port, wait_until
from marshmallow import ValidationError
from performing import context_of
from starlette.applications import Starlette

from orchestrator.config import AgentSettings, ExecutorSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from workers.secrets import Secrets
from workers.steps.agent import LONGEST_REST, MAX_MISSES, Agent
from workers.steps.contract import Done, Wait

TOKEN = "tok-0123456789"
LOGGED: list[tuple[str, str]] = []


# --- an A2A agent ------------------------------------------------------------------------------------------------


class Worker(AgentExecutor):
    """Does what the text of the task says."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.cancelled: list[str] = []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        await getattr(self, f"do_{context.get_user_input().split()[0]}")(context, event_queue)

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        self.cancelled.append(str(context.task_id))
        await TaskUpdater(event_queue, str(context.task_id), str(context.context_id)).cancel()

    async def do_echo(self, context: RequestContext, queue: EventQueue) -> None:
        assert context.message is not None
        parts = list(context.message.parts)
        seen = {
            "texts": get_text_parts(parts),
            "data": get_data_parts(parts),
            "message_id": context.message.message_id,
            "headers": context.call_context.state["headers"],
        }
        await queue.enqueue_event(new_data_message(seen))

    async def do_say(self, context: RequestContext, queue: EventQueue) -> None:
        await queue.enqueue_event(new_text_message(context.get_user_input().removeprefix("say ")))

    async def do_parts(self, _context: RequestContext, queue: EventQueue) -> None:
        await queue.enqueue_event(new_message([new_data_part(1), new_text_part("and"), new_data_part(None)]))

    async def do_long(self, context: RequestContext, queue: EventQueue) -> None:
        task = await self.begun(context, queue)
        await task.start_work()
        while not self.released.is_set():  # the test's thread lets it go on
            await asyncio.sleep(0.01)
        parts = [
            new_data_part({"rows": 3, "mean": 1.5}),
            new_text_part("done"),
            new_raw_part(b"\x89\xff", media_type="image/png", filename="plot.png"),
            new_url_part("https://example.com/report"),
        ]
        await task.add_artifact(parts, artifact_id="a1", name="report")
        await task.complete()

    async def do_quiet(self, context: RequestContext, queue: EventQueue) -> None:
        task = await self.begun(context, queue)
        await task.complete(task.new_agent_message([new_text_part('[1, {"a": null}]')]))

    async def do_fail(self, context: RequestContext, queue: EventQueue) -> None:
        task = await self.begun(context, queue)
        await task.failed(task.new_agent_message([new_text_part(f"no disk left for {TOKEN}")]))

    async def do_reject(self, context: RequestContext, queue: EventQueue) -> None:
        await (await self.begun(context, queue)).reject()

    async def do_ask(self, context: RequestContext, queue: EventQueue) -> None:
        task = await self.begun(context, queue)
        await task.requires_input(task.new_agent_message([new_text_part("which year?")]))

    async def do_authorise(self, context: RequestContext, queue: EventQueue) -> None:
        await (await self.begun(context, queue)).requires_auth()

    async def do_break(self, _context: RequestContext, _queue: EventQueue) -> None:
        raise RuntimeError("the agent is broken")

    async def begun(self, context: RequestContext, queue: EventQueue) -> TaskUpdater:
        assert context.message is not None
        task = new_task_from_user_message(context.message)
        task.id, task.context_id = str(context.task_id), str(context.context_id)
        await queue.enqueue_event(task)
        return TaskUpdater(queue, task.id, task.context_id)


class A2AServer:
    """The SDK's server on a free port. `worker` is the agent behind it."""

    def __init__(self, binding: str = "JSONRPC", version: str = "1.0", streaming: bool = False) -> None:
        self.worker = Worker()
        # Named as TCP: asyncio turns off Nagle's algorithm, and its 40 ms, for such sockets alone.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        place = {"JSONRPC": "/rpc", "HTTP+JSON": "/rest", "GRPC": ":1"}[binding]
        interface = AgentInterface(url=self.url + place, protocol_binding=binding, protocol_version=version)
        card = AgentCard(
            default_input_modes=["text"],
            default_output_modes=["text"],
            skills=[AgentSkill(id="any", name="any", description="Anything", tags=["any"])],
            name="test",
            description="A test's",
            version="1",
            supported_interfaces=[interface],
            capabilities=AgentCapabilities(streaming=streaming),
        )
        handler = DefaultRequestHandler(self.worker, InMemoryTaskStore(), card)
        routes = [
            *create_agent_card_routes(card),
            *create_jsonrpc_routes(handler, "/rpc", enable_v0_3_compat=True),
            *create_rest_routes(handler, path_prefix="/rest"),
        ]
        self.methods: list[str] = []
        """The JSON-RPC methods called, or the paths."""
        self.server = uvicorn.Server(
            uvicorn.Config(self.recorded(Starlette(routes=routes)), log_config=None, lifespan="off")
        )

    def recorded(self, app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def receiving() -> Any:
                message = await receive()
                if message.get("body", b"").startswith(b"{"):
                    self.methods.append(json.loads(message["body"]).get("method", scope["path"]))
                return message

            await app(scope, receiving, send)

        return wrapped


@contextmanager
def running_a2a(**options: Any) -> Iterator[A2AServer]:
    server = A2AServer(**options)
    thread = threading.Thread(target=server.server.run, kwargs={"sockets": [server.socket]}, daemon=True)
    thread.start()
    wait_until(lambda: server.server.started)
    yield server
    server.worker.released.set()
    server.server.should_exit = server.server.force_exit = True
    thread.join(5)


@pytest.fixture(scope="module")
def shared() -> Iterator[A2AServer]:
    with running_a2a() as server:
        yield server


@pytest.fixture
def a2a(shared: A2AServer) -> A2AServer:
    shared.worker.released.clear()
    shared.methods.clear()
    shared.worker.cancelled.clear()
    return shared


# --- a server that is told what to answer ------------------------------------------------------------------------


class Told(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, Any] = {}
        """By "METHOD /path": a JSON value, (status, JSON value), bytes, or one of silent, drip, flood."""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.left = 0
        """Answers that ended because the client went away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what half of the tests are about."""

    def speak_a2a(self, answer: Any, url: str = "", binding: str = "JSONRPC") -> None:
        """Have an agent's card, and `answer` as the result of whatever is asked."""
        interface = {"url": url or f"{self.url}/rpc", "protocolBinding": binding, "protocolVersion": "1.0"}
        self.answers["GET /.well-known/agent-card.json"] = {"name": "told", "supportedInterfaces": [interface]}
        self.answers["POST /rpc"] = answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Told

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = f"{self.command} {self.path}"
        self.server.requests.append((what, dict(self.headers.items()), json.loads(body) if body else None))
        answer = self.server.answers.get(what, (404, {"error": "nothing here"}))
        if callable(answer):
            answer(self)
            return
        status, value = answer if isinstance(answer, tuple) else (200, answer)
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


def silent(handler: Handler) -> None:
    handler.server.closing.wait(30)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    flood(handler, b" ", 0.05)


def flood(handler: Handler, piece: bytes = b" " * 65536, pause: float = 0) -> None:
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    try:
        while not handler.server.closing.wait(pause):
            handler.wfile.write(piece)
    except OSError:
        handler.server.left += 1


@pytest.fixture
def told() -> Iterator[Told]:
    server = Told()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


# --- performing --------------------------------------------------------------------------------------------------


def perform(
    url: str,
    task: str = "echo",
    *,
    protocol: str = "a2a",
    given: Any = None,
    state: Any = None,
    deadline: float | None = None,
    max_response: int = 10**6,
    headers: Mapping[str, str] | None = None,
    poll_interval: float = 2.0,
    **config: Any,
) -> Done | Wait:
    agent = AgentSettings(url=url, protocol=protocol, headers=headers, poll_interval=poll_interval)
    settings = Settings(executor=ExecutorSettings(max_response=max_response), agents={"data-processor": agent})
    context = context_of(
        Agent(),
        {"agent_id": "data-processor", "task": task, **config},
        settings=settings,
        secrets={"token": TOKEN},
        lines=LOGGED,
        input=given,
        state=state,
        deadline=deadline,
    )
    return Agent().perform(context)


def output_of(outcome: Done | Wait) -> dict[str, Any]:
    assert isinstance(outcome, Done)
    json.dumps(outcome.output)
    assert set(outcome.output) == {"result", "text", "artifacts", "task_id", "state"}
    return dict(outcome.output)


def rest_of(outcome: Done | Wait) -> Wait:
    assert isinstance(outcome, Wait)
    return Wait(outcome.until, json.loads(json.dumps(outcome.state)))


def to_the_end(url: str, task: str, **options: Any) -> dict[str, Any]:
    """The output, after as many looks as it takes; the rests between them are left out."""
    outcome = perform(url, task, **options)

    def looked() -> Done | None:
        nonlocal outcome
        if isinstance(outcome, Wait):
            outcome = perform(url, task, state=rest_of(outcome).state, **options)
        return outcome if isinstance(outcome, Done) else None

    return output_of(wait_until(looked))


def failure(url: str, task: str = "echo", **options: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        to_the_end(url, task, **options)
    return failed.value


def aged(state: Any, seconds: float) -> dict[str, Any]:
    """The state of a rest, had the task begun `seconds` earlier."""
    started = datetime.fromisoformat(state["started"]) - timedelta(seconds=seconds)
    return {**state, "started": started.isoformat()}


def no_calls_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "http-call"]


# --- A2A ---------------------------------------------------------------------------------------------------------


def test_an_answer_at_once_is_the_result_and_task_and_input_reach_the_agent(a2a: A2AServer) -> None:
    given = {"data_file": "sales.csv", "analysis_type": "summary", "n": 3}
    output = output_of(perform(a2a.url, "echo process_data", given=given))
    assert output["result"]["texts"] == ["echo process_data"]
    assert output["result"]["data"] == [given]
    assert isinstance(output["result"]["data"][0]["n"], int)
    assert (output["state"], output["artifacts"], output["text"]) == ("completed", [], "")


def test_without_an_input_there_is_the_task_alone(a2a: A2AServer) -> None:
    assert output_of(perform(a2a.url))["result"]["data"] == []


@pytest.mark.parametrize(
    ("said", "result"),
    [("hello", "hello"), ('{"a": [1]}', {"a": [1]}), ("[1, 2]", [1, 2]), ("5", "5"), ("{oops", "{oops")],
)
def test_a_text_that_is_a_json_object_or_array_is_parsed(a2a: A2AServer, said: str, result: Any) -> None:
    output = output_of(perform(a2a.url, f"say {said}"))
    assert (output["result"], output["text"]) == (result, said)


def test_several_pieces_of_data_are_a_list(a2a: A2AServer) -> None:
    output = output_of(perform(a2a.url, "parts"))
    assert (output["result"], output["text"]) == ([1, None], "and")


def test_the_message_has_the_same_id_in_every_attempt(a2a: A2AServer) -> None:
    first, second = (output_of(perform(a2a.url))["result"]["message_id"] for _ in range(2))
    assert first == second != ""


def test_a_long_task_rests_without_a_worker_and_is_looked_at_until_its_end(a2a: A2AServer) -> None:
    began = time.monotonic()
    rest = rest_of(perform(a2a.url, "long"))
    for looks in range(1, 4):
        state = rest.state
        rest = rest_of(perform(a2a.url, "long", state=state))
        assert rest.state == {**state, "polls": looks}
    assert time.monotonic() - began < SOON
    wait_until(no_calls_left)
    assert rest.state["task_id"]
    assert rest.state["context_id"]
    assert any(rest.state["task_id"] in line for _level, line in LOGGED)
    a2a.worker.released.set()

    def finished() -> Done | None:
        outcome = perform(a2a.url, "long", state=rest.state)
        return outcome if isinstance(outcome, Done) else None

    output = output_of(wait_until(finished))
    assert output["result"] == {"rows": 3, "mean": 1.5}
    assert (output["text"], output["state"], output["task_id"]) == ("done", "completed", rest.state["task_id"])
    (artifact,) = output["artifacts"]
    assert (artifact["artifact_id"], artifact["name"]) == ("a1", "report")
    assert artifact["parts"][2:] == [
        {"base64": "if8=", "filename": "plot.png", "media_type": "image/png"},
        {"url": "https://example.com/report"},
    ]
    assert a2a.methods.count("SendMessage") == 1


def test_the_rests_grow_up_to_a_limit_and_end_with_the_tasks_time(a2a: A2AServer) -> None:
    state = rest_of(perform(a2a.url, "long")).state

    def rests_for(seconds: float, polls: int, **options: Any) -> bool:
        began = datetime.now(UTC)
        rest = rest_of(perform(a2a.url, "long", state={**state, "polls": polls - 1}, **options))
        return began <= rest.until - timedelta(seconds=seconds) <= datetime.now(UTC)

    assert rests_for(3, polls=1)
    assert rests_for(6.75, polls=3)
    assert rests_for(LONGEST_REST, polls=100_000)
    assert rests_for(40, polls=3, poll_interval=40)
    end = datetime.fromisoformat(state["started"]) + timedelta(seconds=21)
    assert rest_of(perform(a2a.url, "long", state={**state, "polls": 99}, timeout=20)).until < end


def test_a_task_without_artifacts_says_its_result_at_its_end(a2a: A2AServer) -> None:
    assert to_the_end(a2a.url, "quiet")["result"] == [1, {"a": None}]


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"streaming": True}, "SendMessage"),
        ({"binding": "HTTP+JSON"}, "/rest/message:send"),
        ({"version": "0.3.0"}, "message/send"),
    ],
    ids=["streaming", "rest", "0.3"],
)
def test_every_kind_of_agent_is_asked_not_to_keep_the_worker_waiting(options: dict[str, Any], method: str) -> None:
    with running_a2a(**options) as server:
        assert output_of(perform(server.url, given={"a": 1}))["result"]["data"] == [{"a": 1}]
        rest = rest_of(perform(server.url, "long"))
        rest = rest_of(perform(server.url, "long", state=rest.state))
        assert server.methods[:2] == [method, method]
        with pytest.raises(StepTimeout):
            perform(server.url, "long", state=aged(rest.state, 601))
        assert server.worker.cancelled == [rest.state["task_id"]]
        server.worker.released.set()
        output = to_the_end(server.url, "long")
        assert (output["result"], output["artifacts"][0]["name"]) == ({"rows": 3, "mean": 1.5}, "report")
        assert failure(server.url, "fail").kind == "agent"


def test_what_an_agent_says_of_its_failure_is_the_message_with_secrets_masked(a2a: A2AServer) -> None:
    failed = failure(a2a.url, "fail", headers={"Authorization": "Bearer {{ secrets.token }}"})
    assert (failed.kind, failed.retryable) == ("agent", True)
    assert str(failed).startswith("agent 'data-processor' ended the task as failed: no disk left for ")
    assert isinstance(failed.output, dict)
    assert failed.output["state"] == "failed"
    secrets = Secrets({"token": TOKEN})
    assert TOKEN not in secrets.mask(str(failed)) + json.dumps(secrets.mask(failed.output))


def test_a_task_that_was_rejected_is_a_failure(a2a: A2AServer) -> None:
    failed = failure(a2a.url, "reject")
    assert str(failed) == "agent 'data-processor' ended the task as rejected: it does not say why"
    assert failed.kind == "agent"


@pytest.mark.parametrize(
    ("task", "asked"), [("ask", "(input_required): which year?"), ("authorise", "(auth_required): ")]
)
def test_an_agent_that_asks_something_fails_the_step_for_good(a2a: A2AServer, task: str, asked: str) -> None:
    failed = failure(a2a.url, task)
    assert (failed.kind, failed.retryable) == ("agent_input", False)
    assert asked in str(failed)


def test_an_agent_that_breaks_is_a_failure(a2a: A2AServer) -> None:
    failed = failure(a2a.url, "break")
    assert failed.kind in ("agent", "agent_protocol")
    assert failed.retryable


def test_a_task_out_of_time_is_cancelled_at_the_agent(a2a: A2AServer) -> None:
    state = rest_of(perform(a2a.url, "long")).state
    with pytest.raises(StepTimeout) as failed:
        perform(a2a.url, "long", state=aged(state, 11), timeout="10s")
    assert f"did not finish the task {state['task_id']} within 10 s (timeout); it was asked to cancel" in str(
        failed.value
    )
    assert failed.value.kind == "timeout"
    assert a2a.worker.cancelled == [state["task_id"]]


def test_a_task_that_ended_in_time_counts_however_late_the_look(a2a: A2AServer) -> None:
    state = rest_of(perform(a2a.url, "long")).state
    a2a.worker.released.set()
    wait_until(lambda: isinstance(perform(a2a.url, "long", state=state), Done))
    assert output_of(perform(a2a.url, "long", state=aged(state, 10_000)))["state"] == "completed"


def test_a_task_that_the_agent_lost_fails_the_attempt_but_not_for_good(a2a: A2AServer) -> None:
    state = rest_of(perform(a2a.url, "long")).state
    failed = failure(a2a.url, "long", state={**state, "task_id": "lost"})
    assert (failed.kind, failed.retryable) == ("agent", True)
    assert "does not know the task any more" in str(failed)


def test_the_secret_headers_of_the_settings_arrive_at_the_agent(a2a: A2AServer) -> None:
    headers = {"Authorization": "Bearer {{ secrets.token }}", "X-Name": "数据"}
    seen = output_of(perform(a2a.url, headers=headers))["result"]["headers"]
    assert seen["authorization"] == f"Bearer {TOKEN}"
    assert seen["x-name"].encode("latin-1").decode() == "数据"
    assert (seen["user-agent"], seen["a2a-version"]) == ("orchestrator", "1.0")


def test_a_number_that_would_be_rounded_is_refused(a2a: A2AServer) -> None:
    failed = failure(a2a.url, given={"id": 2**53 + 1})
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "2^53" in str(failed)


def test_an_input_too_deep_for_the_protocol_is_refused(a2a: A2AServer) -> None:
    deep: Any = 1
    for _ in range(120):
        deep = [deep]
    assert failure(a2a.url, given=deep).kind == "config"


def test_the_environment_lends_no_proxy(a2a: A2AServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert output_of(perform(a2a.url))["state"] == "completed"


# --- servers that misbehave --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "query"), [("a2a", ""), ("http", f"?key={TOKEN}")])
def test_an_unreachable_agent_fails_the_attempt_without_showing_credentials(protocol: str, query: str) -> None:
    with own_port() as port:
        failed = failure(f"http://user:{TOKEN}@127.0.0.1:{port}/a{query}", protocol=protocol)
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert f"http://127.0.0.1:{port}/a" in str(failed)
    assert str(failed).endswith(": Connection refused")
    assert TOKEN not in str(failed)


@pytest.mark.parametrize("answer", [silent, drip])
@pytest.mark.parametrize("where", ["GET /.well-known/agent-card.json", "POST /rpc", "POST /"])
def test_an_agent_that_never_ends_its_answer_is_left_in_time(
    told: Told, answer: Callable[[Handler], None], where: str
) -> None:
    told.speak_a2a({})
    told.answers[where] = answer
    protocol = "http" if where == "POST /" else "a2a"
    began = time.monotonic()
    failed = failure(f"{told.url}/", protocol=protocol, request_timeout="300ms")
    assert isinstance(failed, StepTimeout)
    assert time.monotonic() - began < SOON
    wait_until(no_calls_left)


@pytest.mark.parametrize("protocol", ["a2a", "http"])
@pytest.mark.parametrize("bound", ["deadline", "timeout"])
def test_the_deadline_and_the_tasks_time_bound_the_first_exchange_too(told: Told, protocol: str, bound: str) -> None:
    told.speak_a2a(silent)
    told.answers["POST /"] = silent
    began = time.monotonic()
    options: dict[str, Any] = {"deadline": began + 0.3} if bound == "deadline" else {"timeout": 0.3}
    assert isinstance(failure(f"{told.url}/", protocol=protocol, **options), StepTimeout)
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("where", ["GET /.well-known/agent-card.json", "POST /rpc", "POST /"])
def test_an_endless_answer_fails_for_good(told: Told, where: str) -> None:
    told.speak_a2a({})
    told.answers[where] = flood
    failed = failure(f"{told.url}/", protocol="http" if where == "POST /" else "a2a", max_response=10**5)
    assert (failed.kind, failed.retryable) == ("response_too_large", False)
    wait_until(lambda: told.left == 1)


TASK = {"id": "t1", "status": {"state": "TASK_STATE_WORKING"}}


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"\xff\xfe",
        [],
        "text",
        None,
        {},
        {"result": None},
        {"result": []},
        {"result": {}},
        {"result": {"task": {}}},
        {"result": {"task": {**TASK, "id": "x" * 5000}}},
        {"result": {"task": {**TASK, "id": "a\0b"}}},
        {"result": {"task": {**TASK, "status": 5}}},
        {"result": {"task": {**TASK, "artifacts": {"a": 1}}}},
        {"result": {"message": {"parts": [{"raw": 5}]}}},
        b'{"result": {"message": {"parts": [{"data": NaN}]}}}',
        b'{"result": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        {"error": "oops"},
        {"error": {"code": "x", "message": ["y"]}},
    ],
)
def test_a_malformed_answer_is_a_failure_of_the_protocol(told: Told, answer: Any) -> None:
    told.speak_a2a(answer)
    failed = failure(told.url)
    assert (failed.kind, failed.retryable) == ("agent_protocol", True)
    assert str(failed).startswith(("the answer of agent 'data-processor' cannot", "agent 'data-processor' answered"))
    assert len(str(failed)) < 1000


@pytest.mark.parametrize("card", [b"<html>", [], {"supportedInterfaces": 5}, {"supportedInterfaces": [{"url": 5}]}])
def test_a_malformed_card_is_a_failure_that_does_not_show_who_asked(told: Told, card: Any) -> None:
    told.answers["GET /.well-known/agent-card.json"] = card
    failed = failure(told.url.replace("//", f"//user:{TOKEN}@"))
    assert (failed.kind, failed.retryable) == ("agent_protocol", True)
    assert f"cannot be understood: the card at {told.url}: " in str(failed)
    assert TOKEN not in str(failed)


def test_a_query_in_the_url_of_an_a2a_agent_is_refused_without_showing_it(told: Told) -> None:
    failed = failure(f"{told.url}/a?key={TOKEN}")
    assert (failed.kind, failed.retryable) == ("config", False)
    assert TOKEN not in str(failed)


def test_an_error_of_the_protocol_about_the_request_itself_is_for_good(told: Told) -> None:
    told.speak_a2a({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no such skill"}})
    failed = failure(told.url)
    assert (failed.kind, failed.retryable) == ("agent_protocol", False)
    assert str(failed) == "agent 'data-processor' answered with an error: no such skill"


@pytest.mark.parametrize(("status", "retryable"), [(503, True), (429, True), (401, False), (302, False)])
@pytest.mark.parametrize("where", ["GET /.well-known/agent-card.json", "POST /rpc", "POST /"])
def test_an_error_status_fails_and_says_whether_to_retry(told: Told, where: str, status: int, retryable: bool) -> None:
    told.speak_a2a({})
    told.answers[where] = (status, {"why": "tired"})
    failed = failure(f"{told.url}/", protocol="http" if where == "POST /" else "a2a")
    assert (failed.kind, failed.retryable) == ("http_status", retryable)
    assert f"{where.replace(' ', f' {told.url}')} answered {status} " in str(failed)
    assert "tired" in str(failed)


def test_an_agent_without_a_binding_that_is_spoken_here_is_refused(told: Told) -> None:
    told.speak_a2a({}, binding="GRPC")
    failed = failure(told.url)
    assert (failed.kind, failed.retryable) == ("config", False)
    assert str(failed).endswith("speaks neither JSONRPC nor HTTP+JSON; its card offers: GRPC")
    told.answers["GET /.well-known/agent-card.json"] = {}
    assert str(failure(told.url)).endswith("its card offers: nothing")


def test_secret_headers_do_not_follow_a_card_to_another_server(a2a: A2AServer, told: Told) -> None:
    told.speak_a2a({}, url=f"{a2a.url}/rpc")
    failed = failure(told.url, headers={"Authorization": "Bearer {{ secrets.token }}"})
    assert failed.kind == "config"
    assert f"at {told.url} sends its callers to {a2a.url}/rpc" in str(failed)
    assert a2a.methods == []
    assert output_of(perform(told.url))["state"] == "completed"


def test_looks_that_fail_are_repeated_a_few_times_and_said_in_the_log(told: Told) -> None:
    told.speak_a2a({"result": {"task": TASK}})
    state = rest_of(perform(told.url)).state
    told.answers["POST /rpc"] = (503, "busy")
    for misses in range(1, MAX_MISSES):
        state = rest_of(perform(told.url, state=state)).state
        assert (state["misses"], state["task_id"]) == (misses, "t1")
    assert LOGGED[-1][0] == "warning"
    assert "answered 503" in LOGGED[-1][1]
    assert failure(told.url, state=state).kind == "http_status"
    told.answers["POST /rpc"] = {"result": TASK}
    assert rest_of(perform(told.url, state=state)).state["misses"] == 0


def test_a_cancellation_that_fails_too_leaves_it_a_timeout(told: Told) -> None:
    told.speak_a2a({"result": {"task": TASK}})
    state = rest_of(perform(told.url)).state
    told.answers["POST /rpc"] = silent
    began = time.monotonic()
    with pytest.raises(StepTimeout) as failed:
        perform(told.url, state=aged(state, 601), request_timeout=1)
    assert "within 600 s (timeout); asking it to cancel it failed: POST" in str(failed.value)
    assert time.monotonic() - began < SOON


# --- the plain contract ------------------------------------------------------------------------------------------


def test_a_plain_agent_gets_task_input_and_key_and_answers_at_once(told: Told) -> None:
    told.answers["POST /run"] = {"result": {"rows": 3}}
    headers = {"Authorization": "Bearer {{ secrets.token }}"}
    output = output_of(perform(f"{told.url}/run", "process_data", protocol="http", given={"a": 1}, headers=headers))
    assert output == {"result": {"rows": 3}, "text": "", "artifacts": [], "task_id": None, "state": "completed"}
    ((_what, sent_headers, body),) = told.requests
    key = "execution:loop[1].step"
    assert body == {
        "agent_id": "data-processor", "task": "process_data", "input": {"a": 1}, "idempotency_key": key
    }  # fmt: skip
    assert (sent_headers["Idempotency-Key"], sent_headers["Authorization"]) == (key, f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("poll_url", "address"),
    [(None, "/run/t%2F1"), ("run/state", "/run/state"), ("/other?n=1", "/other?n=1"), ("?id=1", "/run?id=1")],
)
def test_a_plain_agents_long_task_is_looked_at_where_it_says(told: Told, poll_url: str | None, address: str) -> None:
    options = {"protocol": "http", "url": f"{told.url}/run"}
    told.answers["POST /run"] = (202, {"task_id": "t/1", "poll_url": poll_url})
    told.answers[f"GET {address}"] = {"status": "running"}
    state = rest_of(perform(**options)).state
    state = rest_of(perform(**options, state=state)).state
    assert (state["task_id"], state["polls"]) == ("t/1", 1)
    with pytest.raises(StepTimeout):
        perform(**options, state=aged(state, 601))
    assert told.requests[-1][0] == f"DELETE {address}"
    told.answers[f"GET {address}"] = {"status": "completed", "result": "fine"}
    output = output_of(perform(**options, state=state))
    assert (output["result"], output["text"], output["task_id"]) == ("fine", "fine", "t/1")


def test_a_plain_agents_failure_is_told(told: Told) -> None:
    told.answers["POST /"] = (202, {"task_id": "t1"})
    told.answers["GET /t1"] = {"status": "failed", "error": {"code": 7}, "result": [1]}
    failed = failure(f"{told.url}/", protocol="http")
    assert (failed.kind, failed.retryable, str(failed)) == (
        "agent",
        True,
        "agent 'data-processor' failed: {\"code\":7}",
    )
    assert isinstance(failed.output, dict)
    assert failed.output["result"] == [1]


def test_a_plain_agent_that_lost_the_task_fails_the_attempt_but_not_for_good(told: Told) -> None:
    told.answers["POST /"] = (202, {"task_id": "t1"})
    failed = failure(f"{told.url}/", protocol="http")
    assert (failed.kind, failed.retryable) == ("agent", True)
    assert str(failed).endswith("it does not know the task any more")


@pytest.mark.parametrize(
    ("begun", "looked"),
    [
        (b"{oops", None),
        ([], None),
        ({"results": 1}, None),
        ((201, {"result": 1}), None),
        ((202, {}), None),
        ((202, {"task_id": 5}), None),
        ((202, {"task_id": "t1", "poll_url": 5}), None),
        ((202, {"task_id": "t1", "poll_url": "http://["}), None),
        ((202, {"task_id": "t1"}), {"status": "odd"}),
        ((202, {"task_id": "t1"}), {"status": ["odd"]}),
        ((202, {"task_id": "t1"}), {"status": "completed"}),
        ((202, {"task_id": "t1"}), b""),
    ],
)
def test_what_is_not_the_contract_is_a_failure_of_the_protocol(told: Told, begun: Any, looked: Any) -> None:
    told.answers |= {"POST /": begun, "GET /t1": looked}
    failed = failure(f"{told.url}/", protocol="http")
    assert (failed.kind, failed.retryable) == ("agent_protocol", True)
    assert str(failed).startswith("the answer of agent 'data-processor' cannot be understood: ")


def test_secret_headers_do_not_follow_a_poll_url_to_another_server(told: Told, a2a: A2AServer) -> None:
    told.answers["POST /"] = (202, {"task_id": "t1", "poll_url": f"{a2a.url}/steal"})
    failed = failure(f"{told.url}/", protocol="http", headers={"X-Key": "{{ secrets.token }}"})
    assert (failed.kind, failed.retryable) == ("config", False)
    assert TOKEN not in str(failed)


# --- configuration -----------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_config_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        Agent.Config().load({"task": "", "timeout": "soon", "request_timeout": 0, "url": "http://example.com"})
    assert set(refused.value.messages_dict) == {"agent_id", "task", "timeout", "request_timeout", "url"}


def test_the_defaults_are_ten_minutes_for_the_task_and_half_a_minute_for_an_exchange() -> None:
    config = Agent.Config().load({"agent_id": 7, "task": "x"})
    assert config == {"agent_id": "7", "task": "x", "timeout": 600.0, "request_timeout": 30.0}


def test_an_agent_that_is_not_in_the_settings_is_named_with_those_that_are() -> None:
    with pytest.raises(StepFailed) as failed:
        perform("http://127.0.0.1:1", agent_id="other")
    assert (failed.value.kind, failed.value.retryable) == ("config", False)
    assert str(failed.value) == "there is no agent 'other' in the settings (agents); known there: data-processor"


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "http://[", "http://"])
def test_an_agent_without_an_address_is_a_mistake_in_the_settings(url: str) -> None:
    failed = failure(url)
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "agents.data-processor.url" in str(failed)
