"""What an execution would do, without starting one: its input, its steps, and the first messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from orchestrator.definition import paths
from orchestrator.definition.building import COMPENSATE
from orchestrator.definition.graph import Graph
from orchestrator.definition.model import Step
from orchestrator.definition.paths import Key
from orchestrator.definition.scopes import FINALLY, ON_FAILURE
from orchestrator.definition.syntax import Chain
from orchestrator.definition.templates import Compiled, compile_expression, compile_text, contains_template
from orchestrator.engine.endings import NOT_TRIGGERED, execution_facts
from orchestrator.engine.plan import Message, plan
from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.start import check_payload, check_startable
from orchestrator.errors import TemplateError
from orchestrator.store import Store, workflows

Json = Any

_NO_EXECUTION = ""
_ANY_ROUND = "*"
"""Stands in the paths of a loop's steps where an execution has the number of the round: `loop1[*].fetch`."""


def dry_run(store: Store, programs: Programs, workflow_id: str, input: Json, *, priority: int) -> dict[str, Json]:
    """The plan of an execution of the workflow's newest version; nothing is written.

    `steps` (and `on_failure`, `finally`) have an entry for each step, in an order in which they could run; `messages`
    are the chains that start would send, and the `join` that follows them. `problems` are templates that this input
    makes fail.

    Raises what start_execution raises.
    """
    check_payload(input, programs.settings.executor.max_payload)
    with store.single() as connection:
        status, version = workflows.current(connection, workflow_id)
        check_startable(workflow_id, status, workflows.is_template(connection, workflow_id))
    program = programs.get(store, workflow_id, version)
    given = program.checked_input(input)
    facts = execution_facts(_NO_EXECUTION, workflow_id, version, priority)
    preview = _Preview(program, programs.catalogue, given, facts)
    root, definition = program.scopes.root, program.definition
    return {
        "workflow_id": workflow_id,
        "version": version,
        "input": given,
        "steps": preview.steps(root),
        "on_failure": preview.steps(program.scopes.at(ON_FAILURE)) if definition.on_failure else [],
        "finally": preview.steps(program.scopes.at(FINALLY)) if definition.finally_ else [],
        "messages": _messages(program, priority),
        "problems": preview.problems,
    }


def _messages(program: Program, priority: int) -> dict[str, Json]:
    first = plan(program.scopes, _NO_EXECUTION, priority, program.scopes.root.roots)

    def shown(message: Message) -> dict[str, Json]:
        own = message.priority
        return {
            "queue": message.queue,
            "starts": list(message.starts),
            "priority": first.priority if own is None else own,
        }

    return {
        "chains": [[shown(message) for message in branch] for branch in first.branches],
        "join": None if first.join is None else shown(first.join),
    }


@dataclass(slots=True)
class _Preview:
    """The steps as far as they are known before anything runs."""

    program: Program
    catalogue: Mapping[str, Any]
    input: Json
    facts: Mapping[str, Json]
    problems: list[dict[str, str]] = field(default_factory=list)

    def steps(self, graph: Graph) -> list[dict[str, Json]]:
        """The entries of a graph; `run` numbers the runs in it, `level` is the depth."""
        levels: dict[str, int] = {}
        runs: dict[str, int] = {}
        numbers = count()
        # A step is lower than all that it waits for.
        for path in sorted(graph.steps, key=lambda path: -graph.heights[path]):
            levels[path] = max((levels[needed] + 1 for needed in graph.steps[path].depends_on), default=0)
            if path not in runs:
                runs.update(dict.fromkeys(graph.run(path), next(numbers)))
        return [
            self._entry(graph, path) | {"level": levels[path], "run": runs[path]}
            for path in sorted(graph.steps, key=lambda path: levels[path])
        ]

    def _entry(self, graph: Graph, path: str) -> dict[str, Json]:
        step = graph.steps[path]
        entry: dict[str, Json] = {
            "path": path,
            "id": step.id,
            "type": step.type,
            "queue": graph.queue_for(path),
            "depends_on": list(step.depends_on),
            "trigger_rule": step.trigger_rule,
            "when": step.when,
            "height": graph.heights[path],
            "rendered": self._rendered(step),
        }
        if step.bodies:
            entry["bodies"] = {name or "steps": self.steps(self._inside(path, name)) for name in step.bodies}
        if step.compensate is not None:
            (entry["compensate"],) = self.steps(self.program.scopes.of(f"{COMPENSATE}.{path}"))
        return entry

    def _inside(self, path: str, name: str) -> Graph:
        return self.program.scopes.at(f"{path}.{name}" if name else f"{path}[{_ANY_ROUND}]")

    # --- the config, as far as it can be rendered --------------------------------------------------------------

    def _rendered(self, step: Step) -> Json:
        """The config without the steps in it. A text that needs what only a running execution has stays as it is."""
        known = self.catalogue.get(step.type)
        raw: frozenset[str] = known.raw_fields if known else frozenset()
        as_written = raw | getattr(known, "deferred_fields", frozenset())
        expressions: frozenset[str] = getattr(known, "expression_fields", frozenset())
        names = _Names(self._names(), self._still_open(step))

        def render(value: Json, keys: tuple[Key, ...]) -> Json:
            place = ".".join(key for key in keys if isinstance(key, str))
            if place in as_written:
                return value
            if isinstance(value, Mapping):
                return {key: render(item, (*keys, key)) for key, item in value.items()}
            if isinstance(value, list):
                return [render(item, (*keys, index)) for index, item in enumerate(value)]
            try:
                return names.render(value, is_expression=place in expressions)
            except TemplateError as error:
                where = paths.join_all(keys, f"{step.path}.config")
                self.problems.append({"path": where, "message": str(error)})
                return value

        config = {name: value for name, value in step.config.items() if not (step.bodies and name in raw)}
        return render(config, ())

    def _names(self) -> dict[str, Json]:
        return {
            "variables": self.program.variables(self.input),
            "input": self.input,
            "trigger": NOT_TRIGGERED,
            "execution": self.facts,
        }

    def _still_open(self, step: Step) -> frozenset[str]:
        """The variables that steps before this one map their outputs to."""
        mappers = (self.program.scopes.step(path) for path in self.program.mappers(step.path))
        return frozenset(name for mapper in mappers for name in mapper.output_mapping or ())


@dataclass(frozen=True, slots=True)
class _Names:
    """What is known before an execution starts, and which of the variables are not."""

    known: Mapping[str, Json]
    open_variables: frozenset[str]

    def render(self, value: Json, *, is_expression: bool) -> Json:
        """Raises TemplateError."""
        if not isinstance(value, str) or not (is_expression or contains_template(value)):
            return value
        compiled = compile_expression(value) if is_expression else compile_text(value)
        return value if any(self._open(compiled)) else compiled.render(self.known)

    def _open(self, compiled: Compiled) -> Iterator[bool]:
        return (self._is_open(chain) for chain in compiled.chains)

    def _is_open(self, chain: Chain) -> bool:
        root, key = chain[0], chain[1] if len(chain) > 1 else None
        if root == "variables":
            return bool(self.open_variables) if key is None else key in self.open_variables
        if root == "execution":
            return key not in self.known["execution"] or key == "id"
        return root not in self.known
