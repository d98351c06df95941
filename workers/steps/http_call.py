"""One HTTP call that ends in time, whatever the other side does.

A client's own timeouts bound single waits: a server that sends one byte a second never meets them. So each
call runs in a thread of its own, which the caller leaves at the deadline; the call's sockets are then shut
down, so that the thread ends too. That costs less than half a millisecond a call (1.0 ms on loopback, 0.6 ms
with a bare session) and also covers what no socket timeout reaches: name resolution, several addresses tried
in turn, redirects.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.connection import allowed_gai_family

from orchestrator.egress import Egress
from orchestrator.errors import StepFailed, StepTimeout
from workers.steps.causes import root_cause
from workers.steps.egress import addresses
from workers.stopping import ended_by

# `verify: false` is the user's written choice; a warning for each call would only bury the worker's log.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    reason: str
    headers: Mapping[str, str]
    """With lower-case names; the values of a repeated header are joined by `, `."""
    body: bytes
    """Decompressed."""
    elapsed: float
    """Seconds, the body included."""

    @property
    def said(self) -> str:
        """Its status, and the beginning of what it says, for a message."""
        excerpt = self.body[:800].decode(errors="replace")[:200].replace("\0", "\ufffd")
        return f"{self.status} {self.reason}: {excerpt}"


def send(
    request: requests.Request,
    *,
    egress: Egress,
    seconds: float,
    max_bytes: int,
    verify: bool = True,
    redirects: bool = True,
) -> Response:
    """The response, of any status, to `request`, within `seconds` in all.

    Connections are pooled per process. Cookies live as long as the call; neither proxies nor credentials are
    taken from the environment. Raises StepTimeout, or StepFailed of the kinds `connection`, `egress`,
    `response_too_large`, `redirects` and `config` (the request itself is not valid).
    """
    call = _Call(request, egress, seconds, max_bytes, verify, redirects)
    call.start()
    with ended_by(call.stop):
        call.join(seconds)
    if call.is_alive():
        call.stop()
        raise StepTimeout(f"{request.method} {shown(request.url)} did not end within {seconds:g} s")
    if call.error is not None:
        raise _translated(call.error, request, max_bytes) from call.error
    assert call.response is not None
    return call.response


def may_pass(status: int) -> bool:
    """Whether an error of this status may be gone at another try: 5xx, and 408 (request timeout), 425 (too early) and
    429 (too many requests)."""
    return status >= 500 or status in (408, 425, 429)


def encoded(headers: Mapping[str, str]) -> dict[str, str | bytes]:
    """`headers` as they are sent: as UTF-8. Left as texts they would have to be Latin-1."""
    return {name: value if value.isascii() else value.encode() for name, value in headers.items()}


def shown(url: str) -> str:
    """`url` as far as it may be shown: without credentials, query and fragment, where secrets are put."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return "the url"


class _Call(threading.Thread):
    """The thread of one call. Its connections find it as the current thread."""

    def __init__(
        self,
        request: requests.Request,
        egress: Egress,
        seconds: float,
        max_bytes: int,
        verify: bool,
        redirects: bool,
    ) -> None:
        super().__init__(name="http-call", daemon=True)
        self.request = request
        self.egress = egress
        self.max_bytes = max_bytes
        self.response: Response | None = None
        self.error: Exception | None = None
        self.on_used_connection = False
        self.stopped = False
        # The sockets' own timeouts come later than the deadline: they only end a thread that was left.
        self._options: dict[str, Any] = {
            "verify": verify,
            "allow_redirects": redirects,
            "timeout": seconds + 1,
            "stream": True,
        }
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        started = time.monotonic()
        # A session is cheap; what is worth sharing, the connections, belongs to the adapters.
        session = requests.Session()
        session.trust_env = False
        for scheme, adapter in _adapters(self.egress).items():
            session.mount(scheme, adapter)
        try:
            found = session.send(session.prepare_request(self.request), **self._options)
            headers = {name.lower(): value for name, value in found.headers.items()}
            elapsed = time.monotonic() - started
            self.response = Response(found.status_code, found.reason, headers, found.content, elapsed)
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            self.error = error
        finally:
            self._forget()

    def watch(self, sock: socket.socket) -> None:
        """Have `sock` shut down with the call. What is kept is a duplicate of the descriptor: it stays valid,
        and stays this socket's, whatever TLS or the pool make of the original."""
        with self._lock:
            self._sockets.append(socket.fromfd(sock.fileno(), sock.family, sock.type))
        if self.stopped:
            self.stop()

    def stop(self) -> None:
        """End the call from another thread; it fails within moments."""
        self.stopped = True
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _forget(self) -> None:
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()


def _current_call() -> _Call:
    call = threading.current_thread()
    assert isinstance(call, _Call)
    return call


class _Connection(HTTPConnection):
    """A connection that shows its socket to the call that uses it."""

    _requests = 0

    def _new_conn(self) -> socket.socket:
        call = _current_call()
        sock = self._connected(addresses(call.egress, self._dns_host, self.port, allowed_gai_family()))
        self._requests = 0
        call.watch(sock)
        return sock

    def _connected(self, addresses: list[str]) -> socket.socket:
        # urllib3 connects to what it finds in _dns_host; what TLS checks is `host`, which must be the name again.
        name = self._dns_host
        *first, last = addresses
        try:
            for self._dns_host in first:
                with suppress(urllib3.exceptions.HTTPError):
                    return super()._new_conn()
            self._dns_host = last
            return super()._new_conn()
        finally:
            self._dns_host = name

    def request(self, *args: Any, **options: Any) -> None:
        call = _current_call()
        call.on_used_connection = self.sock is not None and self._requests > 0
        if self.sock is not None:
            call.watch(self.sock)
        try:
            super().request(*args, **options)
        finally:
            self._requests += 1


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    """Pooled connections, shared by all threads of the process."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def send(self, *args: Any, **options: Any) -> requests.Response:
        call = _current_call()
        try:
            response = super().send(*args, **options)
        except requests.ConnectionError:
            # A server may close an idle connection in the moment it is used again. That says nothing of the
            # request, which has an idempotency key, so it is sent once more.
            if not call.on_used_connection or call.stopped:
                raise
            response = super().send(*args, **options)
        # Read here, so that the bound also holds for the bodies of redirects, which requests reads whole.
        response._content = _bounded_body(response, call.max_bytes)
        return response


@functools.cache
def _adapters(_egress: Egress) -> Mapping[str, _Adapter]:
    """By the scheme. Connections are checked when they are made, so each set of rules has its own."""
    return {scheme: _Adapter(pool_connections=64, pool_maxsize=64) for scheme in ("http://", "https://")}


class _TooLarge(Exception):
    pass


def _bounded_body(response: requests.Response, max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            response.close()
            raise _TooLarge
    return bytes(body)


def _translated(error: Exception, request: requests.Request, max_bytes: int) -> Exception:
    """`error` as a StepFailed. Its own text is not used: it may hold the whole url."""
    what = f"{request.method} {shown(request.url)}"
    match error:
        case StepFailed():
            return StepFailed(f"{what}: {error}", kind=error.kind, retryable=error.retryable)
        case _TooLarge():
            return StepFailed(
                f"{what}: the response is larger than executor.max_response, {max_bytes} bytes",
                kind="response_too_large",
                retryable=False,
            )
        case requests.TooManyRedirects():
            return StepFailed(f"{what}: too many redirects", kind="redirects", retryable=False)
        case requests.Timeout():
            return StepTimeout(f"{what} timed out")
        case requests.RequestException() if isinstance(error, ValueError):
            cause = _CAUSES.get(type(error), "it cannot be sent")
            return StepFailed(f"{what} is not valid: {cause}", kind="config", retryable=False)
        case requests.RequestException() | urllib3.exceptions.HTTPError() | OSError():
            return StepFailed(f"{what}: {root_cause(error)}", kind="connection")
    return error


_CAUSES: Mapping[type[Exception], str] = {
    requests.exceptions.InvalidURL: "its url cannot be read",
    requests.exceptions.MissingSchema: "its url has no scheme; write http:// or https://",
    requests.exceptions.InvalidSchema: "its url, or one it redirects to, is neither http nor https",
    requests.exceptions.InvalidHeader: "a header has a line break or a leading space",
}
