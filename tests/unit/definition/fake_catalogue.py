"""Two step types, much like the real ones, for tests that need no worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from marshmallow import Schema, fields, validate

from orchestrator.definition import Definition, load_definition, read_definition
from orchestrator.errors import DefinitionError, Problem


class FakeHttp:
    type = "http"
    queue = "io"
    raw_fields = frozenset({"script"})
    expression_fields: frozenset[str] = frozenset()

    class Config(Schema):
        url = fields.String(required=True)
        method = fields.String(validate=validate.OneOf(("GET", "POST")))
        headers = fields.Dict(keys=fields.String(), values=fields.String())
        retries = fields.Integer(strict=True)
        script = fields.String()
        timeout = fields.Raw()

    def references(self, config: Mapping[str, object]) -> Iterable[tuple[str, str]]:
        return ()


class FakeCondition:
    type = "condition"
    queue = "control"
    raw_fields: frozenset[str] = frozenset()
    expression_fields = frozenset({"expression", "cases.when"})

    class Config(Schema):
        expression = fields.Raw()
        cases = fields.Raw()
        then = fields.List(fields.String())

    def references(self, config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        for index, step_id in enumerate(config.get("then") or ()):
            yield f"then[{index}]", step_id


CATALOGUE: Any = {"http": FakeHttp(), "condition": FakeCondition()}


def load(text: str) -> Definition:
    """The definition in a YAML text."""
    return load_definition(read_definition(text, "yaml"), CATALOGUE)


def problems(text: str) -> list[Problem]:
    """What is wrong with a YAML text; nothing if it can be loaded."""
    try:
        load(text)
    except DefinitionError as error:
        return list(error.problems)
    return []


def only_problem(text: str) -> Problem:
    """The one thing that is wrong with a YAML text."""
    found = problems(text)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]
