"""What is kept of what a program prints: log lines up to a limit, the last line, and the end of it.

All of it is bounded: a program may print without end, and without a line break.
"""

from __future__ import annotations

from collections.abc import Callable

_LINE_LIMIT = 8 * 1024
"""Bytes of one log line; longer ones are logged in pieces."""
_TAIL = 8 * 1024


def clean(data: bytes) -> str:
    """Text of `data`: what is not UTF-8, and NUL, which PostgreSQL cannot store, becomes U+FFFD."""
    return data.decode(errors="replace").replace("\0", "\ufffd")


class LogBudget:
    """The bytes of log that the streams of a program share; `exhausted` is called once, when they are spent."""

    def __init__(self, limit: int, exhausted: Callable[[], None]) -> None:
        self._left = limit
        self._exhausted = exhausted

    @property
    def spent(self) -> bool:
        return self._left < 0

    def take(self, size: int) -> bool:
        """Whether `size` more bytes may be logged."""
        if self.spent:
            return False
        self._left -= size
        if self.spent:
            self._exhausted()
        return not self.spent


class LogLines:
    """Makes log lines of a stream's chunks, and goes on taking chunks when the budget is spent."""

    def __init__(self, log: Callable[[str], None], budget: LogBudget) -> None:
        self._log = log
        self._budget = budget
        self._rest = b""
        self.tail = b""
        """The last bytes of the stream, logged or not."""

    def feed(self, chunk: bytes) -> None:
        self.tail = (self.tail + chunk)[-_TAIL:]
        if self._budget.spent:
            self._rest = b""
            return
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._emit(line)
        while len(rest) > _LINE_LIMIT:
            cut = _cut(rest)
            self._emit(rest[:cut])
            rest = rest[cut:]
        self._rest = rest

    def end(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def last_line(self) -> str:
        """The last line that is not blank."""
        return clean(self.tail.rstrip().rpartition(b"\n")[2].strip())

    def _emit(self, line: bytes) -> None:
        line = line.removesuffix(b"\r")
        while len(line) > _LINE_LIMIT:
            cut = _cut(line)
            self._emit(line[:cut])
            line = line[cut:]
        if self._budget.take(len(line) + 1):
            self._log(clean(line))


class LastLine:
    """Keeps a stream's last line that is not blank, at a cost that does not depend on the number of lines."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._complete = b""
        self._open = b""

    def feed(self, chunk: bytes) -> None:
        ended, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._open = self._longer(rest)
            return
        first, _, later = ended.partition(b"\n")
        last = later.rstrip().rpartition(b"\n")[2].strip() or self._longer(first).strip()
        self._complete = last[: self._limit + 1] or self._complete
        self._open = rest[: self._limit + 1]

    def value(self) -> bytes:
        """The line, cut off one byte past the limit."""
        return self._open.strip() or self._complete

    def _longer(self, more: bytes) -> bytes:
        # Without the test, a flood without a line break would copy the whole line for each chunk.
        return self._open if len(self._open) > self._limit else (self._open + more)[: self._limit + 1]


def _cut(line: bytes) -> int:
    """Where to cut a long line: at the limit, or up to three bytes before it, between two characters."""
    cut = _LINE_LIMIT
    while cut > _LINE_LIMIT - 3 and line[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
