"""Quantiles from histograms."""

from __future__ import annotations

import random

import pytest

from orchestrator.store.stats import PER_OCTAVE, buckets, quantile, upper_bound


def bucket_of(seconds: float) -> int:
    return next(bucket for bucket in range(120) if seconds < upper_bound(bucket))


def histogram(times: list[float]) -> list[int]:
    buckets = [0] * 120
    for seconds in times:
        buckets[bucket_of(seconds)] += 1
    return buckets


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("scale", [0.005, 1.0, 900.0])
def test_a_quantile_is_right_to_within_a_tenth(share: float, scale: float):
    chance = random.Random(7)
    times = sorted(scale * chance.lognormvariate(0, 1) for _ in range(10_000))
    exact = times[int(share * len(times))]
    assert quantile(histogram(times), share) == pytest.approx(exact, rel=0.1)


def test_histograms_are_added_as_numbers():
    one, other = 2 + 5 * 10**24, 7 * 10**24 + 10**1428
    assert buckets(one + other) == [2, 0, 12, *[0] * 116, 1]
    assert buckets(0) == []


def test_what_is_taken_back_from_a_bucket_takes_nothing_from_the_next():
    assert buckets(3 * 10**12 - 1) == [-1, 3]
    assert buckets(-(10**24)) == [0, 0, -1]


def test_nothing_has_no_quantiles():
    assert quantile([], 0.5) is None
    assert quantile([0] * 120, 0.5) is None


def test_four_buckets_make_twice_the_time():
    assert upper_bound(8 + PER_OCTAVE) == 2 * upper_bound(8)
