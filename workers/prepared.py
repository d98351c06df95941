"""A step's configuration and templates, compiled once for all attempts of it in a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import marshmallow

from orchestrator.definition.complaints import Hints, complaints
from orchestrator.definition.model import Step
from orchestrator.definition.paths import join_all
from orchestrator.definition.templates import Compiled, compile_expression, compile_value
from orchestrator.engine.programs import Program
from orchestrator.errors import StepFailed
from workers.inline import has_pure_bodies
from workers.steps.contract import StepType

_SHOWN_COMPLAINTS = 20


@dataclass(slots=True)
class Prepared:
    """What is the same for every attempt of a step in any execution of its workflow version."""

    type: StepType
    config: Tree
    input_mapping: Compiled | None
    when: Compiled | None
    output_mapping: Compiled | None
    cache_key: Compiled | None
    references: frozenset[str]
    """Ids of the steps whose outputs the templates name."""
    roots: frozenset[str]
    """What the templates start from."""
    loaded: Mapping[str, Any] | None
    """The configuration, if it is checked once for all; what its `variable` fields come to is put in their place."""
    has_pure_bodies: bool


class Tree:
    """A configuration compiled field by field: expressions as such, raw fields not at all."""

    def __init__(self, config: Mapping[str, Any], step_type: StepType) -> None:
        self._type = step_type
        self.parts: list[Compiled] = []
        self.deferred: dict[str, Compiled] = {}
        """What the type evaluates itself, by its place."""
        self._fields: dict[str, Any] = {}
        variable = set()
        for name, value in config.items():
            known = len(self.parts)
            self._fields[name] = self._compile(value, name)
            if len(self.parts) > known:
                variable.add(name)
        self.variable = frozenset(variable)
        """The fields that depend on the context."""

    def render(self, context: Mapping[str, object]) -> dict[str, Any]:
        return {name: self._render(node, context) for name, node in self._fields.items()}

    def constants(self) -> dict[str, Any]:
        """With None for each variable field."""
        return {name: None if name in self.variable else self._render(node, {}) for name, node in self._fields.items()}

    def _compile(self, value: Any, path: str) -> Any:
        if path in self._type.raw_fields:
            return value
        if path in self._type.deferred_fields:
            self.deferred[path] = compile_expression(value) if isinstance(value, str) else compile_value(value)
            return value
        if path in self._type.expression_fields and isinstance(value, str):
            return self._part(compile_expression(value))
        if isinstance(value, dict):
            return {key: self._compile(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._compile(item, path) for item in value]
        return self._part(compile_value(value)) if isinstance(value, str) else value

    def _part(self, compiled: Compiled) -> Any:
        if compiled.constant:
            return compiled.render({})
        self.parts.append(compiled)
        return compiled

    def _render(self, node: Any, context: Mapping[str, object]) -> Any:
        if isinstance(node, Compiled):
            return node.render(context)
        if isinstance(node, dict):
            return {key: self._render(item, context) for key, item in node.items()}
        if isinstance(node, list):
            return [self._render(item, context) for item in node]
        return node


def prepare(program: Program, step: Step, catalogue: Mapping[str, Any]) -> Prepared:
    """Compile a step's templates; kept with the program. Raises StepFailed for a type that is not here."""
    known: Prepared | None = program.prepared.get(step.id)
    if known is not None:
        return known
    step_type: StepType | None = catalogue.get(step.type)
    if step_type is None:
        raise StepFailed(
            f"this worker does not know the step type {step.type!r}; start it with the plugin that has it",
            kind="config",
        )
    config = Tree(step.config or {}, step_type)
    mapping = None if step.input_mapping is None else compile_value(dict(step.input_mapping))
    when = compile_expression(step.when) if isinstance(step.when, str) else None
    exported = None if step.output_mapping is None else compile_value(dict(step.output_mapping))
    cache_key = None if step.cache is None else compile_value(step.cache.key)
    parts = [*config.parts, *(part for part in (mapping, when, exported, cache_key) if part is not None)]
    prepared = Prepared(
        step_type,
        config,
        mapping,
        when,
        exported,
        cache_key,
        frozenset(reference for part in parts for reference in part.steps),
        frozenset(root for part in (*parts, *config.deferred.values()) for root in part.roots),
        load(step_type, config.constants()) if config.variable <= step_type.unchecked_fields else None,
        bool(step.bodies) and has_pure_bodies(step, catalogue),
    )
    program.prepared[step.id] = prepared
    return prepared


def load(step_type: StepType, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A rendered configuration as the type takes it. Raises StepFailed that says all that is wrong with it."""
    schema = _schema(step_type)
    try:
        loaded: Mapping[str, Any] = schema.load(config)
    except marshmallow.ValidationError as error:
        found = islice(complaints(error.messages, config, (), Hints(), schema), _SHOWN_COMPLAINTS)
        wrong = "; ".join(f"{join_all(keys) or 'config'}: {what}" for keys, what in found)
        raise StepFailed(f"the rendered config is not valid: {wrong}", kind="config", retryable=False) from None
    return loaded


@lru_cache(maxsize=256)
def _schema(step_type: StepType) -> marshmallow.Schema:
    return step_type.Config()  # making one takes longer than using it
