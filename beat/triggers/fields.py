"""Fields for the configuration of triggers: what holds templates, checked as far as it can be when it is saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from marshmallow import ValidationError, fields, validate

from orchestrator.definition.templates import Compiled, compile_expression, compile_value
from orchestrator.errors import TemplateError


class Templates(fields.Field[dict[str, Any]]):
    """A mapping whose values may hold templates that start from `names`."""

    def __init__(self, names: Collection[str], **options: Any) -> None:
        self.names = names
        super().__init__(**{**options, "metadata": {"type": "object", **dict(options.get("metadata") or {})}})

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValidationError("must be a mapping from names to values")
        wrong = {name: [text] for name, item in value.items() if (text := _why_wrong(compile_value, item, self.names))}
        if wrong:
            raise ValidationError(wrong)
        return dict(value)


class Expression(fields.Field[str]):
    """An expression, with or without braces, that starts from `names`."""

    def __init__(self, names: Collection[str], **options: Any) -> None:
        self.names = names
        super().__init__(**{**options, "metadata": {"type": "string", **dict(options.get("metadata") or {})}})

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        if not isinstance(value, str):
            raise ValidationError("must be an expression, as a text")
        wrong = _why_wrong(compile_expression, value, self.names)
        if wrong:
            raise ValidationError(wrong)
        return value


def overlap() -> fields.String:
    return fields.String(
        validate=validate.OneOf(
            ("allow", "skip", "queue_one", "cancel_other"), error="must be one of {choices}, not '{input}'"
        ),
        metadata={"description": "it fires while an execution of it runs; default: allow"},
    )


def _why_wrong(compiler: Callable[[Any], Compiled], value: Any, names: Collection[str]) -> str | None:
    try:
        unknown = compiler(value).roots - set(names)
    except TemplateError as error:
        return str(error)
    if not unknown:
        return None
    return (
        f"{', '.join(repr(name) for name in sorted(unknown))} is not known here; start from {', '.join(sorted(names))}"
    )
