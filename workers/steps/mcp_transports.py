"""What a call needs of an MCP server, and the way to one by streamable HTTP.

What the server sends is counted while it arrives: the SDK keeps any answer whole, whatever its size.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports
"""

from __future__ import annotations

import functools
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

from orchestrator.egress import Egress
from orchestrator.errors import StepFailed
from workers.steps.contract import LogLevel
from workers.steps.egress_httpx import CheckedTransport
from workers.steps.http_call import shown

# At INFO these write each request's whole url, and the session's id, to the worker's log.
for _name in ("httpx2", "mcp.client"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Streams = tuple[Any, Any]
"""Of messages from the server, and to it; the SDK keeps the names of their types to itself."""


class Link(ABC):
    """What a transport tells the call that uses it."""

    @abstractmethod
    def take(self, size: int) -> None:
        """So many bytes have come from the server; ends the call when they are too many."""

    @abstractmethod
    def fail(self, failure: StepFailed) -> None:
        """End the call with this."""

    @abstractmethod
    def log(self, line: str, level: LogLevel) -> None:
        """Add a line to the step's log."""


class Server(ABC):
    """A server, for a single call."""

    shown: str
    """How messages name it."""
    status: int = 0
    """The HTTP status of its last answer to a message."""

    def running(self, link: Link, ends: float) -> AbstractContextManager[None]:  # noqa: ARG002
        """While this lasts it may be connected to; the call is over at `ends`, on time.monotonic()'s clock."""
        return nullcontext()

    @abstractmethod
    def connect(self, link: Link) -> AbstractAsyncContextManager[Streams]:
        """The streams of messages from it and to it."""

    def said(self) -> str:
        """What it left to say about its failure, to be appended to a message."""
        return ""

    def kill(self) -> None:  # noqa: B027  (most have nothing here)
        """End what of it runs on this machine, from any thread."""


class HttpServer(Server):
    """One that has a url. Neither proxies nor credentials are taken from the environment."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str], egress: Egress) -> None:
        self.shown = f"the MCP server {name!r} ({shown(url)})"
        self._url = url
        self._egress = egress
        # What is packed could not be counted as what it becomes.
        self._headers = {"User-Agent": "orchestrator", "Accept-Encoding": "identity", **headers}

    @asynccontextmanager
    async def connect(self, link: Link) -> AsyncGenerator[Streams]:
        # The call's own time bounds all of its requests together.
        options: dict[str, Any] = {"timeout": None, "trust_env": False}
        async with (
            httpx2.AsyncClient(
                transport=_Counting(self, link, self._egress), headers=self._headers, **options
            ) as client,
            streamable_http_client(self._url, http_client=client, max_sse_event_size=None) as streams,
        ):
            yield streams


class _Counting(httpx2.AsyncBaseTransport):
    """Counts what comes, and keeps the status of the last answer to a message."""

    def __init__(self, server: HttpServer, link: Link, egress: Egress) -> None:
        self._server = server
        self._link = link
        self._inner = CheckedTransport(egress, _tls())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._inner.handle_async_request(request)
        except StepFailed as failure:
            self._link.fail(StepFailed(f"{self._server.shown}: {failure}", kind="egress", retryable=False))
            raise
        if request.method == "POST":
            self._server.status = response.status_code
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            message = f"{self._server.shown} answered with the content-encoding {encoding}, which was not accepted"
            self._link.fail(StepFailed(message, kind="mcp", retryable=False))
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Counted(response.stream, self._link)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, link: Link) -> None:
        self._stream = stream
        self._link = link

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._link.take(len(chunk))
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@functools.cache
def _tls() -> ssl.SSLContext:
    """Shared, as reading the certificates takes 25 ms."""
    return httpx2.create_ssl_context(trust_env=False)
