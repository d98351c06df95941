"""The shapes of a definition, of a step, and of what they hold; what the parts mean together is in validation.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.definition.durations import parse_duration
from orchestrator.definition.model import TriggerRule

STEP_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
QUEUE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
RESERVED_IDS = frozenset(("on_failure", "finally", "compensate"))
"""What the paths of such steps begin with."""
MAX_STEPS = 10_000
MAX_DURATION = 3650 * 86400.0
"""Seconds; a deadline must stay a date that Python and PostgreSQL know."""


def _duration(minimum: float) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if seconds < minimum:
            raise ValidationError(f"'{value}' is too short; at least {minimum * 1000:.0f}ms is needed")
        if seconds > MAX_DURATION:
            raise ValidationError(f"'{value}' is too long; at most 3650d is possible")

    return check


def _number(low: float, high: float, whole: bool = False) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right_type or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise ValidationError(f"must be {kind} from {low:g} to {high:g}, not {value!r}")

    return check


def _step_id(value: Any) -> None:
    if not isinstance(value, str):
        raise ValidationError("must be a text")
    if not STEP_ID.fullmatch(value):
        raise ValidationError(
            f"'{value[:60]}' is not an id; it starts with a letter or '_', and has up to 128 letters, digits, "
            "'_' and '-'"
        )
    if value in RESERVED_IDS:
        raise ValidationError(f"'{value}' is a word of the language and cannot be an id; add something to it")


def _one_of(*words: str) -> validate.OneOf:
    return validate.OneOf(words, error="must be one of {choices}, not '{input}'")


def _is_variables(value: Any) -> None:
    _is_mapping(value)
    wrong = {name: ["a variable's name has letters, digits and '_'"] for name in value if not _VARIABLE.fullmatch(name)}
    if wrong:
        raise ValidationError(wrong)


def _is_json_schema(value: Any) -> None:
    _is_mapping(value)
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        place = "".join(f".{key}" for key in error.absolute_path)
        raise ValidationError(f"is not a JSON Schema: {place.lstrip('.') or 'it'}: {error.message[:300]}") from None


def _step_ids(value: Any) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise ValidationError("must be the id of a step, or a list of ids")
    wrong = {index: ["must be the id of a step"] for index, item in enumerate(value) if not isinstance(item, str)}
    if wrong:
        raise ValidationError(wrong)


def _version(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValidationError("must be a text such as '1.0'")


def _steps_length(value: Any) -> None:
    if not 1 <= len(value) <= MAX_STEPS:
        raise ValidationError(f"a definition has 1 to {MAX_STEPS:,} steps, not {len(value):,}")


def _text(longest: int = 10_000) -> fields.Field[Any]:
    return fields.String(allow_none=True, validate=validate.Length(max=longest, error="at most {max} characters"))


def _mapping() -> fields.Field[Any]:
    return fields.Raw(allow_none=True, validate=_is_mapping)


def _is_mapping(value: Any) -> None:
    # Not fields.Dict: the content is the user's own, and going through it would say nothing.
    if not isinstance(value, Mapping):
        raise ValidationError("Not a valid mapping type.")


class RetryPolicySchema(Schema):
    max_attempts = fields.Raw(validate=_number(1, 100, whole=True))
    initial_delay = fields.Raw(validate=_duration(0))
    max_delay = fields.Raw(validate=_duration(0))
    backoff_factor = fields.Raw(validate=_number(1, 1000))
    jitter = fields.Raw(validate=_number(0, 1))
    retry_on = fields.List(fields.String())


class CacheSchema(Schema):
    key = fields.Raw(required=True)
    ttl = fields.Raw(required=True, validate=_duration(1))


class PerformedSchema(Schema):
    """What every step has that is performed, in the graph or to undo another."""

    name = _text(500)
    description = _text()
    type = fields.String(required=True)
    config = _mapping()
    input_mapping = _mapping()
    retry_policy = fields.Nested(RetryPolicySchema, allow_none=True)
    timeout = fields.Raw(allow_none=True, validate=_duration(0.001))
    priority = fields.Raw(allow_none=True, validate=_number(0, 9, whole=True))
    queue = fields.String(
        allow_none=True,
        validate=validate.Regexp(QUEUE_NAME, error="'{input}' is not a queue; up to 64 letters, digits, '_' and '-'"),
    )


class StepSchema(PerformedSchema):
    id = fields.Raw(required=True, validate=_step_id)
    depends_on = fields.Raw(allow_none=True, validate=_step_ids)
    when = fields.Raw(allow_none=True)
    trigger_rule = fields.String(validate=_one_of(*TriggerRule))
    output_mapping = fields.Raw(allow_none=True, validate=_is_variables)
    on_error = fields.String(validate=_one_of("fail", "continue"))
    cache = fields.Nested(CacheSchema, allow_none=True)
    compensate = fields.Nested(PerformedSchema, allow_none=True)


class TriggerSchema(Schema):
    type = fields.String(required=True)
    name = _text(500)
    config = _mapping()
    is_enabled = fields.Raw(validate=validate.OneOf((True, False), error="must be true or false"))


class DefinitionSchema(Schema):
    version = fields.Raw(validate=_version)
    name = _text(500)
    description = _text()
    variables = _mapping()
    steps = fields.List(fields.Nested(StepSchema), required=True, validate=_steps_length)
    outputs = _mapping()
    timeout = fields.Raw(allow_none=True, validate=_duration(0.001))
    triggers = fields.List(fields.Nested(TriggerSchema), allow_none=True)
    tags = fields.List(fields.String(validate=validate.Length(max=200)), allow_none=True)
    inputs = fields.Raw(allow_none=True, validate=_is_json_schema)
    on_failure = fields.List(fields.Nested(StepSchema), allow_none=True, validate=_steps_length)
    finally_ = fields.List(fields.Nested(StepSchema), data_key="finally", allow_none=True, validate=_steps_length)
