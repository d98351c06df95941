"""The event loop that all `llm` calls of a process share, and its pooled connections.

A call is a task, because a task can be cancelled: the openai library's own timeouts bound single waits, and a server
that sends one byte a second never meets them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.egress import Egress
from workers.stopping import ended_by

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")


class TooLarge(Exception):
    """The answer has more bytes than the step may take."""


class _Loop:
    """An event loop in a thread of its own, begun with the first call, and its pooled connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http_clients: dict[tuple[Egress, int], httpx2.AsyncClient] = {}

    def submit(self, call: Coroutine[Any, Any, T]) -> Any:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="llm-calls", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def http_client(self, egress: Egress, max_bytes: int) -> httpx2.AsyncClient:
        """The client for answers of at most `max_bytes`. To be called on the loop."""
        if (egress, max_bytes) not in self._http_clients:
            self._http_clients[egress, max_bytes] = _http_client(egress, max_bytes)
        return self._http_clients[egress, max_bytes]


LOOP = _Loop()


def within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    """What `call` returns. Raises TimeoutError when that takes longer than `seconds`; it is then cancelled, and
    its connection closed."""
    future = LOOP.submit(call)
    try:
        with ended_by(future.cancel):
            result: T = future.result(seconds)
    finally:
        future.cancel()
    return result


def _http_client(egress: Egress, max_bytes: int) -> httpx2.AsyncClient:
    """Pooled connections; neither proxies nor credentials are taken from the environment, no cookies are kept
    and no redirects are followed."""
    import httpx2

    from workers.steps.egress_httpx import CheckedTransport

    class Transport(CheckedTransport):
        """Reads each body itself, up to the limit. Raises TooLarge."""

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            body = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > max_bytes:
                        raise TooLarge
            finally:
                await response.aclose()
            headers = [(name, value) for name, value in response.headers.multi_items() if name not in _NOT_KEPT]
            return httpx2.Response(
                response.status_code, headers=headers, content=bytes(body), extensions=response.extensions
            )

    # It logs each url as it is, with the credentials and the query that may be in it.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    transport = Transport(egress, httpx2.create_ssl_context(trust_env=False), max_keepalive_connections=64)
    return httpx2.AsyncClient(transport=transport, trust_env=False)


_NOT_KEPT = frozenset({"content-encoding", "content-length", "transfer-encoding", "set-cookie"})
"""Headers that are not true of a body that has been read, and cookies."""
