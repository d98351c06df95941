"""When a condition that is looked at now and then starts something: on the edge, once, and not for a blink."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from orchestrator.engine.conditions import State, due_edge, is_worth_a_look, seen, unseen

START = datetime(2026, 5, 4, 10, 0, tzinfo=UTC)


def looked(*values: bool | None, hold: float = 0.0, every: float = 10.0) -> list[int]:
    """The numbers of the looks that would start something; None is a look that finds nothing out."""
    state, found = State(), []
    for number, value in enumerate(values):
        now = START + timedelta(seconds=number * every)
        state = unseen(state, "away", now) if value is None else seen(state, value, now)
        if due_edge(state, hold) is not None:
            found.append(number)
            state = replace(state, fired=True)
    return found


def test_only_the_edge_from_false_to_true_fires() -> None:
    assert looked(False, True, True, False, False, True) == [1, 5]


def test_before_the_first_look_it_counts_as_false() -> None:
    assert looked(True, True) == [0]


def test_it_must_stay_true_for_as_long_as_is_asked() -> None:
    assert looked(False, True, True, True, True, hold=20) == [3]
    assert looked(True, True, False, True, True, False, hold=20) == []
    assert looked(True, True, False, True, True, True, True, hold=20) == [5]


def test_a_look_that_finds_nothing_out_changes_nothing() -> None:
    assert looked(True, None, True) == [0]
    assert looked(False, None, True) == [2]
    assert looked(True, None, None, True, hold=20) == [3]


def test_an_edge_keeps_its_time_until_something_was_started_for_it() -> None:
    state = seen(State(), True, START)
    again = seen(state, True, START + timedelta(seconds=5))
    assert due_edge(state, 0) == due_edge(again, 0) == START.isoformat()
    assert due_edge(replace(again, fired=True), 0) is None


def test_an_edge_outlives_looks_that_find_nothing_out() -> None:
    state = unseen(seen(State(), True, START), "away", START + timedelta(seconds=5))
    assert due_edge(state, 0) == START.isoformat()
    assert due_edge(state, 5) is None


def test_messages_that_come_together_are_one_look() -> None:
    state = unseen(State(), "away", START)
    assert not is_worth_a_look(state, 10, START)
    assert not is_worth_a_look(state, 10, START + timedelta(seconds=4.9))
    assert is_worth_a_look(state, 10, START + timedelta(seconds=5))
    assert is_worth_a_look(state, 10, START - timedelta(seconds=1))
    assert is_worth_a_look(State(), 10, START)


def test_a_state_survives_being_kept() -> None:
    state = unseen(seen(State(), True, START), "away", START + timedelta(seconds=5))
    assert State.of(state.as_json()) == state
    assert State.of(None) == State.of({}) == State()
    assert State.of({"value": True, "of another version": 1}) == State(value=True)
