"""Events: which triggers one is for, and starting what these start."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from orchestrator.definition.templates import compile_expression, compile_value
from orchestrator.definition.truth import is_true
from orchestrator.engine.cloudevents import Event

Json = Any

TYPE = "event"
"""The trigger type that these functions serve."""
NAMES = frozenset(("event",))
"""What its filter and the templates of its mapping start from."""
WILDCARD = "*"
_PATTERNS = ("type", "source", "subject")
_LONGEST_SLOT = 500


def matches(config: Mapping[str, Any], event: Event) -> bool:
    """Whether an event is for a trigger with this config. Raises TemplateError if its filter cannot tell."""
    for name in _PATTERNS:
        pattern = config.get(name)
        if pattern is not None and not _pattern(pattern).fullmatch(str(event.get(name, ""))):
            return False
    written = config.get("filter")
    return written is None or is_true(compile_expression(written).render({"event": event}))


def slot(event: Event) -> str:
    """What an event is one of a kind by: its source and id, which by the standard no other event has together."""
    # There is no white space in a source, so that no other pair makes the same text.
    text = f"{event['source']} {event['id']}"
    return text if len(text) <= _LONGEST_SLOT else f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def execution_input(config: Mapping[str, Any], event: Event) -> Json:
    """The input of the execution: the `mapping`; without one `{"event": ...}`. Raises TemplateError."""
    mapping = config.get("mapping")
    return {"event": event} if mapping is None else compile_value(dict(mapping)).render({"event": event})


@lru_cache(maxsize=1024)
def _pattern(written: str) -> re.Pattern[str]:
    """`*` stands for any text, or none; everything else for itself."""
    return re.compile(".*".join(re.escape(part) for part in written.split(WILDCARD)), re.DOTALL)
