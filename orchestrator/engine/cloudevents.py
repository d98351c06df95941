"""CloudEvents 1.0, read from an HTTP message in any of its three forms, or from a stream; all problems at once.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md, formats/json-format.md and
bindings/http-protocol-binding.md.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from email.message import Message
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from orchestrator.definition import paths
from orchestrator.errors import InputError, Problem

Json = Any
Event = dict[str, Json]
"""An event with the attributes' names as they are in its JSON: `id`, `source`, `type`, ..., `data`."""

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
MAX_BATCH = 1_000

_REQUIRED = ("id", "source", "specversion", "type")
_OPTIONAL = ("datacontenttype", "dataschema", "subject", "time")
_LONGEST = 1_000
"""Characters of an attribute: some are looked for by an index."""
_HEADER = "ce-"
_NAME = re.compile(r"[a-z0-9]+")
_CONTENT_TYPE = re.compile(r"[^\s/;]+/[^\s/;]+(\s*;.*)?", re.DOTALL)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class NoEvent(ValueError):
    """The message has none of the three forms, or is not JSON; the message says what to send."""


def from_http(headers: Mapping[str, str], body: bytes) -> list[Event]:
    """The events of a message; the names of `headers` are in lower case.

    Raises NoEvent; InputError with everything that is wrong with the events in it.
    """
    kind = _kind(headers.get("content-type", ""))
    if kind == BATCH:
        return batch(_json(body))
    if kind == STRUCTURED:
        return [single(_json(body))]
    if f"{_HEADER}specversion" in headers or f"{_HEADER}id" in headers:
        return [single(_binary(headers, body))]
    raise NoEvent(
        f"send a CloudEvent: as {STRUCTURED}, several as {BATCH}, or the data as the body and the attributes in "
        "headers (ce-id, ce-source, ce-specversion, ce-type)"
    )


def single(document: Json) -> Event:
    """One event. Raises InputError."""
    problems = list(_problems(document, ""))
    if problems:
        raise InputError(problems)
    return _tidy(document)


def batch(document: Json) -> list[Event]:
    """A list of events. Raises InputError with what is wrong with any of them."""
    if not isinstance(document, list):
        raise InputError([Problem("", "must be a list of events")])
    if len(document) > MAX_BATCH:
        raise InputError([Problem("", f"has {len(document):,} events; at most {MAX_BATCH:,} are possible")])
    problems = [problem for index, item in enumerate(document) for problem in _problems(item, f"[{index}]")]
    if problems:
        raise InputError(problems)
    return [_tidy(item) for item in document]


def from_fields(fields: Mapping[str, str], id: str, source: str) -> list[Event]:
    """The events of a stream's entry: of its one field `event`, an event or a list of them as JSON; otherwise each
    field is an attribute, and `data` JSON or a text. What an entry by fields does not say, `id` and `source` do.

    Raises NoEvent; InputError with everything that is wrong.
    """
    if "event" in fields:
        document = _json(fields["event"].encode())
        return batch(document) if isinstance(document, list) else [single(document)]
    event: Event = {"specversion": "1.0", "id": id, "source": source, **fields}
    if "data" in fields:
        with suppress(NoEvent):  # a text, then
            event["data"] = _json(fields["data"].encode())
    return [single(event)]


def _binary(headers: Mapping[str, str], body: bytes) -> Event:
    """Attributes are headers, percent-encoded where they are not plain ASCII; the body is the data as it is."""
    event: Event = {
        name.removeprefix(_HEADER): unquote(value.strip())
        for name, value in headers.items()
        if name.startswith(_HEADER)
    }
    written = headers.get("content-type", "").strip()
    if written:
        event["datacontenttype"] = written
    if not body:
        return event
    kind = _kind(written)
    if not kind or _is_json(kind):
        return event | {"data": _json(body)}
    try:
        return event | {"data": body.decode()} if b"\0" not in body else event | _encoded(body)
    except UnicodeDecodeError:
        return event | _encoded(body)


def _encoded(body: bytes) -> Event:
    return {"data_base64": base64.b64encode(body).decode("ascii")}


def _tidy(event: Mapping[str, Json]) -> Event:
    """Without the attributes that are null, which the JSON format has for absent ones."""
    return {name: value for name, value in event.items() if value is not None or name == "data"}


# --- what is wrong -------------------------------------------------------------------------------------------


def _problems(event: Json, at: str) -> Iterator[Problem]:
    if not isinstance(event, Mapping):
        yield Problem(at, "must be an event: an object with id, source, specversion and type")
        return
    for name in _REQUIRED:
        if event.get(name) is None:
            yield Problem(paths.join(at, name), "is missing")
    for name, value in event.items():
        wrong = None if value is None else _why_wrong(name, value)
        if wrong:
            yield Problem(paths.join(at, name), wrong)
    if event.get("data") is not None and event.get("data_base64") is not None:
        yield Problem(paths.join(at, "data_base64"), "stands beside data; an event has one of the two")


def _why_wrong(name: str, value: Json) -> str | None:
    if name == "data":
        return None
    if name == "data_base64":
        return None if _is_base64(value) else "must be base64"
    if not _NAME.fullmatch(name):
        return "is not the name of an attribute, which has lower-case letters and digits"
    if name in _REQUIRED or name in _OPTIONAL:
        return _why_wrong_text(name, value)
    if not isinstance(value, (str, bool, int)):
        return "must be a text, a whole number or a boolean: structured values belong into data"
    return _why_long(value) if isinstance(value, str) else None


def _why_wrong_text(name: str, value: Json) -> str | None:
    if not isinstance(value, str):
        return "must be a text"
    if not value.strip():
        return "must not be empty"
    check = _CHECKS.get(name)
    return _why_long(value) or (check(value) if check else None)


def _why_long(value: str) -> str | None:
    return f"has {len(value):,} characters; at most {_LONGEST:,} are possible" if len(value) > _LONGEST else None


def _why_not_reference(value: str) -> str | None:
    try:
        urlsplit(value)
    except ValueError:
        return "is not a URI or a part of one"
    return "is not a URI or a part of one: it has white space in it" if re.search(r"\s", value) else None


def _why_not_uri(value: str) -> str | None:
    wrong = _why_not_reference(value)
    return wrong or (None if urlsplit(value).scheme else "is not a whole URI, such as https://example.com/schema")


def _why_not_time(value: str) -> str | None:
    try:
        right = _TIME.fullmatch(value) and datetime.fromisoformat(value.upper())
    except ValueError:
        right = None
    return None if right else "is not a time as RFC 3339 has it, such as 2026-05-04T10:00:00Z"


_CHECKS: dict[str, Callable[[str], str | None]] = {
    "specversion": lambda value: None if value == "1.0" else f"is '{value}'; only 1.0 is understood",
    "source": _why_not_reference,
    "dataschema": _why_not_uri,
    "time": _why_not_time,
    "datacontenttype": lambda value: None if _CONTENT_TYPE.fullmatch(value) else "is not a media type",
}


def _is_base64(value: Json) -> bool:
    try:
        base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _kind(content_type: str) -> str:
    if not content_type.strip():
        return ""
    message = Message()
    message["content-type"] = content_type
    return message.get_content_type()


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _json(body: bytes) -> Json:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NoEvent(f"the body is not JSON: {error}") from None
