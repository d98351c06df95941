"""Inputs of an execution, as a command line gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def input_options(command: Command) -> Command:
    """--input and --input-file, which read_inputs() takes as `pairs` and `input_file`."""
    command = click.option(
        "--input-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A JSON or YAML file with all inputs.",
    )(command)
    return click.option("--input", "pairs", multiple=True, metavar="K=V", help="One input; V is JSON, else text.")(
        command
    )


def read_inputs(pairs: Iterable[str], file: Path | None, *, option: str = "--input") -> dict[str, Any]:
    """All inputs; one given by name goes before the file's. Raises BadParameter, which names the `option`."""
    given: dict[str, Any] = {}
    if file is not None:
        from orchestrator.cli.definition_file import DefinitionFile
        from orchestrator.errors import DefinitionError

        try:
            data = DefinitionFile.read(file).document.data
        except DefinitionError as error:
            raise click.BadParameter(f"{file}: {error}", param_hint="--input-file") from error
        if not isinstance(data, dict):
            raise click.BadParameter(f"{file} must have an object of inputs", param_hint="--input-file")
        given.update(data)
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{pair!r} is not of the form NAME=VALUE", param_hint=option)
        given[name] = read_value(value)
    return given


def read_value(text: str) -> Any:
    """JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
