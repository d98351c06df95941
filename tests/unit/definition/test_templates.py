from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.definition import bounds, templates
from orchestrator.definition.templates import compile_expression, compile_value, contains_template
from orchestrator.errors import TemplateError

CONTEXT: dict[str, Any] = {
    "variables": {"x": 1, "text": "abc", "list": [3, 1, 2], "map": {"items": "key", "n": None}, "big": "x" * 500_000},
    "input": {"n": 5, "people": [{"name": "b", "age": 2}, {"name": "a", "age": 1, "home": {"town": "q"}}]},
    "steps": {"a": {"output": {"ok": True, "body": {"k": [1, {"z": 2}]}}}, "my-step": {"output": 3}},
    "secrets": {"token": "s3"},
    "execution": {"id": "e1"},
}


def render(value: Any) -> Any:
    return compile_value(value).render(CONTEXT)


def refused(source: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        render(source)
    return str(caught.value)


# -- types and texts


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ variables.x }}", 1),
        ("  {{ variables.list }}\n", [3, 1, 2]),
        ("{{ steps.a.output.ok }}", True),
        ("{{ variables.map.n }}", None),
        ("{{ input.n > 3 and not false }}", True),
        ("{{ {'a': [input.n, none]} }}", {"a": [5, None]}),
        ("{{ variables['text'] }}", "abc"),
        ("{{ variables.list[0] }}", 3),
        ("{{ variables.list[1:] }}", [1, 2]),
        ("{{ steps['my-step'].output }}", 3),
        ("{{ range(3) }}", [0, 1, 2]),
        ("{{ 7 // 2 + 2 ** 3 - 1 % 2 }}", 10),
        ("{{ 1 < input.n <= 5 }}", True),
        ("{{ 'b' in variables.text }}", True),
        ("{{ 'x' if input.n > 9 else 'y' }}", "y"),
    ],
)
def test_one_whole_expression_keeps_its_type(source: str, value: object) -> None:
    assert render(source) == value
    assert type(render(source)) is type(value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("n={{ input.n }}", "n=5"),
        ("{{ variables.map.n }}|", "|"),
        ("{{ steps.a.output.ok }}!", "true!"),
        ("{{ variables.list }}{{ variables.text }}", "[3, 1, 2]abc"),
        ("{{ steps.a.output.body }}.", '{"k": [1, {"z": 2}]}.'),
        ("{% if input.n > 3 %}big{% elif input.n %}small{% else %}none{% endif %}", "big"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("{#id {{ input.n }} #}", "{#id 5 #}"),
        ("{ {{ input.n }}}", "{ 5}"),
        ("ä{{ 'ö' ~ 1 ~ none ~ true }}\n", "äö1true\n"),
    ],
)
def test_text_around_makes_a_text(source: str, text: str) -> None:
    assert render(source) == text


def test_a_value_without_templates_is_handed_back_itself() -> None:
    value = {"a": [1, {"b": "text"}], "c": "}} {#"}
    compiled = compile_value(value)
    assert compiled.constant
    assert compiled.render({}) is value


def test_lists_and_mappings_are_rendered_item_by_item() -> None:
    value = {"a": ["{{ input.n }}", 2], "{{ key }}": {"b": "{{ variables.text }}!"}, "c": 1}
    assert render(value) == {"a": [5, 2], "{{ key }}": {"b": "abc!"}, "c": 1}


@pytest.mark.parametrize(("text", "is_template"), [("{{ a }}", True), ("{% if a %}", True), ("{a} } {#", False)])
def test_only_braces_make_a_template(text: str, is_template: bool) -> None:
    assert contains_template(text) is is_template


# -- names


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ variables.nope }}", "variables.nope"),
        ("a {{ variables.nope }}", "variables.nope"),
        ("{{ steps.a.output.nope.deeper }}", "steps.a.output.nope"),
        ("{{ steps.a.output.nope.deeper | upper }}", "steps.a.output.nope"),
        ("{{ variables['nope'] + 1 }}", "variables.nope"),
        ("{{ variables.list[9] }}", "variables.list[9]"),
        ("{{ nope }}", "nope"),
        ("{{ [variables.nope] }}", "variables.nope"),
        ("{{ trigger.x }}", "trigger"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_it_and_the_expression(source: str, name: str) -> None:
    message = refused(source)
    assert f"'{name}' is not defined" in message
    assert source in message


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ steps.a.output.nope.deeper | default(1) }}", 1),
        ("{{ variables.nope.upper() | default('d') }}", "d"),
        ("{{ variables.nope is defined }}", False),
        ("{{ variables.x is defined }}", True),
        ("{{ '' | default('d', true) }}", "d"),
        ("{{ [] | first | default(0) }}", 0),
    ],
)
def test_default_and_defined_catch_unknown_names(source: str, value: object) -> None:
    assert render(source) == value


def test_a_key_is_found_before_the_method_of_its_name() -> None:
    assert render("{{ variables.map.items }}") == "key"
    assert render("{{ variables.map.items() }}") == [["items", "key"], ["n", None]]
    assert "is not defined" in refused("{{ variables.text.upper }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ variables.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ variables.text.format(1) }}", "{{ self }}",
        "{{ variables.list.append(1) }}", "{{ variables|attr('x') }}", "{{ cycler('a') }}", "{{ lipsum() }}",
        "{{ variables.map.pop('n') }}", "{{ range.__globals__ }}", "{{ [1]|map('attr', '__class__') }}",
        "{{ variables.map['__class__'] }}", "{{ [1]|map(attribute='__class__') }}", "{{ '%s' % 1 }}",
    ],
)  # fmt: skip
def test_nothing_of_python_can_be_reached(source: str) -> None:
    refused(source)


def test_the_names_an_expression_uses_are_known_without_running_it() -> None:
    compiled = compile_value(["{{ steps.a.output.b[0].c }}", "{{ steps['my-step'] }} {{ input[variables.x] }}"])
    assert compiled.steps == {"a", "my-step"}
    assert compiled.roots == {"steps", "input", "variables"}
    assert compiled.names == {"steps.a.output.b[0].c", "steps.my-step", "input", "variables.x"}


@pytest.mark.parametrize("source", ["{{ steps }}", "{{ steps[input.n] }}", "{{ steps.items() }}", "{{ steps[0] }}"])
def test_a_step_that_is_only_known_at_run_time_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="must name the step"):
        compile_value(source)


# -- language


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ input.people | map(attribute='name') | sort | join(', ') }}", "a, b"),
        ("{{ input.people | selectattr('age', 'gt', 1) | map(attribute='name') }}", ["b"]),
        ("{{ input.people | rejectattr('home', 'defined') | length }}", 1),
        ("{{ input.people | map(attribute='home.town', default='?') }}", ["?", "q"]),
        ("{{ input.people | sort(attribute='age') | map(attribute='name') | first }}", "a"),
        ("{{ input.people | sum(attribute='age') }}", 3),
        ("{{ input.people | max(attribute='age') }}", {"name": "b", "age": 2}),
        ("{{ variables.list | select('odd') }}", [3, 1]),
        ("{{ variables.list | map('string') | join }}", "312"),
        ("{{ [1, [2, 3]] | flatten | reverse }}", [3, 2, 1]),
        ("{{ [2, 2, 1] | unique | min }}", 1),
        ("{{ variables.list | batch(2) | last }}", [2]),
        ("{{ {'a': 1} | combine({'b': 2}) | items }}", [["a", 1], ["b", 2]]),
        ("{{ ' Ab ' | trim | lower | replace('b', 'cc') }}", "acc"),
        ("{{ 'a b c' | truncate(4) }}", "a..."),
        ("{{ 'a,b' | split(',') }}", ["a", "b"]),
        ("{{ 'a b&c' | urlencode }}", "a%20b%26c"),
        ("{{ {'q': 'a/b'} | urlencode }}", "q=a%2Fb"),
        ("{{ 'ü' | b64encode | b64decode }}", "ü"),
        ("{{ {'a': [1, none]} | tojson | fromjson }}", {"a": [1, None]}),
        ("{{ '12' | int + ('1.5' | float) }}", 13.5),
        ("{{ 'x' | int(0) }}", 0),
        ("{{ 2.567 | round(2) }}", 2.57),
        ("{{ 2.1 | round(method='ceil') | int }}", 3),
        ("{{ -3 | abs }}", 3),
        ("{{ 'abc'.startswith('ab') and 'x' not in ['y'] }}", True),
        ("{{ 'a b'.split() }}", ["a", "b"]),
        ("{{ variables.map.get('nope', 4) }}", 4),
        ("{{ 4 is divisibleby 2 and 'a' is string and none is none and [] is empty }}", True),
    ],
)
def test_filters_tests_and_methods_do_what_jinja_documents(source: str, value: object) -> None:
    assert render(source) == value


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("{% for x in [1] %}{% endfor %}", "{% for %} is not supported"),
        ("{% set x = 1 %}", "{% set %} is not supported"),
        ("{% include 'x' %}", "{% include %} is not supported"),
        ("{% macro m() %}{% endmacro %}", "{% macro %} is not supported"),
        ("{{ 1 | uper }}", "did you mean 'upper'?"),
        ("{{ 'a'.uper() }}", "did you mean 'upper'?"),
        ("{{ 1 is nope }}", "no test 'nope'"),
        ("{{ nope() }}", "'nope' cannot be called"),
        ("{{ range(*[1]) }}", "write the arguments out"),
        ("{{ 1 | round(precision=1, precision=2) }}", "given twice"),
        ("{{ 1 + }}", "unexpected"),
        ("{{ 1", "unexpected end"),
        ("{{ 1e999 }}", "too large"),
        ("{{ " + "9" * 2000 + " }}", "4,096 bits"),
        ("{{ " + "1" * 5000 + " }}", "digits"),
        ("{{ " + "not " * 60 + "a }}", "50 levels"),
        ("{{ a" + " + 1" * 60 + " }}", "50 levels"),
        ("{{ " + "a ~ " * 6000 + "a }}", "5,000 parts"),
        ("{{ a }}" + "x" * 70_000, "65,536 characters"),
    ],
)
def test_what_is_not_in_the_language_is_refused_when_it_is_compiled(source: str, hint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_value(source)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "'+' does not work between a text and a number"),
        ("{{ 'a' < 1 }}", "have no order"),
        ("{{ 1 in 2 }}", "nothing can be in a number"),
        ("{{ [1, 'a'] | sort }}", "different types"),
        ("{{ 'x' | int }}", "int(0) would take 0"),
        ("{{ 'x' | fromjson }}", "not JSON"),
        ("{{ '!' | b64decode }}", "not Base64"),
        ("{{ 1 | replace('a') }}", "replace: missing 1 required positional argument: 'new'"),
        ("{{ 1e308 * 10 }}", "not a JSON number"),
        ("{{ (-8) ** 0.5 }}", "no root"),
        ("{{ {1: 2} }}", "keys must be texts"),
        ("{{ '\\u0000' }}", "U+0000"),
        ("{{ '\\ud800' }}", "U+D800"),
        ("{{ 1 if false }}", "no else"),
        ("{{ variables.x.get('a') }}", "a number has no get()"),
    ],
)
def test_what_goes_wrong_is_said_in_the_users_words(source: str, hint: str) -> None:
    assert hint in refused(source)


# -- conditions


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("steps.a.output.ok and input.n > 3", True),
        ("{{ steps.a.output.ok }}", True),
        (" {{ input.n }} ", 5),
        ("'abc' == variables.text", True),
        ("true", True),
        ("{'a': 1}.a", 1),
    ],
)
def test_a_condition_may_be_bare_and_keeps_its_type(source: str, value: object) -> None:
    assert compile_expression(source).render(CONTEXT) == value


@pytest.mark.parametrize("source", ["", "  ", "{{ a }} and {{ b }}", "{% if a %}{% endif %}", "a b", "a >", "x{{ a }}"])
def test_a_condition_is_exactly_one_expression(source: str) -> None:
    with pytest.raises(TemplateError):
        compile_expression(source)


# -- bounds

BIG = "variables.big"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}", "{{ 10**9 * 'a' }}", "{{ [0] * 10**9 }}", "{{ 2 ** 100000 }}", "{{ 9 ** (9 ** 9) }}",
        "{{ range(10**30) }}", "{{ range(10001) }}", f"{{{{ {BIG} * 3 }}}}", f"{{{{ {BIG} ~ {BIG} ~ {BIG} }}}}",
        f"{{{{ {BIG} + {BIG} + {BIG} }}}}", f"{{{{ {BIG} | replace('x', 'yyy') }}}}", f"{{{{ {BIG} | urlencode }}}}",
        f"{{{{ {BIG} }}}}{{{{ {BIG} }}}}{{{{ {BIG} }}}}", f"{{{{ [{BIG}, {BIG}, {BIG}] }}}}",
        f"{{{{ [{BIG}, {BIG}, {BIG}] | join }}}}", f"{{{{ ({BIG} | list) | join({BIG}) }}}}",
    ],
)  # fmt: skip
def test_what_would_grow_too_large_is_refused_before_it_is_made(source: str) -> None:
    render_time(source)  # compiles it
    assert render_time(source) < 0.1


@pytest.mark.parametrize(
    "source",
    [
        "{{ [[[[0] * 1000] * 1000] * 1000] * 1000 }}", "{{ ([[[[0] * 1000] * 1000] * 1000] * 1000) | tojson }}",
        f"{{{{ ([{BIG}] * 100000) == ([{BIG}] * 100000) }}}}", f"{{{{ ([{BIG}] * 100000) | unique }}}}",
        f"{{{{ ([{BIG} + 'a', {BIG} + 'b'] * 10000) | sort }}}}",
        f"{{{{ ({BIG} + 'a') in ([{BIG} + 'b'] * 100000) }}}}",
        f"{{{{ ([0] * 100000) | map('replace', '0', {BIG}) }}}}", "{{ ([0] * 1000000) | map('string') | length }}",
        f"{{{{ ({BIG} + {BIG}) | list | map('upper') | join }}}}", "{{ [1] | map(attribute='a.' * 100000) }}",
        "{{ [" + "range(10000), " * 1200 + "] }}", "{{ [" + f"'y' in {BIG}, " * 900 + "] }}",
    ],
)  # fmt: skip
def test_what_would_take_too_long_is_stopped(source: str) -> None:
    assert render_time(source) < 2


def render_time(source: str) -> float:
    """Seconds of this thread's own, so that a busy machine makes no difference."""
    started = time.thread_time()
    refused(source)
    return time.thread_time() - started


def test_a_rendered_value_of_a_megabyte_passes() -> None:
    assert len(render(f"{{{{ [{BIG}, {BIG}] }}}}")[1]) == 500_000


# -- properties

leaves = st.sampled_from(
    ["1", "0", "2.5", "'a'", "''", "none", "true", "[]", "{}", "[1, 'b']", "{'k': 1}", "variables.x", "variables.text",
     "variables.list", "input.people", "variables.nope", "steps.a.output", BIG, "10**9", "range(9999)"]
)  # fmt: skip
operators = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"])
filters = st.sampled_from(sorted(templates._environment.filters))
arguments = st.sampled_from(
    ["", "(1)", "('a')", "('a', 'bb')", f"({BIG})", "(attribute='name')", "('upper')", "(3, 4)"]
)


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})")
        | st.tuples(inner, filters, arguments).map(lambda parts: f"({parts[0]} | {parts[1]}{parts[2]})")
        | inner.map(lambda part: f"[{part}, {part}]")
        | inner.map(lambda part: f"({part}).upper()")
        | st.tuples(inner, inner).map(lambda parts: f"({parts[0]})[{parts[1]}]")
    )


@given(st.recursive(leaves, combined, max_leaves=8), st.booleans())
@settings(max_examples=300)
def test_no_expression_leaves_its_bounds_or_the_json_types(expression: str, alone: bool) -> None:
    source = f"{{{{ {expression} }}}}" + ("" if alone else "!")
    try:
        value = render(source)
    except TemplateError:
        return
    assert len(json.dumps(value, ensure_ascii=False, allow_nan=False)) < 2 * bounds.MAX_RENDERED
    assert json.loads(json.dumps(value)) == value


@given(st.text(max_size=100) | st.text(alphabet="{}%|.()[]'\"ab1 +-*~,=#", max_size=40).map(lambda text: "{{" + text))
@settings(max_examples=300)
def test_no_text_raises_anything_but_a_template_error(text: str) -> None:
    for compile_it in (compile_value, compile_expression):
        with suppress(TemplateError):
            compile_it(text).render(CONTEXT)


pieces = st.sampled_from(
    ["{{variables.x}}", "{{ steps.a.output.ok }}", "{{\tinput.n\n}}", "{", "}", "a", "%", " ", "{{ input }}"]
)


@given(st.lists(pieces, max_size=6).map("".join))
def test_the_short_way_for_plain_names_gives_what_jinja_gives(source: str) -> None:
    if not contains_template(source) or templates._names_only(source) is None:
        return
    slow = templates._evaluate(
        source, templates._parsed(source), CONTEXT, bounds.work_budget(), bounds.rendered_budget()
    )
    assert render(source) == slow
