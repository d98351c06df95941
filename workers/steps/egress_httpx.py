"""The egress rules for clients that are built on httpx. Imported when a step needs it: httpx takes a while."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore2
import httpx2

from orchestrator.egress import Egress
from workers.steps.egress import permitted

_PATIENCE = 5.0
"""Seconds for an address while there is another one to be tried."""


class CheckedTransport(httpx2.AsyncHTTPTransport):
    """httpx's own transport, which connects where the rules allow. Neither proxies nor credentials are taken from
    the environment. Raises StepFailed of the kind `egress`, through whatever is between it and its user."""

    def __init__(self, egress: Egress, tls: ssl.SSLContext, *, max_keepalive_connections: int | None = None) -> None:
        super().__init__(verify=tls, trust_env=False)
        # httpx has no parameter for this; httpcore, which it is made of, does.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=5.0,
            network_backend=_Checked(egress),
        )


class _Checked(httpcore2.AsyncNetworkBackend):
    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(error) from error
        *first, last = permitted(self._egress, host, found)
        for address in first:
            try:
                return await self._inner.connect_tcp(address, port, _PATIENCE, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(last, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)
