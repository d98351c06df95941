"""Fields for the configuration of steps and triggers: durations, sizes, moments, and texts written as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Generic, TypeVar

from marshmallow import ValidationError, fields, validates_schema

from orchestrator.definition.durations import DURATION_SHAPE, SIZE_SHAPE, parse_duration, parse_size

T = TypeVar("T")
LONGEST = 3650 * 86400.0
"""Seconds; a moment that far away is still a date that Python and PostgreSQL know."""


def validates_whole(check: Callable[[Any, Mapping[str, Any], Set[str]], None]) -> Callable[..., None]:
    """For a method `check(data, written)` of a schema that looks at several fields. It is asked also when some of them
    are wrong, so that all mistakes are told at once: `data` has those that are right, and the defaults of those that
    are not written; `written` has the names of all that are."""

    @wraps(check)
    def validate(self: Any, data: Mapping[str, Any], original: object, **_: object) -> None:
        if isinstance(original, Mapping):
            check(self, data, original.keys())

    return validates_schema(validate, skip_on_field_errors=False, pass_original=True)


class Parsed(fields.Field[T], Generic[T]):
    """A value that `parse` makes of what was written; it raises ValueError or ValidationError with what is wrong."""

    shape: Mapping[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "metadata": {**self.shape, **dict(options.get("metadata") or {})}})

    parse: Callable[[Any], T]
    """What each kind of field defines."""

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> T:
        try:
            return self.parse(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class Duration(Parsed[float]):
    """Seconds, from a number or a text such as `30s` or `1h30m`; not less than `least`, nor too long for a date."""

    shape = DURATION_SHAPE

    def __init__(self, least: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.least = least

    def parse(self, value: Any) -> float:
        seconds = parse_duration(value)
        if not self.least <= seconds <= LONGEST:
            raise ValueError(f"must be from {self.least:g}s to 3650d, not {value!r}")
        return seconds


class Size(Parsed[int]):
    """Bytes, from a whole number or a text such as `64KB`."""

    shape = SIZE_SHAPE

    def parse(self, value: Any) -> int:
        return parse_size(value)


class Moment(Parsed[datetime]):
    """A time with its offset, as RFC 3339 writes it."""

    shape: Mapping[str, Any] = {"type": "string", "format": "date-time"}

    def parse(self, value: Any) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            pass
        raise ValueError(f"must be a time with its offset, like 2030-01-01T08:00:00+01:00, not {value!r}")


class Text(fields.String):
    """Text. A number or truth value, which YAML makes of `5` and `true`, is taken as JSON writes it."""

    def __init__(self, **options: Any) -> None:
        shape = {"type": ["string", "number", "boolean"]}
        super().__init__(**{**options, "metadata": shape | dict(options.get("metadata") or {})})

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, (int, float)):
            value = str(value)
        return super()._deserialize(value, attr, data, **kwargs)
