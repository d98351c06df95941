"""`llm`: one chat completion of an OpenAI-compatible service (`POST <llm.base_url>/chat/completions`).

The protocol is OpenAI's (https://platform.openai.com/docs/api-reference/chat), spoken by the openai library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import urlsplit

import orjson
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for
from marshmallow import Schema, ValidationError, fields, validate
from referencing import Registry
from referencing.exceptions import Unresolvable

from orchestrator.config import Settings
from orchestrator.egress import Egress
from orchestrator.errors import StepFailed, StepTimeout
from orchestrator.metrics import TOKENS, tally
from workers.steps.causes import root_cause
from workers.steps.contract import Done, QueueClass, Rate, StepContext, StepType, Wait, config_mistake
from workers.steps.fields import Duration, Parsed, Text, validates_whole
from workers.steps.http_call import may_pass, shown
from workers.steps.llm_calls import LOOP, TooLarge, within

if TYPE_CHECKING:
    import openai

MAX_RESTS = 5
"""How often an attempt rests because the service asks it to."""

MAX_REST = 600.0
"""Seconds of one such rest at most."""

_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
_COUNT = {"type": ["integer", "null"], "minimum": 0}
_TEXT = {"type": ["string", "null"]}
_ANSWER = Draft202012Validator(
    {
        "type": "object",
        "required": ["choices"],
        "properties": {
            "id": _TEXT,
            "model": _TEXT,
            "choices": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["message"],
                    "properties": {
                        "finish_reason": _TEXT,
                        "message": {"type": "object", "properties": {"content": _TEXT, "refusal": _TEXT}},
                    },
                },
            },
            "usage": {
                "type": ["object", "null"],
                "properties": dict.fromkeys(_USAGE, _COUNT),
            },
        },
    }
)
"""What of an answer is read here; services differ in the rest."""


class Stop(Parsed[list[str]]):
    """Where the answer ends: a text, or up to four of them."""

    def parse(self, value: Any) -> list[str]:
        texts = value if isinstance(value, list) else [value]
        return [str(text) for text in _STOPS.deserialize(texts)]


_STOPS = fields.List(Text(), validate=validate.Length(1, 4))


class Message(Schema):
    role = fields.String(required=True, validate=validate.OneOf(["system", "developer", "user", "assistant"]))
    content = Text(required=True)


def _is_json_schema(value: Mapping[str, Any]) -> None:
    kind: Any = validator_for(value, default=Draft202012Validator)
    try:
        kind.check_schema(value, format_checker=kind.FORMAT_CHECKER)
    except SchemaError as error:
        raise ValidationError(f"is not a JSON Schema: {error.message[:200]} (at {error.json_path})") from None


class Llm(StepType):
    """Output: `text`, `finish_reason`, `model`, `usage` (`prompt_tokens`, `completion_tokens`, `total_tokens`;
    None where the service does not count), `id`; with a `response_schema` also `parsed`, the text as the JSON
    that fits it.

    Failures: `rate_limited` (429), `server` (5xx), `http_status` (any other status; not tried again, but for
    408, 409 and 425), `timeout`, `connection`, `egress`, `response_too_large`, `output` (no chat completion, or not
    what the schema asks for), `length` (cut off before the JSON was whole), `refusal`, `content_filter`, `config`.
    After a 429 or 5xx that says when to come back the step rests until then, as the same attempt.
    """

    type: ClassVar[str] = "llm"
    queue: ClassVar[QueueClass] = "io"
    extra: ClassVar[str] = "llm"
    modules: ClassVar[tuple[str, ...]] = ("openai",)

    class Config(Schema):
        model = Text()
        prompt = Text()
        messages = fields.List(fields.Nested(Message), validate=validate.Length(min=1))
        system = Text()
        max_tokens = fields.Integer(strict=True, validate=validate.Range(min=1))
        temperature = fields.Float(validate=validate.Range(0, 2))
        top_p = fields.Float(validate=validate.Range(0, 1))
        stop = Stop()
        seed = fields.Integer(strict=True)
        response_schema = fields.Dict(keys=fields.String(), validate=_is_json_schema)
        timeout = Duration(load_default=60.0)

        @validates_whole
        def _one_question(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
            if {"prompt", "messages"} <= written:
                raise ValidationError("write either `prompt` or `messages`, not both", "messages")
            if written.isdisjoint({"prompt", "messages"}):
                raise ValidationError("is missing; write the question here, or a conversation as `messages`", "prompt")

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:  # noqa: ARG002
        return Rate.of("llm", settings.llm.rate_limit)

    def perform(self, context: StepContext) -> Done | Wait:
        import openai

        service = _service(context)
        request = _request(context.config, service.model)
        try:
            body = service.complete(request, context.idempotency_key, context.within(context.config["timeout"]))
        except openai.APIStatusError as error:
            return _rest(context, service, error)
        answer = service.read(body)
        _count(context.mask(service.model), answer.get("usage") or {})
        return Done(_output(service, answer, context.config.get("response_schema")))


def _service(context: StepContext) -> _Service:
    settings = context.settings.llm
    url, key = context.reveal(settings.base_url), context.reveal(settings.api_key)
    model = context.config.get("model") or context.reveal(settings.model)
    if not url:
        raise config_mistake(
            "llm.base_url is not set; set it to the service's address, such as https://api.openai.com/v1"
        )
    if not _is_http(url):
        raise config_mistake(f"llm.base_url, {shown(url)}, must be a whole address, such as https://api.openai.com/v1")
    if not (key.isascii() and key.isprintable()):
        raise config_mistake("llm.api_key has a line break or another character that cannot be sent; check its end")
    if not model:
        raise config_mistake("the step names no model, and neither does llm.model")
    return _Service(url, key, model, context.settings.executor.max_response, context.settings.egress.rules)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _request(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The request's fields, as the API names them."""
    messages = config["messages"] if "messages" in config else [{"role": "user", "content": config["prompt"]}]
    if "system" in config:
        messages = [{"role": "system", "content": config["system"]}, *messages]
    request: dict[str, Any] = {"model": model, "messages": messages}
    for name in ("max_tokens", "temperature", "top_p", "stop", "seed"):
        if name in config:
            request[name] = config[name]
    if "response_schema" in config:
        wanted = {"name": "response", "schema": config["response_schema"], "strict": True}
        request["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return request


@dataclass(frozen=True)
class _Service:
    url: str
    key: str = field(repr=False)
    model: str
    max_bytes: int
    egress: Egress

    @cached_property
    def name(self) -> str:
        return f"the model service at {shown(self.url)}"

    def quote(self, text: str) -> str:
        """What the service said, as far as it may be shown: services do repeat the key they were given."""
        short = " ".join(text.replace("\0", "\N{REPLACEMENT CHARACTER}").split())
        return (short.replace(self.key, "***") if self.key else short)[:300]

    def complete(self, request: Mapping[str, Any], idempotency_key: str, seconds: float) -> bytes:
        """The body of the answer, within `seconds` in all.

        Raises openai.APIStatusError for a status other than 2xx, StepTimeout, and StepFailed of the kinds
        `connection`, `egress`, `response_too_large` and `config`.
        """
        import httpx2
        import openai

        try:
            return within(seconds, self._send(request, idempotency_key))
        except (TimeoutError, openai.APITimeoutError):
            raise StepTimeout(f"{self.name} did not answer within {seconds:g} s") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, StepFailed):
                raise StepFailed(f"{self.name}: {error.__cause__}", kind="egress", retryable=False) from None
            raise StepFailed(f"{self.name}: {self.quote(root_cause(error))}", kind="connection") from error
        except TooLarge:
            raise StepFailed(
                f"{self.name}: the answer is larger than executor.max_response, {self.max_bytes} bytes",
                kind="response_too_large",
                retryable=False,
            ) from None
        except httpx2.InvalidURL as error:
            raise config_mistake(f"llm.base_url, {shown(self.url)}, is not valid: {error}") from None

    async def _send(self, request: Mapping[str, Any], idempotency_key: str) -> bytes:
        from openai import AsyncOpenAI, omit

        client = AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            max_retries=0,  # the step's retry policy decides
            timeout=None,  # within bounds the whole
            http_client=LOOP.http_client(self.egress, self.max_bytes),
        )
        # Said for each request, because the library would otherwise take these from the environment.
        headers = {
            "Authorization": f"Bearer {self.key}" if self.key else omit,
            "OpenAI-Organization": omit,
            "OpenAI-Project": omit,
            "Idempotency-Key": idempotency_key,
        }
        answer = await client.chat.completions.with_raw_response.create(**request, extra_headers=headers)
        content: bytes = answer.content
        return content

    def read(self, body: bytes) -> dict[str, Any]:
        """The answer as _ANSWER describes it, with at least one choice."""
        # The library takes what it gets for a completion, whatever it is.
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            self._no_completion("is not JSON", body)
        wrong = best_match(_ANSWER.iter_errors(answer))
        if wrong is not None:
            self._no_completion(f"is no chat completion (see its {wrong.json_path})", body)
        if not answer["choices"]:
            self._no_completion("has no choices", body)
        return dict(answer)

    def _no_completion(self, what: str, body: bytes) -> NoReturn:
        said = self.quote(body.decode(errors="replace"))
        raise StepFailed(f"the answer of {self.name} {what}: {said}", kind="output")


def _rest(context: StepContext, service: _Service, error: openai.APIStatusError) -> Wait:
    """The rest that the service asks for; raises what `error` means if it asks for none, or too often."""
    failure = _failure(service, error)
    rests = (context.state or {}).get("throttled", 0)
    delay = _retry_after(error.response.headers) if failure.kind in ("rate_limited", "server") else None
    if delay is None or rests >= MAX_RESTS:
        raise failure
    context.log(f"{failure}; it asks to come back in {delay:g} s (rest {rests + 1} of {MAX_RESTS})", "warning")
    return Wait(datetime.now(UTC) + timedelta(seconds=delay), {"throttled": rests + 1})


def _failure(service: _Service, error: openai.APIStatusError) -> StepFailed:
    status = error.status_code
    said, hint = service.quote(_message(error)), _hint(status, service.model)
    return StepFailed(
        f"{service.name} answered {status}" + (f": {said}" if said else "") + (f" ({hint})" if hint else ""),
        kind="rate_limited" if status == 429 else "server" if status >= 500 else "http_status",
        retryable=may_pass(status) or status == 409,
    )


def _message(error: openai.APIStatusError) -> str:
    """The `message` of the service's error object, or all it said."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else body
    return message if isinstance(message, str) else error.response.text


def _hint(status: int, model: str) -> str:
    if 300 <= status < 400:
        return "it redirects; set llm.base_url to where it leads"
    hints = {401: "check llm.api_key", 404: f"check llm.base_url and the model, {model!r}"}
    return hints.get(status, "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, at most MAX_REST: retry-after-ms, a convention of OpenAI's, or else Retry-After, a number or an
    HTTP date (RFC 9110, 10.2.3). None if neither can be read."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            seconds = float(headers.get(name, "")) * unit
            if not math.isnan(seconds):
                return min(max(0.0, seconds), MAX_REST)
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), MAX_REST)
    return None


def _output(service: _Service, answer: Mapping[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    output = {
        "text": choice["message"].get("content"),
        "finish_reason": choice.get("finish_reason"),
        "model": answer.get("model"),
        "usage": {name: usage.get(name) for name in _USAGE},
        "id": answer.get("id"),
    }
    _check_finish(service, output, choice["message"].get("refusal"))
    if schema is not None:
        output["parsed"] = _parsed(service, output, schema)
    return output


def _count(model: str, usage: Mapping[str, int | None]) -> None:
    # By the model that was asked for: what a service answers could be any number of names.
    for kind in ("prompt", "completion"):
        tally.add(TOKENS, model, kind, number=usage.get(f"{kind}_tokens") or 0)


def _check_finish(service: _Service, output: Mapping[str, Any], refusal: str | None) -> None:
    """Raises StepFailed, with what there is as its output, unless the model has answered."""
    reason = output["finish_reason"]
    if refusal:
        raise StepFailed(f"the model refused: {service.quote(refusal)}", kind="refusal", output=output)
    if reason == "content_filter":
        raise StepFailed("the service's content filter stopped the answer", kind=reason, output=output)
    if output["text"] is None:
        raise StepFailed(f"the model answered without a text (finish_reason {reason})", kind="output", output=output)


def _parsed(service: _Service, output: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    text: str = output["text"]
    if output["finish_reason"] == "length":
        raise StepFailed(
            "the answer was cut off before its JSON was whole (finish_reason length); raise max_tokens",
            kind="length",
            output=output,
        )
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise StepFailed(
            f"the model's answer is not JSON, as response_schema asks: {service.quote(text)}",
            kind="output",
            output=output,
        ) from None
    # An empty registry: nothing that a $ref names is fetched from the network.
    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())
    try:
        wrong = best_match(validator.iter_errors(parsed))
    except Unresolvable as error:
        raise config_mistake(f"response_schema refers to {error.ref!r}, which is not in it") from None
    except RecursionError:
        raise StepFailed(
            "the model's answer cannot be checked: it, or response_schema, goes too deep", kind="output", output=output
        ) from None
    if wrong is not None:
        raise StepFailed(
            f"the model's answer does not fit response_schema at {wrong.json_path}: {service.quote(wrong.message)}",
            kind="output",
            output=output,
        )
    return parsed
