"""The thread that tells all listeners of a process."""

from __future__ import annotations

import logging
import resource
import selectors
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from api.live.formats import Format
from api.live.listener import Listener
from api.live.selection import Selection
from orchestrator.store import Store, feed
from orchestrator.store.feed import End, Entry, Kind, Settled
from orchestrator.store.session import DatabaseAway

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.2
"""Seconds between looks at the feed while somebody listens. A look that finds nothing new takes one short statement,
and a bell from every worker for every step would cost them more than these do."""
_SETTLES_IN = 0.02
_PAGE = 1000
BEAT_EVERY = 15.0
"""Seconds between heartbeats, and between looks at what a listener may see."""
_PAUSE = 1.0
"""Seconds for which a database that is away, or what nobody expected, is left alone."""


class Hub:
    """Costs nothing while nobody listens: the thread begins with the first, and then sleeps while there is none."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._arriving: SimpleQueue[Listener] = SimpleQueue()
        self._listeners: set[Listener] = set()
        self._settled = Settled()
        self._tail = 0
        """The live ones have been told everything up to this number."""
        self._look_at = 0.0
        self._read_at = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()

    @property
    def is_full(self) -> bool:
        """Half of the descriptors that the process may have are for requests, and for the database."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return descriptors != resource.RLIM_INFINITY and len(self._listeners) >= descriptors // 2

    def add(self, listener: Listener) -> None:
        """From now on the listener is the hub's. From any thread."""
        self._arriving.put(listener)
        with self._lock:
            if self._thread is None:
                # Not with the application: a server may make that before it forks.
                self._bell, self._ears = socket.socketpair()
                self._bell.setblocking(False)
                self._ears.setblocking(False)
                self._selector.register(self._ears, selectors.EVENT_READ)
                self._thread = threading.Thread(target=self._run, name="live streams", daemon=True)
                self._thread.start()
        with suppress(BlockingIOError):  # it has not heard the ones before yet
            self._bell.send(b"\0")

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            except DatabaseAway as error:
                logger.warning("live streams wait for the database: %s", str(error).partition("\n")[0])
                self._look_at = self._read_at = time.monotonic() + _PAUSE
            except Exception:
                logger.exception("live streams go on in a second")
                self._look_at = self._read_at = time.monotonic() + _PAUSE
                for listener in self._listeners:
                    listener.is_live = False  # not all may have been told: each goes on from its own place

    def _turn(self) -> None:
        for key, events in self._selector.select(self._patience()):
            if key.fileobj is self._ears:
                self._welcome()
            elif events & selectors.EVENT_READ and not key.data.is_there():
                self._drop(key.data)
            elif events & selectors.EVENT_WRITE:
                self._send(key.data)
        now = time.monotonic()
        for listener in [one for one in self._listeners if now >= one.beats_at]:
            self._beat(listener, now)
        if self._listeners and now >= self._look_at:
            self._look()
        if now >= self._read_at:
            for listener in [one for one in self._listeners if self._wants_page(one)]:
                try:
                    self._read_on(listener)
                except DatabaseAway:
                    raise
                except Exception:  # what is odd about one is no trouble to the others
                    logger.exception("a live stream is cut off")
                    self._drop(listener)

    def _patience(self) -> float | None:
        if not self._listeners:
            return None
        due = [self._look_at, *(one.beats_at for one in self._listeners)]
        if any(self._wants_page(one) for one in self._listeners):
            due.append(self._read_at)
        return max(0.0, min(due) - time.monotonic())

    # Coming and going

    def _welcome(self) -> None:
        self._ears.recv(4096)
        while True:
            try:
                listener = self._arriving.get_nowait()
            except Empty:
                return
            if not self._listeners:
                self._look_at = 0.0
            listener.beats_at = min(time.monotonic() + BEAT_EVERY, listener.ends_at)
            self._listeners.add(listener)
            self._selector.register(listener.connection, selectors.EVENT_READ, listener)
            self._send(listener)

    def _drop(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        self._selector.unregister(listener.connection)
        listener.close()

    def _send(self, listener: Listener) -> None:
        try:
            listener.send()
        except OSError:
            self._drop(listener)
            return
        if listener.is_finished and not listener.waits_to_send:
            self._drop(listener)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if listener.waits_to_send else 0)
        if self._selector.get_key(listener.connection).events != wanted:
            self._selector.modify(listener.connection, wanted, listener)

    def _beat(self, listener: Listener, now: float) -> None:
        listener.beats_at = now + BEAT_EVERY
        if now >= listener.ends_at and (listener.is_finished or not listener.follows):
            self._drop(listener)  # without the last chunk: nobody takes what is cut off for the whole
            return
        if listener.is_finished:
            return
        selection = None if now >= listener.ends_at else _seen_by(listener)
        if selection is None:
            listener.finish()
        else:
            listener.selection = selection
            listener.beats_at = min(listener.beats_at, listener.ends_at)
            if listener.has_room:
                listener.tell(listener.format.heartbeat(listener.at if listener.is_live else None))
        self._send(listener)

    # What is new, for all that are up to date

    def _look(self) -> None:
        live = [one for one in self._listeners if one.is_live and not one.is_finished]
        more = False
        with self._store.single() as connection:
            upto = self._settled.look(connection)
            if live and upto > self._tail:
                entries = feed.entries(
                    connection, self._tail, upto, _PAGE, executions=_watched(live), kinds=_read(live)
                )
                more = len(entries) >= _PAGE
                upto = entries[-1].seq if more else upto
                self._tell_all(live, entries, upto)
        self._tail = upto
        pause = 0.0 if more else _SETTLES_IN if self._settled.is_waiting else LOOK_EVERY
        self._look_at = time.monotonic() + pause

    def _tell_all(self, live: Sequence[Listener], entries: Sequence[Entry], upto: int) -> None:
        """Those that are told the same in the same form share the making of it."""
        of_execution: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            of_execution[entry.execution_id].append(entry)
        groups: dict[tuple[Selection, Format], list[Listener]] = defaultdict(list)
        for listener in live:
            groups[listener.selection, listener.format].append(listener)
        for (selection, format), listeners in groups.items():
            of_one = selection.execution_id
            theirs = entries if of_one is None else of_execution.get(of_one, ())
            data = _told(theirs, selection, format)
            has_ended = of_one is not None and any(entry.is_end for entry in theirs)
            for listener in listeners:
                listener.at = upto
                # Whether that is all of it, they are told when they have caught up with it.
                listener.is_live = not has_ended
                self._give(listener, data)

    def _give(self, listener: Listener, data: bytes) -> None:
        listener.tell(data)
        self._send(listener)
        if not listener.has_room:
            listener.is_live = False

    # What those have to catch up with that are behind

    def _wants_page(self, listener: Listener) -> bool:
        return not (listener.is_live or listener.is_finished) and listener.has_room and self._tail >= listener.needs

    def _read_on(self, listener: Listener) -> None:
        selection = listener.selection
        of = None if selection.execution_id is None else [selection.execution_id]
        with self._store.single() as connection:
            entries = feed.entries(connection, listener.at, self._tail, _PAGE, executions=of, kinds=selection.kinds)
            more = len(entries) >= _PAGE
            listener.at = entries[-1].seq if more else self._tail
            end = feed.end_of(connection, selection.execution_id) if selection.execution_id and not more else None
        listener.tell(_told(entries, selection, listener.format))
        if not more:
            self._caught_up(listener, end)
        self._send(listener)

    def _caught_up(self, listener: Listener, end: End | None) -> None:
        if not listener.follows:
            listener.finish()
        elif end is None:
            listener.is_live = listener.has_room
        elif end.seq > listener.at:
            listener.needs = end.seq  # the last of it has not settled yet
        else:
            listener.tell(listener.format.end(end))
            listener.finish()


def _seen_by(listener: Listener) -> Selection | None:
    try:
        return listener.look_again()
    except DatabaseAway:
        return listener.selection  # by that nobody's roles have changed


def _told(entries: Sequence[Entry], selection: Selection, format: Format) -> bytes:
    return b"".join([format.entry(entry) for entry in entries if selection.has(entry)])


def _watched(live: Sequence[Listener]) -> set[str] | None:
    """The executions that they follow; None: all, since one of them does."""
    watched = {one.selection.execution_id for one in live}
    return None if None in watched else {id for id in watched if id is not None}


def _read(live: Sequence[Listener]) -> set[Kind]:
    return {kind for selection in {one.selection for one in live} for kind in selection.read}
