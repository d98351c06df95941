"""`condition`: an expression about something outside, looked at now and then; its becoming true starts an execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError, fields, validates_schema

from beat.triggers.contract import TriggerType
from beat.triggers.fields import Expression, Templates, overlap
from orchestrator.definition import paths
from orchestrator.definition.durations import parse_duration
from orchestrator.definition.templates import compile_value
from orchestrator.engine import conditions
from orchestrator.engine.slots import Every, Timetable, steady_delay
from orchestrator.engine.trying import Trial, check
from orchestrator.errors import InputError
from orchestrator.plugins import Catalogue
from workers.steps.database import Database
from workers.steps.fields import Duration
from workers.steps.http import Http

_SHORTEST, _LONGEST = 1.0, 30 * 86400.0


def _interval(value: float) -> None:
    if not _SHORTEST <= value <= _LONGEST:
        raise ValidationError("must be from 1s to 30d")


def _hold(value: float) -> None:
    if value > _LONGEST:
        raise ValidationError("must be at most 30d")


class Condition(TriggerType):
    """Every `interval`, a worker makes the probe, which is an `http` or a `database` step by its config, and
    evaluates `expression` over what came of it."""

    type: ClassVar[str] = conditions.TYPE
    looks: ClassVar[bool] = True

    class Config(Schema):
        http = fields.Dict(keys=fields.String(), metadata={"description": "the config of an http step"})
        database = fields.Dict(
            keys=fields.String(), metadata={"description": "the config of a database step; its operation is query"}
        )
        expression = Expression(conditions.EXPRESSION_NAMES, required=True)
        interval = Duration(load_default=conditions.INTERVAL, validate=_interval)
        for_ = Duration(data_key="for", load_default=0.0, validate=_hold)
        mapping = Templates(conditions.MAPPING_NAMES)
        overlap = overlap()

        @validates_schema(skip_on_field_errors=False)
        def _one_probe(self, data: Mapping[str, Any], **_: object) -> None:
            if ("http" in data) == ("database" in data):
                raise ValidationError("write one probe: `http`, or `database`", "http")

        @validates_schema(skip_on_field_errors=False)
        def _probe_is_a_step(self, data: Mapping[str, Any], **_: object) -> None:
            wrong = {type: problems for type in conditions.PROBES if (problems := _problems_of(type, data))}
            if wrong:
                raise ValidationError(wrong)

    def timetable(self, config: Mapping[str, Any], trigger_id: str) -> Timetable:
        """Each at its own moment, so that many do not look at the same one."""
        interval = parse_duration(config.get("interval", conditions.INTERVAL))
        return Timetable(Every(interval), delay=steady_delay(trigger_id, interval))


def _problems_of(type: str, config: Mapping[str, Any]) -> dict[Any, Any]:
    """What is wrong with a probe, nested as its config is."""
    if type not in config:
        return {}
    written: dict[str, Any] = conditions.probe({type: config[type]})[1]
    found: dict[Any, Any] = {}
    try:
        check(Trial(type, written, {}, {"input": {}}, 1.0), _STEP_TYPES)
    except InputError as error:
        for problem in error.problems:
            _nest(found, paths.split(problem.path)[1:], problem.message)
    if written.get("operation", "query") != "query":
        _nest(found, ["operation"], "must be query: a condition only looks")
    strange = set() if found else compile_value(written).roots - {"secrets"}
    for root in sorted(strange):
        _nest(found, [], f"{root!r} is not known here; only secrets are")
    return found


def _nest(found: dict[Any, Any], keys: Sequence[str | int], message: str) -> None:
    for key in keys:
        found = found.setdefault(key, {})
    found.setdefault("_schema", []).append(message)


_STEP_TYPES: Catalogue = {"http": Http(), "database": Database()}
