"""The slots of a schedule: the moments at which it is due, from a cron expression in a time zone or an interval.

A cron expression speaks of wall clocks. Where clocks are set forward, some of its times do not exist (a gap); where
they are set back, some exist twice (a fold). `gap` and `fold` say what is done about it. An expression whose hour is
`*` means every hour that passes, and has no such trouble unless it is told to.

Pure: the same question has the same answer, in whichever process, whatever the clock says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from heapq import heappop, heappush
from itertools import islice
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

Gap = Literal["skip", "shift"]
"""What becomes of a time that does not exist: nothing, or the moment at which the clock is set forward."""
Fold = Literal["first", "last", "both"]
"""Which of a time that exists twice."""

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEARBY = timedelta(hours=30)
"""No clock was ever set by more than a day (Samoa left one out in 2011)."""
_LOOKING_BACK = tuple(timedelta(minutes=4**power) for power in range(13))
"""How far back slots are looked for, each time four times as far: up to thirty years."""


class Slots(Protocol):
    @property
    def zone(self) -> tzinfo: ...

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Those after `moment`, in order, in UTC. Both know their zone."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """Slots between `start` and `end`, both included; each is due `delay` seconds after its time."""

    slots: Slots
    start: datetime | None = None
    end: datetime | None = None
    delay: float = 0.0

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The slots after `moment`, in order."""
        if self.start is not None and moment < self.start:
            moment = self.start - timedelta(microseconds=1)
        for slot in self.slots.after(moment):
            if self.end is not None and slot > self.end:
                return
            yield slot

    def next_after(self, moment: datetime) -> datetime | None:
        return next(self.after(moment), None)

    def first(self, moment: datetime, count: int) -> list[datetime]:
        """The first `count` slots after `moment`."""
        return list(islice(self.after(moment), count))

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The slots from `first` to `last`, both included."""
        for slot in self.after(first - timedelta(microseconds=1)):
            if slot > last:
                return
            yield slot

    def newest(self, first: datetime, last: datetime, count: int) -> list[datetime]:
        """The last `count` slots from `first` to `last`, oldest first; without a walk through all that lies before
        them."""
        found: list[datetime] = []
        for back in _LOOKING_BACK:
            since = max(first, last - back)
            found = list(self.between(since, last))[-count:]
            if len(found) == count or since == first:
                break
        return found

    def local(self, slot: datetime) -> datetime:
        """The slot as the clocks show it that the schedule goes by."""
        return slot.astimezone(self.slots.zone)

    def due_at(self, slot: datetime) -> datetime:
        return slot + timedelta(seconds=self.delay)

    def slot_due_at(self, due: datetime) -> datetime:
        return due - timedelta(seconds=self.delay)


@dataclass(frozen=True, slots=True)
class Every:
    """Slots that are `seconds` apart, one of them at `origin`: counted from there and not from the last one, so that
    nothing that runs late makes them drift."""

    seconds: float
    origin: datetime = _EPOCH
    zone: tzinfo = UTC

    def after(self, moment: datetime) -> Iterator[datetime]:
        step = round(self.seconds * 1_000_000)
        number = (moment - self.origin) // timedelta(microseconds=1) // step
        while True:
            number += 1
            try:
                yield self.origin + timedelta(microseconds=number * step)
            except OverflowError:
                return


@dataclass(frozen=True, slots=True)
class Cron:
    """Slots of a cron expression of five fields. Raises ValueError for one that is not, or that never comes."""

    expression: str
    zone: ZoneInfo
    gap: Gap | None = None
    """None: `shift`, unless the hour is `*`."""
    fold: Fold | None = None
    """None: `first`, unless the hour is `*`, which means both."""

    def __post_init__(self) -> None:
        fields = parse_cron(self.expression).split()
        hourly = fields[1] == "*"
        object.__setattr__(self, "expression", " ".join(fields))
        object.__setattr__(self, "gap", self.gap or ("skip" if hourly else "shift"))
        object.__setattr__(self, "fold", self.fold or ("both" if hourly else "first"))

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Wall clocks are walked through in their order, which near a change is not that of the moments: those of the
        hour before may come again, and those of a gap come after its end. So a moment is held back until no wall clock
        to come can be before it."""
        held: list[datetime] = []
        for wall in self._walls(_wall(moment, self.zone) - _turn(moment, self.zone)):
            while held and wall > _wall(held[0], self.zone) + _turn(held[0], self.zone):
                yield (moment := heappop(held))
            for candidate in self._moments(wall):
                if candidate > moment and candidate not in held:
                    heappush(held, candidate)
        yield from sorted(held)

    def _walls(self, since: datetime) -> Iterator[datetime]:
        """What the expression names, as wall clocks after `since`."""
        return CronSim(self.expression, since)

    def _moments(self, wall: datetime) -> Iterator[datetime]:
        first = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        second = wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        if first == second:
            yield first
        elif first < second:
            if self.fold != "last":
                yield first
            if self.fold != "first":
                yield second
        elif self.gap == "shift":
            yield _change(second, first, self.zone)  # read with the offset of after the gap, it is before it


def parse_cron(text: str) -> str:
    """The five fields of a cron expression; raises ValueError that says what is wrong with them."""
    expression = _ALIASES.get(text.strip().lower(), text.upper())
    if expression.strip().startswith("@"):
        raise ValueError(f"there is no '{text}'; known are {', '.join(_ALIASES)}")
    if len(expression.split()) != 5:
        raise ValueError("has five fields: minute, hour, day of the month, month, day of the week")
    try:
        next(CronSim(expression, datetime(2000, 1, 1)))
    except CronSimError as error:
        raise ValueError(f"'{text}' is no cron expression: {error}") from None
    except StopIteration:
        raise ValueError(f"'{text}' never comes") from None
    return expression


def steady_delay(key: str, jitter: float) -> float:
    """Of `jitter` seconds, the share that is `key`'s, always the same: many schedules of one time are spread out,
    and each keeps its pace. In whole milliseconds."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return int(share * jitter * 1000) / 1000


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _turn(moment: datetime, zone: ZoneInfo) -> timedelta:
    """By how much the clock is set near `moment`."""
    offsets = [_offset(moment + away, zone) for away in (-_NEARBY, timedelta(), _NEARBY)]
    return max(offsets) - min(offsets)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    try:
        return moment.astimezone(zone).utcoffset() or timedelta()
    except OverflowError:  # at the end of time
        return timedelta()


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The one moment in (before, after] since when the clock is another, to the second."""
    old = _offset(before, zone)
    low, high = 0, round((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(before + timedelta(seconds=middle), zone) == old:
            low = middle
        else:
            high = middle
    return before + timedelta(seconds=high)
