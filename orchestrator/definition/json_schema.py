"""The JSON Schema (draft 2020-12) of definitions, made of the marshmallow schemas that check them.

It knows shapes only: what is there, of which kind, and which step type takes which config. What the parts mean
together (ids, dependencies, templates) is in validation.py, and so is what a validator of a step type finds that has
no JSON Schema. A config's unknown key is refused here even if its value is a template, which is found there only when
the step runs.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from apispec import APISpec
from apispec.ext.marshmallow.common import resolve_schema_instance
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import EXCLUDE, INCLUDE, Schema, fields, validate

from orchestrator.definition.schema import (
    CacheSchema,
    DefinitionSchema,
    PerformedSchema,
    RetryPolicySchema,
    StepSchema,
    TriggerSchema,
)
from orchestrator.plugins import Catalogue, StepTypeInfo

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID = "urn:orchestrator:definition"

_NAMED: Mapping[type[Any], str] = {
    StepSchema: "step",
    PerformedSchema: "compensation",
    RetryPolicySchema: "retry_policy",
    CacheSchema: "cache",
    TriggerSchema: "trigger",
}
_STEP = {"$ref": "#/$defs/step"}
_TEMPLATE = {"$ref": "#/$defs/template"}
_NOT_NULL = ["array", "boolean", "number", "object", "string"]
_NUMBER = r"^\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"

_OF_TEMPLATES: Json = {
    "uses": {"type": "string", "description": "the step template that has its type and config"},
    "with": {"type": ["object", "null"], "description": "values for the parameters of the step template"},
}

_ABOUT = frozenset({"title", "description", "default", "examples", "deprecated"})
"""Keywords that say something and check nothing."""

_OF_TEXTS = frozenset({"anyOf", "oneOf", "allOf", "not", "$ref", "enum", "const", "pattern", "maxLength", "format"})
"""Keywords by which a text may be refused."""

_OF_CLASS = frozenset({"type", "format", "items", "additionalProperties"})
"""Keywords that a field gets for its class."""

_PYTHON_ONLY = re.compile(r"\(\?(?![:=!]|<[=!])|\\[AZ]|[*+?}]\+")


def json_schema(catalogue: Catalogue) -> Json:
    """The schema of a definition with the step types of `catalogue`; for the same types it is the same, in the same
    order."""
    types = [catalogue[name] for name in sorted(catalogue)]
    configs = {known.type: _config(known) for known in types}
    converter = _Converter()
    named = {name: converter.convert(schema()) for schema, name in _NAMED.items()}
    _add_types(named["step"], types, configs)
    # A step with a body cannot undo another.
    _add_types(named["compensation"], [known for known in types if not _has_steps(configs[known.type])], configs)
    schema: Json = {
        "$schema": DIALECT,
        "$id": ID,
        "title": "Workflow definition",
        "description": "A workflow of Orchestrator: steps, and how they depend on each other",
        **converter.convert(DefinitionSchema()),
        "$defs": {
            **named,
            "template": {
                "description": "a template, such as {{ steps.fetch.output.body }}",
                "type": "string",
                "pattern": r"\{\{|\{%",
            },
            **{_name_of(known): configs[known.type] for known in types},
        },
    }
    plain: Json = json.loads(json.dumps(schema, default=str))
    return plain


# -- step types ------------------------------------------------------------------------------------------------


def _add_types(step: Json, types: Iterable[StepTypeInfo], configs: Mapping[str, Json]) -> None:
    """Let the `type` of a step choose the schema of its config, if it does not use a step template instead."""
    step["properties"]["type"]["enum"] = [known.type for known in types]
    step["properties"] |= _OF_TEMPLATES
    step["required"] = [key for key in step["required"] if key != "type"]
    step["oneOf"] = [{"required": ["type"]}, {"required": ["uses"]}]
    step["allOf"] = [
        {
            "if": {"properties": {"type": {"const": known.type}}, "required": ["type"]},
            "then": _then(known, is_needed="required" in configs[known.type]),
        }
        for known in types
    ]


def _then(known: StepTypeInfo, is_needed: bool) -> Json:
    pointer = _name_of(known).replace("~", "~0").replace("/", "~1")
    config = {"$ref": f"#/$defs/{quote(pointer)}"}
    properties = {
        "type": {"description": _says(known)},
        "config": config if is_needed else {"anyOf": [config, {"type": "null"}]},
    }
    return {"properties": properties} | ({"required": ["config"]} if is_needed else {})


def _name_of(known: StepTypeInfo) -> str:
    return f"config.{known.type}"


def _config(known: StepTypeInfo) -> Json:
    config = _Converter().convert(known.Config())
    return {"title": known.type, "description": _says(known)} | _open_to_templates(config, (), known)


def _says(known: StepTypeInfo) -> str:
    """The docstring of the type, without the line breaks in its paragraphs, which editors would show."""
    # Not inspect.getdoc: a type without a docstring would get that of its base.
    text = inspect.cleandoc(known.__doc__ or known.type)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _has_steps(schema: object) -> bool:
    if isinstance(schema, dict):
        return schema == _STEP or any(map(_has_steps, schema.values()))
    return isinstance(schema, list) and any(map(_has_steps, schema))


# -- templates -------------------------------------------------------------------------------------------------


def _open_to_templates(schema: Json, path: tuple[str, ...], known: StepTypeInfo) -> Json:
    """The schema of a config, or of what stands at `path` in one, with a template allowed for each value in it."""

    def value(inner: Json, *keys: str) -> Json:
        return _or_template(inner, (*path, *keys), known)

    opened = dict(schema)
    if "properties" in schema:
        opened["properties"] = {name: value(inner, name) for name, inner in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        opened["additionalProperties"] = value(schema["additionalProperties"], "*")
    if "items" in schema:
        opened["items"] = value(schema["items"])  # a path passes through the items of lists
    for several in schema.keys() & {"anyOf", "oneOf", "allOf"}:
        opened[several] = [_open_to_templates(inner, path, known) for inner in schema[several]]
    return opened


def _or_template(schema: Json, path: tuple[str, ...], known: StepTypeInfo) -> Json:
    as_written = known.raw_fields | getattr(known, "deferred_fields", frozenset())
    if any(".".join(path[:end]) in as_written for end in range(1, len(path) + 1)):
        return schema
    opened = _open_to_templates(schema, path, known)
    if _takes_any_text(opened):
        return opened
    expressions: frozenset[str] = getattr(known, "expression_fields", frozenset())
    return _or(opened, {"type": "string"} if ".".join(path) in expressions else _TEMPLATE)


def _takes_any_text(schema: Json) -> bool:
    if "anyOf" in schema:
        return any(map(_takes_any_text, schema["anyOf"]))
    kinds = schema.get("type", "string")
    # A template has two characters at least.
    return "string" in kinds and _OF_TEXTS.isdisjoint(schema) and schema.get("minLength", 0) <= 2


def _or(schema: Json, *more: Json) -> Json:
    """`schema` with more alternatives; what it says of itself stays in front."""
    about = {key: value for key, value in schema.items() if key in _ABOUT}
    checks = {key: value for key, value in schema.items() if key not in _ABOUT}
    alternatives = checks["anyOf"] if checks.keys() == {"anyOf"} else [checks]
    return about | {"anyOf": [*alternatives, *more]}


# -- from fields to JSON Schema --------------------------------------------------------------------------------


class _Converter(OpenAPIConverter):
    """apispec's conversion to the schemas of OpenAPI 3.1, which are JSON Schema, with what it leaves out or gets wrong.

    In a field's `metadata`, `anyOf` is its shape whatever its class is, and `step: True` says that it is a step.
    """

    def __init__(self) -> None:
        super().__init__("3.1.0", lambda _: None, APISpec("", "", "3.1.0"))
        self._open: list[type[Schema]] = []

    def convert(self, schema: Schema) -> Json:
        self._open.append(type(schema))
        shape: Json = self.schema2jsonschema(schema)  # type: ignore[no-untyped-call]
        self._open.pop()
        if schema.unknown != EXCLUDE:
            shape["additionalProperties"] = schema.unknown == INCLUDE
        return shape

    def resolve_nested_schema(self, schema: Any) -> Json:
        nested = resolve_schema_instance(schema)
        if type(nested) in _NAMED:
            shape: Json = {"$ref": f"#/$defs/{_NAMED[type(nested)]}"}
        elif type(nested) in self._open:
            shape = {}  # a plugin's schema may nest itself; the inner one is not looked into
        else:
            shape = self.convert(nested)
        return {"type": "array", "items": shape} if nested.many else shape

    def field2property(self, field: fields.Field[Any]) -> Json:
        if field.metadata.get("step"):
            return dict(_STEP)
        found = super().field2property(field)
        shape = {key: value for key, value in found.items() if value is not None and not key.startswith("x-")}
        if "propertyNames" in field.metadata:  # a keyword that OpenAPI did not have before 3.1
            shape["propertyNames"] = field.metadata["propertyNames"]
        if "anyOf" in field.metadata:
            shape = {key: value for key, value in shape.items() if key not in _OF_CLASS}
            return _or(shape, {"type": "null"}) if field.allow_none else shape
        if shape.keys().isdisjoint({"type", *_OF_TEXTS}) and not field.allow_none:
            shape["type"] = _NOT_NULL
        spellings = _other_spellings(field)
        return _or(shape, *spellings) if spellings and "enum" not in shape else shape

    def field2default(self, field: fields.Field[Any], **_: Any) -> Json:
        default = field.load_default
        is_plain = isinstance(default, (str, int, float)) and not isinstance(field, fields.Nested)
        return {"default": default} if is_plain else {}

    def field2choices(self, field: fields.Field[Any], **_: Any) -> Json:
        if any(isinstance(validator, validate.ContainsOnly) for validator in field.validators):
            return {}  # those are of the items
        found: Json = super().field2choices(field)
        if any(isinstance(getattr(validator, "choices", ()), (set, frozenset)) for validator in field.validators):
            found["enum"].sort(key=str)
        return found

    def field2length(self, field: fields.Field[Any], **_: Any) -> Json:
        found: Json = super().field2length(field)
        if isinstance(field, fields.Dict):
            return {key.replace("Length", "Properties"): value for key, value in found.items()}
        return found

    def field2pattern(self, field: fields.Field[Any], **_: Any) -> Json:
        regexes = [validator.regex for validator in field.validators if isinstance(validator, validate.Regexp)]
        patterns = [pattern for pattern in map(_ecma, regexes) if pattern]
        return {"pattern": patterns[0]} if patterns else {}

    def dict2properties(self, field: fields.Field[Any], **kwargs: Any) -> Json:
        found: Json = super().dict2properties(field, **kwargs)
        key_field = getattr(field, "key_field", None)
        names = self.field2pattern(key_field) if key_field else {}
        return found | {"propertyNames": names} if names else found


def _other_spellings(field: fields.Field[Any]) -> list[Json]:
    """Texts (and 0 and 1) that marshmallow takes for truth values and numbers. By a pattern: no editor offers them."""
    if isinstance(field, fields.Boolean):
        words = sorted(word for word in field.truthy | field.falsy if isinstance(word, str))
        texts = [{"type": "string", "pattern": f"^({'|'.join(map(re.escape, words))})$"}] if words else []
        return [{"type": "integer", "minimum": 0, "maximum": 1}, *texts]
    if isinstance(field, fields.Number) and not getattr(field, "strict", False):
        return [{"type": "string", "pattern": _NUMBER}]
    return []


def _ecma(regex: re.Pattern[Any]) -> str | None:
    """The regular expression as JSON Schema has them, which are JavaScript's; None if it says what only Python knows.
    marshmallow looks at the beginning of a text."""
    pattern = regex.pattern.removesuffix(r"\Z")
    if regex.flags & ~re.UNICODE or _PYTHON_ONLY.search(pattern):
        return None
    return f"^(?:{pattern}{'$' if pattern != regex.pattern else ''})"
