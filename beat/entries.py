"""RedBeat's entries: one for each trigger that is due by time, made from the rows and kept in step with them.

An entry only rings, on the slots of its trigger's own timetable: RedBeat's crontab forgets its time zone on the way
through Redis, and knows nothing of gaps and folds. What is due is decided by the rows, so that an entry that is lost,
late or one too many changes nothing but who looks first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from celery.schedules import BaseSchedule, schedstate
from redbeat.decoder import RedBeatJSONDecoder, RedBeatJSONEncoder
from redbeat.schedulers import RedBeatSchedulerEntry, get_redis

from orchestrator.config import load_settings
from orchestrator.engine.slots import Timetable
from orchestrator.engine.triggers import next_due
from orchestrator.plugins import load_trigger_types

logger = logging.getLogger(__name__)

RING = "ring_triggers"
"""The task that an entry sends; see workers/ringing.py."""
PREFIX = "trigger:"
"""What the names of our entries begin with; others may have entries of their own."""
_TYPE = "timetable"
_NEVER = 86_400.0
"""Seconds until beat asks again of what has no more slots."""
_EXPIRES = 60
"""Seconds after which a message that no worker took is worth nothing: reconcile has looked by then."""


class SlotSchedule(BaseSchedule):
    """When a trigger is due, as Celery asks for it."""

    def __init__(self, trigger_id: str, type: str, config: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.source = {"trigger_id": trigger_id, "type": type, "config": dict(config)}
        self.timetable = _timetable(trigger_id, type, json.dumps(self.source["config"]))

    def due_after(self, moment: datetime) -> datetime | None:
        return None if self.timetable is None else next_due(self.timetable, moment)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta | None:  # type: ignore[override]
        """From `last_run_at`, to which RedBeat adds it; None if there is no more to come, which RedBeat allows."""
        due = self.due_after(last_run_at)
        return None if due is None else due - last_run_at

    def is_due(self, last_run_at: datetime) -> schedstate:
        now = datetime.now(UTC)
        due = self.due_after(last_run_at)
        if due is None:
            return schedstate(False, _NEVER)
        if due > now:
            return schedstate(False, (due - now).total_seconds())
        following = self.due_after(now)
        return schedstate(True, _NEVER if following is None else (following - now).total_seconds())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotSchedule) and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.source["trigger_id"])

    def __repr__(self) -> str:
        return f"<the slots of trigger {self.source['trigger_id']}>"


@lru_cache(maxsize=4096)
def _timetable(trigger_id: str, type: str, config: str) -> Timetable | None:
    known = load_trigger_types(load_settings().plugins).get(type)
    try:
        return None if known is None else known.timetable(json.loads(config), trigger_id)
    except Exception:
        logger.exception("trigger %s: its config cannot be read", trigger_id)
        return None


class _Encoder(RedBeatJSONEncoder):
    def default(self, obj: Any) -> Any:
        if isinstance(obj, SlotSchedule):
            return {"__type__": _TYPE, "source": obj.source}
        return super().default(obj)


class _Decoder(RedBeatJSONDecoder):
    def dict_to_object(self, d: dict[str, Any]) -> Any:
        if d.get("__type__") == _TYPE:
            return SlotSchedule(**d["source"])
        return super().dict_to_object(d)


class Entry(RedBeatSchedulerEntry):
    """RedBeat's own, that can hold the slots of a trigger."""

    @staticmethod
    def decode_definition(definition: str) -> Any:
        return json.loads(definition, cls=_Decoder)

    def save(self) -> Entry:
        """As RedBeat does it, with our encoding; and when it last rang is now, or it would ring at once."""
        written = ("name", "task", "args", "kwargs", "options", "schedule", "enabled")
        definition = {name: getattr(self, name) for name in written}
        with get_redis(self.app).pipeline() as pipe:
            pipe.hset(self.key, "definition", json.dumps(definition, cls=_Encoder))
            pipe.hset(self.key, "meta", json.dumps({"last_run_at": self.last_run_at}, cls=_Encoder))
            pipe.zadd(self.app.redbeat_conf.schedule_key, {self.key: self.score})
            pipe.execute()
        return self


class Entries:
    """The entries in Redis, as they were last written."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._written: dict[str, Mapping[str, Any]] = {}

    def keep_in_step(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the entries those of `wanted` (the source of a SlotSchedule by the id of its trigger), whatever Redis
        has forgotten or kept."""
        there = self._there()
        for trigger_id in there - wanted.keys():
            self._entry(self._written.get(trigger_id), trigger_id).delete()
        for trigger_id, source in wanted.items():
            if trigger_id not in there or self._written.get(trigger_id) != source:
                self._entry(source, trigger_id).save()
        self._written = dict(wanted)

    def _there(self) -> set[str]:
        conf = self._app.redbeat_conf
        start = conf.key_prefix + PREFIX
        keys = get_redis(self._app).zrange(conf.schedule_key, 0, -1)
        return {key[len(start) :] for key in keys if key.startswith(start)}

    def _entry(self, source: Mapping[str, Any] | None, trigger_id: str) -> Entry:
        return Entry(
            name=f"{PREFIX}{trigger_id}",
            task=RING,
            schedule=SlotSchedule(**source) if source else SlotSchedule(trigger_id, "", {}),
            options={"queue": "control", "expires": _EXPIRES},
            last_run_at=datetime.now(UTC),
            app=self._app,
        )
