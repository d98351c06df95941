"""Steps that use a template: how they are written out, and what is said of those that cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from fake_catalogue import CATALOGUE as FAKES
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.definition import Document, read_definition
from orchestrator.definition.bounds import work_budget
from orchestrator.definition.document import walk
from orchestrator.definition.parameters import Parameters
from orchestrator.definition.step_template_checks import check_step_template
from orchestrator.definition.step_templates import StepTemplate, check_without_templates, load_with_templates
from orchestrator.definition.templates import compile_expression, compile_text, contains_template
from orchestrator.errors import DefinitionError, Problem
from workers.steps.condition import Condition
from workers.steps.loop import Loop
from workers.steps.parallel import Parallel
from workers.steps.set import Set

CATALOGUE: Any = {**FAKES, "loop": Loop(), "parallel": Parallel(), "set": Set(), "condition": Condition()}
CALL = StepTemplate(
    "call",
    {
        "type": "http",
        "config": {"url": "https://{{ params.host }}/v1", "headers": {"a": "1", "b": "2"}},
        "timeout": "9s",
    },
    {"type": "object", "properties": {"host": {"type": "string"}, "unused": {"type": "integer"}}, "required": ["host"]},
)


def template(step: Mapping[str, Any], parameters: Mapping[str, Any] | None = None, name: str = "t") -> StepTemplate:
    return StepTemplate(name, step, parameters)


def values(**values: Any) -> StepTemplate:
    return template({"type": "set", "config": {"values": values}})


def written(text: str, *templates: StepTemplate, limit: int = 100_000) -> Any:
    """The document in a YAML text with its templates written out; None if it uses none."""
    known = {one.name: one for one in templates}
    return load_with_templates(read_definition(text, "yaml"), CATALOGUE, known, limit)[1]


def step_of(using: str, *templates: StepTemplate) -> Any:
    """The step that a YAML text stands for, which needs no id."""
    step = written(f"steps: [{{id: a, {using}}}]", *templates)["steps"][0]
    return {key: value for key, value in step.items() if key != "id"}


def filled(text: str, **given: Any) -> Any:
    """What a text in a template becomes with parameters of these values."""
    document = {"steps": [{"id": "a", "uses": "t", "with": given}]}
    used = load_with_templates(_document(document), CATALOGUE, {"t": values(v=text)}, 100_000)[1]
    return used["steps"][0]["config"]["values"]["v"]


def _document(data: Any) -> Document:
    return read_definition(json.dumps(data), "json")


def problems(text: str, *templates: StepTemplate, limit: int = 100_000) -> list[Problem]:
    with pytest.raises(DefinitionError) as caught:
        written(text, *templates, limit=limit)
    return list(caught.value.problems)


def only_problem(text: str, *templates: StepTemplate) -> Problem:
    found = problems(text, *templates)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


# --- what a parameter becomes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [1, 2.5, True, None, "text", "", [1, "b"], {"a": {"b": None}}, "a } b", "é\U0001f600"]
)
def test_a_text_that_is_one_parameter_becomes_its_value_of_its_type(value: Any) -> None:
    assert filled("{{ params.x }}", x=value) == value
    assert filled(" {{- params['x'] -}} ", x=value) == value


def test_a_template_given_for_a_whole_text_is_that_text() -> None:
    assert filled("{{ params.x }}", x="Bearer {{ secrets.k }}") == "Bearer {{ secrets.k }}"
    assert filled("{{ params.x }}", x={"deep": ["{{ input.y }}"]}) == {"deep": ["{{ input.y }}"]}


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("https://{{ params.x }}/v1", "host", "https://host/v1"),
        ("{{ params.x }} of 3", 2, "2 of 3"),
        ("is {{ params.x }}", True, "is true"),
        ("[{{ params.x }}]", None, "[]"),
        ("{{ params.x * 2 }}", 21, 42),
        ("{{ params.x | upper }}", "abc", "ABC"),
        ("{{ params.x.deep[1] }}", {"deep": [1, {"k": 2}]}, {"k": 2}),
        ("{{ -params.x }}", -3, 3),
        ("{{ 'yes' if params.x is none else 'no' }}", None, "yes"),
        ("{% if params.x %}on{% endif %}", True, "on"),
        ("{{ params.x.items() | list | length }}", {"a": 1}, 1),
        ("{{ params }}", 1, {"x": 1}),
        ("{{ params.x ~ '\n' }}", 'quote " back \\ \u2028 数 \U0001f600\n', 'quote " back \\ \u2028 数 \U0001f600\n\n'),
    ],
)
def test_what_has_no_other_names_is_evaluated_at_once(text: str, value: Any, expected: Any) -> None:
    assert filled(text, x=value) == expected


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("{{ params.x }}-{{ input.n }}", "a", "a-7"),
        ("{{ params.x + 1 }}", "{{ input.n }}", 8),
        ("{{ params.x * 2 }}", "{{ input.n + 1 }}", 16),
        ("{{ params.x.y }}", {"y": "{{ input.n }}"}, 7),
        ("{{ params.x | length }}", ["{{ input.n }}", 2], 2),
        ("<{{ params.x }}>", "a {{ input.n }} b", "<a 7 b>"),
        ("{{ params.x | upper }}", "a{{ input.n }}b{{ input.n }}", "A7B7"),
        ("{{ input.list[params.x] }}", 1, "second"),
        ("{{ input.params.x ~ params.x }}", "!", "the input's own!"),
        ("{{ params.x ~ input.n }}", "{% raw", None),
        ("{{ params.x }}{{ input.n }}", "}} {{ '", None),
        ("{% if params.x > input.n %}more{% else %}less{% endif %}", 8, "more"),
    ],
)
def test_an_expression_with_other_names_means_the_same_when_it_runs(text: str, value: Any, expected: Any) -> None:
    if expected is None:  # not a value that could be rendered by itself
        with pytest.raises(DefinitionError) as caught:
            filled(text, x=value)
        assert [problem.path for problem in caught.value.problems] == ["steps[0].with.x"]
        return
    context = {"input": {"n": 7, "list": ["first", "second"], "params": {"x": "the input's own"}}}
    assert compile_text(filled(text, x=value)).render(context) == expected


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
).filter(lambda value: not any(isinstance(text, str) and contains_template(text) for _, text in walk(value)))


@given(PLAIN)
def test_any_value_in_an_expression_is_the_value(value: Any) -> None:
    parameters = Parameters({"x": value}, lambda _: None, work_budget())
    text = parameters.fill("{{ [params.x, input.y] }}", expression=False)
    assert compile_text(text).render({"input": {"y": 1}}) == [value, 1]
    bare = parameters.fill("params.x", expression=True)
    assert compile_expression(bare).render({}) == value
    assert parameters.fill("{{ params.x }}", expression=False) == value


def test_a_value_cannot_say_more_than_a_value() -> None:
    text = filled("{{ params.x ~ input.n }}", x="' ~ secrets.k ~ '")
    assert compile_text(text).render({"input": {"n": 7}}) == "' ~ secrets.k ~ '7"
    with pytest.raises(DefinitionError, match=r"steps\[0\].with.x"):
        filled("{{ params.x ~ input.n }}", x="{{ input.n) ~ (secrets.k }}")


def test_what_only_now_looks_like_a_template_stays_a_text() -> None:
    text = filled("{{ params.x ~ params.x }} secrets.k }}", x="{")
    assert compile_text(text).render({}) == "{{ secrets.k }}"


def test_a_value_with_a_statement_can_be_a_whole_text_only() -> None:
    value = "{% if input.n %}a{% endif %}"
    assert filled("{{ params.x }}", x=value) == value
    with pytest.raises(DefinitionError, match=r"uses: config.values.v of the step template 't'.*whole text"):
        filled("<{{ params.x }}>", x=value)


def test_expressions_without_braces_take_parameters_too() -> None:
    made = template(
        {"type": "condition", "when": "params.on and input.n > params.n", "config": {"expression": "params.n"}}
    )
    step = step_of('uses: t, with: {on: "{{ input.on }}", n: 5}', made)
    assert compile_expression(step["when"]).render({"input": {"on": True, "n": 6}}) is True
    assert compile_expression(step["config"]["expression"]).render({}) == 5
    named = template({"type": "set", "when": "params.text == 'input.n'", "config": {"values": {}}})
    assert compile_expression(step_of("uses: t, with: {text: input.n}", named)["when"]).render({}) is True


def test_what_is_taken_as_written_keeps_its_braces() -> None:
    made = template({"type": "http", "config": {"url": "{{ params.x }}", "script": "f'{{ params.x }}'"}})
    assert step_of("uses: t, with: {x: u}", made)["config"] == {"url": "u", "script": "f'{{ params.x }}'"}


def test_every_part_of_a_step_takes_parameters() -> None:
    made = template(
        {
            "type": "set",
            "name": "{{ params.x }}",
            "timeout": "{{ params.n }}s",
            "input_mapping": {"a": "{{ params.x }}"},
            "output_mapping": {"b": "{{ output[params.x] }}"},
            "retry_policy": {"max_attempts": "{{ params.n }}"},
            "cache": {"key": ["{{ params.x }}", "{{ input.day }}"], "ttl": "{{ params.n }}m"},
            "compensate": {"type": "set", "config": {"values": {"c": "{{ params.n }}"}}},
            "config": {"values": {}},
        }
    )
    assert step_of("uses: t, with: {x: k, n: 4}", made) == {
        "type": "set",
        "name": "k",
        "timeout": "4s",
        "input_mapping": {"a": "k"},
        "output_mapping": {"b": '{{ output[("k")] }}'},
        "retry_policy": {"max_attempts": 4},
        "cache": {"key": ["k", "{{ input.day }}"], "ttl": "4m"},
        "compensate": {"type": "set", "config": {"values": {"c": 4}}},
        "config": {"values": {}},
    }


# --- what the using step says --------------------------------------------------------------------------------


def test_a_using_step_goes_before_its_template_and_its_config_is_merged_over() -> None:
    step = step_of(
        "uses: call, with: {host: h}, name: mine, timeout: 1m, on_error: continue, when: input.on, "
        "config: {headers: {b: '3', c: '4'}, method: POST}",
        CALL,
    )
    assert step == {
        "type": "http",
        "name": "mine",
        "timeout": "1m",
        "on_error": "continue",
        "when": "input.on",
        "config": {"url": "https://h/v1", "headers": {"a": "1", "b": "3", "c": "4"}, "method": "POST"},
    }


def test_a_document_without_templates_is_left_as_it_is() -> None:
    assert written("steps: [{id: a, type: http, config: {url: x}}]", CALL) is None


def test_the_given_document_is_not_changed() -> None:
    document = read_definition("steps: [{id: a, uses: call, with: {host: h}}]", "yaml")
    load_with_templates(document, CATALOGUE, {"call": CALL}, 10_000)
    assert document.data == {"steps": [{"id": "a", "uses": "call", "with": {"host": "h"}}]}


def test_defaults_are_filled_in_and_may_be_templates() -> None:
    made = template(
        {"type": "set", "config": {"values": {"a": "{{ params.a }}", "b": "{{ params.b }}"}}},
        {"properties": {"a": {"default": 1}, "b": {"default": "{{ input.b }}"}}},
    )
    assert step_of("uses: t", made)["config"]["values"] == {"a": 1, "b": "{{ input.b }}"}
    assert step_of("uses: t, with: {a: 2}", made)["config"]["values"]["a"] == 2


def test_steps_in_bodies_endings_and_undoing_use_templates() -> None:
    text = """
steps:
- id: each
  type: loop
  config:
    items: [1]
    steps:
    - {id: in_loop, uses: call, with: {host: "{{ loop.item }}"}}
    - id: fork
      type: parallel
      config: {branches: {left: [{id: in_branch, uses: call, with: {host: l}}]}}
- {id: done, type: set, config: {values: {}}, compensate: {uses: undo, with: {host: u}}}
on_failure: [{id: failed, uses: call, with: {host: f}}]
finally: [{id: last, uses: call, with: {host: z}}]
"""
    undo = template({"type": "http", "config": {"url": "https://{{ params.host }}/v1"}}, name="undo")
    data = written(text, CALL, undo)
    in_loop, fork = data["steps"][0]["config"]["steps"]
    assert in_loop["config"]["url"] == "https://{{ (loop.item) }}/v1"
    assert fork["config"]["branches"]["left"][0]["config"]["url"] == "https://l/v1"
    assert data["steps"][1]["compensate"]["config"]["url"] == "https://u/v1"
    assert [data[name][0]["config"]["url"] for name in ("on_failure", "finally")] == ["https://f/v1", "https://z/v1"]


def test_a_template_may_have_a_body_whose_steps_take_parameters() -> None:
    inner = {"id": "{{ params.id }}_one", "type": "set", "config": {"values": {"v": "{{ params.v ~ loop.item }}"}}}
    made = template({"type": "loop", "config": {"items": "{{ params.items }}", "steps": [inner]}})
    text = "steps:\n" + "".join(
        f"- {{id: {id}, uses: t, with: {{id: {id}, v: x, items: [1, 2]}}}}\n" for id in ("a", "b")
    )
    a, b = written(text, made)["steps"]
    assert a["config"]["items"] == [1, 2]
    assert a["config"]["steps"] == [
        {"id": "a_one", "type": "set", "config": {"values": {"v": '{{ ("x") ~ loop.item }}'}}}
    ]
    assert b["config"]["steps"][0]["id"] == "b_one"


# --- what is wrong with a use --------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once_with_its_place_and_line() -> None:
    text = """\
steps:
- id: one
  uses: cal
- id: two
  uses: call
  with: {host: 5, hots: x}
- id: three
  uses: call
  with: {unused: "{{ input.n }}"}
- id: four
  uses: call
  with: {host: "{{ nothing.there }}"}
- id: five
  type: http
  config: {}
- id: six
  uses: call
  type: http
  with: [host]
  depends_on: seven
"""
    assert [(problem.path, problem.line) for problem in problems(text, CALL)] == [
        ("steps[0].uses", 3),
        ("steps[1].with.host", 6),
        ("steps[1].with.hots", 6),
        ("steps[2].with.host", 9),
        ("steps[3].config.url", 10),
        ("steps[4].config.url", 15),
        ("steps[5].type", 18),
        ("steps[5].with", 19),
        ("steps[5].with.host", 19),
        ("steps[5].depends_on", 20),
    ]


@pytest.mark.parametrize(
    ("using", "path", "says"),
    [
        ("uses: cal", "uses", "there is no step template 'cal'; did you mean 'call'?"),
        ("uses: 5", "uses", "must be the name of a step template, not a number"),
        ("uses: call, with: {host: h, hosst: h}", "with.hosst", "has no parameter 'hosst'; did you mean 'host'?"),
        ("uses: call", "with.host", "is missing; the step template 'call' needs it"),
        ("uses: call, with: {host: [1]}", "with.host", "[1] is not of type 'string'"),
        ("uses: call, with: {host: h, unused: x}", "with.unused", "'x' is not of type 'integer'"),
        ("uses: call, with: {host: '{{ x | nofilter }}'}", "with.host", "there is no filter 'nofilter'"),
        ("uses: call, with: {host: h}, type: http", "type", "either 'uses' or 'type'"),
        ("uses: call, with: {host: h}, config: {nothing: 1}", "config.nothing", "unknown key"),
        ("uses: call, with: {host: h}, timeout: soon", "timeout", "soon"),
        ("uses: call, with: {host: h}, whith: {}", "whith", "unknown key"),
        (
            "uses: call, with: {host: '{{ steps.b.output }}'}",
            "config.url",
            "'steps.b': there is no step 'b' (written out from the step template 'call')",
        ),
    ],
)
def test_a_wrong_use_is_refused(using: str, path: str, says: str) -> None:
    found = only_problem(f"steps: [{{id: a, {using}}}]", CALL)
    assert found.path == f"steps[0].{path}"
    assert says in found.message


def test_a_template_is_accepted_for_a_parameter_of_any_type() -> None:
    schema = {
        "properties": {"n": {"type": "integer", "minimum": 5}, "list": {"items": {"enum": [1, 2]}, "maxItems": 2}},
        "additionalProperties": False,
    }
    made = template({"type": "set", "config": {"values": {"n": "{{ params.n }}", "l": "{{ params.list }}"}}}, schema)
    assert step_of('uses: t, with: {n: "{{ input.n }}", list: ["{{ input.one }}", 2]}', made)
    found = problems('steps: [{id: a, uses: t, with: {n: 4, list: ["{{ input.one }}", 3, 4]}}]', made)
    assert [problem.path for problem in found] == [
        "steps[0].with.n",
        "steps[0].with.list",
        "steps[0].with.list[1]",
        "steps[0].with.list[2]",
    ]


def test_a_step_that_is_not_written_out_hides_no_other_mistake_and_makes_none() -> None:
    made = template(
        {"type": "set", "output_mapping": {"total": "{{ output.t }}"}, "config": {"values": "{{ params.v }}"}}
    )
    text = """
steps:
- {id: a, uses: t}
- {id: b, type: set, depends_on: [a], config: {values: {v: "{{ steps.a.output.t + variables.total }}"}}}
"""
    assert only_problem(text, made).path == "steps[0].with.v"


def test_what_templates_make_is_bounded() -> None:
    big = values(v="x" * 1000)
    text = "steps:\n" + "".join(f"- {{id: a{n}, uses: t}}\n" for n in range(100))
    assert len(written(text, big, limit=200_000)["steps"]) == 100
    found = problems(text, big, limit=50_000)
    assert len(found) == 1
    assert "more than 50,000 bytes" in found[0].message


def test_a_value_named_often_counts_each_time() -> None:
    often = values(**{f"v{n}": "{{ params.x }}" for n in range(1000)})
    found = problems(f"steps: [{{id: a, uses: t, with: {{x: {'x' * 1000}}}}}]", often, limit=100_000)
    assert [problem.path for problem in found] == ["steps[0].uses"]


def test_what_templates_compute_is_bounded_for_all_of_them_together() -> None:
    heavy = values(**{f"v{n}": "{{ range(10000) | list | join ~ params.x }}" for n in range(3000)})
    found = problems("steps: [{id: a, uses: t, with: {x: 1}}]", heavy, limit=10**9)
    assert {problem.path for problem in found} - {""} == {"steps[0].uses"}
    assert "too much to compute" in found[0].message


def test_a_schema_that_refers_elsewhere_is_refused_where_it_is_used() -> None:
    made = template({"type": "set", "config": {"values": {}}}, {"properties": {"x": {"$ref": "http://127.0.0.1:1/s"}}})
    assert "cannot be checked" in only_problem("steps: [{id: a, uses: t, with: {x: 1}}]", made).message


# --- where there are no templates ----------------------------------------------------------------------------


def test_without_a_service_only_what_steps_say_themselves_is_checked() -> None:
    text = """
steps:
- {id: a, uses: anything, with: {x: 1}}
- {id: b, type: set, depends_on: [a], config: {values: {v: "{{ steps.a.output }}"}}}
"""
    assert check_without_templates(read_definition(text, "yaml"), CATALOGUE) == ([], 1)
    wrong = read_definition("steps: [{id: a, uses: t, with: 1, depends_on: [b], whith: {}}, {type: set}]", "yaml")
    found, uses = check_without_templates(wrong, CATALOGUE)
    assert {problem.path for problem in found} == {
        "steps[0].with", "steps[0].depends_on[0]", "steps[0].whith", "steps[1].id", "steps[1].config.values",
    }  # fmt: skip
    assert uses == 1


# --- a template by itself ------------------------------------------------------------------------------------


def wrong_with(step: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> dict[str, str]:
    return {problem.path: problem.message for problem in check_step_template(template(step, parameters), CATALOGUE)}


def test_a_good_template_is_accepted_with_and_without_a_schema() -> None:
    assert check_step_template(CALL, CATALOGUE) == []
    assert wrong_with(CALL.step) == {}
    inner = {"id": "{{ params.id }}", "type": "set", "timeout": "{{ params.n }}s", "config": "{{ params.config }}"}
    assert wrong_with({"type": "loop", "config": {"items": "{{ params.items }}", "steps": [inner]}}) == {}
    assert (
        wrong_with({"type": "condition", "config": {"expression": "params.n > 1", "then": ["{{ params.then }}"]}}) == {}
    )


@pytest.mark.parametrize(
    ("step", "path", "says"),
    [
        ({"config": {}}, "step.type", "is missing"),
        ({"type": "htp", "config": {}}, "step.type", "did you mean 'http'?"),
        ({"type": "http", "config": {"uri": "x", "url": "y"}}, "step.config.uri", "unknown key"),
        ({"type": "http", "config": {"url": "x"}, "id": "a"}, "step.id", "leave it out"),
        ({"type": "http", "config": {"url": "x"}, "depends_on": ["a"]}, "step.depends_on", "leave it out"),
        ({"uses": "call"}, "step.uses", "cannot use another"),
        (
            {"type": "loop", "config": {"items": [], "steps": [{"id": "a", "uses": "call"}]}},
            "step.config.steps[0].uses",
            "cannot use another",
        ),
        (
            {"type": "set", "config": {"values": {}}, "compensate": {"uses": "call"}},
            "step.compensate.uses",
            "cannot use another",
        ),
        ({"type": "http", "config": {"url": "{{ params.x | no }}"}}, "step.config.url", "there is no filter 'no'"),
        ({"type": "http", "config": {"url": "{{ params.x"}}, "step.config.url", "params.x"),
        ({"type": "http", "config": {"url": "{{ params.x ~ steps.a.output }}"}}, "step.config.url", "no step 'a'"),
        ({"type": "http", "config": {"url": "{{ variables.x }}"}}, "step.config.url", "variables.x"),
        ({"type": "http", "config": {"url": "{{ loop.item }}"}}, "step.config.url", "'loop' is not defined"),
        ({"type": "http", "config": {"url": "x"}, "timeout": "soon"}, "step.timeout", "soon"),
        ({"type": "http", "config": "x"}, "step.config", "must be a mapping"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(step: dict[str, Any], path: str, says: str) -> None:
    found = wrong_with(step)
    assert list(found) == [path]
    assert says in found[path]


@pytest.mark.parametrize(
    ("parameters", "path", "says"),
    [
        ({"properties": {"host": {"type": "sting"}}}, "parameters.properties.host.type", "not a JSON Schema"),
        ({"type": "array"}, "parameters.type", "must be 'object'"),
        ({"properties": {"hots": {}}}, "step.config.url", "there is no parameter 'host'; did you mean 'hots'?"),
        ({}, "step.config.url", "declare it under parameters.properties"),
    ],
)
def test_a_template_declares_its_parameters(parameters: dict[str, Any], path: str, says: str) -> None:
    found = wrong_with({"type": "http", "config": {"url": "{{ params.host }}"}}, parameters)
    assert list(found) == [path]
    assert says in found[path]
