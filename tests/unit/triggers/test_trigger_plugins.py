"""A plugin's trigger types come in by the same door as ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from marshmallow import Schema, fields

from beat.triggers import TriggerType, hookimpl
from orchestrator.errors import ConfigurationError
from orchestrator.plugins import load_trigger_types

OURS = {"condition", "event", "manual", "schedule", "webhook"}


class Tide(TriggerType):
    type = "tide"

    class Config(Schema):
        harbour = fields.String(required=True)


class Impostor(TriggerType):
    type = "webhook"


def plugin(name: str, kind: type[TriggerType]) -> ModuleType:
    module = ModuleType(name)

    @hookimpl
    def orchestrator_trigger_types() -> list[TriggerType]:
        return [kind()]

    module.orchestrator_trigger_types = orchestrator_trigger_types  # type: ignore[attr-defined]
    return module


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, kind in (("tide_plugin", Tide), ("impostor_plugin", Impostor)):
        monkeypatch.setitem(sys.modules, name, plugin(name, kind))
    yield
    load_trigger_types.cache_clear()


def test_ours_are_there_without_any_plugin() -> None:
    assert load_trigger_types("").keys() == OURS


@pytest.mark.usefixtures("plugins")
def test_a_type_of_a_plugin_is_there_beside_ours() -> None:
    types = load_trigger_types("tide_plugin")
    assert types.keys() == OURS | {"tide"}
    assert types["tide"].Config().validate({}) == {"harbour": ["Missing data for required field."]}
    assert types["tide"].input({"harbour": "Husum"}) == {}
    assert types["tide"].timetable({"harbour": "Husum"}, "an id") is None


@pytest.mark.usefixtures("plugins")
def test_two_types_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="trigger type 'webhook' is registered twice"):
        load_trigger_types("impostor_plugin")
