"""RedBeat with the entries of our triggers: `celery -A beat beat -S beat.scheduler.Scheduler`."""

from __future__ import annotations

import logging
import time
from math import inf
from types import SimpleNamespace
from typing import Any

from redbeat import RedBeatScheduler
from redbeat.schedulers import acquire_distributed_beat_lock
from redis.exceptions import LockNotOwnedError, RedisError

from beat.entries import RING, Entries, Entry
from orchestrator.config import load_settings
from orchestrator.store import Store, triggers

logger = logging.getLogger(__name__)

_EVERY = 5.0
"""Seconds between looks at the triggers. Until beat has seen a new one, reconcile alone fires it."""
_AGAIN = 1.0
"""Seconds until the next tick after one that the broker has spoilt."""


class Scheduler(RedBeatScheduler):
    Entry = Entry
    lock: Any = None

    def __init__(self, app: Any, **options: Any) -> None:
        settings = load_settings()
        self._is_enabled = settings.scheduler.enabled
        self._store = Store(settings.database)
        self._entries = Entries(app)
        self._looked_at = -inf
        self._has_rung = False
        super().__init__(app, **options)

    def tick(self, **options: Any) -> float:
        """Ring for what is due; the seconds until the next tick. Whatever becomes of the broker, beat lives on: the
        entries are made anew from the rows, and meanwhile reconcile fires what is due."""
        try:
            if self.lock is None:
                acquire_distributed_beat_lock(SimpleNamespace(scheduler=self))
            return self._tick(**options)
        except LockNotOwnedError:
            logger.warning("the broker has forgotten that this is the clock, or has taken another one for it")
            self.lock, self._looked_at = None, -inf
        except RedisError:
            logger.warning("the broker is away; reconcile fires the triggers", exc_info=True)
        return _AGAIN

    def _tick(self, **options: Any) -> float:
        if time.monotonic() - self._looked_at > _EVERY:
            self._looked_at = time.monotonic()
            self._keep_in_step()
        self._has_rung = False
        seconds: float = super().tick(**options)
        return min(seconds, _EVERY)

    def _keep_in_step(self) -> None:
        try:
            with self._store.single() as connection:
                wanted = triggers.timetabled(connection) if self._is_enabled else {}
        except Exception:  # the database is away; the entries stay as they are
            logger.warning("the triggers could not be read", exc_info=True)
            return
        self._entries.keep_in_step(wanted)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """One ring is for all that is due: of a thousand entries of the same second, the first sends it."""
        if entry.task == RING and self._has_rung:
            return self.reserve(entry) if advance else None
        self._has_rung = self._has_rung or entry.task == RING
        return super().apply_async(entry, producer, advance, **options)

    def close(self) -> None:
        self._store.close()
        super().close()
