"""CloudEvents in each of their forms over HTTP, and what is said of those that are none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from orchestrator.engine.cloudevents import BATCH, STRUCTURED, NoEvent, from_fields, from_http
from orchestrator.errors import InputError

EVENT = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created"}


def structured(document: Any, kind: str = STRUCTURED) -> list[dict[str, Any]]:
    return from_http({"content-type": kind}, orjson.dumps(document))


def problems(document: Any, kind: str = STRUCTURED) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        structured(document, kind)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_an_event_in_structured_mode_is_taken_as_it_is_without_its_nulls() -> None:
    whole = EVENT | {
        "subject": "42", "time": "2026-05-04T10:00:00.5+02:00", "datacontenttype": "application/json",
        "dataschema": "https://example.com/s", "traceparent": "00-1", "sampled": True, "data": {"amount": 1},
    }  # fmt: skip
    assert structured(whole | {"partitionkey": None}, f"{STRUCTURED}; charset=utf-8") == [whole]


def test_a_batch_is_a_list_which_may_be_empty() -> None:
    second = EVENT | {"id": "2"}
    assert structured([EVENT, second], BATCH) == [EVENT, second]
    assert structured([], BATCH) == []


def test_an_event_in_binary_mode_has_its_attributes_in_headers_and_its_data_as_the_body() -> None:
    headers = {
        "content-type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop",
        "ce-type": "order.created", "ce-subject": "Gr%C3%BC%C3%9Fe", "host": "x",
    }  # fmt: skip
    assert from_http(headers, b'{"amount": 1}') == [
        EVENT | {"subject": "Grüße", "datacontenttype": "application/json", "data": {"amount": 1}}
    ]


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/plain", b"hi", {"datacontenttype": "text/plain", "data": "hi"}),
        ("image/png", b"\xff\x00", {"datacontenttype": "image/png", "data_base64": "/wA="}),
        ("text/plain", b"\0", {"datacontenttype": "text/plain", "data_base64": "AA=="}),
        ("", b"[1]", {"data": [1]}),
        ("application/json", b"", {"datacontenttype": "application/json"}),
    ],
)
def test_binary_data_is_what_its_content_type_says(content_type: str, body: bytes, expected: dict[str, Any]) -> None:
    headers = {"content-type": content_type, **{f"ce-{name}": value for name, value in EVENT.items()}}
    assert from_http(headers, body) == [EVENT | expected]


def test_everything_that_is_wrong_with_an_event_is_said_at_once() -> None:
    wrong = {
        "specversion": "0.3", "source": "/a b", "type": "", "subject": 5, "time": "yesterday", "dataschema": "relative",
        "datacontenttype": "json", "Upper": "x", "nested": {}, "data": 1, "data_base64": "%",
    }  # fmt: skip
    found = problems(wrong)
    assert found == {
        "id": "is missing",
        "specversion": "is '0.3'; only 1.0 is understood",
        "source": "is not a URI or a part of one: it has white space in it",
        "type": "must not be empty",
        "subject": "must be a text",
        "time": "is not a time as RFC 3339 has it, such as 2026-05-04T10:00:00Z",
        "dataschema": "is not a whole URI, such as https://example.com/schema",
        "datacontenttype": "is not a media type",
        "Upper": "is not the name of an attribute, which has lower-case letters and digits",
        "nested": "must be a text, a whole number or a boolean: structured values belong into data",
        "data_base64": "stands beside data; an event has one of the two",
    }


def test_what_is_wrong_in_a_batch_has_its_place() -> None:
    found = problems([EVENT, 5, {"id": "x" * 1001}], BATCH)
    assert found == {
        "[1]": "must be an event: an object with id, source, specversion and type",
        "[2].source": "is missing",
        "[2].specversion": "is missing",
        "[2].type": "is missing",
        "[2].id": "has 1,001 characters; at most 1,000 are possible",
    }
    assert problems({}, BATCH) == {"": "must be a list of events"}
    assert "at most 1,000" in problems([EVENT] * 1001, BATCH)[""]


@pytest.mark.parametrize("value", ["2026-02-30T10:00:00Z", "2026-05-04", "2026-05-04T10:00:00", "2026-05-04T25:00:00Z"])
def test_a_time_that_is_none_is_said(value: str) -> None:
    assert "RFC 3339" in problems(EVENT | {"time": value})["time"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/json"}, orjson.dumps(EVENT)),
        ({}, b""),
        ({"content-type": STRUCTURED}, b"{"),
        ({"content-type": BATCH}, b""),
        ({"ce-id": "1", "content-type": "application/json"}, b"{"),
    ],
)
def test_a_message_in_no_form_says_what_to_send(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(NoEvent, match=r"send a CloudEvent|the body is not JSON"):
        from_http(headers, body)


def test_an_entry_of_a_stream_is_an_event_as_json_or_by_its_fields() -> None:
    assert from_fields({"event": orjson.dumps(EVENT).decode()}, "1-0", "s") == [EVENT]
    assert from_fields({"event": orjson.dumps([EVENT, EVENT]).decode()}, "1-0", "s") == [EVENT, EVENT]
    assert from_fields({"type": "t", "data": '{"a": 1}'}, "1-0", "s") == [
        {"specversion": "1.0", "id": "1-0", "source": "s", "type": "t", "data": {"a": 1}}
    ]
    assert from_fields({**EVENT, "data": "a text"}, "1-0", "s") == [EVENT | {"data": "a text"}]


@pytest.mark.parametrize("fields", [{}, {"type": ""}, {"event": "{"}, {"event": "5"}, {"type": "t", "Odd Name": "x"}])
def test_an_entry_of_a_stream_that_is_no_event_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises((NoEvent, InputError)):
        from_fields(fields, "1-0", "s")
