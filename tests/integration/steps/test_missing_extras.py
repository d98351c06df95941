"""A step type whose extra is not installed is refused when its workflow is saved, with the command that installs it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from deployment import Deployment

from orchestrator import plugins

TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llm": ("openai", {"model": "m", "prompt": "p"}),
    "mcp": ("mcp", {"server": "s", "action": "a"}),
    "agent": ("a2a", {"agent_id": "a", "task": "t"}),
}


@pytest.fixture(params=TYPES)
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A step type whose library cannot be found."""
    library, _ = TYPES[request.param]
    find = importlib.util.find_spec

    def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.split(".")[0] == library else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    plugins._is_installed.cache_clear()
    yield request.param
    plugins._is_installed.cache_clear()


def test_it_is_refused_at_save_time_with_what_to_install(servers: Deployment, without: str) -> None:
    library, config = TYPES[without]
    steps = [{"id": "a", "type": without, "config": config}, {"id": "b", "type": "set", "config": {"values": {"n": 1}}}]
    before = servers.sql("SELECT count(*) FROM workflows")
    body = {"name": "needs an extra", "definition": {"version": "1.0", "steps": steps}}
    answer = servers.client.post("/api/v1/workflows", json=body)
    assert answer.status_code == 422, answer.text
    (error,) = [one for one in answer.json["errors"] if one["path"].endswith("steps[0].type")]
    assert library in error["message"]
    assert error["message"].endswith(f"install it with: pip install 'orchestrator[{without}]'")
    assert servers.sql("SELECT count(*) FROM workflows") == before


def test_the_others_are_there_without_it(servers: Deployment, without: str) -> None:
    assert servers.create({"steps": [{"id": "b", "type": "set", "config": {"values": {"n": 1}}}]}, f"not {without}")
