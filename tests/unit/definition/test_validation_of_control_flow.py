"""What a definition may say of bodies, endings, rules and undoing, and what is said about mistakes in them."""

from __future__ import annotations

import pytest

from orchestrator.definition import load_definition, read_definition
from orchestrator.errors import DefinitionError
from orchestrator.plugins import load_catalogue

# ruff: noqa: E501  (a definition to a line reads best)

CATALOGUE = load_catalogue("")


def problems(text: str) -> list[tuple[str, str]]:
    """(path, message) of each problem in a YAML document."""
    try:
        load_definition(read_definition(text, "yaml"), CATALOGUE)
    except DefinitionError as error:
        return [(problem.path, problem.message) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "text",
    [
        "steps: [{id: each, type: loop, config: {items: [1], steps: [{id: a, type: set, config: {values: {x: '{{ loop.item }}'}}}]}}]",
        "steps: [{id: each, type: loop, config: {while: 'loop.last is none or steps.a.output.x', steps: [{id: a, type: set, config: {values: {x: 1}}}]}}]",
        "steps: [{id: f, type: parallel, config: {branches: {l: [{id: a, type: set, config: {values: {}}}]}}}]",
        "steps: [{id: a, type: set, config: {values: {}}, output_mapping: {x: '{{ output.y }}'}}, "
        "{id: b, type: set, depends_on: a, when: variables.x > 1, config: {values: {}}}]",
        "steps: [{id: a, type: set, config: {values: {}}, compensate: {type: set, config: {values: {x: '{{ steps.a.output }}'}}}}]",
        "steps: [{id: a, type: set, config: {values: {}}}]\nfinally: [{id: b, type: set, config: {values: {x: '{{ steps.a.status }}'}}}]",
        "steps: [{id: a, type: set, config: {values: {}}, cache: {key: '{{ input.k }}', ttl: 1h}}]",
        "steps: [{id: a, type: set, config: {values: {}}, priority: 9, queue: gpu}]",
        "inputs: {type: object, required: [n]}\nsteps: [{id: a, type: set, config: {values: {}}}]",
    ],
)  # fmt: skip
def test_it_may_say_so(text: str):
    assert problems(text) == []


SET = "type: set, config: {values: {}}"


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("steps: [{id: e, type: loop, config: {items: [1], steps: []}}]", "steps[0].config.steps", "has no steps"),
        ("steps: [{id: e, type: loop, config: {items: [1]}}]", "steps[0].config.steps", "is missing"),
        (f"steps: [{{id: e, type: loop, config: {{steps: [{{id: a, {SET}}}]}}}}]", "steps[0].config.items", "`while`"),
        (f"steps: [{{id: e, type: loop, config: {{items: [1], while: 'true', steps: [{{id: a, {SET}}}]}}}}]",
         "steps[0].config.while", "not both"),
        ("steps: [{id: e, type: loop, config: {items: [1], steps: [{id: a, type: sett}]}}]",
         "steps[0].config.steps[0].type", "did you mean 'set'"),
        (f"steps: [{{id: e, type: loop, config: {{items: [1], steps: [{{id: a, {SET}, dependson: b}}]}}}}]",
         "steps[0].config.steps[0].dependson", "did you mean 'depends_on'"),
        (f"steps: [{{id: a, {SET}}}, {{id: e, type: loop, config: {{items: [1], steps: [{{id: a, {SET}}}]}}}}]",
         "steps[1].config.steps[0].id", "taken by steps[0]"),
        (f"steps: [{{id: a, {SET}}}, {{id: e, type: loop, config: {{items: [1], steps: [{{id: b, {SET}, depends_on: a}}]}}}}]",
         "steps[1].config.steps[0].depends_on", "another list of steps"),
        (f"steps: [{{id: e, type: loop, config: {{items: [1], steps: [{{id: b, {SET}}}]}}}}, "
         "{id: z, type: set, depends_on: e, config: {values: {x: '{{ steps.b.output }}'}}}]",
         "steps[1].config.values.x", "stands inside 'e'"),
        ("steps: [{id: e, type: loop, config: {items: [1], steps: [{id: b, type: set, config: {values: {x: '{{ steps.z.output }}'}}}]}}, "
         f"{{id: z, {SET}}}]",
         "steps[0].config.steps[0].config.values.x", "need not be done"),
        ("steps: [{id: a, type: set, config: {values: {x: '{{ loop.item }}'}}}]", "steps[0].config.values.x", "'loop' is not defined"),
        (f"steps: [{{id: f, type: parallel, config: {{branches: {{'a b': [{{id: a, {SET}}}]}}}}}}]",
         'steps[0].config.branches["a b"]', "is no name"),
        (f"steps: [{{id: finally, {SET}}}]", "steps[0].id", "word of the language"),
        (f"steps: [{{id: a, {SET}, trigger_rule: all_failed}}]", "steps[0].trigger_rule", "all_done"),
        (f"steps: [{{id: a, {SET}, when: 'steps.q.output'}}]", "steps[0].when", "no step 'q'"),
        (f"steps: [{{id: a, {SET}, when: 'x ='}}]", "steps[0].when", "x ="),
        (f"steps: [{{id: a, {SET}, output_mapping: {{'a-b': 1}}}}]", 'steps[0].output_mapping.a-b', "letters, digits"),
        (f"steps: [{{id: a, {SET}, cache: {{key: x}}}}]", "steps[0].cache.ttl", "is missing"),
        (f"steps: [{{id: a, {SET}, priority: 11}}]", "steps[0].priority", "0 to 9"),
        (f"steps: [{{id: a, {SET}, queue: 'a b'}}]", "steps[0].queue", "is not a queue"),
        (f"steps: [{{id: a, {SET}, compensate: {{type: sett}}}}]", "steps[0].compensate.type", "did you mean 'set'"),
        (f"steps: [{{id: a, {SET}, compensate: {{type: loop, config: {{items: [1], steps: [{{id: b, {SET}}}]}}}}}}]",
         "steps[0].compensate.type", "start a workflow"),
        (f"inputs: {{type: objekt}}\nsteps: [{{id: a, {SET}}}]", "inputs", "not a JSON Schema"),
        (f"steps: [{{id: a, {SET}}}]\nfinally: [{{id: a, {SET}}}]", "finally[0].id", "taken by steps[0]"),
        (f"steps: [{{id: a, {SET}}}, {{id: c, type: condition, config: {{expression: 'true', then: b}}}}, "
         f"{{id: b, {SET}, depends_on: [a, c], trigger_rule: one_success}}]", "steps[1].config.then", "need not wait"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text: str, path: str, hint: str):
    found = problems(text)
    assert [where for where, _ in found] == [path]
    assert hint in found[0][1]


def test_a_key_that_nobody_knows_is_told_even_if_a_template_stands_there():
    text = "steps: [{id: a, type: http, config: {url: 'http://x/', urll: '{{ input.x }}'}}]"
    ((path, message),) = problems(text)
    assert path == "steps[0].config.urll"
    assert message == "unknown key; did you mean 'url'?"


def test_mistakes_in_several_bodies_are_told_at_once():
    text = """
steps:
  - id: e
    type: loop
    config:
      items: [1]
      on_item_error: maybe
      steps:
        - {id: a, type: nonsense}
        - {id: b, type: set, config: {values: {x: "{{ loop.item"}}}
finally:
  - {id: c, type: set}
"""
    assert [path for path, _ in problems(text)] == [
        "steps[0].config.on_item_error",
        "steps[0].config.steps[0].type",
        "steps[0].config.steps[1].config.values.x",
        "finally[0].config.values",
    ]


def test_bodies_nest_only_so_deep():
    text = "{id: x0, type: set, config: {values: {}}}"
    for depth in range(1, 12):
        text = f"{{id: x{depth}, type: loop, config: {{items: [1], steps: [{text}]}}}}"
    assert any("nested deeper than 8 levels" in message for _, message in problems(f"steps: [{text}]"))
