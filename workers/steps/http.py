"""`http`: one HTTP request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Set
from email.message import Message
from typing import Any, ClassVar
from urllib.parse import urlsplit

import orjson
import requests
from marshmallow import Schema, ValidationError, fields, validate
from requests.auth import HTTPBasicAuth

from orchestrator.config import Settings
from orchestrator.errors import StepFailed
from workers.steps.contract import Done, QueueClass, Rate, StepContext, StepType
from workers.steps.fields import Duration, Parsed, Text, validates_whole
from workers.steps.http_call import Response, encoded, may_pass, send, shown

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


class StatusCodes(Parsed[tuple[range, ...]]):
    """Status codes: 200, "200-299", or a list of such."""

    def __init__(self, **options: Any) -> None:
        code = {"type": "integer", "minimum": 100, "maximum": 599}
        codes = {"type": "string", "pattern": r"^\s*[0-9]+\s*(-\s*[0-9]+\s*)?$", "examples": ["200-299"]}
        several = {"type": "array", "items": {"anyOf": [code, codes]}}
        super().__init__(metadata={"anyOf": [code, codes, several]}, **options)

    def parse(self, value: Any) -> tuple[range, ...]:
        return tuple(_codes(item) for item in (value if isinstance(value, list) else [value]))


def _codes(value: object) -> range:
    low, _, high = str(value).partition("-")
    try:
        codes = range(int(low), int(high or low) + 1)
    except ValueError:
        codes = range(0)
    if isinstance(value, bool) or not codes or codes[0] < 100 or codes[-1] > 599:
        raise ValidationError(f"{value!r} is not a status code; write 200, or a range like '200-299'")
    return codes


class HttpAuth(Schema):
    type = fields.String(required=True, validate=validate.OneOf(["basic", "bearer"]))
    username = Text()
    password = Text()
    token = Text()

    @validates_whole
    def _complete(self, data: Mapping[str, Any], written: Set[str]) -> None:
        needed = {"basic": ("username", "password"), "bearer": ("token",)}.get(data.get("type", ""), ())
        missing = [name for name in needed if name not in written]
        if missing:
            raise ValidationError(f"{data['type']} needs {' and '.join(needed)}", missing[0])


def http_url(value: str) -> None:
    try:
        parts = urlsplit(value)
        valid = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise ValidationError("must be a whole address, such as https://example.com/path")


def _known_method(value: str) -> None:
    if value.upper() not in _METHODS:
        raise ValidationError(f"must be one of {', '.join(_METHODS)}")


class Http(StepType):
    """Output: `status_code`, `headers` (lower-case names), `body` (parsed when it is JSON, else text; what is
    neither is base64 and `body_encoding` says so), `elapsed` (seconds).

    A status of 400 or more fails the attempt with kind `http_status`, unless `expected_status` decides; only
    408, 425, 429 and 5xx are tried again.
    """

    type: ClassVar[str] = "http"
    queue: ClassVar[QueueClass] = "io"

    class Config(Schema):
        method = fields.String(load_default="GET", validate=_known_method, metadata={"examples": list(_METHODS)})
        url = fields.String(required=True, validate=http_url)
        headers = fields.Dict(keys=fields.String(), values=Text(), load_default=dict)
        params = fields.Dict(keys=fields.String(), values=fields.Raw(allow_none=True), load_default=dict)
        json = fields.Raw(allow_none=True)
        body = Text()
        timeout = Duration(load_default=30.0)
        auth = fields.Nested(HttpAuth)
        verify = fields.Boolean(load_default=True)
        allow_redirects = fields.Boolean(load_default=True)
        expected_status = StatusCodes()

        @validates_whole
        def _one_body(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
            if {"json", "body"} <= written:
                raise ValidationError("write either `json` or `body`, not both", "body")

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:
        return rate_of_host(config["url"], settings)

    def perform(self, context: StepContext) -> Done:
        config = context.config
        return Done(exchange(context, _request(config, context.idempotency_key), redirects=config["allow_redirects"]))


def rate_of_host(url: str, settings: Settings) -> Rate | None:
    """The rate limit of the host that `url` names; a redirect to another takes no use of that."""
    name = (urlsplit(url).hostname or "") if settings.hosts else ""
    host = settings.hosts.get(name)
    return None if host is None else Rate.of(f"hosts.{name}", host.rate_limit)


def exchange(context: StepContext, request: requests.Request, *, redirects: bool) -> dict[str, Any]:
    """The output of a step that sends `request`; its config's `timeout`, `verify` and `expected_status` apply.

    Raises what `send` does, and StepFailed of the kind `http_status`.
    """
    config = context.config
    response = send(
        request,
        egress=context.settings.egress.rules,
        seconds=context.within(config["timeout"]),
        max_bytes=context.settings.executor.max_response,
        verify=config["verify"],
        redirects=redirects,
    )
    output = _output(response)
    if not _is_expected(response.status, config.get("expected_status")):
        raise StepFailed(
            f"{request.method} {shown(request.url)} answered {response.said}",
            kind="http_status",
            retryable=may_pass(response.status),
            output=output,
        )
    return output


def _request(config: Mapping[str, Any], idempotency_key: str) -> requests.Request:
    headers = requests.structures.CaseInsensitiveDict({"User-Agent": "orchestrator"})
    headers["Idempotency-Key"] = idempotency_key
    body = None
    if "json" in config:
        headers["Content-Type"], body = "application/json", orjson.dumps(config["json"])
    elif "body" in config:
        headers["Content-Type"], body = "text/plain; charset=utf-8", config["body"].encode()
    headers.update(config["headers"])
    auth = config.get("auth")
    basic = None
    if auth and auth["type"] == "basic":
        basic = HTTPBasicAuth(auth["username"].encode(), auth["password"].encode())
    elif auth:
        headers["Authorization"] = f"Bearer {auth['token']}"
    return requests.Request(
        config["method"].upper(), config["url"], encoded(headers), params=config["params"], data=body, auth=basic
    )


def _is_expected(status: int, expected: tuple[range, ...] | None) -> bool:
    return status < 400 if expected is None else any(status in codes for codes in expected)


def _output(response: Response) -> dict[str, Any]:
    body, encoding = _decoded(response)
    output = {
        "status_code": response.status,
        "headers": dict(response.headers),
        "body": body,
        "elapsed": round(response.elapsed, 6),
    }
    return output | ({"body_encoding": encoding} if encoding else {})


def _decoded(response: Response) -> tuple[Any, str | None]:
    """(body, its encoding if it is not text): what the content-type says, as far as it is true."""
    content_type = Message()
    content_type["content-type"] = response.headers.get("content-type", "")
    kind = content_type.get_content_type()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return orjson.loads(response.body), None
        except orjson.JSONDecodeError:
            pass
    if b"\0" not in response.body:
        for charset in (content_type.get_content_charset() or "utf-8", "utf-8"):
            try:
                return response.body.decode(charset), None
            except (LookupError, UnicodeError):
                pass
    return base64.b64encode(response.body).decode("ascii"), "base64"
