"""Whether a message is from who knows the secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import standardwebhooks

_ENCODED_SECRET = "whsec_"  # noqa: S105  (the prefix that says so, not a secret)


class Unsigned(Exception):
    """The signature is missing or not right; the message says which, without a word of the secret."""


def signing_key(secret: str) -> bytes:
    """The bytes that sign: what follows `whsec_` is base64, with or without padding; any other text is UTF-8.

    Raises ValueError.
    """
    if not secret.startswith(_ENCODED_SECRET):
        return secret.encode()
    written = secret.removeprefix(_ENCODED_SECRET).rstrip("=")
    return base64.b64decode(written + "=" * (-len(written) % 4), validate=True)


def verify(config: Mapping[str, Any], headers: Mapping[str, str], body: bytes) -> None:
    """Raises Unsigned unless the message has the signature that the loaded config of a webhook asks for; the names of
    `headers` are in lower case."""
    if "secret" not in config:
        return
    key = signing_key(config["secret"])
    if config["scheme"] == "hmac":
        _verify_hmac(key, headers, body, config["signature_header"], config["signature_prefix"])
    else:
        _verify_standard(key, headers, body)


def _verify_standard(key: bytes, headers: Mapping[str, str], body: bytes) -> None:
    """https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md; a message is good
    for five minutes before and after its timestamp."""
    try:
        standardwebhooks.Webhook(key).verify(body, dict(headers), json_parse=False)
    except standardwebhooks.WebhookVerificationError as error:
        raise Unsigned(f"the message is not signed as Standard Webhooks asks: {error}") from None
    except ValueError:  # a signature that is no base64, a body that is no text
        raise Unsigned("the message is not signed as Standard Webhooks asks: Invalid Signature Headers") from None


def _verify_hmac(key: bytes, headers: Mapping[str, str], body: bytes, header: str, prefix: str) -> None:
    given = headers.get(header.lower(), "").strip()
    if not given:
        raise Unsigned(f"the message has no signature; send the header {header}")
    expected = prefix + hmac.new(key, body, hashlib.sha256).hexdigest()
    # Hexadecimal digits count the same in either case; the prefix is the sender's word and does not.
    told = given[: len(prefix)] + given[len(prefix) :].lower()
    if not hmac.compare_digest(told.encode(), expected.encode()):
        raise Unsigned(f"the signature in the header {header} is not that of the message")
