"""What the config of a trigger may be: everything that is wrong is said at once, where it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from marshmallow import ValidationError

from beat.triggers.condition import Condition
from beat.triggers.contract import TriggerType
from beat.triggers.event import Event
from beat.triggers.webhook import Webhook

PROBE = {"http": {"url": "http://127.0.0.1/"}, "expression": "output.status_code == 200"}
DELETES = {"connection": "c", "operation": "delete", "table": "t", "all": True}


def wrong(kind: TriggerType, config: dict[str, Any]) -> Any:
    with pytest.raises(ValidationError) as caught:
        kind.Config().load(config)
    return caught.value.messages


# --- webhook -------------------------------------------------------------------------------------------------


def test_a_webhook_needs_no_more_than_a_path() -> None:
    loaded = Webhook.Config().load({"path": "/webhook/data-process"})
    assert loaded == {
        "path": "/webhook/data-process", "method": "POST", "scheme": "standard", "respond": "accepted", "timeout": 30.0,
        "signature_header": "X-Hub-Signature-256", "signature_prefix": "sha256=",
    }  # fmt: skip


def test_the_method_of_a_webhook_may_be_written_in_small_letters() -> None:
    assert Webhook.Config().load({"path": "x", "method": "put"})["method"] == "PUT"


def test_everything_that_is_wrong_with_a_webhook_is_said_at_once() -> None:
    config = {
        "path": "/a/../b", "method": "BREW", "secret": "whsec_%", "scheme": "md5", "signature_header": "a b",
        "delivery_header": "", "mapping": {"a": "{{ input.x }}", "b": "{{ body. }}"}, "respond": "maybe",
        "timeout": "1h", "overlap": "perhaps", "unknown": 1,
    }  # fmt: skip
    found = wrong(Webhook(), config)
    assert found.keys() == config.keys()
    assert "'input' is not known here; start from body, headers, method, path, query" in found["mapping"]["a"][0]
    assert "{{ body. }}" in found["mapping"]["b"][0]
    assert "whsec_" in found["secret"][0]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"scheme": "hmac"}, "scheme"),
        ({"secret": "s", "signature_prefix": ""}, "signature_prefix"),
        ({"secret": ""}, "secret"),
    ],
)
def test_what_has_no_use_in_a_webhook_is_refused(more: dict[str, str], field: str) -> None:
    assert wrong(Webhook(), {"path": "x", **more}).keys() == {field}


# --- event ---------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_with_an_event_trigger_is_said_at_once() -> None:
    found = wrong(Event(), {"source": "", "filter": "event.data >", "mapping": {"a": "{{ body }}"}, "more": 1})
    assert found.keys() == {"type", "source", "filter", "mapping", "more"}
    assert (
        "'trigger' is not known here; start from event"
        in wrong(Event(), {"type": "*", "filter": "trigger.x"})["filter"][0]
    )


# --- condition -----------------------------------------------------------------------------------------------


def test_a_condition_looks_every_minute_unless_it_says_otherwise() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for config, seconds in ((PROBE, 60), ({**PROBE, "interval": "5s"}, 5), ({**PROBE, "interval": 1}, 1)):
        slots = Condition().timetable(config, "a trigger")
        first, second = slots.next_after(start), slots.next_after(slots.next_after(start))
        assert (second - first).total_seconds() == seconds
        assert 0 <= slots.delay < seconds


def test_the_looks_of_many_conditions_are_spread_over_the_interval() -> None:
    delays = {Condition().timetable(PROBE, f"trigger {number}").delay // 6 for number in range(100)}
    assert len(delays) == 10


def test_everything_that_is_wrong_with_a_condition_is_said_at_once() -> None:
    config = {
        "http": {"url": "nowhere", "metod": "GET", "headers": {"a": "{{ broken"}},
        "expression": "input.x > 1", "interval": "500ms", "for": "never", "mapping": {"a": "{{ nothing }}"},
    }  # fmt: skip
    found = wrong(Condition(), config)
    assert found.keys() == config.keys()
    assert found["http"]["url"] == {"_schema": ["must be a whole address, such as https://example.com/path"]}
    assert "did you mean 'method'?" in found["http"]["metod"]["_schema"][0]
    assert "_schema" in found["http"]["headers"]["a"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"expression": "error"}, "http"),
        ({**PROBE, "database": {"connection": "c", "sql": "SELECT 1"}}, "http"),
        ({"expression": "error", "database": {"sql": "SELECT 1"}}, "database"),
        ({"expression": "error", "database": DELETES}, "database"),
        ({**PROBE, "http": {"url": "http://{{ input.host }}/"}}, "http"),
    ],
)
def test_a_condition_has_one_probe_that_only_looks(config: dict[str, Any], field: str) -> None:
    assert wrong(Condition(), config).keys() == {field}


def test_a_probe_may_have_secrets() -> None:
    headers = {"Authorization": "Bearer {{ secrets.token }}"}
    Condition.Config().load({**PROBE, "http": {"url": "http://x/", "headers": headers}})
    query = {"connection": "c", "sql": "SELECT :a AS a", "params": {"a": "{{ secrets.a }}"}}
    Condition.Config().load({"database": query, "expression": "output.row_count > 0"})
