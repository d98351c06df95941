"""The threads of a worker's main process: the reconciler's, with the broker as it sees it, and the event stream's."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import redis

from orchestrator.config import Settings
from orchestrator.engine import events
from orchestrator.engine.cloudevents import Event
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.plugins import load_catalogue
from orchestrator.store import Store, new_id
from workers.app import app
from workers.broker import count_messages
from workers.dispatch import send, send_cancellation, send_look
from workers.event_stream import EventStream
from workers.hooks import announcer
from workers.process import host_identity
from workers.secrets import Secrets

logger = logging.getLogger(__name__)

_REMEMBERS = "orchestrator:remembers"


class RedisBroker:
    """Asks the server itself, over a connection of its own."""

    def __init__(self) -> None:
        backend: Any = app.backend
        self._client = backend.client

    def remembers(self) -> bool:
        return bool(self._asked(lambda: self._client.exists(_REMEMBERS)))

    def remember(self) -> None:
        self._asked(lambda: self._client.set(_REMEMBERS, "1"))

    def empty_queues(self, queues: Sequence[str]) -> Sequence[str]:
        counts = self._asked(lambda: count_messages(self._client, queues))
        return [queue for queue in queues if not any(counts[queue])]

    def _asked(self, question: Any) -> Any:
        try:
            return question()
        except redis.RedisError as error:
            raise OSError(str(error)) from error


class Housekeeper:
    """Daemon threads: they must never keep a worker from stopping."""

    _running: ClassVar[Housekeeper | None] = None

    def __init__(self, settings: Settings, node: str) -> None:
        self._store = Store(settings.database)
        self._programs = Programs(load_catalogue(settings.plugins), settings)
        self._hooks = announcer(settings, self._store, Secrets(also=settings.secrets()))
        self._reconciler = Reconciler(
            self._store,
            self._programs,
            settings,
            RedisBroker(),
            send,
            holder=new_id(),
            host=host_identity(),
            observer=self._hooks,
            look=send_look,
            cancel=send_cancellation,
        )
        self._events = EventStream(settings, node, self._take) if settings.events.stream else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_house, name="reconcile", daemon=True)

    @classmethod
    def start(cls, settings: Settings, node: str) -> None:
        cls._running = cls(settings, node)
        cls._running._thread.start()

    @classmethod
    def stop(cls) -> None:
        if cls._running is not None:
            cls._running._stop.set()
            cls._running._thread.join(timeout=2)
            cls._running = None

    def _keep_house(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                pause = self._reconciler.tick(time.monotonic())
            except Exception:  # the database is away, or a single execution is odd: the next tick tries again
                logger.exception("reconcile failed; it goes on in a second")
                pause = 1.0
        if self._events is not None:
            self._events.close()
        if self._hooks is not None:
            self._hooks.close()
        self._store.close()

    def _take(self, given: Sequence[Event]) -> None:
        for received in events.receive(self._store, self._programs, given):
            for plan in received.fired.plans:
                send(plan)
