"""Step templates: steps that are written once, with parameters, and used by name.

A step that says `uses: <template>` and `with: {<parameter>: <value>}` is written out when its workflow is saved, so
that a template may change without changing what is there already. What else the using step says goes before what the
template says; its `config` is merged over the template's, mapping by mapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from orchestrator.definition import paths
from orchestrator.definition.bounds import MAX_WORK, Budget, kind
from orchestrator.definition.complaints import Complaint, Hints
from orchestrator.definition.document import Document, walk
from orchestrator.definition.filling import Filling, UsedParameters, bodies_in, with_at
from orchestrator.definition.model import Definition
from orchestrator.definition.parameters import Parameters
from orchestrator.definition.paths import Key
from orchestrator.definition.templates import compile_text, contains_template
from orchestrator.definition.validation import load_definition, reported
from orchestrator.errors import DefinitionError, Problem, TemplateError
from orchestrator.plugins import Catalogue

Json = Any
Keys = tuple[Key, ...]

USES, WITH = "uses", "with"
_LISTS = ("steps", "on_failure", "finally")
_OF_ONE_VALUE = frozenset(
    ("type", "required", "dependentRequired", "additionalProperties", "propertyNames", "minProperties",
     "maxProperties", "minItems", "maxItems")
)  # fmt: skip
"""Keywords of JSON Schema that look at a mapping or list, not at what is in it."""
_MAX_OF_PARAMETERS = 100
_WORK = 10 * MAX_WORK
"""Some seconds at the very worst, for all that a document has."""


@dataclass(frozen=True, slots=True)
class StepTemplate:
    """`step` is one without `id` and `depends_on`; `parameters` a JSON Schema of what `with` gives."""

    name: str
    step: Mapping[str, Any]
    parameters: Mapping[str, Any] | None = None

    @property
    def properties(self) -> Mapping[str, Any]:
        found = (self.parameters or {}).get("properties")
        return found if isinstance(found, Mapping) else {}


def load_with_templates(
    document: Document, catalogue: Catalogue, templates: Mapping[str, StepTemplate], limit: int
) -> tuple[Definition, dict[str, Any] | None]:
    """The definition in a document whose steps may use `templates`, and the document with these written out: at most
    `limit` bytes of JSON, and None if it uses none.

    Raises DefinitionError like load_definition. What is wrong in a step as it was written out has the path that it
    would have there, and names the template.
    """
    writing = _Writing(document.data, catalogue, templates, limit)
    data = writing.definition()
    if data is document.data:
        return load_definition(document, catalogue), None
    found = writing.found
    try:
        definition = load_definition(Document(data, document.root), catalogue)
    except DefinitionError as error:
        found += writing.attributed(error.problems)
    if found:
        raise DefinitionError(reported(found, document))
    return definition, data


def check_without_templates(document: Document, catalogue: Catalogue) -> tuple[list[Problem], int]:
    """What is wrong with a document where there are no templates to look at, and how many of its steps use one:
    of these only what they say themselves is checked."""
    writing = _Writing(document.data, catalogue, None, 0)
    data = writing.definition()
    found = writing.found
    try:
        load_definition(Document(data, document.root), catalogue)
    except DefinitionError as error:
        found += writing.attributed(error.problems)
    return reported(found, document), len(writing.used)


class _Writing:
    """One pass over one document. `templates` is None where there are none to look at."""

    def __init__(
        self, data: Json, catalogue: Catalogue, templates: Mapping[str, StepTemplate] | None, limit: int
    ) -> None:
        self.data = data
        self.catalogue = catalogue
        self.templates = templates
        self.found: list[Complaint] = []
        self.used: dict[Keys, str] = {}
        """The steps that use a template, and its name."""
        self.left_alone: dict[Keys, Mapping[str, Any]] = {}
        """Those of them that could not be written out, as they are written."""
        self.hints = Hints()
        self._size = Budget(
            limit, f"with its step templates written out the definition has more than {limit:,} bytes; use fewer"
        )
        self._work = Budget(
            _WORK, "the step templates of this definition have too much to compute; give them the results"
        )
        self._seen: dict[str, tuple[UsedParameters, int]] = {}

    def definition(self) -> Json:
        """The document with its templates written out; itself if it uses none."""
        if not isinstance(self.data, Mapping):
            return self.data
        made = {name: self._steps(self.data[name], (name,)) for name in _LISTS if isinstance(self.data.get(name), list)}
        changed = any(made[name] is not self.data[name] for name in made)
        return {**self.data, **made} if changed else self.data

    def attributed(self, problems: Iterable[Problem]) -> Iterator[Complaint]:
        """What is wrong with the document as it was written out, said of the one that was given."""
        for problem in problems:
            keys = tuple(paths.split(problem.path))
            at = next((keys[:end] for end in range(len(keys), 0, -1) if keys[:end] in self.used), None)
            if at is None:
                yield keys, problem.message
            elif at not in self.left_alone:
                written = _is_written(self.data, keys)
                by = "" if written else f" (written out from the step template '{self.used[at]}')"
                yield keys, problem.message + by
            elif len(keys) > len(at) and keys[len(at)] in self.left_alone[at].keys() - {"config", "type"}:
                yield keys, problem.message

    # -- steps

    def _steps(self, steps: list[Json], at: Keys) -> list[Json]:
        made = [self._step(step, (*at, index)) for index, step in enumerate(steps)]
        return made if any(new is not old for new, old in zip(made, steps, strict=True)) else steps

    def _step(self, step: Json, at: Keys) -> Json:
        if not isinstance(step, Mapping):
            return step
        if USES in step:
            step = self._written_out(step, at)
        undo = step.get("compensate")
        if isinstance(undo, Mapping) and USES in undo:
            step = {**step, "compensate": self._written_out(undo, (*at, "compensate"))}
        for body in bodies_in(step, at, self.catalogue):
            steps = self._steps(list(body.steps), (*at, "config", *body.place))
            if any(new is not old for new, old in zip(steps, body.steps, strict=True)):
                step = {**step, "config": with_at(step["config"], body.place, steps)}
        return step

    def _written_out(self, step: Mapping[str, Any], at: Keys) -> Mapping[str, Any]:
        own = {key: value for key, value in step.items() if key not in (USES, WITH)}
        self.used[at] = str(step[USES])
        before = len(self.found)
        template = self._template(step, at)
        given = self._given(step, at)
        values = self._values(template, given, at) if template is not None else {}
        if template is not None and len(self.found) == before:
            filled = self._filled(template, values, at)
            if filled is not None:
                return _over(filled, own)
        self.left_alone[at] = own
        stand_in = {**own, "type": "", "config": {}}
        if template is not None and "output_mapping" in template.step:
            # Others may use the variables.
            stand_in.setdefault("output_mapping", template.step["output_mapping"])
        return stand_in

    def _template(self, step: Mapping[str, Any], at: Keys) -> StepTemplate | None:
        name = step[USES]
        if "type" in step:
            self._complain((*at, "type"), "write either 'uses' or 'type'; the template has a type")
        if not isinstance(name, str):
            self._complain((*at, USES), f"must be the name of a step template, not {kind(name)}")
            return None
        if self.templates is None:
            return None
        template = self.templates.get(name)
        if template is None:
            hint = self.hints(name, list(self.templates))
            self._complain((*at, USES), f"there is no step template '{name[:200]}'{hint}")
        return template

    def _given(self, step: Mapping[str, Any], at: Keys) -> Mapping[str, Any]:
        given = step.get(WITH)
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self._complain((*at, WITH), f"must be a mapping of parameters to values, not {kind(given)}")
            return {}
        for keys, value in walk(given):
            if isinstance(value, str) and contains_template(value):
                try:
                    compile_text(value)
                except TemplateError as error:
                    self._complain((*at, WITH, *keys), str(error))
        return given

    def _values(self, template: StepTemplate, given: Mapping[str, Any], at: Keys) -> Mapping[str, Any]:
        """The values of all parameters, defaults included; complains of what does not fit."""
        declared = template.properties
        defaults = {
            name: schema["default"]
            for name, schema in declared.items()
            if isinstance(schema, Mapping) and "default" in schema
        }
        values = {**defaults, **given}
        used, _ = self._facts(template)
        known = {*declared, *used.names}
        for name in given:
            if name not in known and not used.all:
                hint = self.hints(name, known, f"; it has {', '.join(sorted(known)) or 'none'}")
                self._complain(
                    (*at, WITH, name), f"the step template '{template.name}' has no parameter '{name}'{hint}"
                )
        required = (template.parameters or {}).get("required") or ()
        for name in dict.fromkeys((*required, *used.names)):
            if name not in values:
                self._complain((*at, WITH, name), f"is missing; the step template '{template.name}' needs it")
        for keys, message in _misfits(template.parameters, values):
            self._complain((*at, WITH, *keys), message)
        return values

    def _filled(self, template: StepTemplate, values: Mapping[str, Any], at: Keys) -> Mapping[str, Any] | None:
        if self._size.left < 0:
            return None  # said already
        _, size = self._facts(template)
        parameters = Parameters(values, self._size.spend, self._work)
        filling = Filling(self.catalogue, lambda text, expression: parameters.fill(text, expression=expression))
        self._size.left -= size
        made = filling.step(template.step)
        if self._size.left < 0:
            self._complain((*at, USES), self._size.message)
            return None
        for keys, message in filling.found:
            self._complain((*at, USES), f"{paths.join_all(keys)} of the step template '{template.name}': {message}")
        return None if filling.found else made

    def _facts(self, template: StepTemplate) -> tuple[UsedParameters, int]:
        """The parameters that a template uses, and its size in bytes of JSON."""
        if template.name not in self._seen:
            used = UsedParameters()
            Filling(self.catalogue, used).step(template.step, ())
            self._seen[template.name] = used, len(orjson.dumps(template.step))
        return self._seen[template.name]

    def _complain(self, keys: Keys, message: str) -> None:
        self.found.append((keys, message))


def _misfits(schema: Mapping[str, Any] | None, values: Mapping[str, Any]) -> Iterator[Complaint]:
    """What of `values` the schema does not allow, as far as it can be told before templates are rendered."""
    if schema is None:
        return
    # A registry of its own has nothing to fetch: a $ref to elsewhere is an error, not a request.
    errors = Draft202012Validator(schema, registry=Registry()).iter_errors(values)
    try:
        for count, error in enumerate(errors):
            if count >= _MAX_OF_PARAMETERS:
                return
            keys = tuple(error.absolute_path)
            if error.validator == "required" and not keys:
                continue  # said already, with its place
            if not _hangs_on_templates(error.instance, error.validator):
                yield keys, error.message[:500]
    except (Unresolvable, RecursionError) as error:
        yield (), f"cannot be checked by the template's parameters: {str(error)[:300] or type(error).__name__}"


def _hangs_on_templates(value: Json, keyword: object) -> bool:
    if isinstance(value, str):
        return contains_template(value)
    return keyword not in _OF_ONE_VALUE and any(
        isinstance(text, str) and contains_template(text) for _, text in walk(value)
    )


def _over(filled: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The step of a template, with what the using step says itself."""
    made = {**filled, **own}
    if "config" in filled and "config" in own:
        made["config"] = _merged(filled["config"], own["config"])
    return made


def _merged(below: Json, above: Json) -> Json:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: _merged(below[key], value) if key in below else value for key, value in above.items()}}


def _is_written(data: Json, keys: Keys) -> bool:
    for key in keys:
        try:
            data = data[key]
        except (LookupError, TypeError):
            return False
    return True
