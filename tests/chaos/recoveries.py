"""How long it takes until the steps that a fault hit go on, and what they wait for in the meantime.

Not all of that time is the engine's. A step may stand in its line, rightly, behind others that are more urgent or have
waited for longer, while all workers are busy; or other faults take its workers, or a server. So there are two figures:
the time that passed, and the engine's: what was left of it since the last fault that bore on the step was over, without
those turns.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from stack import Stack

from workers.broker import Broker


class Cause(StrEnum):
    """What a step waits for."""

    SERVER = "a server that was away"
    WORKER = "a worker of its queue, of which none was there"
    TURN = "its turn, while the workers of its queue were busy"
    HOLDER = "the worker that had it, or somebody to notice that it was gone"
    MESSAGE = "a message"
    TAKER = "a free worker to take its message"


_OTHER_FAULTS = frozenset({Cause.SERVER, Cause.WORKER})
_FREE_AFTER = 1.0
"""Seconds in which a worker that has a slot to spare would have taken a message. Between two steps all have one."""


@dataclass
class Hit:
    """A step that a fault took from its worker, or whose message it took; times in seconds."""

    fault: str
    id: str
    path: str
    attempt: int
    token: str | None
    """Of the claim that held it."""
    priority: int
    told_until: float
    """The moment up to which it is known what it waited for."""
    engine: float = 0.0
    waited: Counter[Cause] = field(default_factory=Counter)
    _last: Cause = field(init=False)
    _since_fault: float = 0.0

    def __post_init__(self) -> None:
        self._last = Cause.HOLDER if self.token else Cause.MESSAGE

    @property
    def took(self) -> float:
        return self.waited.total()

    def waits_for(self, cause: Cause, now: float) -> None:
        seconds, self.told_until = now - self.told_until, now
        self._last = cause
        self.waited[cause] += seconds
        if cause in _OTHER_FAULTS:
            self._since_fault = 0.0
        elif cause is not Cause.TURN:
            self._since_fault += seconds
            self.engine = max(self.engine, self._since_fault)

    def goes_on(self, now: float) -> None:
        """Since some moment after the last look."""
        self.waits_for(self._last, now)

    def __str__(self) -> str:
        return (
            f"{self.fault}: {self.path} (priority {self.priority}) went on after {self.took:.1f} s, "
            f"{self.engine:.1f} s of it the engine's; waited {told(self.waited)}"
        )


def told(waited: Counter[Cause]) -> str:
    return ", ".join(f"{seconds:.1f} s for {cause}" for cause, seconds in waited.most_common())


@dataclass(frozen=True, slots=True)
class Line:
    """What waits for the workers of a queue."""

    steps: frozenset[tuple[str, str]]
    """(execution id, path) of those that have a message at the broker."""
    has_free_worker: bool


class Watch:
    """Looks at the steps that were hit until each has been taken on. `down` are the processes and servers that are
    broken."""

    def __init__(self, stack: Stack, down: Collection[str]) -> None:
        self.stack = stack
        self.waiting: list[Hit] = []
        self.over: list[Hit] = []
        self._down = down
        self._broker = Broker()

    def expect(self, fault: str, where: str, **params: object) -> None:
        """That the steps for which SQL `where` holds now are taken on by somebody."""
        now = time.monotonic()
        rows = self.stack.sql(
            "SELECT s.id::text, s.path, s.attempt, s.claim_token::text, e.priority FROM all_step_executions s "
            f"JOIN all_executions e ON e.id = s.execution_id WHERE e.admitted_at IS NOT NULL AND {where}",
            **params,
        )
        self.waiting += [Hit(fault, *row, told_until=now) for row in rows or ()]

    def look(self) -> None:
        if not self.waiting:
            return
        causes, now = self._causes(), time.monotonic()
        for number, hit in enumerate(self.waiting):
            if number in causes:
                hit.waits_for(causes[number], now)
            else:
                hit.goes_on(now)
                self.over.append(hit)
        self.waiting = [hit for number, hit in enumerate(self.waiting) if number in causes]

    def _causes(self) -> dict[int, Cause]:
        """What those wait for that nobody has taken on yet, by their numbers among `waiting`."""
        away = dict.fromkeys(range(len(self.waiting)), Cause.SERVER)
        if "postgres" in self._down or "valkey" in self._down:
            return away
        rows = self.stack.sql(
            _STILL_WAITING,
            ids=[hit.id for hit in self.waiting],
            attempts=[hit.attempt for hit in self.waiting],
            tokens=[hit.token for hit in self.waiting],
        )
        lines = self._lines()
        if rows is None or lines is None:
            return away
        return {number: _cause(lines.get(queue), status, step) for number, status, queue, *step in rows}

    def _lines(self) -> dict[str, Line] | None:
        """By the queues for which a worker is there; None if a server is away."""
        rows = self.stack.sql(_WORKERS, lease=self.stack.settings.scheduler.lease)
        if rows is None:
            return None
        nodes = {node for name, node in self.stack.nodes.items() if name not in self._down}
        there = [row for row in rows if row.node in nodes]
        try:
            return {queue: self._line(queue, there) for queue in {queue for row in there for queue in row.queues}}
        except OSError:
            return None

    def _line(self, queue: str, workers: Iterable[Any]) -> Line:
        is_free = any(row.performs < row.slots and row.idle > _FREE_AFTER for row in workers if queue in row.queues)
        return Line(self._broker.listed(queue, None).steps, is_free)


def _cause(line: Line | None, status: str, step: list[str]) -> Cause:
    if line is None:
        return Cause.WORKER
    if status == "running":
        return Cause.HOLDER
    if tuple(step) not in line.steps:
        return Cause.MESSAGE
    return Cause.TAKER if line.has_free_worker else Cause.TURN


_STILL_WAITING = """
    SELECT (hit.number - 1)::int, s.status, s.queue, s.execution_id::text, s.path FROM all_step_executions s
    JOIN unnest(%(ids)s::uuid[], %(attempts)s::int[], %(tokens)s::uuid[])
         WITH ORDINALITY AS hit (id, attempt, token, number)
    ON hit.id = s.id AND hit.attempt = s.attempt
    WHERE s.status = 'queued' OR (s.status = 'running' AND s.claim_token = hit.token)
"""
_WORKERS = """
    SELECT split_part(w.node, '@', 1) AS node, w.queues, w.slots,
           count(*) FILTER (WHERE s.status = 'running') AS performs,
           extract(epoch FROM clock_timestamp() - greatest(w.started_at, max(s.started_at)))::float8 AS idle
    FROM worker_processes w LEFT JOIN all_step_executions s ON s.worker_id = w.id
    WHERE w.seen_at > clock_timestamp() - %(lease)s * interval '1 second' GROUP BY w.id
"""
