from __future__ import annotations

import pytest

from orchestrator.definition.durations import parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604800), ("1h30m", 5400), (90, 90), (0.5, 0.5)],
)
def test_durations_are_seconds(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize("written", ["", "5", "x", "5 m", "-5s", "5s!", -1, float("inf"), True, None, []])
def test_what_is_no_duration_is_refused_with_a_sentence(written: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(written)


@pytest.mark.parametrize(("written", "size"), [("64KB", 65536), ("1GB", 2**30), ("1.5 mb", 1572864), (10, 10)])
def test_sizes_are_bytes(written: object, size: int) -> None:
    assert parse_size(written) == size
