"""What is taken out of what people read."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.masking import Masker


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"password": "x1"}, {"password": "***"}),
        ({"apiKey": "x1", "API-KEY": "x2", "db_passwd": "x3"}, {"apiKey": "***", "API-KEY": "***", "db_passwd": "***"}),
        ({"headers": {"authorization": "Basic x"}}, {"headers": {"authorization": "***"}}),
        ({"tokens": ["a", {"b": "c"}]}, {"tokens": ["***", {"b": "***"}]}),
        ({"token": "Bearer {{ secrets.t }}"}, {"token": "Bearer {{ secrets.t }}"}),
        ({"token": "hush{{ input.x }}"}, {"token": "***"}),
        ({"max_tokens": 500, "secret": None, "cookie": ""}, {"max_tokens": 500, "secret": None, "cookie": ""}),
        ("postgresql://app:hush@db/x", "postgresql://app:***@db/x"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        (["the-known-one, in a text", 7, None], ["***, in a text", 7, None]),
        ({"name": "plain", "pin": "1234"}, {"name": "plain", "pin": "***"}),
    ],
)
def test_secrets_are_masked_and_nothing_else(value: Any, shown: Any) -> None:
    assert Masker(["the-known-one", "abc"], names=["pin"])(value) == shown


def test_a_short_secret_does_not_make_stars_of_every_text() -> None:
    assert Masker(["a"])("a banana") == "a banana"


def test_of_two_secrets_the_longer_leaves_nothing_of_itself() -> None:
    assert Masker(["abcd", "abcd-efgh"])("is abcd-efgh") == "is ***"
