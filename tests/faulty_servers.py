"""Servers that answer badly, in a way that their callers choose."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

NUL = "a\0b"


class Web(ThreadingHTTPServer):
    """By a part of the path, or the model that is asked for: `silent`, `noise` (no HTTP), `html`, `flood`, `echo` (a
    refusal that repeats what it was sent), `nul` (a text with a NUL, as every caller understands it)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.held: set[threading.Thread] = set()
        """Those that still answer somebody."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what is waited for."""


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def answer(self) -> None:
        self.given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = [*self.path.partition("?")[0].split("/"), self._json().get("model")]
        how = next(how for how in asked if how in ("silent", "noise", "html", "flood", "echo", "nul"))
        self.server.held.add(threading.current_thread())
        try:
            getattr(self, how)()
        finally:
            self.server.held.discard(threading.current_thread())

    do_GET = do_POST = do_DELETE = answer

    def silent(self) -> None:
        self.connection.recv(1)

    def noise(self) -> None:
        self.wfile.write(b"\xff\xfe and so on\r\n\r\n")

    def html(self) -> None:
        self._reply(200, b"<html>Welcome</html>", "text/html")

    def flood(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        while True:
            self.wfile.write(b'["x", ' * 10_000)

    def echo(self) -> None:
        said = f"no to {self.headers.get('X-Token')} {self.given.decode()}"
        self._reply(400, json.dumps({"error": {"message": said}}).encode(), "application/json")

    def nul(self) -> None:
        message = {"role": "assistant", "content": NUL}
        interface = {"url": f"{self.server.url}/nul/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
        answers = {
            "a plain agent": {"result": NUL},
            "a model": {"choices": [{"message": message, "finish_reason": "stop"}]},
            "an agent's card": {"name": "nul", "supportedInterfaces": [interface]},
            "an agent over A2A": {
                "jsonrpc": "2.0",
                "id": self._json().get("id"),
                "result": {"message": {"messageId": "1", "role": "ROLE_AGENT", "parts": [{"text": NUL}]}},
            },
        }
        if "card" in self.path:
            whole = answers["an agent's card"]
        elif "rpc" in self.path:
            whole = answers["an agent over A2A"]
        else:
            whole = answers["a plain agent"] | answers["a model"]
        self._reply(200, json.dumps(whole).encode(), "application/json")

    def _json(self) -> dict[str, Any]:
        try:
            given = json.loads(self.given)
        except ValueError:
            given = None
        return given if isinstance(given, dict) else {}

    def _reply(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _Mail:
    """By the local part of the recipient: `silent`, `noise` (no SMTP), `flood`; others are refused by name."""

    def __init__(self) -> None:
        self.held: set[Session] = set()

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        match address.partition("@")[0]:
            case "silent":
                self.held.add(session)
                try:
                    await asyncio.Event().wait()
                finally:
                    self.held.discard(session)
            case "noise":
                return "what do you mean?"
            case "flood":
                return "\r\n".join(["550-no"] * 20_000 + ["550 no"])
        return f"550 there is no {address}"


class _OnAFreePort(Controller):
    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class Crooked:
    def __init__(self, web: Web, mail: _Mail, mail_port: int, noisy_port: int, closed_port: int) -> None:
        self.web = web.url
        self.mail_port = mail_port
        self.noisy_port = noisy_port
        """Says what nobody understands to whoever connects, and hangs up."""
        self.closed_port = closed_port
        """Nobody listens there."""
        self._sides = (web, mail)

    @property
    def holds(self) -> bool:
        """Whether anybody is still connected who waits for an answer."""
        return any(side.held for side in self._sides)


@contextmanager
def crooked() -> Iterator[Crooked]:
    web, mail = Web(), _Mail()
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    controller = _OnAFreePort(mail, hostname="127.0.0.1", port=0)
    controller.start()
    with socket.create_server(("127.0.0.1", 0)) as noisy, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # held, so that nobody else comes to listen there
        threading.Thread(target=_make_noise, args=(noisy,), daemon=True).start()
        yield Crooked(web, mail, controller.port, noisy.getsockname()[1], closed.getsockname()[1])
        noisy.shutdown(socket.SHUT_RDWR)
    controller.stop()
    web.shutdown()
    web.server_close()


def _make_noise(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is over
            return
        with connection:
            connection.sendall(b"no such thing here\r\n")
