"""An MCP server made with the official SDK, as a program: `python mcp_server.py stdio`, or `http`, which prints its
port once it listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from typing import Any

import anyio
import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import CallToolResult, TextContent

warnings.simplefilter("ignore", MCPDeprecationWarning)
server = MCPServer("tests", log_level="ERROR")


@server.tool()
def create_session(user_id: str, agent_id: str) -> dict[str, Any]:
    return {"session_id": f"{user_id}/{agent_id}", "turns": 0, "ends": None}


@server.tool()
def echo(value: Any = None, server: str | None = None) -> CallToolResult:
    content = TextContent(text=json.dumps(value, ensure_ascii=False))
    return CallToolResult(content=[content, TextContent(text=f"server={server}")])


@server.tool()
def picture() -> Image:
    return Image(data=b"\x89PNG", format="png")


@server.tool()
async def seen(ctx: Context) -> dict[str, Any]:
    """What arrives beside the arguments."""
    meta = ctx.request_context.meta or {}
    request = ctx.request_context.request
    headers = dict(request.headers) if request else {}
    return {"meta": json.loads(json.dumps(dict(meta))), "headers": headers, "environment": dict(os.environ)}


@server.tool()
async def report(ctx: Context) -> str:
    await ctx.info("starting", logger_name="work")
    await ctx.report_progress(1, 2, "half")
    await ctx.log("critical", {"disk": "full"})
    return "done"


@server.tool()
def fail(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=message)], is_error=True)


@server.tool()
def refuse() -> str:
    raise MCPError(code=-32000, message="the quota is used up")


@server.tool()
async def hang() -> str:
    await anyio.sleep(60)
    return "too late"


@server.tool()
async def block(note: str) -> str:
    """Neither reads on nor minds SIGTERM, and has a child of the same kind in another process group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    with open(f"{note}.part", "w") as file:
        file.write(f"{os.getpid()} {process.pid}")
    os.rename(f"{note}.part", note)
    while True:
        time.sleep(1)


@server.tool()
def die() -> str:
    print("out of cheese", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
def huge(size: int) -> CallToolResult:
    return CallToolResult(content=[TextContent(text="x" * size)])


@server.tool()
def nul() -> str:
    return "a\0b"


@server.tool()
def chatter() -> str:
    print("Welcome to the server!", flush=True)
    print("careful", file=sys.stderr, flush=True)
    return "said"


def listen() -> None:
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it an answer takes 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(server.streamable_http_app(), log_level="error", lifespan="on")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    listen() if sys.argv[1] == "http" else server.run("stdio")
