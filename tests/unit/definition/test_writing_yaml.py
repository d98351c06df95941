"""What is written as YAML is read as what it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.definition import read_definition
from orchestrator.definition.writing_yaml import write_yaml

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30) | st.sampled_from(
    ["yes", "No", "null", "~", "", "1", "1e3", "0x10", "0o7", ".5", "12:30", "2030-01-01", "<<", "=", "- a", "a: b",
     "a #b", "'", '"', "\n", "a\n", "a\n\n", " a\nb", "a\n b\n", "\ta\nb", "a \nb", "---", "...", "%x", "*a", "&a",
     "!a", "@a", "`a",
     "\u2028", "\x85a", "a\r\nb", "\ufeffa", "{{ input.x }}", "x" * 300, "word " * 60]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


def typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return type(value), value


@given(_JSON)
def test_it_is_read_as_what_it_was(value: Any):
    written = write_yaml({"value": value})
    assert typed(read_definition(written, "yaml").data) == typed({"value": value})


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"name": "数据处理", "on": "no"}, 'name: 数据处理\n"on": "no"\n'),
        ({"steps": [{"id": "a"}, {"id": "b"}]}, "steps:\n  - id: a\n  - id: b\n"),
        ({"script": "import sys\nprint(1)\n"}, "script: |\n  import sys\n  print(1)\n"),
        ({"cron": "0 2 * * *", "count": 5}, 'cron: "0 2 * * *"\ncount: 5\n'),
    ],
)
def test_it_is_pleasant_to_read(value: Any, written: str):
    assert write_yaml(value) == written
