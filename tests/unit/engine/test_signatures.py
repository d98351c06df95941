"""Who is believed to have sent a message: Standard Webhooks, and signatures of the body as GitHub makes them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks

from orchestrator.engine.signatures import Unsigned, signing_key, verify

BODY = b'{"amount": 120, "items": ["a"]}'
STANDARD = {"secret": "whsec_" + base64.b64encode(b"k" * 24).decode(), "scheme": "standard"}
GITHUB = {
    "secret": "it's a secret",
    "scheme": "hmac",
    "signature_header": "X-Hub-Signature-256",
    "signature_prefix": "sha256=",
}


def signed(body: bytes = BODY, at: datetime | None = None, secret: str = STANDARD["secret"]) -> dict[str, str]:
    at = at or datetime.now(UTC)
    signature = standardwebhooks.Webhook(signing_key(secret)).sign("msg_1", at, body.decode())
    return {"webhook-id": "msg_1", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}


def hubbed(body: bytes = BODY, prefix: str = "sha256=") -> dict[str, str]:
    digest = hmac.new(GITHUB["secret"].encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": prefix + digest}


def test_a_message_signed_after_standard_webhooks_is_good() -> None:
    verify(STANDARD, signed(), BODY)


def test_a_secret_that_is_plain_text_signs_as_its_bytes() -> None:
    verify({**STANDARD, "secret": "plain words"}, signed(secret="plain words"), BODY)


def test_one_good_signature_among_others_is_enough_while_a_secret_is_changed() -> None:
    headers = signed()
    headers["webhook-signature"] = f"v1,{base64.b64encode(b'x' * 32).decode()} {headers['webhook-signature']}"
    verify(STANDARD, headers, BODY)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_message_from_another_time_is_not_taken(minutes: int) -> None:
    headers = signed(at=datetime.now(UTC) + timedelta(minutes=minutes))
    with pytest.raises(Unsigned, match="timestamp too"):
        verify(STANDARD, headers, BODY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"webhook-signature": ""},
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "no comma"},
        {"webhook-signature": "v1,%%%"},
        {"webhook-signature": "v1,ä"},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "1e400"},
        {"webhook-id": "msg_2"},
    ],
)
def test_a_standard_message_with_anything_wrong_is_not_taken(wrong: dict[str, str]) -> None:
    with pytest.raises(Unsigned) as caught:
        verify(STANDARD, signed() | wrong, BODY)
    assert STANDARD["secret"] not in str(caught.value)


@pytest.mark.parametrize("body", [BODY + b" ", b"\xff\xfe"])
def test_a_standard_message_whose_body_was_changed_is_not_taken(body: bytes) -> None:
    with pytest.raises(Unsigned):
        verify(STANDARD, signed(), body)


def test_a_message_signed_as_github_does_is_good_in_either_case_and_over_the_raw_bytes() -> None:
    body = b"\xff\xfe not a text"
    headers = hubbed(body)
    verify(GITHUB, headers, body)
    verify(GITHUB, {"x-hub-signature-256": "sha256=" + headers["x-hub-signature-256"][7:].upper()}, body)
    verify({**GITHUB, "signature_prefix": ""}, hubbed(body, prefix=""), body)


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-hub-signature-256": ""}, hubbed(b"another"), hubbed(prefix=""), {"x-hub-signature-256": "sha256=ä"}],
)
def test_a_github_message_with_anything_wrong_is_not_taken(headers: dict[str, str]) -> None:
    with pytest.raises(Unsigned, match="X-Hub-Signature-256") as caught:
        verify(GITHUB, headers, BODY)
    assert GITHUB["secret"] not in str(caught.value)


def test_without_a_secret_everybody_is_believed() -> None:
    verify({}, {}, BODY)
