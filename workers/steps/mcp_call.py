"""One call of an MCP server's tool that ends in time, whatever the server does.

The SDK is asynchronous, so a call has an event loop, in a thread of its own. The time is up by the loop's cancel
scope; but a loop may be blocked, and waits at its end for what it handed to threads (name resolution), so the
caller leaves the thread a moment later.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import anyio
import httpx2
import pydantic
import pydantic_core
from mcp import Client, MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    CallToolResult,
    Implementation,
    LoggingMessageNotificationParams,
)

from orchestrator import __version__
from orchestrator.errors import StepFailed, StepTimeout
from workers.steps.causes import root_cause
from workers.steps.contract import LogLevel, StepContext
from workers.steps.http_call import may_pass
from workers.steps.mcp_transports import Link, Server
from workers.stopping import ended_by

_UNWIND = 0.3
"""Seconds that a call whose time is up has for its end, before it is left."""
_CLOSING = 1.0
"""Seconds for ending the session once the answer is there."""
_LISTING = 5.0
"""Seconds for finding out whether the tool exists, once its call has failed."""
_PAGES = 20
_NAMED = 10
"""Tools that an error message names at most."""
_HTTP_ALONE = frozenset({401, 403, 407, 408, 425, 429})
"""Statuses that say nothing of MCP; 5xx too. Others come with an error of the protocol."""
_FOR_GOOD = frozenset({INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND})
_GONE = ("Connection closed", "SSE stream")
"""How the SDK says that the server went away; the code that it gives is one that servers use for their own errors."""
_LEVELS: Mapping[str, LogLevel] = {"debug": "debug", "info": "info", "notice": "info", "warning": "warning"}


def call_tool(server: Server, context: StepContext) -> CallToolResult:
    """The result, an error that the tool reports included. Raises StepTimeout, or StepFailed of the kinds `mcp`,
    `connection`, `http_status`, `response_too_large` and `config`."""
    call = _Call(server, context, context.within(context.config["timeout"]))
    call.start()
    try:
        with ended_by(call.stop):
            call.join(call.seconds + _UNWIND)
    finally:
        call.leave()
    if call.result is not None:
        return call.result
    if call.error is None or isinstance(call.error, StepTimeout):
        raise StepTimeout(f"{server.shown} did not answer within {call.seconds:g} s{server.said()}")
    raise call.translated(call.error) from call.error


class _Call(threading.Thread, Link):
    """The thread of one call, and the loop in it."""

    def __init__(self, server: Server, context: StepContext, seconds: float) -> None:
        super().__init__(name="mcp-call", daemon=True)
        self.seconds = seconds
        self.result: CallToolResult | None = None
        self.error: BaseException | None = None
        self._server = server
        self._context = context
        self._tool: str = context.config["action"]
        self._ends = time.monotonic() + seconds
        self._scope: anyio.CancelScope  # made in the loop, which it needs
        self._bytes_left = context.settings.executor.max_response
        self._failure: StepFailed | None = None
        self._left = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        try:
            with self._server.running(self, self._ends):
                asyncio.run(self._converse())
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            self.error = self._failure or error

    def stop(self) -> None:
        """End the call from another thread."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(self._scope.cancel)

    def leave(self) -> None:
        """Whatever the thread still does is of no interest any more; what it started is ended."""
        self._left = True
        if self.is_alive():
            self._server.kill()

    # -- Link --------------------------------------------------------------------------------------------------

    def take(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            limit = self._context.settings.executor.max_response
            self.fail(
                StepFailed(
                    f"{self._server.shown} sent more than executor.max_response, {limit} bytes",
                    kind="response_too_large",
                    retryable=False,
                )
            )

    def fail(self, failure: StepFailed) -> None:
        # Not raised here: the SDK would make something else of it, or nothing at all.
        self._failure = self._failure or failure
        self._scope.cancel()

    def log(self, line: str, level: LogLevel) -> None:
        if not self._left:
            self._context.log(line, level)

    # -- the loop ----------------------------------------------------------------------------------------------

    async def _converse(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._ends - time.monotonic())
        with self._scope:
            async with Client(
                self._server.connect(self),
                client_info=Implementation(name="orchestrator", version=__version__),
                logging_callback=self._on_log,
                log_level="info",
                cache=None,
            ) as client:
                self.result = await self._answer(client)
                self._scope.deadline = min(self._scope.deadline, anyio.current_time() + _CLOSING)
        if self.result is None:
            raise self._failure or StepTimeout("the call's time is up")

    async def _answer(self, client: Client) -> CallToolResult:
        # In the call itself, as no header: a gateway that replays answers would take the session's other requests
        # for repetitions of the first.
        meta: Any = {"idempotencyKey": self._context.idempotency_key}
        try:
            result = await client.call_tool(
                self._tool,
                dict(self._context.config["arguments"]),
                progress_callback=self._on_progress,
                meta=meta,
            )
        except MCPError as error:
            if error.code in (INVALID_PARAMS, METHOD_NOT_FOUND):
                await self._check_existence(client)
            raise
        if result.is_error:
            # Many servers report a tool that is not there as that tool's error.
            await self._check_existence(client)
        return result

    async def _check_existence(self, client: Client) -> None:
        """Raise StepFailed if the server says that it has no such tool; if it does not say, do nothing."""
        names: list[str] = []
        cursor = None
        with anyio.move_on_after(_LISTING):
            for _ in range(_PAGES):
                try:
                    page = await client.list_tools(cursor=cursor)
                except (MCPError, pydantic.ValidationError):
                    return
                names += (tool.name for tool in page.tools)
                cursor = page.next_cursor
                if self._tool in names:
                    return
                if cursor is None:
                    raise self._unknown(sorted(names))

    def _unknown(self, names: list[str]) -> StepFailed:
        known = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        message = f"{self._server.shown} has no tool {self._tool!r}; it has {known or 'none at all'}"
        return StepFailed(message, kind="mcp", retryable=False)

    async def _on_log(self, params: LoggingMessageNotificationParams) -> None:
        text = params.data if isinstance(params.data, str) else pydantic_core.to_json(params.data).decode()
        self.log(f"{params.logger}: {text}" if params.logger else text, _LEVELS.get(params.level, "error"))

    async def _on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        amount = f"{progress:g}" if total is None else f"{progress:g} of {total:g}"
        self.log(f"progress {amount}" + (f": {message}" if message else ""), "info")

    # -- what went wrong ---------------------------------------------------------------------------------------

    def translated(self, error: BaseException) -> BaseException:
        """`error` as a StepFailed. httpx's own texts are used only where they cannot hold a header or a query."""
        shown = self._server.shown
        match _first(error):
            case StepFailed() as failure:
                return failure
            case httpx2.LocalProtocolError() | httpx2.UnsupportedProtocol() | httpx2.InvalidURL() | UnicodeError():
                message = f"{shown} cannot be asked: its url or one of its headers is not valid (mcp.servers)"
                return StepFailed(message, kind="config", retryable=False)
            case httpx2.HTTPError() | OSError() as cause:
                return StepFailed(f"{shown}: {root_cause(cause)}{self._server.said()}", kind="connection")
            case MCPError(code=code, message=text) if code == CONNECTION_CLOSED and text.startswith(_GONE):
                return StepFailed(f"{shown} went away before it answered{self._server.said()}", kind="connection")
            case MCPError() as cause:
                return self._refusal(cause)
            case pydantic.ValidationError() | RuntimeError() as cause:
                return StepFailed(f"{shown} gave no valid answer: {_short(cause)}", kind="mcp")
        return error

    def _refusal(self, error: MCPError) -> StepFailed:
        status = self._server.status
        if status in _HTTP_ALONE or status >= 500:
            return StepFailed(
                f"{self._server.shown} answered {status}: {_short(error)}",
                kind="http_status",
                retryable=may_pass(status),
            )
        return StepFailed(
            f"{self._server.shown} refused the call of {self._tool!r}: {_short(error)} (error {error.code}"
            + (f", status {status})" if status >= 400 else ")"),
            kind="mcp",
            retryable=error.code not in _FOR_GOOD,
        )


_RANKS = (StepFailed, httpx2.HTTPError, OSError, MCPError)


def _first(error: BaseException) -> BaseException:
    """Of all that a group of tasks raised, what says most: a lost connection also fails whatever waited for it."""
    found = list(_leaves(error))
    for kind in _RANKS:
        for leaf in found:
            if isinstance(leaf, kind):
                return leaf
    return found[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else text[:500] + "..."
