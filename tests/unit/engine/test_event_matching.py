"""Which events a trigger is for, and what makes one the same as another."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine.events import execution_input, matches, slot
from orchestrator.errors import TemplateError

EVENT = {
    "specversion": "1.0", "id": "1", "source": "/shop/eu", "type": "order.created", "subject": "42",
    "data": {"amount": 150},
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"type": "order.created"},
        {"type": "order.*"},
        {"type": "*"},
        {"type": "order.*ted", "source": "/shop/*", "subject": "*"},
        {"type": "*.created", "source": "/shop/eu", "subject": "42"},
        {"type": "order.created*"},
        {"type": "*", "filter": "event.data.amount > 100"},
        {"type": "*", "filter": "{{ event.data.amount > 100 and event.subject == '42' }}"},
        {"type": "*", "filter": "event.data.missing is not defined"},
    ],
)
def test_an_event_is_for_a_trigger_when_everything_that_is_given_fits(config: dict[str, Any]) -> None:
    assert matches(config, EVENT)


@pytest.mark.parametrize(
    "config",
    [
        {"type": "order"},
        {"type": "order.create."},
        {"type": "ORDER.CREATED"},
        {"type": "order.?reated"},
        {"type": "*", "source": "/shop"},
        {"type": "*", "subject": "4"},
        {"type": "*", "filter": "event.data.amount > 200"},
        {"type": "*", "filter": "{{ 'false' }}"},
    ],
)
def test_an_event_is_not_for_a_trigger_when_anything_does_not_fit(config: dict[str, Any]) -> None:
    assert not matches(config, EVENT)


def test_what_an_event_does_not_have_fits_only_any_text() -> None:
    without = {name: value for name, value in EVENT.items() if name != "subject"}
    assert matches({"type": "*", "subject": "*"}, without)
    assert not matches({"type": "*", "subject": "?*"}, without)


def test_a_filter_that_cannot_tell_says_so_and_only_if_the_rest_fits() -> None:
    with pytest.raises(TemplateError, match=r"event\.data\.missing"):
        matches({"type": "*", "filter": "event.data.missing > 1"}, EVENT)
    assert not matches({"type": "other", "filter": "event.data.missing > 1"}, EVENT)


def test_events_are_the_same_by_source_and_id_together() -> None:
    assert slot(EVENT) == slot({**EVENT, "type": "another"})
    assert slot({"source": "a/b", "id": "c"}) != slot({"source": "a", "id": "b/c"})


def test_the_input_is_the_event_or_what_is_mapped_of_it() -> None:
    assert execution_input({}, EVENT) == {"event": EVENT}
    assert execution_input({"mapping": {"a": "{{ event.data.amount }}"}}, EVENT) == {"a": 150}
