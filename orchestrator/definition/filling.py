"""A template's step, gone through text by text: in its config by the rules of its type, and in its bodies likewise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.definition.building import bodies_of
from orchestrator.definition.complaints import Complaint
from orchestrator.definition.parameters import read
from orchestrator.definition.paths import Key
from orchestrator.definition.templates import contains_template
from orchestrator.definition.validation import MAX_NESTING, Rendered, how_rendered
from orchestrator.errors import TemplateError
from orchestrator.plugins import BodyInfo, Catalogue

Json = Any
Keys = tuple[Key, ...]
Fill = Callable[[str, bool], Json]
"""What becomes of a text; the second argument says that it is an expression, with braces or without."""

_RENDERED = frozenset(("input_mapping", "output_mapping"))


class Filling:
    """Puts what `fill` makes of them in the place of a step's texts. Texts that are taken as written, such as a
    script, stay so."""

    def __init__(self, catalogue: Catalogue, fill: Fill) -> None:
        self.catalogue = catalogue
        self.fill = fill
        self.found: list[Complaint] = []
        """Where it could not be done, and why."""
        self.changed: dict[Keys, Json] = {}
        self.never_rendered: set[Keys] = set()
        """What of `changed` must be right before the step runs, such as its timeout."""

    def step(self, step: Mapping[str, Any], at: Keys = ()) -> dict[str, Any]:
        made = {}
        for key, value in step.items():
            keys = (*at, key)
            if key == "config":
                made[key] = self._config(step, keys)
            elif key == "compensate" and isinstance(value, Mapping):
                made[key] = self.step(value, keys)
            elif key == "when" and isinstance(value, str):
                made[key] = self._filled(keys, value, Rendered.EXPRESSION)
            elif key in _RENDERED:
                made[key] = _mapped(value, keys, self._text)
            else:
                made[key] = _mapped(value, keys, self._text_at_once)
        return made

    def _config(self, step: Mapping[str, Any], at: Keys) -> Json:
        type = step.get("type")
        known = self.catalogue.get(type) if isinstance(type, str) else None

        def of_config(keys: Keys, text: str) -> Json:
            return self._filled(keys, text, how_rendered(keys[len(at) :], text, known))

        config = _mapped(step["config"], at, of_config)
        for body in bodies_in(step, at[:-1], self.catalogue):
            place = (*at, *body.place)
            steps = [
                self.step(inner, (*place, index)) if isinstance(inner, Mapping) else inner
                for index, inner in enumerate(body.steps)
            ]
            config = with_at(config, body.place, steps)
        return config

    def _text(self, keys: Keys, text: str) -> Json:
        return self._filled(keys, text, Rendered.TEXT if contains_template(text) else None)

    def _text_at_once(self, keys: Keys, text: str) -> Json:
        filled = self._text(keys, text)
        if filled is not text:
            self.never_rendered.add(keys)
        return filled

    def _filled(self, keys: Keys, text: str, how: Rendered | None) -> Json:
        if how is None:
            return text
        try:
            filled = self.fill(text, how is not Rendered.TEXT)
        except TemplateError as error:
            self.found.append((keys, str(error)))
            return text
        if filled is not text:
            self.changed[keys] = filled
        return filled


class UsedParameters:
    """Collects the parameters that texts name, as a Fill that changes nothing."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """Each with a text that names it."""
        self.all = False
        """`params` stands somewhere by itself."""

    def __call__(self, text: str, expression: bool) -> str:
        _, references = read(text, expression=expression)
        for reference in references:
            if reference.name is None:
                self.all = True
            else:
                self.names.setdefault(reference.name, text)
        return text


def bodies_in(step: Mapping[str, Any], at: Keys, catalogue: Catalogue) -> list[BodyInfo]:
    """The bodies of a step that can be gone through; what is wrong with others the validation says."""
    type = step.get("type")
    if not isinstance(type, str) or len(at) > MAX_NESTING * 3:
        return []
    try:
        return [body for body in bodies_of(step, catalogue.get(type)) if isinstance(body.steps, list)]
    except Exception:  # noqa: BLE001  (a plugin may trust its schema, which says what is wrong)
        return []


def with_at(value: Json, keys: Keys, new: Json) -> Json:
    """`value` with `new` at `keys`, where something is already."""
    if not keys:
        return new
    first, *rest = keys
    copy: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copy[first] = with_at(value[first], tuple(rest), new)
    return copy


def _mapped(value: Json, keys: Keys, change: Callable[[Keys, str], Json]) -> Json:
    """`value` with its texts changed; parts in which none is are the same objects."""
    if isinstance(value, str):
        return change(keys, value)
    if isinstance(value, Mapping):
        made = {key: _mapped(item, (*keys, key), change) for key, item in value.items()}
        return made if any(made[key] is not value[key] for key in made) else value
    if isinstance(value, list):
        items = [_mapped(item, (*keys, index), change) for index, item in enumerate(value)]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value
