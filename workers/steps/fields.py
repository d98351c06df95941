"""Fields for the configuration of steps: durations, sizes, and texts that may be written as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields

from orchestrator.definition.durations import DURATION_SHAPE, SIZE_SHAPE, parse_duration, parse_size


class Duration(fields.Field[float]):
    """Seconds, from a number or a text such as `30s` or `1h30m`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "metadata": DURATION_SHAPE | dict(options.get("metadata") or {})})

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> float:
        try:
            return parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


class Size(fields.Field[int]):
    """Bytes, from a whole number or a text such as `64KB`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "metadata": SIZE_SHAPE | dict(options.get("metadata") or {})})

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            raise ValidationError(str(error)) from error


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
