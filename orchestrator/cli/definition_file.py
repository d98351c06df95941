"""Workflows in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from orchestrator.client.errors import Refused
from orchestrator.definition import Document, read_definition
from orchestrator.errors import DefinitionError, OrchestratorError, Problem

Json = Any


class Unreadable(OrchestratorError):
    """The file cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class DefinitionFile:
    """A workflow in a file: a definition itself, or an object whose `definition` is one."""

    path: Path
    document: Document

    @classmethod
    def read(cls, path: Path) -> DefinitionFile:
        """Raises DefinitionError, and Unreadable if the file cannot be read."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise Unreadable(f"cannot read {path}: {reason}") from error
        return cls(path, read_definition(text, "json" if path.suffix.lower() == ".json" else "yaml"))

    @property
    def body(self) -> dict[str, Json]:
        """What the API is sent to create it; the name defaults to the file's. Raises DefinitionError."""
        changes = self.changes
        return {**changes, "name": changes.get("name") or self.path.stem}

    @property
    def changes(self) -> dict[str, Json]:
        """What the API is sent to change a workflow: nothing that the file does not say. Raises DefinitionError."""
        data = self.document.data
        if not isinstance(data, dict):
            raise DefinitionError([Problem("", "must be an object with `steps`", 1)])
        whole = data if self._wrapped else {"definition": data}
        named = whole.get("name") or whole["definition"].get("name")
        return {**whole, "name": named} if named else whole

    @property
    def definition(self) -> tuple[Document, str]:
        """The definition itself, which knows its lines, and what its paths begin with in the file."""
        if not self._wrapped:
            return self.document, ""
        root = self.document.root
        lines = None if root is None else root.children.get("definition")
        return Document(self.document.data["definition"], lines), "definition."

    def complain(self, error: Refused) -> None:
        """Say on stderr what the service found wrong with it; raises the error if that is not of the definition."""
        if not error.problems:
            raise error
        for line in self.problems(error.problems):
            click.echo(line, err=True)

    def problems(self, problems: Sequence[Problem]) -> Iterator[str]:
        """`FILE:LINE: path: message` of each; the line is looked up here, for the API saw no text."""
        for problem in problems:
            path = problem.path if self._wrapped else problem.path.removeprefix("definition").lstrip(".")
            line = problem.line or self.document.line_of(path) or 1
            yield f"{self.path}:{line}: {path or 'definition'}: {problem.message}"

    @property
    def _wrapped(self) -> bool:
        data = self.document.data
        return isinstance(data, dict) and "steps" not in data and isinstance(data.get("definition"), dict)
