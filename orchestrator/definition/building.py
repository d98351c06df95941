"""From a document that is known to be valid to the typed definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.definition.durations import parse_duration
from orchestrator.definition.model import Definition, RetryPolicy, Step
from orchestrator.plugins import Catalogue


def build_definition(source: Mapping[str, Any], catalogue: Catalogue) -> Definition:
    """The definition of a stored `source`, which was valid when it was stored; nothing is checked again.

    A step whose type is not in the catalogue (any more) gets the queue `control`: whoever takes it fails it.
    """
    return Definition(
        steps=tuple(_step(step, catalogue) for step in source["steps"]),
        source=source,
        version=str(source.get("version", "1.0")),
        name=source.get("name") or "",
        description=source.get("description") or "",
        variables=source.get("variables") or {},
        outputs=source.get("outputs"),
        timeout=_seconds(source.get("timeout")),
    )


def dependencies_of(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids a step depends on, each once; a single one may be written without a list."""
    written = step.get("depends_on") or ()
    return (written,) if isinstance(written, str) else tuple(dict.fromkeys(written))


def _step(step: Mapping[str, Any], catalogue: Catalogue) -> Step:
    known = catalogue.get(step["type"])
    return Step(
        id=step["id"],
        type=step["type"],
        queue=known.queue if known else "control",
        name=step.get("name") or "",
        config=step.get("config") or {},
        depends_on=dependencies_of(step),
        input_mapping=step.get("input_mapping"),
        retry_policy=_retry_policy(step.get("retry_policy")),
        timeout=_seconds(step.get("timeout")),
        on_error=step.get("on_error", "fail"),
    )


def _retry_policy(written: Mapping[str, Any] | None) -> RetryPolicy | None:
    if written is None:
        return None
    values = dict(written)
    for name in ("initial_delay", "max_delay"):
        if name in values:
            values[name] = parse_duration(values[name])
    if "retry_on" in values:
        values["retry_on"] = tuple(values["retry_on"])
    return RetryPolicy(**values)


def _seconds(value: object) -> float | None:
    return None if value is None else parse_duration(value)
