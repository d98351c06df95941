"""Celery's result backend, for the one thing it is needed for here: counting the header of a chord."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend


class ChordCounter(RedisBackend):
    """Nobody waits for a task's result, so nothing subscribes to one.

    A group would subscribe for each of its tasks, and each result would unsubscribe when it is collected:
    with the broker away, garbage collection would then try to reconnect, for 20 seconds and in any thread.
    """

    def on_task_call(self, *_: Any) -> None:
        pass

    def add_pending_result(self, result: Any, *_: Any, **__: Any) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result
