"""A message to a webhook: what it holds, what of it an execution gets, and starting that."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any
from urllib.parse import parse_qs

import orjson

from orchestrator.definition.templates import compile_value
from orchestrator.engine.programs import Programs
from orchestrator.engine.triggers import Fired, fail, fire
from orchestrator.errors import TemplateError
from orchestrator.store import Store, triggers
from orchestrator.store.triggers import Trigger

Json = Any

TYPE = "webhook"
"""The trigger type that these functions serve."""
PREFIX = "webhook/"
"""What the address of every webhook begins with."""
NAMES = frozenset(("body", "headers", "query", "path", "method"))
"""What the templates of a mapping start from."""
LONGEST_DELIVERY = 255
"""Characters of an id by which a delivery is known again."""

_ROUTE = re.compile(r"[\w.~-]+(/[\w.~-]+)*")
_DELIVERY_HEADERS = ("webhook-id", "x-github-delivery", "idempotency-key")
_PRIVATE_HEADERS = frozenset(("authorization", "proxy-authorization", "cookie"))
"""What says who the sender is, rather than what they say."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request. The names of `headers` are in lower case; of what stands in `query` more than once, it has a list.
    `path` has no `/webhook/` before it."""

    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, Json]
    body: bytes


def route(path: str) -> str | None:
    """The path of a webhook as it is looked for: without the slash and `webhook/` that may begin it. None if it can
    be no path: of a client that tidies `..` away, it would never be asked for."""
    found = path.removeprefix("/").removeprefix(PREFIX).removesuffix("/")
    tidy = _ROUTE.fullmatch(found) and not {".", ".."}.intersection(found.split("/"))
    return found if tidy else None


def fire_for(
    store: Store,
    programs: Programs,
    trigger: Trigger,
    config: Mapping[str, Any],
    payload: Mapping[str, Json],
    delivery_id: str | None,
) -> Fired:
    """Fire the trigger for a message that is who it says; its answer is `duplicate` only for one that came before and
    started something. Raises PayloadTooLarge, InputError."""
    try:
        given = execution_input(config, payload)
    except TemplateError as error:
        return fail(store, trigger, None, payload, f"mapping: {error}")
    fired = fire(store, programs, trigger, slot=delivery_id, payload=payload, input=given)
    if delivery_id is None or fired.execution_id is not None:
        return fired
    with store.single() as connection:
        # A sender who is told that nothing was started may send it again: then it is no duplicate.
        outcome = triggers.release(connection, fired.fire_id)
    return replace(fired, outcome=outcome or fired.outcome)


# --- what it says --------------------------------------------------------------------------------------------


def delivery_id(config: Mapping[str, Any], delivery: Delivery) -> str | None:
    """What the message is known again by, if its sender gave it such an id. Raises ValueError if it is too long."""
    own = config.get("delivery_header")
    for name in (own.lower(),) if own else _DELIVERY_HEADERS:
        id = delivery.headers.get(name, "").strip()
        if len(id) > LONGEST_DELIVERY:
            raise ValueError(f"the header {name} has {len(id):,} characters; at most {LONGEST_DELIVERY} are possible")
        if id:
            return id
    return None


def content(delivery: Delivery) -> Json:
    """The body: parsed if it is JSON or a form, a text, or base64 of what is neither; None without one.

    Raises ValueError with a sentence if it is said to be JSON and is not.
    """
    if not delivery.body:
        return None
    kind, charset = _content_type(delivery.headers.get("content-type", ""))
    if kind == "application/json" or kind.endswith("+json"):
        return _json(delivery.body)
    if kind == "application/x-www-form-urlencoded":
        return flat(parse_qs(_text(delivery.body, charset) or "", keep_blank_values=True))
    text = _text(delivery.body, charset)
    return base64.b64encode(delivery.body).decode("ascii") if text is None else text


def flat(values: Mapping[str, list[str]]) -> dict[str, Json]:
    """A name with one value has that value, with several the list of them."""
    return {name: several[0] if len(several) == 1 else several for name, several in values.items()}


def payload(config: Mapping[str, Any], delivery: Delivery, body: Json) -> dict[str, Json]:
    """What is kept of the message, and what templates see of it: everything but what proves who sent it."""
    private = _PRIVATE_HEADERS | {str(config.get("signature_header", "")).lower(), "webhook-signature"}
    return {
        "method": delivery.method,
        "path": delivery.path,
        "query": dict(delivery.query),
        "headers": {name: value for name, value in delivery.headers.items() if name not in private},
        "body": body,
    }


def execution_input(config: Mapping[str, Any], payload: Mapping[str, Json]) -> Json:
    """The input of the execution: the `mapping`; without one the body if that is an object, `{"body": ...}` if it is
    anything else, the query if there is no body. Raises TemplateError."""
    mapping = config.get("mapping")
    if mapping is not None:
        return compile_value(dict(mapping)).render(payload)
    body = payload["body"]
    if body is None:
        return payload["query"]
    return body if isinstance(body, dict) else {"body": body}


def _content_type(header: str) -> tuple[str, str]:
    message = Message()
    message["content-type"] = header or "application/json"
    return message.get_content_type(), message.get_content_charset() or "utf-8"


def _json(body: bytes) -> Json:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from None


def _text(body: bytes, charset: str) -> str | None:
    for name in (charset, "utf-8") if b"\0" not in body else ():
        try:
            return body.decode(name)
        except (LookupError, UnicodeError):
            continue
    return None
