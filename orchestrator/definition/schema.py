"""The shapes of a definition, of a step, and of what they hold; what the parts mean together is in validation.py.

`metadata` is for json_schema.py: the JSON Schema of what a validator of ours takes, and what editors show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.definition.durations import DURATION_SHAPE, parse_duration, parse_moment
from orchestrator.definition.model import TriggerRule

STEP_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
QUEUE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
RESERVED_IDS = frozenset(("on_failure", "finally", "compensate"))
"""What the paths of such steps begin with."""
MAX_STEPS = 10_000
MAX_RUNS = 10_000
"""They are counted whenever one ends."""
MAX_RATE = 100_000
"""Each is a row until its window is over."""
MAX_DURATION = 3650 * 86400.0
"""Seconds; a deadline must stay a date that Python and PostgreSQL know."""


def _duration(minimum: float, says: str, **options: Any) -> fields.Field[Any]:
    def check(value: Any) -> None:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if seconds < minimum:
            raise ValidationError(f"'{value}' is too short; at least {minimum * 1000:.0f}ms is needed")
        if seconds > MAX_DURATION:
            raise ValidationError(f"'{value}' is too long; at most 3650d is possible")

    seconds, text = DURATION_SHAPE["anyOf"]
    shape = {"anyOf": [{**seconds, "minimum": minimum, "maximum": MAX_DURATION}, text]}
    return fields.Raw(validate=check, metadata={"description": says, **shape}, **options)


def _is_moment(value: Any) -> None:
    try:
        parse_moment(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _number(low: float, high: float, says: str, whole: bool = False, **options: Any) -> fields.Field[Any]:
    def check(value: Any) -> None:
        right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right_type or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise ValidationError(f"must be {kind} from {low:g} to {high:g}, not {value!r}")

    shape = {"type": "integer" if whole else "number", "minimum": low, "maximum": high}
    return fields.Raw(validate=check, metadata={"description": says, **shape}, **options)


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


def _truth(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValidationError("must be true or false")


def _steps_length(value: Any) -> None:
    if not 1 <= len(value) <= MAX_STEPS:
        raise ValidationError(f"a definition has 1 to {MAX_STEPS:,} steps, not {len(value):,}")


def _text(says: str, longest: int = 10_000) -> fields.Field[Any]:
    length = validate.Length(max=longest, error="at most {max} characters")
    return fields.String(allow_none=True, validate=length, metadata={"description": says})


def _mapping(says: str, check: Callable[[Any], None] | None = None, **shape: Any) -> fields.Field[Any]:
    metadata = {"description": says, "type": "object", **shape}
    return fields.Raw(allow_none=True, validate=check or _is_mapping, metadata=metadata)


def _is_mapping(value: Any) -> None:
    # Not fields.Dict: the content is the user's own, and going through it would say nothing.
    if not isinstance(value, Mapping):
        raise ValidationError("Not a valid mapping type.")


class RetryPolicySchema(Schema):
    max_attempts = _number(1, 100, "how often it is tried in all; default: 3", whole=True)
    initial_delay = _duration(0, "the rest after the first failure; default: 30s")
    max_delay = _duration(0, "the longest rest; default: 300s")
    backoff_factor = _number(1, 1000, "by how much each rest is longer than the one before; default: 2")
    jitter = _number(0, 1, "share of each rest that is random; default: 0")
    retry_on = fields.List(
        fields.String(), metadata={"description": "kinds of failure that are worth another attempt; default: all"}
    )


class CacheSchema(Schema):
    key = fields.Raw(
        required=True, metadata={"description": "any value, with templates: the same key has the same result"}
    )
    ttl = _duration(1, "how old the earlier result may be", required=True)


class PerformedSchema(Schema):
    """What every step has that is performed, in the graph or to undo another."""

    name = _text("for people", 500)
    description = _text("for people")
    type = fields.String(required=True, metadata={"description": "what the step does"})
    config = _mapping("what its type needs to know; texts may hold templates")
    input_mapping = _mapping("the step's input, with templates; default: the execution's input")
    retry_policy = fields.Nested(
        RetryPolicySchema,
        allow_none=True,
        metadata={"description": "what happens when an attempt fails; default: scheduler.retry of the settings"},
    )
    timeout = _duration(0.001, "the time that one attempt has, what it rests included", allow_none=True)
    priority = _number(0, 9, "of its messages, 9 the highest; default: the execution's", whole=True, allow_none=True)
    queue = fields.String(
        allow_none=True,
        validate=validate.Regexp(QUEUE_NAME, error="'{input}' is not a queue; up to 64 letters, digits, '_' and '-'"),
        metadata={"description": "served by workers started with -Q; default: that of its type"},
    )


class StepSchema(PerformedSchema):
    """A step."""

    id = fields.Raw(
        required=True,
        validate=_step_id,
        metadata={
            "description": "unique in the whole definition; templates know the step by it: steps.ID.output",
            "type": "string",
            "pattern": f"^{STEP_ID.pattern}$",
            "not": {"enum": sorted(RESERVED_IDS)},
        },
    )
    depends_on = fields.Raw(
        allow_none=True,
        validate=_step_ids,
        metadata={
            "description": "the id, or a list of ids, of the steps of this list that come before it",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        },
    )
    when = fields.Raw(allow_none=True, metadata={"description": "an expression; the step is skipped if it is not true"})
    trigger_rule = fields.String(
        validate=_one_of(*TriggerRule),
        metadata={"description": "what of its dependencies lets it run; default: all_success"},
    )
    output_mapping = _mapping(
        "variables for the steps after this one, made of `output`",
        _is_variables,
        propertyNames={"pattern": f"^{_VARIABLE.pattern}$"},
    )
    on_error = fields.String(
        validate=_one_of("fail", "continue"),
        metadata={"description": "continue: dependents run, and the execution does not fail for it; default: fail"},
    )
    cache = fields.Nested(
        CacheSchema,
        allow_none=True,
        metadata={"description": "take the result of an earlier execution's step with the same key"},
    )
    compensate = fields.Nested(
        PerformedSchema,
        allow_none=True,
        metadata={"description": "undoes the step when the execution has failed or was cancelled"},
    )


class TriggerSchema(Schema):
    type = fields.String(required=True, metadata={"description": "what starts executions"})
    name = _text("for people", 500)
    config = _mapping("what its type needs to know")
    is_enabled = fields.Raw(
        validate=_truth,
        metadata={"description": "default: true", "type": "boolean"},
    )


def _steps(says: str, **options: Any) -> fields.Field[Any]:
    metadata = {"description": says, "minItems": 1, "maxItems": MAX_STEPS}
    return fields.List(fields.Nested(StepSchema), validate=_steps_length, metadata=metadata, **options)


class ConcurrencySchema(Schema):
    """Executions for which the key comes to the same run so many at a time."""

    key = fields.Raw(required=True, metadata={"description": "a template of input and variables"})
    limit = _number(1, 1_000_000, "executions that run at a time", whole=True, required=True)


class RateLimitSchema(Schema):
    """So many executions for which the key comes to the same begin in any window of that length."""

    limit = _number(1, MAX_RATE, "executions that begin in any window", whole=True, required=True)
    per = _duration(0.1, "the length of a window", required=True)
    key = fields.Raw(
        allow_none=True, metadata={"description": "a template of input and variables; default: one for all"}
    )


class DefinitionSchema(Schema):
    """A workflow definition: steps, and how they depend on each other."""

    version = fields.Raw(
        validate=_version,
        metadata={"description": "the author's own, such as '1.0'", "type": ["string", "number"]},
    )
    name = _text("of the workflow", 500)
    description = _text("for people")
    variables = _mapping("values that templates know: variables.NAME")
    steps = _steps("what is done, in the order of their depends_on", required=True)
    outputs = _mapping("the execution's output, with templates; default: that of every step nothing depends on")
    timeout = _duration(0.001, "the time that an execution has; default: executor.timeout", allow_none=True)
    max_concurrent = _number(
        1, 1_000_000, "executions of this workflow that run at a time", whole=True, allow_none=True
    )
    concurrency = fields.Nested(
        ConcurrencySchema,
        allow_none=True,
        metadata={"description": "how many executions with the same key run at a time"},
    )
    rate_limit = fields.Nested(
        RateLimitSchema,
        allow_none=True,
        metadata={"description": "how many executions begin in any window of time"},
    )
    run_limit = _number(
        1, MAX_RUNS, "executions after whose end the workflow is completed", whole=True, allow_none=True
    )
    max_failures = _number(
        1, MAX_RUNS, "failures in a row after which nothing starts it any more", whole=True, allow_none=True
    )
    end_date = fields.Raw(
        allow_none=True,
        validate=_is_moment,
        metadata={
            "description": "the moment from which on the workflow is completed",
            "type": "string",
            "format": "date-time",
            "examples": ["2030-01-01T08:00:00+01:00"],
        },
    )
    retention = _duration(
        60,
        "how long its executions and their logs, and the fires of its triggers, are kept; default: as the settings say",
        allow_none=True,
    )
    triggers = fields.List(
        fields.Nested(TriggerSchema), allow_none=True, metadata={"description": "what starts executions"}
    )
    tags = fields.List(
        fields.String(validate=validate.Length(max=200)),
        allow_none=True,
        metadata={"description": "to find the workflow by"},
    )
    inputs = _mapping(
        "a JSON Schema; an execution's input is checked with it, and its defaults are filled in", _is_json_schema
    )
    on_failure = _steps("steps that run when the execution fails or is cancelled", allow_none=True)
    finally_ = _steps("steps that run at the end of every execution", data_key="finally", allow_none=True)
