"""What first went wrong, in an error's own words."""

from __future__ import annotations

import os
import socket
import ssl
from http.client import BadStatusLine, RemoteDisconnected


def root_cause(error: BaseException) -> str:
    """`Connection refused`, `certificate verify failed`: what the other errors around `error` were raised for."""
    while (cause := _behind(error)) is not None:
        error = cause
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return f"the answer is not HTTP: {str(error)[:100]!r}"
    words = None
    if isinstance(error, OSError):
        # asyncio puts the address in the place of the system's own words.
        is_the_system_s = error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror))
        words = os.strerror(error.errno or 0) if is_the_system_s else error.strerror
    return words or str(error) or type(error).__name__


def _behind(error: BaseException) -> BaseException | None:
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
