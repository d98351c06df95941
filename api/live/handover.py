"""A response that goes on without the thread that has begun it.

The server's thread sends the headers and the first bytes, as of any response. Then the connection is taken from it and
given to the hub, so that a listener costs a socket and no thread: under gunicorn, which hands its socket on in the
environment. Anywhere else, and with TLS or HTTP/2 in gunicorn itself, a thread carries on what the hub tells.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

Take = Callable[[socket.socket, bool], None]
"""Called with a socket of one's own, and whether HTTP's chunks have to be made."""


def handed_over(environ: dict[str, Any], first: bytes, take: Take) -> Iterator[bytes]:
    """What a WSGI application returns."""
    yield first
    connection = _taken_from_gunicorn(environ)
    if connection is not None:
        take(connection, environ["SERVER_PROTOCOL"] == "HTTP/1.1")
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    take(theirs, False)
    with ours:
        while data := ours.recv(65536):
            yield data


def _taken_from_gunicorn(environ: dict[str, Any]) -> socket.socket | None:
    theirs = environ.get("gunicorn.socket")
    if not isinstance(theirs, socket.socket) or isinstance(theirs, ssl.SSLSocket):
        return None
    if environ["SERVER_PROTOCOL"] not in ("HTTP/1.0", "HTTP/1.1"):
        return None
    ours = theirs.dup()
    ours.setblocking(False)
    # Gunicorn would now end the response, and shut the connection down, which a duplicate does not survive. So its
    # socket becomes that of a connection whose other side is gone, which is what it meets every day.
    nobody, gone = socket.socketpair()
    gone.close()
    with nobody:
        os.dup2(nobody.fileno(), theirs.fileno(), inheritable=False)
    return ours
