"""What differs between two definitions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.definition.changes import changes

FETCH = {"id": "fetch", "type": "http", "config": {"url": "http://a"}}
SAVE = {"id": "save", "type": "set", "depends_on": ["fetch"]}


def found(old: Any, new: Any) -> list[tuple[str, str, Any, Any]]:
    return [(str(change.kind), change.path, change.old, change.new) for change in changes(old, new)]


def test_steps_are_compared_by_their_ids_wherever_they_stand():
    old = {"steps": [FETCH, SAVE]}
    new = {"steps": [{"id": "new", "type": "set"}, {**FETCH, "config": {"url": "http://b", "timeout": 5}}]}
    assert found(old, new) == [
        ("changed", "steps.fetch.config.url", "http://a", "http://b"),
        ("added", "steps.fetch.config.timeout", None, 5),
        ("removed", "steps.save", SAVE, None),
        ("added", "steps.new", None, {"id": "new", "type": "set"}),
    ]


def test_steps_in_another_order_are_said_to_have_moved():
    assert found({"steps": [FETCH, SAVE]}, {"steps": [SAVE, FETCH]}) == [
        ("moved", "steps", ["fetch", "save"], ["save", "fetch"])
    ]


def test_triggers_are_compared_by_their_names_and_other_lists_by_place():
    old = {"triggers": [{"name": "daily", "config": {"cron": "0 2 * * *"}}], "tags": ["a", "b"]}
    new = {"triggers": [{"name": "daily", "config": {"cron": "0 3 * * *"}}], "tags": ["a", "c", "d"]}
    assert found(old, new) == [
        ("changed", "triggers.daily.config.cron", "0 2 * * *", "0 3 * * *"),
        ("changed", "tags[1]", "b", "c"),
        ("added", "tags[2]", None, "d"),
    ]


def test_steps_of_bodies_are_compared_by_their_ids_too():
    def loop(value: int) -> Any:
        return {"steps": [{"id": "each", "config": {"steps": [{"id": "in", "config": {"value": value}}]}}]}

    assert found(loop(1), loop(2)) == [("changed", "steps.each.config.steps.in.config.value", 1, 2)]


@pytest.mark.parametrize(
    ("old", "new"), [(1, True), (0, False), (1, "1"), (None, 0), ([], {}), ("", None), ({"a": None}, {})]
)
def test_what_is_equal_in_python_only_differs(old: Any, new: Any):
    assert len(found({"x": old}, {"x": new})) == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from("abc"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "name", "x"]), inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"id": st.sampled_from("abc"), "x": inner}), max_size=3)
    ),
    max_leaves=8,
)


def typed(value: Any) -> Any:
    """`value` with its scalars' types, since 1 == True here and not in JSON."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return type(value), value


@given(_JSON, _JSON)
def test_there_are_changes_if_and_only_if_something_differs(old: Any, new: Any):
    assert bool(found(old, new)) == (typed(old) != typed(new))
    assert found(old, old) == []
