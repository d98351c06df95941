"""Whom steps talk to, those of the specification's examples among them, on loopback: an API, a model service, an agent
of each protocol, a mail server and an MCP server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn
from a2a.helpers import get_data_parts, new_data_part, new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from deployment import PATIENCE, wait_until
from starlette.applications import Starlette

TOKEN = "token-of-the-api-0123456789"
RECORDS = [{"id": 1, "name": "甲", "price": "10.5"}, {"id": 2, "name": "乙", "price": "20"}]
FINDINGS = {"total": 30.5, "month": "2026-10"}
SUMMARY = "十月销售额为 30.5。"


@dataclass
class Counterparts:
    web: str
    """The address of the API, of `/v1` (a model service) and of `/data-analyst` (an agent over plain HTTP). Who says
    "refuse" to these, or posts to `/refusing`, is refused in words that repeat theirs."""
    agent: str
    mail_port: int
    mcp: str
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """(who was asked, what for), in order."""
    emails: list[Message] = field(default_factory=list)

    def asked_of(self, who: str) -> list[Any]:
        return [what for name, what in self.asked if name == who]


@contextmanager
def counterparts() -> Iterator[Counterparts]:
    them = Counterparts("", "", 0, "")
    with _web(them), _agent(them), _mail(them), _mcp(them):
        yield them


# --- over HTTP ---------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    them: Counterparts

    def do_GET(self) -> None:
        """The API shows the header it got, as debugging ones do: the secret in it is a part of the answer."""
        given = self.headers.get("Authorization")
        self.them.asked.append((self.path, given))
        allowed = self.path == "/data" and given == f"Bearer {TOKEN}"
        self.reply(
            {"records": RECORDS, "authorization": given} if allowed else {"error": "no"}, 200 if allowed else 401
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0]
        self.them.asked.append((path, body))
        answers = {
            "/v1/chat/completions": self.completion,
            "/data-analyst": lambda _: {"result": FINDINGS},
            "/echo": lambda said: {"said": said, "signed": self.headers.get("webhook-signature")},
        }
        if path == "/refusing" or "refuse" in json.dumps(body):
            self.reply({"error": {"message": f"refused: {json.dumps(body)}"}}, 400)
        else:
            self.reply(answers[path](body))

    def completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": SUMMARY}}
        usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
        return {
            "id": "c1", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice],
            "usage": usage,
        }  # fmt: skip

    def reply(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Into the tests' output goes what they say."""


@contextmanager
def _web(them: Counterparts) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"them": them}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    them.web = f"http://127.0.0.1:{server.server_address[1]}"
    yield
    server.shutdown()
    server.server_close()


# --- an agent that speaks A2A ------------------------------------------------------------------------------------


@dataclass
class _Processor(AgentExecutor):
    them: Counterparts

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.message is not None
        [given] = get_data_parts(list(context.message.parts))
        self.them.asked.append(("data-processor", (context.get_user_input(), given)))
        task = new_task_from_user_message(context.message)
        task.id, task.context_id = str(context.task_id), str(context.context_id)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        await updater.add_artifact([new_data_part({"batches": 3, "of": given["batch_size"]})], name="result")
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError("it is done at once")


@contextmanager
def _agent(them: Counterparts) -> Iterator[None]:
    # Named as TCP: asyncio turns off Nagle's algorithm, and its 40 ms, for such sockets alone.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        them.agent = f"http://127.0.0.1:{listener.getsockname()[1]}"
        card = AgentCard(
            name="data-processor",
            description="Processes data",
            version="1",
            default_input_modes=["text"],
            default_output_modes=["text"],
            skills=[AgentSkill(id="process_data", name="process_data", description="Processes data", tags=["data"])],
            supported_interfaces=[
                AgentInterface(url=f"{them.agent}/rpc", protocol_binding="JSONRPC", protocol_version="1.0")
            ],
            capabilities=AgentCapabilities(),
        )
        handler = DefaultRequestHandler(_Processor(them), InMemoryTaskStore(), card)
        app = Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/rpc")])
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, what="the agent")
        yield
        server.should_exit = server.force_exit = True
        thread.join(5)


# --- a mail server, and an MCP server ----------------------------------------------------------------------------


class _Postman:
    def __init__(self, them: Counterparts) -> None:
        self.them = them

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.them.emails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"


class _OnAFreePort(Controller):
    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def _mail(them: Counterparts) -> Iterator[None]:
    controller = _OnAFreePort(_Postman(them), hostname="127.0.0.1", port=0, ready_timeout=PATIENCE)
    controller.start()
    them.mail_port = controller.port
    yield
    controller.stop()


@contextmanager
def _mcp(them: Counterparts) -> Iterator[None]:
    program = str(Path(__file__).with_name("mcp_server.py"))
    with subprocess.Popen([sys.executable, program, "http"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            them.mcp = f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
            yield
        finally:
            process.kill()
