"""The threads of a worker's main process: the reconciler's, with the broker as it sees it, the one that removes what
has been kept long enough, and the event stream's."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from kombu.exceptions import OperationalError

from orchestrator.config import Settings
from orchestrator.engine import events
from orchestrator.engine.cloudevents import Event
from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.retention import Retention
from orchestrator.plugins import load_catalogue
from orchestrator.store import Store, counters, new_id
from orchestrator.store.cancellations import Due
from workers import canvas
from workers.broker import Broker
from workers.canvas import dispatch
from workers.dispatch import send
from workers.event_stream import EventStream
from workers.hooks import announcer
from workers.process import host_identity
from workers.secrets import SecretSource

logger = logging.getLogger(__name__)


def _send(plan: Plan) -> None:
    """As reconcile wants to be told: it raises OSError if the broker is away."""
    with _as_os_errors():
        dispatch(plan)


def _look(trigger_id: str) -> None:
    with _as_os_errors():
        canvas.look(trigger_id).apply_async()


def _cancel(due: Due) -> None:
    with _as_os_errors():
        canvas.cancellation(due.id, due.queue).apply_async()


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise OSError(str(error)) from error


class Housekeeper:
    """Daemon threads: they must never keep a worker from stopping."""

    _running: ClassVar[Housekeeper | None] = None

    def __init__(self, settings: Settings, node: str) -> None:
        self._store = Store(settings.database)
        self._programs = Programs(load_catalogue(settings.plugins), settings)
        self._hooks = announcer(settings, self._store, SecretSource(settings, self._store))
        self._reconciler = Reconciler(
            self._store,
            self._programs,
            settings,
            Broker(),
            _send,
            holder=new_id(),
            host=host_identity(),
            observer=self._hooks,
            look=_look,
            cancel=_cancel,
        )
        self._events = EventStream(settings, node, self._take) if settings.events.stream else None
        self._stop = threading.Event()
        self._retention = Retention(self._store, settings, holder=new_id())
        self._thread = threading.Thread(target=self._keep_house, name="reconcile", daemon=True)
        self._remover = threading.Thread(target=self._remove, name="retention", daemon=True)

    @classmethod
    def start(cls, settings: Settings, node: str) -> None:
        cls._running = cls(settings, node)
        cls._running._thread.start()
        cls._running._remover.start()

    @classmethod
    def stop(cls) -> None:
        if cls._running is not None:
            cls._running._stop.set()
            cls._running._thread.join(timeout=2)
            cls._running = None

    def _keep_house(self) -> None:
        self._repeat("reconcile", self._reconcile)
        if self._events is not None:
            self._events.close()
        if self._hooks is not None:
            self._hooks.close()
        self._store.close()

    def _reconcile(self) -> float:
        pause = self._reconciler.tick(time.monotonic())
        with self._store.single() as connection:
            counters.flush(connection)
        return pause

    def _remove(self) -> None:
        self._repeat("retention", self._retention.tick)

    def _repeat(self, what: str, tick: Callable[[], float]) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                pause = tick()
            except Exception:  # the database is away, or a single execution is odd: the next tick tries again
                logger.exception("%s failed; it goes on in a second", what)
                pause = 1.0

    def _take(self, given: Sequence[Event]) -> None:
        for received in events.receive(self._store, self._programs, given):
            for plan in received.fired.plans:
                send(plan)
