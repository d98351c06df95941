"""What texts are found by, and what asks for it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.store.search import question, terms


def test_words_are_found_in_any_case_and_writing():
    assert terms(["Daily REPORT: Ünïcode_x", "daily", "ｆｕｌｌ"]) == ["daily", "report", "ünïcode", "x", "full"]


def test_a_path_and_an_address_are_the_words_in_them():
    assert terms(["/data/process.py a@b.example"]) == ["data", "process", "py", "a", "b", "example"]


def test_what_has_no_spaces_is_found_by_its_pairs():
    assert terms(["数据处理v2"]) == ["数据", "据处", "处理", "理", "v2"]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("rep", "'rep':*"),
        ("Daily rep", "'daily':* & 'rep':*"),
        ("数据处理", "'数据' & '据处' & '处理'"),
        ("数", "'数':*"),
        ("数据 v2", "'数据' & 'v2':*"),
        ("'; -- & | ! () :*", None),
        ("", None),
    ],
)
def test_a_question_asks_for_all_of_its_words(text: str, asked: str | None):
    assert question(text) == asked


@given(st.text())
def test_no_text_makes_a_question_that_postgresql_would_not_read(text: str):
    assert re.fullmatch(r"'[^'\\\s\0]+'(:\*)?( & '[^'\\\s\0]+'(:\*)?)*", question(text) or "'x'")


@given(st.text())
def test_every_text_is_found_by_itself(text: str):
    found = terms([text])
    for asked in re.findall(r"'([^']+)'(:\*)?", question(text) or ""):
        word, is_prefix = asked
        assert any(term.startswith(word) if is_prefix else term == word for term in found)
