"""One delivery over SMTP that ends in time, whatever the server does.

smtplib's timeout bounds single waits, and a server that drips its replies never meets it. As in http_call, the
session runs in a thread of its own that the caller leaves at the deadline; its socket is then shut down.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from email.message import EmailMessage
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from orchestrator.config import EmailSettings
from orchestrator.errors import StepFailed, StepTimeout
from workers.steps.contract import config_mistake
from workers.stopping import ended_by

_MAX_REPLY = 64 * 1024
"""Bytes of one reply, all its lines together."""


def deliver(
    server: EmailSettings, message: EmailMessage, *, sender: str, recipients: Sequence[str], seconds: float
) -> dict[str, str]:
    """Hand `message` to `server` within `seconds` in all; returns the recipients it refused, with its reasons.

    Raises StepTimeout, or StepFailed of the kinds `connection`, `login`, `smtp` (the server refused; replies of
    5xx are final), `response_too_large` and `config`. After a timeout or a lost connection the server may have
    the message all the same: another attempt repeats it under the same Message-ID.
    """
    if not (server.username + server.password).isascii():
        raise config_mistake("the login at the mail server must be ASCII; see email.username and email.password")
    delivery = _Delivery(server, message, sender, recipients, seconds, _tls(server))
    delivery.start()
    try:
        with ended_by(delivery.stop):
            delivery.join(seconds)
        late = delivery.is_alive()
    finally:
        delivery.stop()
    what = f"the mail server {server.host}:{server.port}"
    if late:
        raise StepTimeout(f"{what} did not take the email within {seconds:g} s")
    if delivery.error is not None:
        raise _translated(delivery.error, what) from delivery.error
    return delivery.refused


class _Delivery(threading.Thread):
    def __init__(
        self,
        server: EmailSettings,
        message: EmailMessage,
        sender: str,
        recipients: Sequence[str],
        seconds: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(name="smtp-call", daemon=True)
        self._server = server
        self._message = message
        self._sender = sender
        self._recipients = recipients
        self._tls = tls
        # Later than the deadline: it only ends a thread that was left.
        self._wait = seconds + 1
        self._stopped = False
        self._socket: socket.socket | None = None
        self.refused: dict[str, str] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            refused = self._deliver()
            self.refused = {address: _reply(*reason) for address, reason in refused.items()}
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            self.error = error
        finally:
            if self._socket is not None:
                self._socket.close()

    def _deliver(self) -> dict[str, tuple[int, bytes]]:
        server = self._server
        client = _Client(server, self._tls, self._watch, self._wait)
        try:
            code, reply = client.connect(server.host, server.port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, reply)
            if server.security == "starttls":
                client.starttls(context=self._tls)
            if server.username:
                client.login(server.username, server.password)
            refused = client.send_message(self._message, self._sender, self._recipients)
            # The reply is not waited for: what comes after the message was taken must not fail the step.
            with suppress(OSError, smtplib.SMTPException):
                client.putcmd("QUIT")
            return refused
        finally:
            client.close()

    def _watch(self, sock: socket.socket) -> None:
        """Have `sock` shut down by `stop`. What is kept is a duplicate, which stays valid under TLS."""
        self._socket = socket.fromfd(sock.fileno(), sock.family, sock.type)
        if self._stopped:
            self.stop()

    def stop(self) -> None:
        """End the session from another thread; it fails within moments."""
        self._stopped = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Client(smtplib.SMTP):
    """smtplib's client: it shows its socket, may speak TLS from the start, and reads no endless reply."""

    def __init__(
        self, server: EmailSettings, tls: ssl.SSLContext | None, watch: Callable[[socket.socket], None], wait: float
    ) -> None:
        super().__init__(timeout=wait)
        self._host = server.host  # the name that STARTTLS checks the certificate for
        self._implicit_tls = tls if server.security == "tls" else None
        self._watch = watch

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.create_connection((host, port), timeout)
        self._watch(sock)
        return self._implicit_tls.wrap_socket(sock, server_hostname=host) if self._implicit_tls else sock

    def getreply(self) -> tuple[int, bytes]:
        assert self.sock is not None
        if self.file is None:
            self.file = _Replies(self.sock.makefile("rb"))
        self.file.left = _MAX_REPLY
        return super().getreply()


class _Replies:
    """The part of a file that smtplib reads replies with; `left` is how many bytes the reply may still have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left = 0
        self.close = file.close

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        self.left -= len(line)
        if self.left < 0:
            raise _ReplyTooLarge
        return line


class _ReplyTooLarge(Exception):
    pass


def _tls(server: EmailSettings) -> ssl.SSLContext | None:
    if server.security == "none":
        return None
    try:
        changed = Path(server.ca_file).stat().st_mtime_ns if server.ca_file else 0
        return _context(server.ca_file, changed, server.verify)
    except OSError as error:
        raise config_mistake(
            f"email.ca_file, {server.ca_file}, cannot be read as certificates: {error.strerror}"
        ) from error


@lru_cache(maxsize=4)
def _context(ca_file: str, _changed: int, verify: bool) -> ssl.SSLContext:
    """Kept, since reading the system's certificates takes some 35 ms, ten times as long as an email."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _translated(error: Exception, what: str) -> Exception:
    match error:
        case _ReplyTooLarge():
            return StepFailed(
                f"{what} sent a reply of more than {_MAX_REPLY} bytes", kind="response_too_large", retryable=False
            )
        case smtplib.SMTPRecipientsRefused():
            refused = {address: _reply(*reason) for address, reason in error.recipients.items()}
            return StepFailed(
                f"{what} refused every recipient: {'; '.join(f'{to}: {reason}' for to, reason in refused.items())}",
                kind="smtp",
                retryable=any(_may_pass(code) for code, _ in error.recipients.values()),
                output={"to": [], "refused": refused},
            )
        case smtplib.SMTPAuthenticationError():
            # The text of the reply is left out: a server may repeat in it what it was sent.
            return StepFailed(
                f"{what} refused the login ({error.smtp_code}); check email.username and email.password",
                kind="login",
                retryable=_may_pass(error.smtp_code),
            )
        case smtplib.SMTPResponseException():
            reply = _reply(error.smtp_code, error.smtp_error)
            return StepFailed(f"{what} answered {reply}", kind="smtp", retryable=_may_pass(error.smtp_code))
        case smtplib.SMTPServerDisconnected():
            return StepFailed(f"{what} closed the connection", kind="connection")
        case smtplib.SMTPException():
            # What the server does not offer: STARTTLS, a way to log in, SMTPUTF8.
            return StepFailed(f"{what}: {error}", kind="smtp", retryable=False)
        case OSError():
            return StepFailed(f"{what}: {error.strerror or error}", kind="connection")
        case UnicodeError():
            return config_mistake(f"{what} has a name that cannot be looked up; see email.host")
    return error


def _may_pass(code: int) -> bool:
    """Only 5yz is final (RFC 5321, 4.2.1); -1 is smtplib's for what is no reply at all."""
    return not 500 <= code <= 599


def _reply(code: int, text: bytes | str) -> str:
    """A reply in one line of bounded length."""
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    shown = re.sub(r"[\0-\x20\x7f]+", " ", words)[:200].strip()
    return f"{code} {shown}" if code > 0 else f"with what is not SMTP: {shown}"
