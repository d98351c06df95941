"""What a step costs by its type: a chain of steps of one type, beside the bare call of the library that the type uses.

The other sides (an HTTP, a mail and an MCP server, a database file) are on loopback in this process and answer at
once, both to the orchestrator's steps and to the bare calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import smtplib
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import requests
import sqlalchemy
import standardwebhooks

from benchmarks.workloads import Step, chain, step
from orchestrator.config import Settings
from orchestrator.plugins import missing_modules

if TYPE_CHECKING:
    from benchmarks.__main__ import Orchestrator

SLOTS = 2
BASE = "set"
VALUES: dict[str, Any] = {"values": {"n": "{{ 1 + 1 }}"}}
"""A value is computed, as a condition is. What is written out has a row of its own, `constant`."""
NAME = "bench"
QUESTION = "How are you?"
SIGNING_SECRET = "a secret of both sides"

Call = Callable[[], object]
MakesCall = Callable[[Settings, ExitStack], Call]


@dataclass(frozen=True, slots=True)
class Case:
    """One execution of `steps`. Its time is divided by `count`; it has `rows` step executions (default: one a step).

    `signals`: so many are sent first, then one that lets the first step end, whose end begins the time.
    """

    type: str
    steps: list[Step]
    count: int
    each: str = "step"
    rows: int | None = None
    bare: Call | None = None
    signals: int = 0


@dataclass(frozen=True, slots=True)
class TypeFigure:
    """`ms` and `bare_ms` are for one of `count`. `ratio` is the one over the other; if there is no other, over the
    `set` that was measured beside it."""

    type: str
    each: str
    count: int
    ms: float
    bare_ms: float | None
    ratio: float


def measure(here: Orchestrator, rounds: int) -> list[TypeFigure]:
    """All types in turns, round by round, while `other_sides` are there."""
    with ExitStack() as stack:
        cases = {case.type: case for case in (*_inside(here), *_outside(here, stack))}
        ours: dict[str, list[float]] = {type: [] for type in cases}
        beside: dict[str, list[float]] = {type: [] for type in cases}
        workflow_ids = {type: here.create(f"type {type}", case.steps) for type, case in cases.items()}
        for type, case in cases.items():
            _warm_up(here, case, workflow_ids[type])
        for number in range(rounds):
            print(f"measuring step types, round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
            # There and back: what comes later in a round is measured on a warmer or a more tired machine.
            for type, case in list(cases.items()) if number % 2 else reversed(cases.items()):
                ours[type].append(_seconds(here, case, workflow_ids[type]) / case.count)
                if case.bare is not None:
                    beside[type].append(_bare_seconds(case.bare, case.count) / case.count)
                else:  # a machine that is shared is another one ten seconds later
                    beside[type].append(_seconds(here, cases[BASE], workflow_ids[BASE]) / cases[BASE].count)
    return [_figure(case, ours[type], beside[type]) for type, case in cases.items()]


def table(figures: list[TypeFigure]) -> str:
    head = f"{'step type':<14}{'each':<13}{'n':>6}{'ms':>9}{'bare ms':>9}{'more ms':>9}{'ratio':>8}"
    lines = [head, "-" * len(head)]
    for figure in figures:
        bare = more = "-"
        if figure.bare_ms is not None:
            bare, more = f"{figure.bare_ms:.2f}", f"{figure.ms - figure.bare_ms:.2f}"
        cells = f"{figure.count:>6}{figure.ms:>9.2f}{bare:>9}{more:>9}{figure.ratio:>8.2f}"
        lines.append(f"{figure.type:<14}{figure.each:<13}{cells}")
    return "\n".join(lines)


def _figure(case: Case, ours: list[float], beside: list[float]) -> TypeFigure:
    bare_ms = None if case.bare is None else statistics.median(beside) * 1000
    ratio = statistics.median(mine / other for mine, other in zip(ours, beside, strict=True))
    return TypeFigure(case.type, case.each, case.count, statistics.median(ours) * 1000, bare_ms, ratio)


def _warm_up(here: Orchestrator, case: Case, workflow_id: str) -> None:
    """As many executions side by side as there are slots: each of the processes is to know the definition."""
    ids = [here.start(workflow_id) for _ in range(SLOTS)]
    for execution_id in ids:
        _send_signals(here, case, execution_id)
    here.wait(ids)
    here.check(ids, case.rows or len(case.steps))
    if case.bare is not None:
        case.bare()


def _seconds(here: Orchestrator, case: Case, workflow_id: str) -> float:
    """What an execution took by its own record."""
    execution_id = here.start(workflow_id)
    _send_signals(here, case, execution_id)
    here.wait([execution_id])
    here.check([execution_id], case.rows or len(case.steps))
    execution = here.session.get(f"{here.url}/api/v1/executions/{execution_id}", timeout=60).json()
    if not case.signals:
        return float(execution["duration"])
    ends = {row["path"]: datetime.fromisoformat(row["end_time"]) for row in execution["step_executions"]}
    return (ends[case.steps[-1]["id"]] - ends[case.steps[0]["id"]]).total_seconds()


def _send_signals(here: Orchestrator, case: Case, execution_id: str) -> None:
    for name in ["go"] * case.signals + ["begin"] * bool(case.signals):
        here.post(f"/api/v1/executions/{execution_id}/signals", {"name": name})


def _bare_seconds(call: Call, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - began


# --- the types that the engine decides by itself -------------------------------------------------------------


def _inside(here: Orchestrator) -> Iterator[Case]:
    """A thousand of each, so that what an execution costs once weighs the same. `approval` is not among them: it takes
    a person."""
    yield Case("set", chain(1000, "set", **VALUES), 1000)
    yield Case("constant", chain(1000, "set", values={"n": 2}), 1000)
    yield Case("condition", _conditions(1000), 1000)
    yield Case("wait", chain(1000, "wait", duration=0), 1000)
    yield Case("loop", _loops(5, items=200), 5 * 200, "item", rows=5 + 5 * 200)
    yield Case("parallel", _forks(125, branches=8), 125 * 8, "branch step", rows=125 + 125 * 8)
    # Each has an execution of as many steps, which count as its own does. Of one step it is no more than an execution.
    for name, length, calls in (("workflow", 10, 100), ("workflow of 1", 1, 500)):
        child = here.create(f"child of {name}", chain(length, "set", **VALUES))
        yield Case(name, chain(calls, "workflow", workflow=child), calls * (1 + length), "step", rows=calls)
    yield Case("signal", _signals(1000), 1000, signals=1000)


def _conditions(length: int) -> list[Step]:
    """Each lets the next one go on."""
    steps = chain(length, "condition", expression="1 < 2")
    for one, following in pairwise(steps):
        one["config"]["then"] = following["id"]
    return steps


def _loops(length: int, items: int) -> list[Step]:
    steps = chain(length, "loop", items=f"{{{{ range({items}) | list }}}}")
    for number, one in enumerate(steps):
        one["config"]["steps"] = [step(f"one{number}", type="set", **VALUES)]
    return steps


def _forks(length: int, branches: int) -> list[Step]:
    steps = chain(length, "parallel")
    for number, one in enumerate(steps):
        inner = {f"b{n}": [step(f"one{number}_{n}", type="set", **VALUES)] for n in range(branches)}
        one["config"]["branches"] = inner
    return steps


def _signals(length: int) -> list[Step]:
    first, *steps = chain(length + 1, "signal", name="go")
    return [first | {"config": {"name": "begin"}}, *steps]


# --- the types that call something outside, and the bare calls -----------------------------------------------


def _outside(here: Orchestrator, stack: ExitStack) -> Iterator[Case]:
    """Those of them that are registered and whose libraries are installed."""
    settings = here.programs.settings
    url = settings.agents[NAME].url
    webhook = {"url": url, "payload": {"n": 1}, "secret": SIGNING_SECRET}
    query = {"connection": NAME, "operation": "query", "sql": "SELECT 1 AS one"}
    email = {"to": "bo@example.com", "subject": "Hello", "text": QUESTION}
    types: list[tuple[str, int, dict[str, Any], MakesCall]] = [
        ("http", 400, {"url": url}, _http_call),
        ("webhook", 400, webhook, _webhook_call),
        ("script", 30, {"source": "print(1)"}, _script_call),
        ("database", 400, query, _database_call),
        ("email", 200, email, _email_call),
        ("agent", 400, {"agent_id": NAME, "task": QUESTION}, _agent_call),
        ("llm", 200, {"prompt": QUESTION}, _llm_call),
        ("mcp", 60, {"action": "add", "a": 1, "b": 2}, _mcp_call),
    ]
    for type, count, config, makes_call in types:
        registered = here.programs.catalogue.get(type)
        if registered is not None and not missing_modules(registered):
            yield Case(type, chain(count, type, **config), count, bare=makes_call(settings, stack))


def _http_call(settings: Settings, stack: ExitStack) -> Call:
    url, session = settings.agents[NAME].url, stack.enter_context(requests.Session())
    return lambda: session.get(url, timeout=30).json()


def _webhook_call(settings: Settings, stack: ExitStack) -> Call:
    url, session = settings.agents[NAME].url, stack.enter_context(requests.Session())

    def call() -> None:
        body, id, now = json.dumps({"n": 1}), f"msg_{uuid.uuid4().hex}", datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": standardwebhooks.Webhook(SIGNING_SECRET.encode()).sign(id, now, body),
        }
        session.post(url, data=body, headers=headers, timeout=30).raise_for_status()

    return call


def _script_call(_settings: Settings, _stack: ExitStack) -> Call:
    return lambda: subprocess.run([sys.executable, "-c", "print(1)"], check=True, capture_output=True)


def _database_call(settings: Settings, stack: ExitStack) -> Call:
    engine = sqlalchemy.create_engine(settings.connections[NAME].url)
    stack.callback(engine.dispose)

    def call() -> None:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT 1 AS one")).mappings().all()

    return call


def _email_call(settings: Settings, _stack: ExitStack) -> Call:
    server = settings.email

    def call() -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = server.sender, "bo@example.com", "Hello"
        message.set_content(QUESTION)
        with smtplib.SMTP(server.host, server.port, timeout=30) as smtp:
            smtp.send_message(message)

    return call


def _agent_call(settings: Settings, stack: ExitStack) -> Call:
    url, session = settings.agents[NAME].url, stack.enter_context(requests.Session())
    task = {"agent_id": NAME, "task": QUESTION, "input": {}, "idempotency_key": "one"}
    return lambda: session.post(url, json=task, timeout=30).json()


def _llm_call(settings: Settings, stack: ExitStack) -> Call:
    from openai import OpenAI

    client = stack.enter_context(OpenAI(base_url=settings.llm.base_url, api_key=settings.llm.api_key))
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    return lambda: client.chat.completions.create(model=settings.llm.model, messages=messages)


def _mcp_call(settings: Settings, stack: ExitStack) -> Call:
    """Each with a connection of its own, as a step has. By itself the SDK would also read the certificates of all
    authorities each time, which takes it twice as long as the rest."""
    import httpx2
    from mcp.client import Client
    from mcp.client.streamable_http import streamable_http_client

    url, tls = settings.mcp.servers[NAME].url, httpx2.create_ssl_context()

    async def call() -> None:
        async with (
            httpx2.AsyncClient(verify=tls, timeout=30) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            await client.call_tool("add", {"a": 1, "b": 2})

    runner = stack.enter_context(asyncio.Runner())
    return lambda: runner.run(call())


# --- the other sides -----------------------------------------------------------------------------------------


@contextmanager
def other_sides(folder: Path) -> Iterator[None]:
    """While this lasts they are there, and the environment tells an orchestrator started meanwhile where."""
    with _http_server() as http, _async_servers() as (smtp, mcp):
        settings = {
            "CONNECTIONS": json.dumps({NAME: {"url": f"sqlite:///{folder / 'bench.sqlite'}"}}),
            "AGENTS": json.dumps({NAME: {"url": f"http://127.0.0.1:{http}", "protocol": "http"}}),
            "LLM_BASE_URL": f"http://127.0.0.1:{http}",
            "LLM_API_KEY": "a key of no value",
            "LLM_MODEL": "bench",
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(smtp),
            "EMAIL_SECURITY": "none",
            "EMAIL_SENDER": "ana@example.com",
            "MCP_SERVERS": json.dumps({NAME: {"url": f"http://127.0.0.1:{mcp}/mcp"}}),
        }
        os.environ |= {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}
        yield


class _Answer(BaseHTTPRequestHandler):
    """The same to every request: good for a page, an agent and a model."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body: ClassVar[bytes] = json.dumps(
        {
            "result": "fine",
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "bench",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    ).encode()

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def _http_server() -> Iterator[int]:
    """Its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@contextmanager
def _async_servers() -> Iterator[tuple[int, int]]:
    """The ports of a mail and an MCP server, which share an event loop."""
    import uvicorn
    from aiosmtpd.handlers import Sink
    from aiosmtpd.smtp import SMTP
    from mcp.server.mcpserver import MCPServer

    tools = MCPServer(NAME, log_level="ERROR")

    @tools.tool()
    def add(a: int, b: int) -> int:
        return a + b

    server = uvicorn.Server(uvicorn.Config(tools.streamable_http_app(), log_level="error", lifespan="on"))

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(lambda: SMTP(Sink(), hostname="bench"), sock=smtp):
            await server.serve(sockets=[mcp])

    # Whoever connects before the thread is ready is kept waiting by the sockets.
    with _listener() as smtp, _listener() as mcp:
        thread = threading.Thread(target=asyncio.run, args=[serve()], daemon=True)
        thread.start()
        try:
            yield smtp.getsockname()[1], mcp.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


def _listener() -> socket.socket:
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it an answer takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener
