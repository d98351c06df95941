"""`orchestrator step-templates`: steps that definitions use by their names."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_of
from orchestrator.cli.output import Output, field, moment
from orchestrator.cli.workflows import reading

if TYPE_CHECKING:
    from orchestrator.cli.definition_file import DefinitionFile
    from orchestrator.client import Client

_TEMPLATE = click.argument("template", metavar="ID|NAME")
_FILE = click.option(
    "-f",
    "--file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An object with `step`, and maybe `name`, `parameters` and `description`.",
)
_SHOWN = {
    "id": field("id"),
    "name": field("name"),
    "description": field("description"),
    "parameters": field("parameters"),
    "step": field("step"),
    "created": field("created_at", moment),
    "changed": field("updated_at", moment),
}


@click.group("step-templates")
def step_templates() -> None:
    """Steps that definitions use by their names. ID|NAME is a template's id, or its name."""


@step_templates.command("list")
@at_most
@connected
def list_templates(client: Client, output: Output, limit: int) -> None:
    """List step templates, newest first."""
    output.rows(
        islice(client.step_templates.list(limit=min(limit, 200)), limit),
        {
            "ID": field("id"),
            "NAME": field("name"),
            "CHANGED": field("updated_at", moment),
            "DESCRIPTION": field("description"),
        },
    )


@step_templates.command()
@_TEMPLATE
@connected
def show(client: Client, output: Output, template: str) -> None:
    """Show a step template."""
    output.record(client.step_templates.get(_id(client, template)), _SHOWN)


@step_templates.command()
@_FILE
@connected
def create(client: Client, output: Output, file: Path) -> None:
    """Create a step template, which has the file's name unless it says another."""
    with reading(file) as definition:
        made = client.step_templates.create(**{"name": file.stem, **_said(definition)})
    output.done(made, f"step template {made['id']} {made['name']!r} is created")


@step_templates.command()
@_TEMPLATE
@_FILE
@connected
def update(client: Client, output: Output, template: str, file: Path) -> None:
    """Change a step template to what a file says; workflows that use it get that when they are saved again."""
    id = _id(client, template)
    with reading(file) as definition:
        changed = client.step_templates.update(id, **_said(definition))
    output.done(changed, f"step template {id} {changed['name']!r} is changed")


@step_templates.command()
@_TEMPLATE
@asked_before("Remove the step template?")
@connected
def delete(client: Client, output: Output, template: str) -> None:
    """Remove a step template; workflow versions that use it stay as they are."""
    id = _id(client, template)
    client.step_templates.delete(id)
    output.done({"id": id}, f"step template {id} is removed")


def _said(definition: DefinitionFile) -> dict[str, Any]:
    """Raises DefinitionError."""
    from orchestrator.errors import DefinitionError, Problem

    data = definition.document.data
    if not isinstance(data, dict) or "step" not in data:
        raise DefinitionError([Problem("", "must be an object with `step`", 1)])
    return data


def _id(client: Client, given: str) -> str:
    """The id of the template that has this id or name. Raises NotFound."""
    return id_of(given, "step template", client.step_templates.find, listed_by="step-templates")
