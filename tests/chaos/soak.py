"""A soak: work goes on while processes are killed, frozen and replaced, and servers lose what they hold, at random.

The same seed gives the same faults in the same order; what they hit is up to the moment.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import median_low

from deployment import TERMINAL
from soak_work import PATIENCE, Load
from stack import Stack

LOOK_EVERY = 0.1


@dataclass
class Recovery:
    """What a fault of the kind `fault` broke, and whether it goes on."""

    fault: str
    recovered: Callable[[], bool]
    began: float = field(default_factory=time.monotonic)


@dataclass
class Figures:
    """What there is to tell of a soak; times in seconds.

    A recovery is seen if the fault hit something, and lasts until all of that goes on: other faults and the backlog
    that they have left are in it.
    """

    seed: int
    executions: int = 0
    steps: int = 0
    lost: int = 0
    seconds: float = 0.0
    longest_stall: float = 0.0
    longest_answer: float = 0.0
    most_admitted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        lines = [
            f"soak, seed {self.seed}: {self.executions} executions, {self.steps} steps ({self.lost} lost with their "
            f"workers) in {self.seconds:.0f} s; at most {self.most_admitted} at a time",
            f"longest stall {self.longest_stall:.1f} s, longest wait for the API {self.longest_answer:.1f} s",
            f"{self.faults.total()} faults:",
        ]
        for fault, times in sorted(self.faults.items()):
            took = sorted(self.recoveries[fault])
            typical = f", half of them within {median_low(took):.1f} s, all within {took[-1]:.1f} s" if took else ""
            lines.append(f"  {fault}: {times}, {len(took)} recoveries seen{typical}")
        return "\n".join(lines)


Fault = Callable[["Soak"], bool]


class Soak:
    """`rounds` times each of `faults`, one every `gap` seconds, while `load` is at work. A fault says whether there was
    something to break."""

    def __init__(
        self, stack: Stack, load: Load, faults: Collection[Fault], *, seed: int, rounds: int, gap: float
    ) -> None:
        self.stack = stack
        self.load = load
        self.random = Random(seed)
        self.gap = gap
        self.faults = [fault for fault in faults for _ in range(rounds)]
        self.random.shuffle(self.faults)
        self.figures = Figures(seed)
        self.samples: list[tuple[int, int, int]] = []
        """(executions that have a place, the most of them under one key, steps that wait for nothing)"""
        self._down: set[str] = set()
        self._repairs: list[tuple[float, int, Callable[[], None]]] = []
        self._recoveries: list[Recovery] = []
        self._order = count()
        self._began = time.monotonic()

    def break_things(self) -> None:
        """The faults, and then until all goes on and the last execution has been started."""
        self.load.start()
        for fault in self.faults:
            self._go_on(self.random.uniform(0.5, 1.5) * self.gap)
            if fault(self):
                self.figures.faults[fault.__name__] += 1
        self._until(lambda: not self._repairs and not self._recoveries, "all to go on")
        self._until(lambda: not self.load.is_alive(), "the last execution to be started")
        assert self.load.error is None, self.load.error

    def wait_for_the_end(self) -> None:
        self._until(self._has_ended, "the end of all executions")

    # --- for the faults --------------------------------------------------------------------------------------

    def pick(self, names: Collection[str]) -> str | None:
        """One that is not broken already."""
        up = sorted(set(names) - self._down)
        return self.random.choice(up) if up else None

    def breaks(self, name: str, mend: Callable[[], None], seconds: float | None = None) -> None:
        """It is broken until it is mended, in `seconds` (default: in up to two)."""
        self._down.add(name)
        at = time.monotonic() + (self.random.uniform(0, 2) if seconds is None else seconds)

        def mended() -> None:
            mend()
            self._down.discard(name)

        heappush(self._repairs, (at, next(self._order), mended))

    def expect(self, fault: str, recovered: Callable[[], bool]) -> None:
        self._recoveries.append(Recovery(fault, recovered))

    def expect_steps(self, fault: str, where: str, **params: object) -> None:
        """That the steps for which SQL `where` holds now are taken on by somebody."""
        rows = self.stack.sql(
            "SELECT s.id::text, s.attempt FROM step_executions s JOIN executions e ON e.id = s.execution_id "
            f"WHERE e.admitted_at IS NOT NULL AND {where}",
            **params,
        )
        if not rows:
            return
        same = {"ids": [id for id, _ in rows], "attempts": [attempt for _, attempt in rows]}
        self.expect(
            fault,
            lambda: (
                self.stack.sql(
                    "SELECT FROM step_executions s JOIN unnest(%(ids)s::uuid[], %(attempts)s::int[]) AS u(id, attempt) "
                    "ON s.id = u.id AND s.attempt = u.attempt WHERE s.status IN ('queued', 'running') LIMIT 1",
                    **same,
                )
                == []
            ),
        )

    # --- going on --------------------------------------------------------------------------------------------

    def _go_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            while self._repairs and self._repairs[0][0] <= now:
                heappop(self._repairs)[2]()
            self._look()
            time.sleep(LOOK_EVERY)  # it is time itself that this goes by

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited {PATIENCE} s for {what}; {self._state()}"
            self._go_on(LOOK_EVERY)

    def _look(self) -> None:
        rows = self.stack.sql(_SAMPLE)
        if rows is None:
            return
        self.samples += [tuple(row) for row in rows]
        self.figures.seconds = time.monotonic() - self._began
        self.figures.most_admitted = max(self.figures.most_admitted, self.samples[-1][0])
        self.figures.longest_answer = self.load.longest_answer
        for recovery in list(self._recoveries):
            if recovery.recovered():
                self._recoveries.remove(recovery)
                self.figures.recoveries[recovery.fault].append(time.monotonic() - recovery.began)

    def _has_ended(self) -> bool:
        rows = self.stack.sql(
            "SELECT FROM executions WHERE NOT status = ANY(%(terminal)s) "
            "UNION ALL SELECT FROM trigger_fires WHERE outcome IN ('pending', 'queued') LIMIT 1",
            terminal=list(TERMINAL),
        )
        return rows == []

    def _state(self) -> str:
        left = self.stack.sql(
            "SELECT s.execution_id::text, e.status, e.admitted_at, s.path, s.status, s.queue, s.attempt, s.losses, "
            "s.awaits, s.next_attempt_at, s.rung_at, s.worker_id::text FROM step_executions s JOIN executions e "
            "ON e.id = s.execution_id WHERE s.status IN ('queued', 'running', 'waiting') LIMIT 20"
        )
        waiting = [recovery.fault for recovery in self._recoveries]
        return f"seed {self.figures.seed}; broken: {self._down}; not recovered: {waiting}; left are {left}"


_SAMPLE = """
    WITH live AS (SELECT * FROM executions WHERE admitted_at IS NOT NULL
                  AND status NOT IN ('completed', 'failed', 'cancelled'))
    SELECT (SELECT count(*)::int FROM live WHERE parent_step_id IS NULL),
           (SELECT coalesce(max(n), 0)::int FROM (SELECT count(*) AS n FROM live, unnest(limit_keys) AS key GROUP BY key) AS k),
           (SELECT count(*)::int FROM step_executions WHERE status = 'waiting' AND next_attempt_at IS NULL AND awaits IS NULL)
"""  # noqa: E501
