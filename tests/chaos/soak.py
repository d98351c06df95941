"""A soak: work goes on while processes are killed, frozen and replaced, and servers lose what they hold, at random.

The same seed gives the same faults in the same order; what they hit is up to the moment.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import median_low

from deployment import TERMINAL
from recoveries import Cause, Hit, Watch, told
from soak_work import PATIENCE, Load
from stack import Stack

LOOK_EVERY = 0.1
SLOW = 5.0
"""Seconds after which it is told what a step waited for."""
TOLD = 20
"""Of those, as many by themselves."""
CROWD = 60
"""Executions that have not ended, with which no other is started."""


@dataclass
class Return:
    """Of what a fault of the kind `fault` broke."""

    fault: str
    there: Callable[[], bool]
    began: float = field(default_factory=time.monotonic)


@dataclass
class Figures:
    """What there is to tell of a soak; times in seconds."""

    seed: int
    executions: int = 0
    steps: int = 0
    lost: int = 0
    seconds: float = 0.0
    longest_stall: float = 0.0
    longest_answer: float = 0.0
    longest_gap: float = 0.0
    """Between two looks: all that is told here may be as much too long, and so slow was the machine."""
    most_admitted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    returns: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of processes and servers."""
    hits: list[Hit] = field(default_factory=list)
    """Steps."""

    def __str__(self) -> str:
        lines = [
            f"soak, seed {self.seed}: {self.executions} executions, {self.steps} steps ({self.lost} lost with their "
            f"workers) in {self.seconds:.0f} s; at most {self.most_admitted} at a time",
            f"longest stall {self.longest_stall:.1f} s, longest wait for the API {self.longest_answer:.1f} s, at most "
            f"{self.longest_gap:.1f} s between two looks",
            f"{self.faults.total()} faults:",
        ]
        for fault, times in sorted(self.faults.items()):
            hits = [hit for hit in self.hits if hit.fault == fault]
            lines.append(f"  {fault}: {times}" + _spread(", there again", self.returns[fault]))
            if hits:
                lines[-1] += f"; {len(hits)} steps hit" + _spread(", went on", [hit.took for hit in hits])
                lines[-1] += _spread(", of which the engine's", [hit.engine for hit in hits])
        return "\n".join([*lines, *self._late()])

    def _late(self) -> Iterator[str]:
        late = sorted((hit for hit in self.hits if hit.took > SLOW), key=lambda hit: (-hit.engine, -hit.took))
        if late:
            waited = sum((hit.waited for hit in late), Counter[Cause]())
            yield f"{len(late)} steps took longer than {SLOW:.0f} s, and waited in all {told(waited)}; of these:"
            yield from (f"  {hit}" for hit in late[:TOLD])


def _spread(what: str, times: Collection[float]) -> str:
    return f"{what} within {median_low(times):.1f} s (half of them), {max(times):.1f} s (all)" if times else ""


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
        self._watch = Watch(stack, self._down)
        self.figures.hits = self._watch.over
        self._repairs: list[tuple[float, int, Callable[[], None]]] = []
        self._coming: dict[str, Callable[[], bool]] = {}
        """What is mended, and whether it is there again."""
        self._returns: list[Return] = []
        self._order = count()
        self._began = time.monotonic()

    def break_things(self) -> None:
        """The faults, and then until everything is there again."""
        self.load.start()
        for fault in self.faults:
            self._go_on(self.random.uniform(0.5, 1.5) * self.gap)
            self.until(lambda fault=fault: fault(self), f"something to break for {fault.__name__}")
            self.figures.faults[fault.__name__] += 1
        self.until(lambda: not (self._repairs or self._coming or self._returns), "everything to be there again")

    def wait_for_the_end(self) -> None:
        self.until(lambda: not self._watch.waiting, "all to go on")
        self.until(lambda: not self.load.is_alive(), "the last execution to be started")
        assert self.load.error is None, self.load.error
        self.until(self._has_ended, "the end of all executions")

    # --- for the faults --------------------------------------------------------------------------------------

    def pick(self, names: Collection[str]) -> str | None:
        """One that is not broken already."""
        up = sorted(set(names) - self._down)
        return self.random.choice(up) if up else None

    def breaks(
        self,
        name: str,
        mend: Callable[[], None],
        there: Callable[[], bool] = lambda: True,
        seconds: float | None = None,
    ) -> None:
        """It is broken until it is mended, in `seconds` (default: in up to two), and there again."""
        self._down.add(name)
        at = time.monotonic() + (self.random.uniform(0, 2) if seconds is None else seconds)

        def mended() -> None:
            mend()
            self._coming[name] = there

        heappush(self._repairs, (at, next(self._order), mended))

    def expect(self, fault: str, there: Callable[[], bool]) -> None:
        self._returns.append(Return(fault, there))

    def expect_steps(self, fault: str, where: str, **params: object) -> None:
        """That the steps for which SQL `where` holds now are taken on by somebody."""
        self._watch.expect(fault, where, **params)

    # --- going on --------------------------------------------------------------------------------------------

    def _go_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            while self._repairs and self._repairs[0][0] <= now:
                heappop(self._repairs)[2]()
            self._look()
            time.sleep(LOOK_EVERY)  # it is time itself that this goes by

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited {PATIENCE} s for {what}; {self._state()}"
            self._go_on(LOOK_EVERY)

    def _look(self) -> None:
        self._watch.look()
        for name in [name for name, there in self._coming.items() if there()]:
            del self._coming[name]
            self._down.discard(name)
        for one in [one for one in self._returns if one.there()]:
            self._returns.remove(one)
            self.figures.returns[one.fault].append(time.monotonic() - one.began)
        seconds = time.monotonic() - self._began
        self.figures.longest_gap = max(self.figures.longest_gap, seconds - self.figures.seconds)
        self.figures.seconds = seconds
        self.figures.longest_answer = self.load.longest_answer
        for at_work, *sample in self.stack.sql(_SAMPLE) or ():
            self.samples.append(tuple(sample))
            self.load.is_held = at_work >= CROWD
            self.figures.most_admitted = max(self.figures.most_admitted, sample[0])

    def _has_ended(self) -> bool:
        rows = self.stack.sql(
            "SELECT FROM all_executions WHERE NOT status = ANY(%(terminal)s) "
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
        waiting = [one.fault for one in (*self._returns, *self._watch.waiting)]
        return f"seed {self.figures.seed}; broken: {self._down}; awaited: {waiting}; left are {left}"


_SAMPLE = """
    WITH live AS (SELECT * FROM all_executions WHERE admitted_at IS NOT NULL
                  AND status NOT IN ('completed', 'failed', 'cancelled'))
    SELECT (SELECT count(*)::int FROM all_executions
            WHERE status NOT IN ('completed', 'failed', 'cancelled') AND starts_with(idempotency_key, 'soak-')),
           (SELECT count(*)::int FROM live WHERE parent_step_id IS NULL),
           (SELECT coalesce(max(n), 0)::int FROM (SELECT count(*) AS n FROM live, unnest(limit_keys) AS key GROUP BY key) AS k),
           (SELECT count(*)::int FROM all_step_executions WHERE status = 'waiting' AND next_attempt_at IS NULL AND awaits IS NULL)
"""  # noqa: E501
