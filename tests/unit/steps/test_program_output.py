"""Log lines and last lines of streams, however they are cut into chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.steps.program_output import LastLine, LogBudget, LogLines


def logged(*chunks: bytes, limit: int = 10**6) -> list[str]:
    lines: list[str] = []
    stream = LogLines(lines.append, LogBudget(limit, lambda: lines.append("dropped")))
    for chunk in chunks:
        stream.feed(chunk)
    stream.end()
    return lines


def last(*chunks: bytes, limit: int = 10**6) -> bytes:
    line = LastLine(limit)
    for chunk in chunks:
        line.feed(chunk)
    return line.value()


def test_lines_do_not_depend_on_where_the_chunks_end() -> None:
    assert logged(b"a\nb", b"c\n", b"\nd") == ["a", "bc", "", "d"]


def test_what_is_not_text_is_replaced() -> None:
    assert logged(b"a\xff\0b\r\n") == ["a\ufffd\ufffdb"]


def test_a_long_line_is_logged_in_pieces_that_cut_no_character() -> None:
    text = "数" * 10_000
    lines = logged(text.encode() + b"\n", text.encode())
    assert "".join(lines) == text * 2
    assert max(len(line.encode()) for line in lines) <= 8192


def test_past_the_limit_one_line_says_that_the_rest_is_dropped() -> None:
    assert logged(b"one\ntwo\nthree\n", b"four\n", limit=8) == ["one", "two", "dropped"]


def test_the_tail_is_kept_past_the_limit() -> None:
    stream = LogLines(lambda line: None, LogBudget(0, lambda: None))
    stream.feed(b"x\n" * 50_000)
    stream.feed(b"the end\n\n")
    assert stream.last_line() == "the end"


@given(
    st.lists(st.sampled_from([b"a", b"\n", b" ", b"bc", b"\r\n", b"\n\n", b"d\ne"]), max_size=12),
    st.integers(1, 5),
)
def test_the_last_line_is_the_last_one_that_is_not_blank(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    lines = [line.strip() for line in data.split(b"\n") if line.strip()]
    assert last(*chunks) == (lines[-1] if lines else b"")


@pytest.mark.parametrize("chunks", [[b"x" * 50], [b"x" * 30, b"x" * 30], [b"x" * 50, b"\n"]])
def test_a_last_line_over_the_limit_is_cut_one_byte_past_it(chunks: list[bytes]) -> None:
    assert last(*chunks, limit=10) == b"x" * 11
