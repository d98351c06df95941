from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.definition import Document, read_definition
from orchestrator.definition.document import MAX_DEPTH
from orchestrator.definition.paths import join_all, split
from orchestrator.errors import DefinitionError, Problem


def refused(text: str | bytes, media: Any = "yaml") -> tuple[Problem, ...]:
    with pytest.raises(DefinitionError) as caught:
        read_definition(text, media)
    return caught.value.problems


# -- scalars


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True), ("False", False), ("on", "on"), ("yes", "yes"), ("n", "n"), ("~", None), ("", None),
        ("null", None), ("12", 12), ("+12", 12), ("007", 7), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"),
        ("12:30", "12:30"), ("190:20:30", "190:20:30"), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0),
        ("2020-01-01", "2020-01-01"), ("2001-12-14t21:59:43Z", "2001-12-14t21:59:43Z"), ("'12'", "12"),
        ("!!str 12", "12"), ("!!float 1", 1.0), ("=", "="),
    ],
)  # fmt: skip
def test_yaml_scalars_follow_the_core_schema_of_yaml_1_2(written: str, value: object) -> None:
    read = read_definition(f"key: {written}", "yaml").data["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("written", [".nan", ".inf", "-.INF", "1e999", "18446744073709551616", "1" * 5000])
def test_numbers_that_json_cannot_carry_are_refused_in_yaml(written: str) -> None:
    (problem,) = refused(f"a: 1\nb: {written}")
    assert (problem.path, problem.line) == ("b", 2)
    assert "quotes" in problem.message


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", "18446744073709551616", "1" * 5000])
def test_numbers_that_json_cannot_carry_are_refused_in_json(written: str) -> None:
    assert "quotes" in refused(f'{{"a": {written}}}', "json")[0].message


# -- structure


def test_a_key_written_twice_is_refused_with_both_lines() -> None:
    first, second = refused("a: 1\na: 2\nb:\n  c: 1\n  c: 2")
    assert (first.path, first.line) == ("a", 2)
    assert (second.path, second.line) == ("b.c", 5)
    assert "line 4" in second.message


def test_a_key_written_twice_is_refused_in_json_too() -> None:
    (problem,) = refused('{"a": [{"b": 1, "b": 2}]}', "json")
    assert problem.path == "a[0].b"


def test_keys_must_be_texts() -> None:
    assert [problem.line for problem in refused("1: a\ntrue: b\n~: c")] == [1, 2, 3]
    assert "cannot be a key" in refused("? [a]\n: b")[0].message


@pytest.mark.parametrize("tag", ["!thing", "!!python/object:os.system", "!!binary", "!!timestamp", "!!set"])
def test_tags_are_refused(tag: str) -> None:
    (problem,) = refused(f"a:\n  b: {tag} x")
    assert (problem.path, problem.line) == ("a.b", 2)
    assert "tag" in problem.message


def test_aliases_and_merge_keys_are_written_out() -> None:
    data = read_definition("base: &b {x: 1, y: 2}\none: *b\ntwo: {<<: *b, y: 3}\nthree: {<<: [*b, {z: 4}]}").data
    assert data["one"] == {"x": 1, "y": 2}
    assert data["two"] == {"x": 1, "y": 3}
    assert data["three"] == {"x": 1, "y": 2, "z": 4}


def test_a_merge_key_in_quotes_is_a_key_like_any_other() -> None:
    assert read_definition('a: {"<<": [], b: 1}').data == {"a": {"<<": [], "b": 1}}


def test_an_alias_inside_what_it_stands_for_is_refused() -> None:
    assert "inside" in refused("a: &a [1, *a]")[0].message


def test_a_billion_laughs_are_refused_before_they_are_told() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "500,000" in refused("\n".join(["a0: &a0 [x, x, x]", *levels]))[0].message


def test_long_texts_repeated_by_alias_are_refused() -> None:
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 400) + "]"
    assert "characters" in refused(text)[0].message


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000])
def test_depth_is_bounded_in_yaml(text: str) -> None:
    assert f"{MAX_DEPTH} levels" in refused(text)[0].message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 65 + "]" * 65])
def test_depth_is_bounded_in_json(text: str) -> None:
    assert f"{MAX_DEPTH} levels" in refused(text, "json")[0].message


def test_depth_counts_through_aliases() -> None:
    text = "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40
    assert f"{MAX_DEPTH} levels" in refused(text)[0].message


def test_the_greatest_depth_is_read_in_both() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_definition(text, "json").data == read_definition(text, "yaml").data


def test_a_second_document_is_refused() -> None:
    assert refused("a: 1\n---\nb: 2")[0].line == 2


# -- text


def test_bytes_that_are_not_utf_8_are_refused_with_the_place() -> None:
    (problem,) = refused(b"a: 1\nb: \xff")
    assert problem.line == 2
    assert "0xff" in problem.message


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert read_definition(b"\xef\xbb\xbfa: 1", "yaml").data == {"a": 1}


@pytest.mark.parametrize(("text", "media"), [("a: [1\nb: 2", "yaml"), ('{"a": 1,\n "b" 2}', "json")])
def test_a_syntax_error_says_where(text: str, media: Any) -> None:
    (problem,) = refused(text, media)
    assert problem.line == 2
    assert "column" in problem.message


@pytest.mark.parametrize("text", ['{"a": [1, 2]}', "{a: [1, 2]}", "a: [1, 2]", " a:\n - 1\n - 2"])
def test_the_media_can_be_told_from_the_text(text: str) -> None:
    assert read_definition(text).data == {"a": [1, 2]}


def test_lines_are_known_by_path_and_fall_back_to_the_parent() -> None:
    document = read_definition("steps:\n  - id: a\n    config:\n      url: x\n      a.b: {c: 1}\n  - id: b\n", "yaml")
    assert document.line_of("steps[0].config.url") == 4
    assert document.line_of('steps[0].config["a.b"].c') == 5
    assert document.line_of("steps[0].config.nope.deeper") == 3
    assert document.line_of("steps[1]") == 6
    assert document.line_of("nope") == 1
    assert Document({}).line_of("steps") is None


# -- properties

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(values)
def test_what_was_written_as_json_is_read_back(value: Any) -> None:
    assert read_definition(json.dumps(value), "json").data == value


@given(values)
def test_what_was_written_as_yaml_is_read_back(value: Any) -> None:
    # In quotes, with tags: what PyYAML leaves plain, it leaves plain by YAML 1.1.
    text = yaml.dump(value, Dumper=yaml.SafeDumper, default_style='"')
    assert read_definition(text, "yaml").data == value


@given(
    st.text(max_size=200) | st.text(alphabet="{}[]:-&*!|>'\"\n ,?#ab1.<", max_size=60),
    st.sampled_from(["yaml", "json", None]),
)
def test_no_text_raises_anything_but_a_definition_error(text: str, media: Any) -> None:
    with suppress(DefinitionError):
        read_definition(text, media)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_definition_error(data: bytes) -> None:
    with suppress(DefinitionError):
        read_definition(data)


@given(st.lists(st.integers(0, 99) | st.text(max_size=8), max_size=6))
def test_paths_can_be_split_again(keys: list[Any]) -> None:
    assert split(join_all(keys)) == keys
