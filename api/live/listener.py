"""One who listens: a socket, what they are to be told, and how far they have been."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from api.live.formats import Format
from api.live.selection import Selection

BEHIND = 256 * 1024
"""Bytes that a listener has not taken yet at which they are told no more for the while."""
_AT_ONCE = 256 * 1024


@dataclass(eq=False, slots=True)
class Listener:
    connection: socket.socket
    """Not blocking."""
    selection: Selection
    format: Format
    at: int
    """They have been told everything up to this number."""
    needs: int
    """As far as the hub has to have come before there is anything to be told."""
    follows: bool
    """Whether they stay when there is nothing more for now."""
    is_chunked: bool
    """As RFC 9112 (7.1) frames what has no length."""
    ends_at: float
    """On time.monotonic()'s clock."""
    look_again: Callable[[], Selection | None]
    """What they are to be told from now on: what they may see changes. None: nothing any more. Raises DatabaseAway."""
    beats_at: float = 0.0
    is_live: bool = False
    """Up to date: they get what the hub reads for all."""
    is_finished: bool = False
    _pending: bytearray = field(default_factory=bytearray)

    @property
    def has_room(self) -> bool:
        return len(self._pending) < BEHIND

    @property
    def waits_to_send(self) -> bool:
        return bool(self._pending)

    def tell(self, data: bytes) -> None:
        if data:
            self._pending += b"%x\r\n%s\r\n" % (len(data), data) if self.is_chunked else data

    def finish(self) -> None:
        """There is nothing more to come; once all is sent, the connection ends."""
        if not self.is_finished:
            self.is_finished = True
            self._pending += b"0\r\n\r\n" if self.is_chunked else b""

    def send(self) -> None:
        """As much as the other side takes now. Raises OSError if they are gone."""
        while self._pending:
            try:
                sent = self.connection.send(memoryview(self._pending)[:_AT_ONCE])
            except BlockingIOError:
                return
            del self._pending[:sent]

    def is_there(self) -> bool:
        """Asked when there is something to be read: of one who only listens that is their end."""
        try:
            return bool(self.connection.recv(4096))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self.connection.close()
