"""What a webhook makes of a message: what the body holds, and the input of the execution."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine.webhooks import (
    Delivery,
    content,
    delivery_id,
    execution_input,
    payload,
    route,
)
from orchestrator.errors import TemplateError

BODY = b'{"amount": 120, "items": ["a"]}'
GITHUB = {
    "secret": "it's a secret",
    "scheme": "hmac",
    "signature_header": "X-Hub-Signature-256",
    "signature_prefix": "sha256=",
}


def delivery(body: bytes = BODY, headers: dict[str, str] | None = None, **more: Any) -> Delivery:
    return Delivery(**{"method": "POST", "path": "orders", "headers": headers or {}, "query": {}, "body": body, **more})


def test_a_path_is_the_same_with_or_without_what_begins_every_webhook_address() -> None:
    assert {route(path) for path in ("/webhook/a/b", "webhook/a/b", "/a/b", "a/b", "/webhook/a/b/")} == {"a/b"}
    assert route("/webhook/数据") == "数据"


@pytest.mark.parametrize("path", ["", "/", "/webhook/", "a//b", "a/../b", ".", "a b", "a?b=1", "a%20b", "a\0b", "a\n"])
def test_what_could_never_be_asked_for_is_no_path(path: str) -> None:
    assert route(path) is None


# --- what it says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (BODY, "application/json; charset=utf-8", {"amount": 120, "items": ["a"]}),
        (BODY, "", {"amount": 120, "items": ["a"]}),
        (b"[1]", "application/vnd.github+json", [1]),
        (b"a=1&b=2&b=3&c=", "application/x-www-form-urlencoded", {"a": "1", "b": ["2", "3"], "c": ""}),
        ("Grüße".encode("latin-1"), "text/plain; charset=latin-1", "Grüße"),
        ("Grüße".encode(), "text/plain; charset=nonsense", "Grüße"),
        (b"\xff\x00", "application/octet-stream", "/wA="),
        (b"", "application/json", None),
    ],
)
def test_a_body_is_what_its_content_type_says(body: bytes, content_type: str, expected: Any) -> None:
    assert content(delivery(body, {"content-type": content_type})) == expected


@pytest.mark.parametrize("content_type", ["application/json", "application/x+json", ""])
def test_a_body_that_is_said_to_be_json_must_be(content_type: str) -> None:
    with pytest.raises(ValueError, match="the body is not JSON"):
        content(delivery(b"{'a': 1}", {"content-type": content_type}))


def test_a_delivery_is_known_by_the_first_header_that_has_an_id() -> None:
    headers = {"idempotency-key": "k", "x-github-delivery": "g", "webhook-id": "w", "x-own": "o"}
    assert delivery_id({}, delivery(headers=headers)) == "w"
    assert delivery_id({"delivery_header": "X-Own"}, delivery(headers=headers)) == "o"
    assert delivery_id({"delivery_header": "X-Other"}, delivery(headers=headers)) is None
    assert delivery_id({}, delivery()) is None
    with pytest.raises(ValueError, match="256 characters"):
        delivery_id({}, delivery(headers={"webhook-id": "x" * 256}))


def test_what_proves_the_sender_is_not_kept() -> None:
    headers = {
        "authorization": "Bearer t", "cookie": "c", "x-hub-signature-256": "s", "webhook-signature": "s", "x-b": "1",
    }  # fmt: skip
    kept = payload(GITHUB, delivery(headers=headers, query={"q": "2"}), {"a": 1})
    assert kept == {
        "method": "POST", "path": "orders", "query": {"q": "2"}, "headers": {"x-b": "1"}, "body": {"a": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"), [({"a": 1}, {"a": 1}), ([1], {"body": [1]}), ("text", {"body": "text"}), (None, {"q": "2"})]
)
def test_without_a_mapping_the_input_is_the_body(body: Any, expected: Any) -> None:
    assert execution_input({}, payload({}, delivery(query={"q": "2"}), body)) == expected


def test_a_mapping_takes_from_everywhere_and_keeps_types() -> None:
    mapping = {
        "amount": "{{ body.amount * 2 }}",
        "event": "{{ headers['x-github-event'] }}",
        "text": "{{ method }} {{ path }}?q={{ query.q }}",
        "fixed": [1, None],
    }
    given = payload({}, delivery(headers={"x-github-event": "push"}, query={"q": "2"}), {"amount": 3})
    assert execution_input({"mapping": mapping}, given) == {
        "amount": 6, "event": "push", "text": "POST orders?q=2", "fixed": [1, None],
    }  # fmt: skip


def test_a_mapping_of_what_is_not_there_says_which_expression() -> None:
    with pytest.raises(TemplateError, match=r"body\.amount"):
        execution_input({"mapping": {"a": "{{ body.amount }}"}}, payload({}, delivery(), {}))
