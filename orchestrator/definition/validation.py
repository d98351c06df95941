"""Whether a document is a definition that can run; if not, everything that is wrong with it, at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from marshmallow import Schema, ValidationError

from orchestrator.definition import paths
from orchestrator.definition.bounds import kind
from orchestrator.definition.building import bodies_of, build_definition
from orchestrator.definition.complaints import UNKNOWN, Complaint, Hints, complaints
from orchestrator.definition.dependencies import Dependencies
from orchestrator.definition.document import Document, check_plain, walk
from orchestrator.definition.model import EARLY, Definition
from orchestrator.definition.paths import Key
from orchestrator.definition.schema import MAX_STEPS, STEP_ID, DefinitionSchema, StepSchema
from orchestrator.definition.syntax import Chain
from orchestrator.definition.templates import ROOTS, compile_expression, compile_text, contains_template
from orchestrator.definition.trigger_checks import check_triggers
from orchestrator.errors import DefinitionError, Problem, TemplateError
from orchestrator.plugins import BodyInfo, Catalogue, StepTypeInfo, Types, missing_modules

MAX_PROBLEMS = 100
_MAX_OF_A_SCHEMA = 10_000  # nobody reads the rest, and wording hundreds of thousands takes seconds

_SEEN_OF_STEP = ("output", "status", "error")
_IN_STEPS = ROOTS - {"loop"}
# An execution's outputs are made by the engine, and secrets never leave a worker.
_IN_OUTPUTS = _IN_STEPS - {"secrets"}
# What is known before an execution begins.
_BEFORE = frozenset(("input", "variables"))
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

MAX_NESTING = 8
"""Bodies within bodies."""

Json = Any
Keys = tuple[Key, ...]
Wrong = Callable[[Chain], str | None]
"""What is wrong with a name where it stands."""


def load_definition(document: Document | Mapping[str, Any], catalogue: Catalogue) -> Definition:
    """The definition in a document.

    Raises DefinitionError with every problem (up to MAX_PROBLEMS), in the order of the document, each with its
    path, and its line if the document knows it.
    """
    if not isinstance(document, Document):
        document = Document(document)
    problems = check_plain(document.data)
    if not problems:
        found = _Validation(document.data, catalogue).run()
        problems = reported(found, document)
    if problems:
        raise DefinitionError(problems)
    return build_definition(document.data, catalogue)


def reported(found: Sequence[Complaint], document: Document) -> list[Problem]:
    """The complaints as problems: each once, in the order of the document, up to MAX_PROBLEMS."""
    order = _Order(document.data)
    ordered = sorted(dict.fromkeys(found), key=lambda complaint: order.position(complaint[0]))
    problems = []
    for keys, message in ordered[:MAX_PROBLEMS]:
        path = paths.join_all(keys)
        problems.append(Problem(path, message, document.line_of(path)))
    if len(ordered) > MAX_PROBLEMS:
        problems.append(
            Problem("", f"at least {len(ordered) - MAX_PROBLEMS:,} more problems are not shown; mend these first")
        )
    return problems


class _Order:
    """The order of the places in a document."""

    def __init__(self, data: Json) -> None:
        self.data = data
        self.indices: dict[int, dict[str, int]] = {}

    def position(self, keys: Keys) -> tuple[int, ...]:
        """Where `keys` stands, to sort by; what is missing comes after its siblings."""
        data, position = self.data, []
        for key in keys:
            if isinstance(data, Mapping):
                position.append(self._indices(data).get(str(key), len(data)))
                data = data.get(key)
            elif isinstance(data, list) and isinstance(key, int):
                position.append(key)
                data = data[key] if 0 <= key < len(data) else None
            else:
                break
        return tuple(position)

    def _indices(self, mapping: Mapping[str, Json]) -> dict[str, int]:
        found = self.indices.get(id(mapping))
        if found is None:
            found = self.indices[id(mapping)] = {key: index for index, key in enumerate(mapping)}
        return found


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a step stands: `around` is the step whose body that is, if it is one; `main` says that it is among the
    definition's own steps, or inside one of them. `loops`: there is a `loop` to speak of."""

    around: str | None = None
    place: Keys = ("steps",)
    main: bool = True
    loops: bool = False


class _Validation:
    """One pass over one document. Each check takes what it can use and leaves malformed parts to the schemas'
    complaints, so that one mistake hides no other."""

    def __init__(self, data: Json, catalogue: Catalogue) -> None:
        self.data = data
        self.catalogue = catalogue
        self.found: list[Complaint] = []
        self.hints = Hints()
        self.schemas: dict[str, Schema] = {}
        self.steps: dict[Keys, Mapping[str, Any]] = {}
        self.homes: dict[Keys, _Home] = {}
        self.bodies: dict[Keys, list[BodyInfo]] = {}
        self.ids: dict[str, Keys] = {}
        self.depends_on: dict[str, tuple[str, ...]] = {}
        self.variables: set[str] = set()

    def run(self) -> list[Complaint]:
        if not isinstance(self.data, Mapping):
            return [((), f"a definition is a mapping with 'steps', not {kind(self.data)}")]
        self._check_characters()
        self._check_shape(DefinitionSchema(), self.data, ())
        self._take_steps(self.data.get("steps"), _Home())
        for name in ("on_failure", "finally"):
            self._take_steps(self.data.get(name), _Home(place=(name,), main=False))
        if len(self.steps) > MAX_STEPS:
            self._complain(
                ("steps",), f"all bodies together have {len(self.steps):,} steps; the limit is {MAX_STEPS:,}"
            )
        self._take_variables()
        self._check_dependencies()
        self.dependencies = Dependencies(self.depends_on)
        self._check_cycles()
        for at, step in self.steps.items():
            self._check_step(at, step)
        self._check_outputs()
        self._check_limit_keys()
        if isinstance(self.catalogue, Types):
            self.found.extend(check_triggers(self.data.get("triggers"), self.catalogue.triggers, self.hints))
        return self.found

    def _complain(self, keys: Keys, message: str) -> None:
        self.found.append((keys, message))

    # -- shapes ----------------------------------------------------------------------------------------------

    def _check_characters(self) -> None:
        for keys, value in walk(self.data):
            texts = value if isinstance(value, Mapping) else (value,) if isinstance(value, str) else ()
            for text in texts:
                unstorable = None if text.isprintable() else _UNSTORABLE.search(text)
                if unstorable:
                    code = f"U+{ord(unstorable[0]):04X}"
                    self._complain(keys, f"the character {code} cannot be stored by PostgreSQL; take it out")

    def _check_shape(self, schema: Schema, data: Json, at: Keys) -> None:
        try:
            schema.load(data)
        except ValidationError as error:
            found = complaints(error.messages, data, at, self.hints, schema)
            self.found.extend(islice(found, _MAX_OF_A_SCHEMA))

    def _take_variables(self) -> None:
        """Those that are declared, and those that steps map their outputs into."""
        for holder in (self.data.get("variables"), *(step.get("output_mapping") for step in self.steps.values())):
            if isinstance(holder, Mapping):
                self.variables.update(map(str, holder))

    def _take_steps(self, steps: Json, home: _Home) -> None:
        for index, step in enumerate(steps if isinstance(steps, list) else ()):
            if not isinstance(step, Mapping):
                continue
            at = (*home.place, index)
            self.steps[at] = step
            self.homes[at] = home
            step_id = step.get("id")
            if isinstance(step_id, str) and STEP_ID.fullmatch(step_id):
                self._take_id(step_id, at)
            self._take_bodies(step, at, home)

    def _take_id(self, step_id: str, at: Keys) -> None:
        if step_id in self.ids:
            self._complain(
                (*at, "id"),
                f"the id '{step_id}' is taken by {paths.join_all(self.ids[step_id])}; give one of them another",
            )
        else:
            self.ids[step_id] = at

    def _take_bodies(self, step: Mapping[str, Any], at: Keys, home: _Home) -> None:
        name = step.get("type")
        known = self.catalogue.get(name) if isinstance(name, str) else None
        try:
            bodies = bodies_of(step, known)
        except Exception:  # noqa: BLE001  (a plugin may trust its schema, which says what is wrong)
            return
        if bodies and len(at) > MAX_NESTING * 3:
            self._complain(at, f"bodies are nested deeper than {MAX_NESTING} levels; make a workflow of its own of one")
            return
        self.bodies[at] = bodies
        schema = StepSchema(many=True)
        for body in bodies:
            place = (*at, "config", *body.place)
            if isinstance(body.steps, list):
                self._check_shape(schema, body.steps, place)
            around = step.get("id")
            self._take_steps(
                body.steps,
                _Home(around if isinstance(around, str) else "", place, home.main, body.loops or home.loops),
            )

    # -- dependencies ----------------------------------------------------------------------------------------

    def _check_dependencies(self) -> None:
        for at, step in self.steps.items():
            step_id = step.get("id")
            usable = []
            for keys, other in _dependencies_written(step):
                if other == step_id:
                    self._complain((*at, *keys), f"the step '{other}' cannot depend on itself")
                elif other not in self.ids:
                    hint = self.hints(other, self.ids)
                    self._complain((*at, *keys), f"there is no step '{other}'{hint}")
                elif self.homes[self.ids[other]].place != self.homes[at].place:
                    self._complain(
                        (*at, *keys), f"the step '{other}' stands in another list of steps; depend on one of this list"
                    )
                else:
                    usable.append(other)
            if isinstance(step_id, str) and self.ids.get(step_id) == at:
                self.depends_on[step_id] = tuple(usable)

    def _check_cycles(self) -> None:
        for cycle in self.dependencies.cycles():
            trail = " -> ".join(cycle if len(cycle) <= 20 else [*cycle[:10], "...", *cycle[-9:]])
            self._complain(
                (*self.ids[cycle[0]], "depends_on"),
                f"the steps wait for each other in a cycle: {trail}; take one of these dependencies out",
            )

    # -- one step --------------------------------------------------------------------------------------------

    def _check_step(self, at: Keys, step: Mapping[str, Any]) -> None:
        step_id = step.get("id")

        def wrong(chain: Chain) -> str | None:
            return self._wrong_in_step(chain, step_id, self.homes[at])

        self._check_performed(at, step, step_id, wrong)
        self._check_part(at, step, "when", wrong)
        self._check_part(at, step, "output_mapping", lambda chain: None if chain[0] == "output" else wrong(chain))
        cache = step.get("cache")
        if isinstance(cache, Mapping):
            self._check_part((*at, "cache"), cache, "key", wrong)
        undo = step.get("compensate")
        if isinstance(undo, Mapping):
            known = self.catalogue.get(str(undo.get("type")))
            if bodies_of(undo, known):
                self._complain((*at, "compensate", "type"), "a step with a body cannot undo another; start a workflow")
            # It runs when all else has ended: whatever is there may be named.
            self._check_performed((*at, "compensate"), undo, None, lambda chain: self._wrong_at_the_end(chain, at))

    def _check_performed(self, at: Keys, step: Mapping[str, Any], step_id: object, wrong: Wrong) -> None:
        known = self._type_of(step, at)
        config = step.get("config")
        if config is None or isinstance(config, Mapping):
            config = config or {}
            templated = self._check_templates(config, (*at, "config"), known, wrong, self.bodies.get(at, ()))
            if known is not None:
                self._check_config(config, (*at, "config"), known, templated)
                self._check_references(config, (*at, "config"), step_id, known)
        self._check_part(at, step, "input_mapping", wrong)

    def _check_part(self, at: Keys, step: Mapping[str, Any], name: str, wrong: Wrong) -> None:
        """Check the templates in one key of a step; a text under `when` is an expression."""
        value = step.get(name)
        if name == "when" and isinstance(value, str):
            self._check_template((*at, name), value, True, wrong)
            return
        for keys, text in walk(value):
            if isinstance(text, str) and contains_template(text):
                self._check_template((*at, name, *keys), text, False, wrong)

    def _type_of(self, step: Mapping[str, Any], at: Keys) -> StepTypeInfo | None:
        name = step.get("type")
        if not isinstance(name, str):
            return None
        if name not in self.catalogue:
            hint = self.hints(name, self.catalogue, f"; known are {', '.join(sorted(self.catalogue))}")
            self._complain((*at, "type"), f"there is no step type '{name}'{hint}")
            return None
        known = self.catalogue[name]
        missing = missing_modules(known)
        if missing:
            self._complain(
                (*at, "type"),
                f"the step type '{name}' needs {', '.join(missing)}, which is not installed; "
                f"install it with: pip install 'orchestrator[{known.extra}]'",
            )
        return known

    def _check_config(self, config: Mapping[str, Any], at: Keys, known: StepTypeInfo, templated: _Templated) -> None:
        schema = self.schemas.get(known.type)
        if schema is None:
            schema = self.schemas[known.type] = known.Config()
        try:
            schema.load(config)
        except ValidationError as error:
            # What holds a template is checked by the worker, once it is rendered; a key is what it is.
            found = complaints(error.messages, config, at, self.hints, schema)
            kept = (item for item in found if item[1].startswith(UNKNOWN) or not templated.excuses(item[0]))
            self.found.extend(islice(kept, _MAX_OF_A_SCHEMA))
        except Exception as error:  # noqa: BLE001  (a plugin's schema may not expect a template where it computes)
            if not templated.places:
                self._complain(at, f"the type '{known.type}' could not check this: {type(error).__name__}: {error}")

    def _check_references(self, config: Mapping[str, Any], at: Keys, step_id: object, known: StepTypeInfo) -> None:
        try:
            references = [(path, other) for path, other in known.references(config) if isinstance(other, str)]
        except Exception:  # noqa: BLE001  (a plugin may trust its schema; what is wrong has been said by that)
            references = []
        for path, other in references:
            keys = (*at, *paths.split(path))
            if other not in self.ids:
                self._complain(keys, f"there is no step '{other}'{self.hints(other, self.ids)}")
            elif isinstance(step_id, str) and step_id not in self.depends_on.get(other, ()):
                self._complain(
                    keys, f"the step '{other}' does not wait for this one; add '{step_id}' to its depends_on"
                )
            elif self.steps[self.ids[other]].get("trigger_rule") in EARLY and len(self.depends_on[other]) > 1:
                self._complain(
                    keys,
                    f"the step '{other}' need not wait for this one, by its trigger_rule; take another rule",
                )

    # -- templates -------------------------------------------------------------------------------------------

    def _check_templates(
        self,
        value: Mapping[str, Any],
        at: Keys,
        known: StepTypeInfo | None,
        wrong: Wrong,
        bodies: Sequence[BodyInfo] = (),
    ) -> _Templated:
        """Check the templates in a step's config, without its bodies; returns where they are."""
        templated = _Templated()
        places = {body.place for body in bodies}
        inner = {str(step.get("id")) for body in bodies for step in body.steps if isinstance(step, Mapping)}

        def wrong_here(chain: Chain) -> str | None:
            # An expression that the type evaluates itself may look at the body as well.
            if chain[0] == "loop" or (chain[0] == "steps" and len(chain) > 1 and chain[1] in inner):
                return None
            return wrong(chain)

        for keys, text, how in _templates(value, known):
            if any(keys[: len(place)] == place for place in places):
                continue
            if how is not Rendered.LATER:  # for the schema that is the text as it stands
                templated.add((*at, *keys), how is Rendered.EXPRESSION)
            is_expression = how is not Rendered.TEXT
            self._check_template((*at, *keys), text, is_expression, wrong_here if how is Rendered.LATER else wrong)
        return templated

    def _check_outputs(self) -> None:
        outputs = self.data.get("outputs")
        if isinstance(outputs, Mapping):
            for keys, text, _ in _templates(outputs, None):
                self._check_template(("outputs", *keys), text, False, self._wrong_in_outputs)

    def _check_limit_keys(self) -> None:
        for name in ("concurrency", "rate_limit"):
            limit = self.data.get(name)
            if isinstance(limit, Mapping):
                self._check_part((name,), limit, "key", lambda chain: self._wrong_name(chain, _BEFORE))

    def _check_template(self, keys: Keys, text: str, is_expression: bool, wrong: Wrong) -> None:
        try:
            compiled = compile_expression(text) if is_expression else compile_text(text)
        except TemplateError as error:
            self._complain(keys, str(error))
            return
        for chain in sorted(compiled.chains, key=str):
            message = wrong(chain)
            if message:
                self._complain(keys, message)

    def _wrong_in_step(self, chain: Chain, step_id: object, home: _Home) -> str | None:
        roots = _IN_STEPS | {"loop"} if home.loops else _IN_STEPS
        return self._wrong_name(chain, roots) or self._wrong_order(chain, step_id)

    def _wrong_in_outputs(self, chain: Chain) -> str | None:
        if chain[0] == "secrets":
            return "'secrets' are known only while a step runs; outputs cannot have them"
        return self._wrong_name(chain, _IN_OUTPUTS) or self._wrong_scope(chain, _Home())

    def _wrong_at_the_end(self, chain: Chain, at: Keys) -> str | None:
        home = self.homes[at]
        return self._wrong_name(chain, _IN_STEPS | {"loop"} if home.loops else _IN_STEPS)

    def _wrong_name(self, chain: Chain, roots: Collection[str]) -> str | None:
        root, key = str(chain[0]), chain[1] if len(chain) > 1 else None
        if root not in roots:
            if root in self.ids:
                return f"'{root}' is not defined; did you mean 'steps.{root}.output'?"
            hint = self.hints(root, roots, f"; a template starts from {', '.join(sorted(roots))}")
            return f"'{root}' is not defined{hint}"
        if root == "variables" and key is not None and key not in self.variables:
            hint = self.hints(str(key), self.variables, "; declare it under 'variables'")
            return f"'{paths.join_all(chain[:2])}' is not defined{hint}"
        return self._wrong_step(chain) if root == "steps" else None

    def _wrong_step(self, chain: Chain) -> str | None:
        other = str(chain[1])
        if other not in self.ids:
            hint = self._dashed(other) or self.hints(other, self.ids)
            return f"'steps.{other}': there is no step '{other}'{hint}"
        if len(chain) > 2 and chain[2] not in _SEEN_OF_STEP:
            return f"'{paths.join_all(chain[:3])}' is not defined; a step has {', '.join(_SEEN_OF_STEP)}"
        return None

    def _dashed(self, other: str) -> str:
        """`steps.my-step` is read as `steps.my` minus something; this is how to write what was meant."""
        if self.hints.allowance <= 0:
            return ""
        dashed = next((step_id for step_id in self.ids if step_id.startswith(f"{other}-")), None)
        return f"; did you mean steps['{dashed}']?" if dashed else ""

    def _wrong_order(self, chain: Chain, step_id: object) -> str | None:
        # A step without a usable id has no place in the order.
        if chain[0] != "steps" or not isinstance(step_id, str) or step_id not in self.depends_on:
            return None
        other = str(chain[1])
        if other == step_id:
            return f"'steps.{other}' is the step itself, which has no output before it ends"
        home = self.homes[self.ids[step_id]]
        if self.homes[self.ids[other]].place == home.place:
            if self.dependencies.is_upstream(other, step_id):
                return None
            return f"'steps.{other}' need not be done when this step starts; add '{other}' to its depends_on"
        if not home.main and self.homes[self.ids[other]] == _Home():
            return None  # what runs at the end may look at all that was before
        if home.around in self.ids:
            return self._wrong_order(chain, home.around)
        return self._wrong_scope(chain, home)

    def _wrong_scope(self, chain: Chain, home: _Home) -> str | None:
        """`steps.x` of a step in a body, seen from outside of it."""
        if chain[0] != "steps" or len(chain) < 2:
            return None
        other = self.homes[self.ids[str(chain[1])]]
        if other.place == home.place:
            return None
        if other.around:
            return f"'steps.{chain[1]}' stands inside '{other.around}'; use steps.{other.around}.output"
        return f"'steps.{chain[1]}' is not known here"


def _dependencies_written(step: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    written = step.get("depends_on")
    if isinstance(written, str):
        yield ("depends_on",), written
    elif isinstance(written, list):
        yield from ((("depends_on", index), item) for index, item in enumerate(written) if isinstance(item, str))


class Rendered(Enum):
    """How a text of a config comes to its value."""

    TEXT = "text"
    EXPRESSION = "expression"
    LATER = "later"
    """By the step type itself."""


def _templates(value: Mapping[str, Any], known: StepTypeInfo | None) -> Iterator[tuple[Keys, str, Rendered]]:
    """(keys, text, how) of each text in `value` that is rendered."""
    for keys, text in walk(value):
        how = how_rendered(keys, text, known) if isinstance(text, str) else None
        if how is not None:
            yield keys, text, how


def how_rendered(keys: Keys, text: str, known: StepTypeInfo | None) -> Rendered | None:
    """How the text at `keys` in the config of a step of the type `known` is rendered; None if it is not."""
    raw = known.raw_fields if known else frozenset()
    # A type that was made before there were such fields has none.
    expressions: frozenset[str] = getattr(known, "expression_fields", frozenset())
    deferred: frozenset[str] = getattr(known, "deferred_fields", frozenset())
    names = [str(key) for key in keys if isinstance(key, str)]
    if raw and any(".".join(names[:end]) in raw for end in range(1, len(names) + 1)):
        return None
    if deferred and ".".join(names) in deferred:
        return Rendered.LATER
    if expressions and ".".join(names) in expressions:
        return Rendered.EXPRESSION
    return Rendered.TEXT if contains_template(text) else None


class _Templated:
    """Where a configuration holds templates, and so cannot be checked before it is rendered."""

    def __init__(self) -> None:
        self.places: set[Keys] = set()
        self.around: set[Keys] = set()

    def add(self, keys: Keys, is_expression: bool) -> None:
        self.places.add(keys)
        # A schema knows of its own expression fields, so that they excuse nothing around them.
        if not is_expression:
            self.around.update(keys[:end] for end in range(len(keys)))

    def excuses(self, keys: Keys) -> bool:
        """Whether an error at `keys` is about a template, or about something that holds one."""
        return keys in self.around or any(keys[:end] in self.places for end in range(len(keys) + 1))
