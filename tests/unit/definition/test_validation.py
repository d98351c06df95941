from __future__ import annotations

import json
from typing import Any

import pytest
from fake_catalogue import CATALOGUE, load, only_problem, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.definition import RetryPolicy, build_definition, load_definition
from orchestrator.errors import DefinitionError

STEP = "steps: [{id: a, type: http, config: {url: x}}]\n"


def two(first: str = "", second: str = "", more: str = "") -> str:
    """A definition of two steps, a and b, with more in each."""
    return (
        f"steps:\n- {{id: a, type: http, config: {{url: x}}{first}}}\n"
        f"- {{id: b, type: http, config: {{url: x}}{second}}}\n{more}"
    )


# -- what is valid


def test_a_definition_is_made_of_what_is_written() -> None:
    definition = load("""
version: 1.0
name: n
description: d
variables: {x: 1}
timeout: 30m
tags: [t]
triggers: [{type: schedule, name: daily, config: {cron: "0 2 * * *"}}]
outputs: {y: "{{ steps.b.output }}"}
steps:
  - id: a
    type: http
    config: {url: "http://{{ variables.x }}", timeout: not-ours}
    retry_policy: {max_attempts: 3, initial_delay: 5s, retry_on: [timeout]}
  - id: b
    type: condition
    name: B
    depends_on: a
    timeout: 1m
    on_error: continue
    input_mapping: {z: "{{ steps.a.output.body }}"}
""")
    a, b = definition.steps
    assert (definition.version, definition.name, definition.timeout) == ("1.0", "n", 1800)
    assert definition.outputs == {"y": "{{ steps.b.output }}"}
    assert a.retry_policy == RetryPolicy(max_attempts=3, initial_delay=5, retry_on=("timeout",))
    assert (a.queue, b.queue) == ("io", "control")
    assert (b.depends_on, b.timeout, b.on_error, b.name, b.config) == (("a",), 60, "continue", "B", {})
    assert b.retry_policy is None
    assert definition.source["steps"][1]["depends_on"] == "a"


def test_a_stored_definition_is_built_even_if_a_type_is_gone() -> None:
    source = {"steps": [{"id": "a", "type": "gone", "depends_on": []}]}
    assert build_definition(source, CATALOGUE).steps[0].queue == "control"


def test_empty_sections_are_like_none() -> None:
    definition = load("variables:\noutputs:\ntags:\ntriggers:\n" + two(", depends_on: , timeout: ,retry_policy: "))
    assert definition.variables == {}
    assert definition.steps[0].depends_on == ()


# -- shapes


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("[1]", "", "a definition is a mapping with 'steps', not a list"),
        ("name: x", "steps", "is missing"),
        ("steps: []", "steps", "1 to 10,000 steps"),
        ("steps: {}", "steps", "must be a list, not a mapping"),
        ("steps: [5]", "steps[0]", "must be a mapping, not a number"),
        (STEP + "varables: {}", "varables", "unknown key; did you mean 'variables'?"),
        (STEP + "zzz: []", "zzz", "unknown key; known are version"),
        (STEP + "version: [1]", "version", "text"),
        (STEP + "timeout: soon", "timeout", "'soon' is not a duration"),
        (STEP + "timeout: 0", "timeout", "too short"),
        (STEP + "timeout: 99999d", "timeout", "too long"),
        (STEP + "variables: [1]", "variables", "must be a mapping, not a list"),
        (STEP + "tags: [1]", "tags[0]", "must be a text, not a number"),
        (STEP + "triggers: [{name: x}]", "triggers[0].type", "is missing"),
        (two(", retry_policy: {max_attempts: 101}"), "steps[0].retry_policy.max_attempts", "from 1 to 100"),
        (two(", retry_policy: {max_attempts: true}"), "steps[0].retry_policy.max_attempts", "whole number"),
        (two(", retry_policy: {backoff: 2}"), "steps[0].retry_policy.backoff", "did you mean 'backoff_factor'?"),
        (two(", retry_policy: {backoff_factor: 0.5}"), "steps[0].retry_policy.backoff_factor", "from 1"),
        (two(", retry_policy: {jitter: 2}"), "steps[0].retry_policy.jitter", "from 0 to 1"),
        (two(", retry_policy: {max_delay: x}"), "steps[0].retry_policy.max_delay", "not a duration"),
        (two(", on_error: ignore"), "steps[0].on_error", "fail, continue"),
        (two(", depend_on: [b]"), "steps[0].depend_on", "did you mean 'depends_on'?"),
        (two(", depends_on: [5]"), "steps[0].depends_on[0]", "must be the id of a step"),
        ("steps: [{id: 1a, type: http, config: {url: x}}]", "steps[0].id", "is not an id"),
        ("steps: [{id: " + "a" * 129 + ", type: http, config: {url: x}}]", "steps[0].id", "is not an id"),
        ("steps: [{id: a, config: {url: x}}]", "steps[0].type", "is missing"),
        ("steps: [{id: a, type: htp}]", "steps[0].type", "no step type 'htp'; did you mean 'http'?"),
        ("steps: [{id: a, type: zzz}]", "steps[0].type", "known are condition, http"),
        (two(', name: "\\0"'), "steps[0].name", "U+0000"),
    ],
)
def test_a_wrong_shape_is_named_with_its_path(text: str, path: str, hint: str) -> None:
    problem = only_problem(text)
    assert problem.path == path
    assert hint in problem.message


def test_characters_that_postgresql_cannot_hold_are_refused_in_keys_too() -> None:
    source = json.loads(
        '{"steps": [{"id": "a", "type": "http", "config": {"url": "\\ud800", "headers": {"\\u0000": "x"}}}]}'
    )
    with pytest.raises(DefinitionError) as caught:
        load_definition(source, CATALOGUE)
    assert [problem.path for problem in caught.value.problems] == ["steps[0].config.url", "steps[0].config.headers"]


def test_values_that_are_no_json_are_refused() -> None:
    with pytest.raises(DefinitionError, match="not a JSON value"):
        load_definition({"steps": [{"id": "a", "type": "http", "config": {"url": {1, 2}}}]}, CATALOGUE)


# -- dependencies


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        (two(second=", depends_on: [aa]"), "steps[1].depends_on[0]", "no step 'aa'; did you mean 'a'?"),
        (two(second=", depends_on: aa"), "steps[1].depends_on", "no step 'aa'"),
        (two(second=", depends_on: [a, b]"), "steps[1].depends_on[1]", "cannot depend on itself"),
        (two(", depends_on: b", ", depends_on: a"), "steps[0].depends_on", "cycle: a -> b -> a"),
        (two() + "- {id: a, type: http, config: {url: x}}", "steps[2].id", "taken by steps[0]"),
    ],
)
def test_a_wrong_dependency_is_named_with_its_path(text: str, path: str, hint: str) -> None:
    problem = only_problem(text)
    assert problem.path == path
    assert hint in problem.message


def test_each_cycle_is_shown_once_and_what_waits_behind_it_is_not_blamed() -> None:
    steps = {"a": "b", "b": "c", "c": "a", "x": "y", "y": "x", "behind": "a"}
    text = "steps:\n" + "".join(
        f"- {{id: {step_id}, type: http, config: {{url: x}}, depends_on: {other}}}\n"
        for step_id, other in steps.items()
    )
    assert ["a -> b -> c -> a" in p.message or "x -> y -> x" in p.message for p in problems(text)] == [True, True]


def test_a_branch_must_wait_for_the_step_that_names_it() -> None:
    text = (
        "steps:\n- {{id: c, type: condition, config: {{then: [{0}]}}}}\n- {{id: d, type: http, config: {{url: x}}{1}}}"
    )
    assert only_problem(text.format("d", "")).message == (
        "the step 'd' does not wait for this one; add 'c' to its depends_on"
    )
    assert only_problem(text.format("dd", "")).message.startswith("there is no step 'dd'")
    assert problems(text.format("d", ", depends_on: c")) == []


# -- templates


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("{{ steps.a.output }}", None),
        ("{{ steps.a.error.message | default('') }}", None),
        ("{{ input.anything.at.all }} {{ secrets.x }} {{ execution.id }} {{ trigger.id }}", None),
        ("{{ variables.known.deeper }}", None),
        ("{{ steps.z.output }}", "no step 'z'"),
        ("{{ steps.b.output }}", "the step itself"),
        ("{{ steps.c.output }}", "add 'c' to its depends_on"),
        ("{{ steps.my.output }}", "did you mean steps['my-step']?"),
        ("{{ steps.a.outptu }}", "a step has output, status, error"),
        ("{{ variables.knwon }}", "did you mean 'known'?"),
        ("{{ variable.known }}", "did you mean 'variables'?"),
        ("{{ a.output }}", "did you mean 'steps.a.output'?"),
        ("{{ loop.item }}", "'loop' is not defined"),
        ("{{ 1 | nope }}", "no filter 'nope'"),
        ("{{ 1", "unexpected end"),
    ],
)
def test_the_names_in_a_template_are_checked(template: str, hint: str | None) -> None:
    source: dict[str, Any] = {
        "variables": {"known": {}},
        "steps": [
            {"id": "a", "type": "http", "config": {"url": "x"}},
            {"id": "b", "type": "http", "config": {"url": "x"}, "depends_on": "a", "input_mapping": {"m": [template]}},
            {"id": "c", "type": "http", "config": {"url": "x"}},
            {"id": "my-step", "type": "http", "config": {"url": "x"}},
        ],
    }
    if hint is None:
        load_definition(source, CATALOGUE)
        return
    with pytest.raises(DefinitionError) as caught:
        load_definition(source, CATALOGUE)
    (problem,) = caught.value.problems
    assert problem.path == "steps[1].input_mapping.m[0]"
    assert hint in problem.message


def test_a_step_may_read_whatever_is_upstream_of_it() -> None:
    chain = "steps:\n- {id: s0, type: http, config: {url: x}}\n" + "".join(
        f"- {{id: s{i}, type: http, depends_on: s{i - 1}, config: {{url: '{{{{ steps.s0.output }}}}'}}}}\n"
        for i in range(1, 5)
    )
    assert problems(chain) == []


def test_outputs_may_read_any_step_but_no_secret() -> None:
    assert problems(two(more="outputs: {x: '{{ steps.a.output }}{{ steps.b.output }}'}")) == []
    assert "secrets" in only_problem(two(more="outputs: {x: '{{ secrets.k }}'}")).message


def test_a_config_is_checked_where_it_holds_no_template() -> None:
    text = """
steps:
- id: a
  type: http
  config:
    method: "{{ input.method }}"
    retries: "{{ input.n }}"
    headers: {A: "{{ input.a }}", B: 5}
    urll: x
"""
    assert [(p.path, p.message, p.line) for p in problems(text)] == [
        ("steps[0].config.headers.B", "must be a text, not a number", 8),
        ("steps[0].config.urll", "unknown key; did you mean 'url'?", 9),
        ("steps[0].config.url", "is missing", 5),
    ]


def test_raw_fields_are_not_looked_into() -> None:
    assert problems("steps: [{id: a, type: http, config: {url: x, script: '{{ not jinja %}'}}]") == []


def test_expression_fields_are_expressions_without_braces() -> None:
    text = "steps: [{id: a, type: condition, config: {expression: 'nope > 1', cases: [{when: 'input.n >'}]}}]"
    first, second = problems(text)
    assert (first.path, second.path) == ("steps[0].config.expression", "steps[0].config.cases[0].when")
    assert "'nope' is not defined" in first.message


# -- reports


def test_every_problem_is_reported_at_once_in_document_order_with_lines() -> None:
    text = """
nmae: x
steps:
  - id: a
    type: http
    config: {url: "{{ steps.b.output }}"}
    timeout: x
  - id: b
    type: htp
    depends_on: [q]
outputs:
  x: "{{ steps.zz.output }}"
"""
    assert [(p.path, p.line) for p in problems(text)] == [
        ("nmae", 2),
        ("steps[0].config.url", 6),
        ("steps[0].timeout", 7),
        ("steps[1].type", 9),
        ("steps[1].depends_on[0]", 10),
        ("outputs.x", 12),
    ]


def test_of_very_many_problems_the_first_hundred_are_shown() -> None:
    steps = [{"id": f"s{i}", "type": "nope", "depends_on": f"x{i}"} for i in range(1000)]
    with pytest.raises(DefinitionError) as caught:
        load_definition({"steps": steps}, CATALOGUE)
    assert len(caught.value.problems) == 101
    assert "1,900 more" in caught.value.problems[-1].message
    assert caught.value.problems[0].path == "steps[0].type"


# -- size


def chain_of(length: int) -> dict[str, Any]:
    return {
        "steps": [
            {
                "id": f"s{i}",
                "type": "http",
                "depends_on": [f"s{i - 1}"] if i else [],
                "config": {"url": f"http://x/{{{{ steps.s{max(i - 2, 0)}.output.body }}}}" if i else "http://x"},
                "retry_policy": {"max_attempts": 3},
            }
            for i in range(length)
        ]
    }


def test_ten_thousand_steps_in_a_row_are_validated() -> None:
    assert len(load_definition(chain_of(10_000), CATALOGUE).steps) == 10_000


def test_a_cycle_of_ten_thousand_steps_is_found_and_shortened() -> None:
    source = chain_of(10_000)
    source["steps"][0]["depends_on"] = ["s9999"]
    with pytest.raises(DefinitionError) as caught:
        load_definition(source, CATALOGUE)
    (problem,) = caught.value.problems
    assert "s0 -> s9999" in problem.message
    assert len(problem.message) < 400


def test_one_step_more_is_too_many() -> None:
    with pytest.raises(DefinitionError, match="10,001"):
        load_definition(chain_of(10_001), CATALOGUE)


# -- properties

words = st.sampled_from(
    ["steps", "id", "type", "config", "http", "condition", "a", "b", "depends_on", "url", "{{ steps.a.output }}",
     "{{ x", "timeout", "5m", "retry_policy", "input_mapping", "variables", "outputs", "triggers", "then",
     "expression", "\0"]
)  # fmt: skip
nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)
steps = st.fixed_dictionaries(
    {"id": words, "type": st.sampled_from(["http", "condition", "x"])},
    optional={"config": nonsense, "depends_on": nonsense, "input_mapping": nonsense, "timeout": nonsense,
              "retry_policy": nonsense},
)  # fmt: skip


@given(nonsense | st.fixed_dictionaries({"steps": st.lists(steps, max_size=4)}, optional={"outputs": nonsense}))
@settings(max_examples=300)
def test_nonsense_raises_nothing_but_a_definition_error(data: Any) -> None:
    try:
        definition = load_definition(data, CATALOGUE)
    except DefinitionError:
        return
    assert build_definition(definition.source, CATALOGUE) == definition
