"""What several subcommands need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.config import Settings, load_settings


def load(**overrides: Any) -> Settings:
    """The settings, with the command line's options over them; one that is None was not given."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return replace(load_settings(), **given)
