"""A trigger type that watches a folder: each file that appears in it starts an execution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from beat.triggers import Every, Found, Looked, Timetable, TriggerType, hookimpl


class Folder(TriggerType):
    """The executions get the name of the `file`. One that is written again, and so has another time, is another."""

    type: ClassVar[str] = "acme_folder"
    looks: ClassVar[bool] = True

    class Config(Schema):
        path = fields.String(required=True, validate=validate.Length(min=1))
        interval = fields.Integer(
            load_default=5, validate=validate.Range(min=1), metadata={"description": "seconds between looks"}
        )

    def timetable(self, config: Mapping[str, Any], trigger_id: str) -> Timetable:  # noqa: ARG002
        return Timetable(Every(config.get("interval", 5)))

    def look(self, config: Mapping[str, Any], state: Any) -> Looked:
        """What was there already starts something too; `state` is the time of the newest file."""
        seen = state or 0
        files = {path.name: path.stat().st_mtime_ns for path in Path(config["path"]).iterdir() if path.is_file()}
        # From the newest on, not after it: two may have the same time. What is found again starts nothing again.
        found = [Found(f"{name} {time}", input={"file": name}) for name, time in files.items() if time >= seen]
        return Looked(found, max(files.values(), default=seen))


@hookimpl
def orchestrator_trigger_types() -> Iterable[TriggerType]:
    return [Folder()]
