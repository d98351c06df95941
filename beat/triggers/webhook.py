"""`webhook`: a request to `/webhook/<path>` starts an execution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema

from beat.triggers.contract import TriggerType
from beat.triggers.fields import Templates, overlap
from orchestrator.engine import webhooks
from workers.steps.fields import Duration, Text
from workers.steps.webhook import signing_secret

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_LONGEST_WAIT = 300.0


def _possible_path(value: str) -> None:
    if webhooks.route(value) is None:
        raise ValidationError("must be a path such as /webhook/orders; letters, digits, '_', '-', '.', '~' between '/'")


def _wait(value: float) -> None:
    if not 0 < value <= _LONGEST_WAIT:
        raise ValidationError(f"must be more than 0 and at most {_LONGEST_WAIT:g} seconds")


def _header(**options: Any) -> fields.String:
    name = validate.Regexp(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}\Z", error="'{input}' is not the name of a header")
    return fields.String(validate=name, **options)


class Webhook(TriggerType):
    """Without a `secret` anybody who knows the path is believed. One is either that of Standard Webhooks (`scheme:
    standard`), or signs the body alone (`scheme: hmac`; the defaults are GitHub's)."""

    type: ClassVar[str] = webhooks.TYPE
    secret_fields: ClassVar[frozenset[str]] = frozenset({"secret"})

    class Config(Schema):
        path = fields.String(
            required=True,
            validate=[validate.Length(max=500), _possible_path],
            metadata={"examples": ["/webhook/orders"]},
        )
        method = fields.String(
            load_default="POST",
            validate=validate.Regexp(rf"(?i:{'|'.join(_METHODS)})\Z", error=f"must be one of {', '.join(_METHODS)}"),
        )
        secret = Text(validate=signing_secret)
        scheme = fields.String(load_default="standard", validate=validate.OneOf(("standard", "hmac")))
        signature_header = _header(load_default="X-Hub-Signature-256")
        signature_prefix = fields.String(load_default="sha256=", validate=validate.Length(max=100))
        delivery_header = _header()
        mapping = Templates(webhooks.NAMES)
        respond = fields.String(load_default="accepted", validate=validate.OneOf(("accepted", "result")))
        timeout = Duration(load_default=30.0, validate=_wait)
        overlap = overlap()

        @validates_schema(pass_original=True)
        def _what_goes_together(self, data: Mapping[str, Any], original: Mapping[str, Any], **_: object) -> None:
            without: dict[str, list[str]] = {}
            if "secret" not in data:
                without |= {"scheme": ["says how `secret` signs, which is missing"]} if "scheme" in original else {}
            if data.get("scheme") != "hmac":
                hmac_only = {"signature_header", "signature_prefix"} & set(original)
                without |= {name: ["belongs to `scheme: hmac`"] for name in hmac_only}
            if without:
                raise ValidationError(without)

        @post_load
        def _in_one_form(self, data: dict[str, Any], **_: object) -> dict[str, Any]:
            return {**data, "method": data["method"].upper()}
