"""`condition` and `set`: which branch goes on, which steps are skipped, what is named where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from marshmallow import ValidationError
from performing import context_of

from workers.steps import Done, StepType
from workers.steps.condition import Condition, is_true
from workers.steps.set import Set


def performed(step_type: StepType, config: Mapping[str, Any]) -> Done:
    done = step_type.perform(context_of(step_type, dict(config)))
    assert isinstance(done, Done)
    return done


@pytest.mark.parametrize("value", ["false", "False", " NO ", "0", "", "  ", 0, None, False, [], {}])
def test_what_reads_as_no_is_false(value: object) -> None:
    assert not is_true(value)


@pytest.mark.parametrize("value", ["true", "yes", "off-topic", "00", 1, -0.5, True, [0], {"a": None}])
def test_everything_else_is_true(value: object) -> None:
    assert is_true(value)


def test_a_true_expression_takes_then_and_skips_else() -> None:
    done = performed(Condition(), {"expression": True, "then": ["a", "b"], "else": "c"})
    assert done == Done({"result": True, "taken": ["a", "b"]}, skip=frozenset({"c"}))


def test_a_false_expression_takes_else_and_skips_then() -> None:
    done = performed(Condition(), {"expression": "no", "then": "a", "else": ["c"]})
    assert done == Done({"result": False, "taken": ["c"]}, skip=frozenset({"a"}))


def test_a_branch_may_be_left_out() -> None:
    assert performed(Condition(), {"expression": 0, "then": "a"}).skip == {"a"}
    assert performed(Condition(), {"expression": 1, "else": "a"}).skip == {"a"}


def test_a_step_of_both_branches_is_never_skipped() -> None:
    done = performed(Condition(), {"expression": True, "then": ["a", "both"], "else": ["b", "both"]})
    assert done.skip == {"b"}


def test_the_first_true_case_is_taken() -> None:
    cases = [{"when": 0, "then": "a"}, {"when": "x", "then": ["b"]}, {"when": True, "then": ["c"]}]
    done = performed(Condition(), {"cases": cases, "else": ["d"]})
    assert done == Done({"result": 1, "taken": ["b"]}, skip=frozenset({"a", "c", "d"}))


def test_else_is_taken_when_no_case_is_true() -> None:
    done = performed(Condition(), {"cases": [{"when": None, "then": "a"}], "else": "d"})
    assert done == Done({"result": None, "taken": ["d"]}, skip=frozenset({"a"}))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"then": ["a"]}, "expression"),
        ({"expression": 1, "cases": []}, "cases"),
        ({"cases": [], "then": ["a"]}, "then"),
        ({"expression": 1, "then": [1]}, "then"),
        ({"cases": [{"then": "a"}]}, "cases"),
    ],
)
def test_a_config_of_no_known_form_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Condition.Config().load(config)
    assert set(refused.value.messages_dict) == {field}


def test_references_name_every_step_with_its_path() -> None:
    config = {"then": "a", "else": ["b", "c"], "cases": [{"then": ["d"]}, {"then": "e"}, "nonsense"]}
    assert list(Condition().references(config)) == [
        ("then", "a"),
        ("cases[0].then[0]", "d"),
        ("cases[1].then", "e"),
        ("else[0]", "b"),
        ("else[1]", "c"),
    ]


def test_expressions_may_be_written_without_braces() -> None:
    assert Condition.expression_fields == {"expression", "cases.when"}


def test_set_gives_its_values_as_output() -> None:
    assert performed(Set(), {"values": {"a": 1, "b": [None]}}) == Done({"a": 1, "b": [None]})
