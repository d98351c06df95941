"""Ending what is performed for nothing: a step whose claim was taken away cannot record a result.

That is how a cancelled execution, a step past its deadline and a worker that was taken for dead end their work: a
thread looks now and then whether the claims are still held. What waits for the outside world says how it is ended
(`ended_by`); the main thread of a process is interrupted; other code in threads runs on, to no effect.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from orchestrator.engine.advance import plans_of
from orchestrator.engine.plan import Plan, going_first
from orchestrator.store import Store, recovery
from orchestrator.store.claims import Claim, held

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between looks; a step that takes less is never looked for."""

PATIENCE = 3.0
"""Seconds for which a process that is asked to stop performs on; then it hands on what has not come to its end."""


class Performance:
    """An attempt that is being performed under a claim, and what ends it."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.began = time.monotonic()
        self._ends: list[Callable[[], None]] = []
        self._ended = False
        self._lock = threading.Lock()

    def add(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._ends.append(end)
            ended = self._ended
        if ended:
            end()

    def remove(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._ends.remove(end)

    def end(self) -> None:
        # Under the lock: whoever leaves a block has to wait until what ends it has been called.
        with self._lock:
            self._ended = True
            for end in self._ends:
                try:
                    end()
                except Exception:  # the others are to be ended all the same
                    logger.exception("a step could not be ended")


_here: ContextVar[Performance | None] = ContextVar("performance", default=None)


@contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `end` is called (from another thread, at most once) when its result is not wanted any
    more. It must not wait for the block."""
    performance = _here.get()
    if performance is None:
        yield
        return
    performance.add(end)
    try:
        yield
    finally:
        performance.remove(end)


class Watch:
    """The thread of a process that looks whether the claims are still held of what is performed in it."""

    def __init__(self, store: Store, ring: Callable[[Plan], None]) -> None:
        self._store = store
        self._ring = ring
        self._hands_on_at: float | None = None
        self._performances: dict[str, Performance] = {}
        self._busy = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    @contextmanager
    def over(self, claim: Claim) -> Iterator[None]:
        """The block is performed under this claim."""
        performance = Performance(claim)
        self._performances[claim.token] = performance
        self._busy.set()
        before = _here.set(performance)
        try:
            yield
        finally:
            _here.reset(before)
            del self._performances[claim.token]

    @property
    def is_stopping(self) -> bool:
        """No step is to be begun that somebody else can do."""
        return self._hands_on_at is not None

    def stop_soon(self) -> None:
        """Hand on what is not done in time. For a signal's handler, too: it only notes the time."""
        self._hands_on_at = time.monotonic() + PATIENCE

    def close(self) -> None:
        self._closed.set()
        self._busy.set()
        self._thread.join(timeout=1)

    def _watch(self) -> None:
        while not self._closed.wait(INTERVAL):
            if not self._performances:
                self._busy.clear()
                if not self._performances:  # one may have begun in between
                    self._busy.wait()
                continue
            try:
                self._look()
            except Exception:  # the database is away: the next look tries again
                logger.warning("could not look which steps are still wanted", exc_info=True)

    def _look(self) -> None:
        since = time.monotonic() - INTERVAL
        long = {token: one for token, one in dict(self._performances).items() if one.began < since}
        if not long:
            return
        hands_on = self._hands_on_at is not None and time.monotonic() >= self._hands_on_at
        claims = [one.claim for one in long.values()]
        with self._store.single() as connection:
            handed_on = recovery.hand_on(connection, claims) if hands_on else []
            still_held = held(connection, claims)
        for token in long.keys() - still_held:
            logger.info("a step is ended: its claim is not held any more")
            long[token].end()
        for ring in handed_on:
            logger.info("step %s of %s is handed on", ring.path, ring.execution_id)
            for plan in plans_of(ring):
                self._ring(going_first(plan))


class Unwatched(Watch):
    """For what is performed under no claim that could be taken away: only its time ends it."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def over(self, claim: Claim) -> Iterator[None]:  # noqa: ARG002
        yield
