"""How many requests a caller may make in a minute, counted over all processes of the API.

The counters are in Redis: a count that is lost lets a few requests too many through, which is no harm, while in
PostgreSQL each request would be a commit, all on the same few rows. For the same reason a Redis that is away lets
everything through.

Asking Redis takes a fifth of what a read takes, so each process counts a few requests ahead, and asks again when these
have been made: up to a two-hundredth of the limit, by which a caller may come to more, or to less, for each process.
"""

from __future__ import annotations

import logging
import math
import threading
import time

import redis
from limits import RateLimitItemPerMinute
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter
from werkzeug.exceptions import TooManyRequests

from orchestrator.access import Principal
from orchestrator.config import Settings

logger = logging.getLogger(__name__)

_TIMEOUT = 0.2
_AHEAD = 200
"""The part of a limit that is counted ahead, and the most."""
_MOST_AHEAD = 50
_MOST_CALLERS = 10_000
_PAUSE = 5.0
"""Seconds for which a Redis that did not answer is not asked again, so that no request waits for it in vain."""


class RateLimiter:
    def __init__(self, settings: Settings) -> None:
        self._default = settings.api.rate_limit
        # limits calls a socket by another name than kombu does.
        self._url = settings.broker.url.replace("redis+socket://", "redis+unix://")
        self._counts: SlidingWindowCounterRateLimiter | None = None
        self._ahead: dict[str, int] = {}
        self._lock = threading.Lock()
        self._asks_from = 0.0

    def check(self, principal: Principal) -> None:
        """Count a request of theirs. Raises TooManyRequests. The admin key is not limited: it is what is left when
        somebody else makes too many."""
        most = self._default if principal.rate_limit is None else principal.rate_limit
        if not most or principal.kind == "admin_key" or time.monotonic() < self._asks_from:
            return
        if self._was_counted(principal.id):
            return
        limit = RateLimitItemPerMinute(most)
        try:
            counts = self._connected()
            ahead = min(most // _AHEAD, _MOST_AHEAD)
            if ahead > 1 and counts.hit(limit, principal.id, cost=ahead):
                self._count_ahead(principal.id, ahead - 1)
                return
            if counts.hit(limit, principal.id):
                return
            again = counts.get_window_stats(limit, principal.id).reset_time
        except redis.RedisError as error:
            self._asks_from = time.monotonic() + _PAUSE
            logger.warning("requests are not limited while Redis is away: %s", error)
            return
        raise TooManyRequests(
            f"more than {most} requests in a minute; try again later",
            retry_after=max(1, math.ceil(again - time.time())),
        )

    def _was_counted(self, caller: str) -> bool:
        with self._lock:
            left = self._ahead.pop(caller, 0)
            if left > 1:
                self._ahead[caller] = left - 1
            return left > 0

    def _count_ahead(self, caller: str, requests: int) -> None:
        with self._lock:
            if len(self._ahead) >= _MOST_CALLERS:
                self._ahead.clear()
            self._ahead[caller] = self._ahead.get(caller, 0) + requests

    def _connected(self) -> SlidingWindowCounterRateLimiter:
        with self._lock:
            if self._counts is None:
                timeouts = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT}
                storage = storage_from_string(self._url, **timeouts)
                self._counts = SlidingWindowCounterRateLimiter(storage)
            return self._counts
