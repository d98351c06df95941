"""What every operation in /openapi.json has, whatever its view says: a name, a tag, a summary and a description, the
role that it takes, examples of its body and its answers, and the errors that any of them may answer with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from apispec import APISpec, BasePlugin

from api.access import RULES, Rule, Where
from api.example_answers import example_answer
from api.examples import BODIES, example_error

TAGS = {
    "workflows": "Definitions in versions, their executions by hand, their triggers, and copies of them.",
    "executions": "What was started: its steps, its log lines, why it does not run, and its control.",
    "step-executions": "One step in an execution: its result, its retry, and the decision that it waits for.",
    "triggers": "What starts a workflow, and what came of each fire.",
    "webhook": "Where others call to start a workflow. No key is asked for; a trigger may ask for a signature.",
    "events": "CloudEvents that start whatever is triggered by them.",
    "step-templates": "Steps that definitions use by their names.",
    "steps": "Trying out a step, outside of any execution.",
    "schema": "The definition language, for editors.",
    "scheduler": "Queues, workers, and what is late.",
    "stats": "What became of executions: counts, durations, errors.",
    "projects": "What workflows belong to, and roles are held in.",
    "keys": "API keys and what they open.",
    "grants": "Roles of those who come with a token of an OpenID Connect issuer.",
    "me": "Who you are to the service.",
    "secrets": "What templates know as `secrets.NAME`: written here, never read back.",
    "audit": "Who did what to which object.",
    "metrics": "Figures for Prometheus.",
    "health": "Whether the service can do its work.",
}
"""What an operation's tag, the first word of its path, is for."""

_PARAMETERS = {
    "version": "number of a version, from 1",
    "old": "number of the version that is compared",
    "new": "number of the version that it is compared with",
    "path": "where the step stands, as in `step_executions`",
    "webhook path": "the path that the trigger's config says",
}
"""By name, or by tag and name."""
_IN_CONVERTER = re.compile(r"<(?:[^:<>]+:)?(\w+)>")
_RULES: Mapping[str, Rule] = {_IN_CONVERTER.sub(r"{\1}", name): rule for name, rule in RULES.items()}


class EveryOperation(BasePlugin):
    def init_spec(self, spec: APISpec) -> None:
        self._spec = spec

    def path_helper(self, path: Any = None, operations: Any = None, parameters: Any = None, **_: object) -> None:  # noqa: ARG002
        for parameter in parameters or ():
            name = parameter["name"]
            told = _PARAMETERS.get(f"{_words(path)[0]} {name}") or _PARAMETERS.get(name)
            parameter.setdefault("description", told or f"id of the {name.removesuffix('_id').replace('_', ' ')}")

    def operation_helper(self, path: str | None = None, operations: dict[str, Any] | None = None, **_: object) -> None:
        assert path is not None
        for method, operation in (operations or {}).items():
            rule = _RULES.get(f"{method.upper()} {path}")
            operation.setdefault("operationId", _name(method, path, operation, rule))
            operation["tags"] = [_words(path)[0]]
            _describe(operation, rule)
            for status, name in _errors(method, path, operation):
                operation["responses"].setdefault(status, name)
            self._give_examples(operation)

    def _give_examples(self, operation: Mapping[str, Any]) -> None:
        for name, media in _media(operation.get("requestBody")):
            if name in BODIES:
                media.setdefault("example", BODIES[name])
        for status, response in operation["responses"].items():
            for name, media in _media(response):
                known = self._spec.components.schemas
                media.setdefault(
                    "example", example_error(int(status)) if name == "Problem" else example_answer(name, known)
                )


def _media(content: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the schema, media type object) of a body or an answer that has a schema of ours."""
    for media in content.get("content", {}).values() if isinstance(content, dict) else ():
        reference = media["schema"].get("$ref")
        if reference:
            yield reference.rpartition("/")[2], media


def _words(path: str) -> list[str]:
    return path.removeprefix("/api/v1").strip("/").split("/")


def _name(method: str, path: str, operation: Mapping[str, Any], rule: Rule | None) -> str:
    """A function's name for client generators: of what changes something, the action that the audit log has, as in
    execute_workflow; else what is read, as in list_workflow_versions."""
    if rule and rule.action:
        kind, _, verb = rule.action.partition(".")
        return f"{verb}_{kind}"
    pages = any(parameter["name"] == "cursor" for parameter in operation.get("parameters", ()))
    words = _words(path)
    following = [*words[1:], ""]
    named = [
        word[:-1] if word.endswith("s") and after.startswith("{") else word
        for word, after in zip(words, following, strict=True)
        if not word.startswith("{")
    ]
    return re.sub(r"\W", "_", "_".join(["list" if pages else method, *named]))


def _describe(operation: dict[str, Any], rule: Rule | None) -> None:
    """The first sentence of a docstring is the summary, all of it the description, and who may is said there too."""
    told = " ".join(operation["summary"].split())
    operation["summary"] = re.split(r"(?<=[^.])\.(?=\s|$)|[:;] ", told, maxsplit=1)[0]
    further = operation.get("description", "")
    operation["description"] = "\n\n".join(filter(None, [told, further, _who_may(rule)]))


def _who_may(rule: Rule | None) -> str:
    if rule is None or rule.is_open:
        return ""
    if rule.role is None:
        return "Whoever has a valid key or token."
    where = {Where.OBJECT: "in the project", Where.SOMEWHERE: "in a project", Where.EVERYWHERE: "in all projects"}
    return f"Takes the role `{rule.role.word}` {where[rule.where]}."


def _errors(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(status, name of the response) of what stands around the view: api/guard.py, the database, and Flask."""
    if operation.get("security") != []:
        yield from (("401", "UNAUTHORIZED"), ("403", "FORBIDDEN"), ("429", "TOO_MANY_REQUESTS"))
        yield "503", "SERVICE_UNAVAILABLE"
        if method != "get":
            yield "409", "CONFLICT"
    if "{" in path:
        yield "404", "NOT_FOUND"
    if "requestBody" in operation:
        yield from (("400", "BAD_REQUEST"), ("413", "REQUEST_ENTITY_TOO_LARGE"), ("415", "UNSUPPORTED_MEDIA_TYPE"))
