"""A trigger that is due by the clock: a cron expression in a time zone, or an interval."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, available_timezones

import orjson
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from beat.triggers.contract import TriggerType
from orchestrator.engine.slots import Cron, Every, Timetable, parse_cron, steady_delay
from orchestrator.plugins import Missed
from workers.steps.fields import Duration, Moment

MAX_BACKLOG = 10_000


def _is_cron(value: str) -> None:
    try:
        parse_cron(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _is_zone(value: str) -> None:
    if value not in _zones():
        raise ValidationError(f"'{value}' is no time zone; write it like Europe/Berlin")


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _choice(says: str, *words: str, default: str | None = None) -> fields.String:
    return fields.String(
        load_default=default,
        validate=validate.OneOf(words, error="must be one of {choices}, not '{input}'"),
        metadata={"description": says},
    )


class Schedule(TriggerType):
    type: ClassVar[str] = "schedule"

    class Config(Schema):
        cron = fields.String(
            validate=_is_cron, metadata={"description": "minute hour day month weekday, or @daily and the like"}
        )
        timezone = fields.String(
            load_default="UTC", validate=_is_zone, metadata={"description": "of the cron expression; default: UTC"}
        )
        interval = Duration(1, metadata={"description": "instead of cron: counted from `start`, or from 1970 in UTC"})
        start = Moment(metadata={"description": "no slot is before it"})
        end = Moment(metadata={"description": "no slot is after it"})
        gap = _choice("a time that does not exist as the clock is set forward; default: shift", "skip", "shift")
        fold = _choice("a time that exists twice as the clock is set back; default: first", "first", "last", "both")
        jitter = Duration(0, metadata={"description": "up to this much later, by the same time for each slot"})
        overlap = _choice(
            "it fires while an execution of it runs; default: allow",
            *("allow", "skip", "queue_one", "cancel_other"),
            default="allow",
        )
        missed = _choice(
            "what is done about slots that passed while nothing could fire; default: run_last",
            *("skip", "run_last", "run_all"),
            default="run_last",
        )
        missed_limit = fields.Integer(
            strict=True,
            load_default=100,
            validate=validate.Range(1, MAX_BACKLOG),
            metadata={"description": "of run_all: the newest so many; default: 100"},
        )
        input = fields.Dict(keys=fields.String(), metadata={"description": "of the executions"})

        @validates_schema(skip_on_field_errors=False, pass_original=True)
        def _fits_together(self, data: Mapping[str, Any], given: Mapping[str, Any], **_: object) -> None:
            if ("cron" in given) == ("interval" in given):
                raise ValidationError("needs a cron expression or an interval, and not both")
            wrong = {}
            if "interval" in given:
                said = {"timezone", "gap", "fold"} & given.keys()
                wrong = {name: ["is for a cron expression; an interval knows no clock"] for name in said}
            if data.get("start") and data.get("end") and data["start"] > data["end"]:
                wrong["end"] = ["is before start"]
            if wrong:
                raise ValidationError(wrong)

    def timetable(self, config: Mapping[str, Any], trigger_id: str) -> Timetable:
        return _timetable(orjson.dumps(config), trigger_id)

    def missed(self, config: Mapping[str, Any]) -> Missed:
        return Missed(config.get("missed") or "run_last", config.get("missed_limit") or 100)


@lru_cache(maxsize=4096)
def _timetable(config: bytes, trigger_id: str) -> Timetable:
    given = Schedule.Config().load(orjson.loads(config))
    start: datetime | None = given.get("start")
    slots: Cron | Every
    if "interval" in given:
        slots = Every(given["interval"]) if start is None else Every(given["interval"], start)
    else:
        slots = Cron(given["cron"], ZoneInfo(given["timezone"]), given["gap"], given["fold"])
    return Timetable(slots, start, given.get("end"), steady_delay(trigger_id, given.get("jitter", 0.0)))
