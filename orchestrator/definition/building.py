"""From a document that is known to be valid to the typed definition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.definition.durations import parse_duration
from orchestrator.definition.model import (
    Body,
    Cache,
    Concurrency,
    Definition,
    RateLimit,
    RetryPolicy,
    Step,
    TriggerRule,
)
from orchestrator.plugins import BodyInfo, Catalogue, StepTypeInfo

COMPENSATE = "compensate"
"""What the ids and paths of the steps begin with that undo others."""


def build_definition(source: Mapping[str, Any], catalogue: Catalogue) -> Definition:
    """The definition of a stored `source`, which was valid when it was stored; nothing is checked again.

    A step whose type is not in the catalogue (any more) gets the queue `control`: whoever takes it fails it.
    """
    return Definition(
        steps=_steps(source["steps"], catalogue),
        source=source,
        version=str(source.get("version", "1.0")),
        name=source.get("name") or "",
        description=source.get("description") or "",
        variables=source.get("variables") or {},
        outputs=source.get("outputs"),
        timeout=_seconds(source.get("timeout")),
        inputs=source.get("inputs"),
        max_concurrent=source.get("max_concurrent"),
        concurrency=_concurrency(source.get("concurrency")),
        rate_limit=_rate_limit(source.get("rate_limit")),
        run_limit=source.get("run_limit"),
        max_failures=source.get("max_failures"),
        on_failure=_steps(source.get("on_failure"), catalogue),
        finally_=_steps(source.get("finally"), catalogue),
    )


def dependencies_of(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids a step depends on, each once; a single one may be written without a list."""
    written = step.get("depends_on") or ()
    return (written,) if isinstance(written, str) else tuple(dict.fromkeys(written))


def bodies_of(step: Mapping[str, Any], known: StepTypeInfo | None) -> list[BodyInfo]:
    """The bodies in a step as it is written."""
    config = step.get("config")
    bodies = getattr(known, "bodies", None)  # types from before there were bodies have none
    return list(bodies(config)) if bodies is not None and isinstance(config, Mapping) else []


def _steps(written: Iterable[Mapping[str, Any]] | None, catalogue: Catalogue) -> tuple[Step, ...]:
    return tuple(_step(step, catalogue) for step in written or ())


def _step(step: Mapping[str, Any], catalogue: Catalogue, id: str | None = None) -> Step:
    known = catalogue.get(step["type"])
    id = id or step["id"]
    undo = step.get("compensate")
    return Step(
        id=id,
        type=step["type"],
        queue=step.get("queue") or (known.queue if known else "control"),
        name=step.get("name") or "",
        config=step.get("config") or {},
        depends_on=dependencies_of(step),
        input_mapping=step.get("input_mapping"),
        retry_policy=_retry_policy(step.get("retry_policy")),
        timeout=_seconds(step.get("timeout")),
        on_error=step.get("on_error", "fail"),
        when=step.get("when"),
        trigger_rule=TriggerRule(step.get("trigger_rule", TriggerRule.ALL_SUCCESS)),
        output_mapping=step.get("output_mapping"),
        priority=step.get("priority"),
        cache=_cache(step.get("cache")),
        compensate=None if undo is None else _step(undo, catalogue, f"{COMPENSATE}.{id}"),
        bodies={body.name: Body(_steps(body.steps, catalogue), body.limited) for body in bodies_of(step, known)},
    )


def _concurrency(written: Mapping[str, Any] | None) -> Concurrency | None:
    return None if written is None else Concurrency(written["key"], written["limit"])


def _rate_limit(written: Mapping[str, Any] | None) -> RateLimit | None:
    return None if written is None else RateLimit(written["limit"], parse_duration(written["per"]), written.get("key"))


def _cache(written: Mapping[str, Any] | None) -> Cache | None:
    return None if written is None else Cache(written["key"], parse_duration(written["ttl"]))


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
