"""The slots of schedules, beside an oracle that looks at every minute of the days around each change of the clocks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.slots import Cron, Every, Timetable, parse_cron, steady_delay

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Asia/Shanghai")
POLICIES = [(gap, fold) for gap in ("skip", "shift") for fold in ("first", "last", "both")]
EXPRESSIONS = (
    "30 2 * * *",
    "15 1,2 * * *",
    "*/20 0-3 * * *",
    "0 0 * * *",
    "45 23,0 * * *",
    "10,50 */2 * * 6,0",
    "*/15 * * * *",
)


# --- the oracle ----------------------------------------------------------------------------------------------


def minutes(first: datetime, last: datetime) -> Iterator[datetime]:
    while first <= last:
        yield first
        first += MINUTE


def named(field: str, value: int, lowest: int) -> bool:
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        if span == "*":
            within, base = True, lowest
        else:
            within, base = int(low) <= value <= int(high or low), int(low)
        if within and (value - base) % int(step or 1) == 0:
            return True
    return False


def matches(expression: str, wall: datetime) -> bool:
    """For expressions that leave out the day of the month."""
    minute, hour, _, month, weekday = expression.split()
    return (
        named(minute, wall.minute, 0)
        and named(hour, wall.hour, 0)
        and named(month, wall.month, 1)
        and named(weekday, wall.isoweekday() % 7, 0)
    )


@lru_cache(maxsize=4)
def clocks(zone: ZoneInfo, first: datetime, last: datetime) -> tuple[list[datetime], list[datetime]]:
    """Every minute, and what the wall shows then."""
    moments = list(minutes(first, last))
    return moments, [moment.astimezone(zone).replace(tzinfo=None, fold=0) for moment in moments]


def oracle(expression: str, zone: ZoneInfo, gap: str, fold: str, first: datetime, last: datetime) -> list[datetime]:
    """What the clocks on the wall show in every minute, and what of that is a slot."""
    moments, walls = clocks(zone, first, last)
    seen: dict[datetime, list[datetime]] = {}
    for moment, wall in zip(moments, walls, strict=True):
        seen.setdefault(wall, []).append(moment)
    chosen = {"first": slice(0, 1), "last": slice(-1, None), "both": slice(None)}[fold]
    found = {moment for wall, several in seen.items() if matches(expression, wall) for moment in several[chosen]}
    for moment, (before, wall) in zip(moments[1:], pairwise(walls), strict=True):
        left_out = minutes(before + MINUTE, wall - MINUTE) if wall > before + MINUTE else ()
        if gap == "shift" and any(matches(expression, missing) for missing in left_out):
            found.add(moment)
    return sorted(found)


@lru_cache(maxsize=16)
def changes(zone: ZoneInfo, year: int) -> list[datetime]:
    """The hours of a year in which the clocks are set; its quarters if they never are."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + HOUR * number for number in range(365 * 24)]
    found = [b for a, b in pairwise(hours) if a.astimezone(zone).utcoffset() != b.astimezone(zone).utcoffset()]
    return found or [datetime(year, 3, 29, tzinfo=UTC), datetime(year, 10, 25, tzinfo=UTC)]


@pytest.mark.parametrize(("gap", "fold"), POLICIES)
@pytest.mark.parametrize("name", ZONES)
def test_the_slots_around_each_change_of_the_clocks_are_those_that_the_walls_show(name: str, gap: str, fold: str):
    zone = ZoneInfo(name)
    for change in changes(zone, 2026):
        first, last = change - 17 * HOUR - 7 * MINUTE, change + 17 * HOUR
        for expression in EXPRESSIONS:
            timetable = Timetable(Cron(expression, zone, gap, fold))
            expected = oracle(expression, zone, gap, fold, first, last)
            assert list(timetable.between(first, last)) == expected, expression
            for slot, following in pairwise(expected):
                assert timetable.next_after(slot) == following, expression
                assert timetable.next_after(following - timedelta(seconds=1)) == following, expression


@given(
    zone=st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Africa/Casablanca"]),
    policy=st.sampled_from(POLICIES),
    minute=st.sampled_from(["0", "*/10", "7", "30", "15,45", "59"]),
    hour=st.sampled_from(["*", "0", "1", "2", "3", "1-3", "23", "*/2"]),
    which=st.integers(0, 1),
    offset=st.integers(-1500, 1500),
)
def test_the_slot_after_any_minute_is_the_next_that_the_walls_show(
    zone: str, policy: tuple[str, str], minute: str, hour: str, which: int, offset: int
):
    info, expression = ZoneInfo(zone), f"{minute} {hour} * * *"
    moment = changes(info, 2025)[which] + offset * MINUTE
    expected = oracle(expression, info, *policy, moment - 2 * HOUR, moment + 2 * DAY)
    after = [slot for slot in expected if slot > moment]
    assert Timetable(Cron(expression, info, *policy)).next_after(moment) == after[0]


# --- what is said where nothing is ---------------------------------------------------------------------------


def local(name: str, expression: str, since: datetime, count: int, **policies: str) -> list[str]:
    timetable = Timetable(Cron(expression, ZoneInfo(name), **policies))
    return [timetable.local(slot).isoformat() for slot in timetable.first(since, count)]


def test_a_time_that_does_not_exist_is_the_moment_at_which_the_clock_is_set_forward():
    assert local("America/New_York", "30 2 * * *", datetime(2026, 3, 8, tzinfo=UTC), 2) == [
        "2026-03-08T03:00:00-04:00",
        "2026-03-09T02:30:00-04:00",
    ]


def test_a_time_that_exists_twice_is_the_first_of_them():
    assert local("America/New_York", "30 1 * * *", datetime(2026, 11, 1, tzinfo=UTC), 2) == [
        "2026-11-01T01:30:00-04:00",
        "2026-11-02T01:30:00-05:00",
    ]


def test_an_expression_for_every_hour_means_the_hours_that_pass():
    back = datetime(2026, 11, 1, 4, 45, tzinfo=UTC)
    slots = Timetable(Cron("*/30 * * * *", ZoneInfo("America/New_York"))).first(back, 6)
    assert [b - a for a, b in pairwise(slots)] == [timedelta(minutes=30)] * 5
    forward = datetime(2026, 10, 3, 14, 30, tzinfo=UTC)
    assert local("Australia/Lord_Howe", "15 * * * *", forward, 2) == [
        "2026-10-04T01:15:00+10:30",
        "2026-10-04T03:15:00+11:00",  # 02:15 did not exist
    ]


def test_a_day_that_a_zone_left_out_has_no_slot_of_its_own():
    assert local("Pacific/Apia", "0 12 * * *", datetime(2011, 12, 29, tzinfo=UTC), 3) == [
        "2011-12-29T12:00:00-10:00",
        "2011-12-31T00:00:00+14:00",
        "2011-12-31T12:00:00+14:00",
    ]


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("0 0 * jan-mar mon,Fri", "0 0 * 1-3 1,5"),
        ("0 0 * * 7", "0 0 * * 0"),
    ],
)
def test_names_and_abbreviations_say_the_same_as_numbers(written: str, same: str):
    since = datetime(2026, 1, 1, tzinfo=UTC)
    zone = ZoneInfo("UTC")
    assert Timetable(Cron(written, zone)).first(since, 20) == Timetable(Cron(same, zone)).first(since, 20)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("0 2 * *", "five fields"),
        ("0 0 2 * * *", "five fields"),
        ("", "five fields"),
        ("61 * * * *", "Bad minute"),
        ("0 24 * * *", "Bad hour"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("0 0 * FOO *", "Bad month"),
        ("*/0 * * * *", "Bad minute"),
        ("@reboot", "there is no '@reboot'; known are @yearly"),
    ],
)
def test_what_is_no_cron_expression_is_refused_with_what_is_wrong(expression: str, says: str):
    with pytest.raises(ValueError, match=says):
        parse_cron(expression)


# --- intervals and bounds ------------------------------------------------------------------------------------


def test_an_interval_is_counted_from_its_origin_and_never_drifts():
    origin = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    slots = Timetable(Every(90, origin)).first(origin + timedelta(days=1, seconds=0.3), 2)
    assert slots == [origin + DAY + timedelta(seconds=90), origin + DAY + timedelta(seconds=180)]
    assert Timetable(Every(0.1 * 30)).next_after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(
        2026, 1, 1, 0, 0, 3, tzinfo=UTC
    )


@pytest.mark.parametrize("slots", [Every(3600), Cron("0 * * * *", ZoneInfo("UTC"))], ids=["interval", "cron"])
def test_start_and_end_are_slots_themselves_and_nothing_is_outside_of_them(slots: Every | Cron):
    start, end = datetime(2026, 1, 1, 5, tzinfo=UTC), datetime(2026, 1, 1, 7, tzinfo=UTC)
    timetable = Timetable(slots, start, end)
    assert timetable.first(start - DAY, 10) == [start, start + HOUR, end]
    assert timetable.next_after(end) is None


@pytest.mark.parametrize("expression", ["*/2 * * * *", "0 3 * * *", "*/7 3 * * 1", "0 0 29 2 *"])
def test_the_newest_slots_are_the_last_of_all(expression: str):
    timetable = Timetable(Cron(expression, ZoneInfo("Europe/Berlin")))
    first, last = datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 4, 1, 12, tzinfo=UTC)
    every = list(timetable.between(first, last))
    assert timetable.newest(first, last, 5) == every[-5:]
    assert timetable.newest(first, last, 100_000) == every


def test_the_newest_slots_of_years_are_found_without_a_walk_through_these():
    timetable = Timetable(Every(1))
    last = datetime(2026, 1, 1, tzinfo=UTC)
    assert timetable.newest(datetime(1990, 1, 1, tzinfo=UTC), last, 2) == [last - timedelta(seconds=1), last]


def test_jitter_is_the_same_for_each_slot_and_spreads_what_has_different_ids():
    delays = [steady_delay(f"trigger {number}", 10) for number in range(1000)]
    assert delays == [steady_delay(f"trigger {number}", 10) for number in range(1000)]
    assert 0 <= min(delays) < 0.5
    assert 9.5 < max(delays) < 10
    timetable = Timetable(Every(60), delay=delays[0])
    slot = datetime(2026, 1, 1, tzinfo=UTC)
    assert timetable.slot_due_at(timetable.due_at(slot)) == slot
