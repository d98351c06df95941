"""`webhook`: one signed message to somebody's webhook, after Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import orjson
import requests
import standardwebhooks
from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.config import Settings
from orchestrator.engine.signatures import signing_key
from workers.steps.contract import Done, Json, QueueClass, Rate, StepContext, StepType
from workers.steps.fields import Duration, Text
from workers.steps.http import StatusCodes, exchange, http_url, rate_of_host
from workers.steps.http_call import encoded

_OURS = ("webhook-id", "webhook-timestamp", "webhook-signature")


def signing_secret(value: str) -> None:
    try:
        key = signing_key(value)
    except ValueError:
        raise ValidationError("must have base64 after 'whsec_', or be any other text") from None
    if not key:
        raise ValidationError("must not be empty")


def _free_header(name: str) -> None:
    if name.lower() in _OURS:
        raise ValidationError(f"{name} is set by the step itself")


class Webhook(StepType):
    """Output: that of `http`, and `webhook_id`, which is the same for every attempt: the receiver may know by it
    that it has the message already.

    Without a secret there is no signature. Failures are those of `http`; redirects are not followed, and only a
    status of 2xx is a success unless `expected_status` says otherwise.
    """

    type: ClassVar[str] = "webhook"
    queue: ClassVar[QueueClass] = "io"

    class Config(Schema):
        url = fields.String(required=True, validate=http_url)
        method = fields.String(
            load_default="POST", validate=validate.Regexp(r"(?i:post|put)\Z", error="must be POST or PUT")
        )
        payload = fields.Raw(allow_none=True)
        event = fields.String(validate=validate.Length(min=1))
        secret = Text(validate=signing_secret)
        headers = fields.Dict(keys=fields.String(validate=_free_header), values=Text(), load_default=dict)
        timeout = Duration(load_default=30.0)
        verify = fields.Boolean(load_default=True)
        expected_status = StatusCodes(load_default=(range(200, 300),))

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:
        return rate_of_host(config["url"], settings)

    def perform(self, context: StepContext) -> Done:
        webhook_id = f"msg_{uuid.uuid5(uuid.NAMESPACE_URL, context.idempotency_key).hex}"
        request = _request(context, webhook_id, datetime.now(UTC))
        return Done(exchange(context, request, redirects=False) | {"webhook_id": webhook_id})


def _request(context: StepContext, webhook_id: str, now: datetime) -> requests.Request:
    config = context.config
    body = orjson.dumps(_message(config, context.input, now))
    headers = requests.structures.CaseInsensitiveDict(
        {
            "User-Agent": "orchestrator",
            "Content-Type": "application/json",
            "Idempotency-Key": context.idempotency_key,
        }
    )
    headers.update(config["headers"])
    headers.update({"webhook-id": webhook_id, "webhook-timestamp": str(int(now.timestamp()))})
    if "secret" in config:
        signer = standardwebhooks.Webhook(signing_key(config["secret"]))
        headers["webhook-signature"] = signer.sign(webhook_id, now, body.decode())
    return requests.Request(config["method"].upper(), config["url"], encoded(headers), data=body)


def _message(config: Mapping[str, Any], given: Json, now: datetime) -> Json:
    payload = config.get("payload", given)
    if "event" not in config:
        return payload
    return {"type": config["event"], "timestamp": now.isoformat(), "data": payload}
