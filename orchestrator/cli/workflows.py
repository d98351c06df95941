"""`orchestrator workflows`: definitions at a service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_of
from orchestrator.cli.inputs import input_options, read_inputs
from orchestrator.cli.output import Output, field, moment

if TYPE_CHECKING:
    from orchestrator.cli.definition_file import DefinitionFile
    from orchestrator.client import Client

_WORKFLOW = click.argument("workflow", metavar="ID|NAME")
_FILE = click.option(
    "-f", "--file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The definition."
)
_SHOWN = {
    "id": field("id"),
    "name": field("name"),
    "status": field("status"),
    "reason": field("status_reason"),
    "description": field("description"),
    "project": field("project"),
    "tags": field("tags"),
    "version": field("version"),
    "steps": lambda workflow: [step["id"] for step in workflow["definition"]["steps"]],
    "executions": field("execution_count"),
    "success rate": field("success_rate", lambda rate: "" if rate is None else f"{rate:.1%}"),
    "last executed": field("last_executed", moment),
    "created": field("created_at", moment),
    "changed": field("updated_at", moment),
}


@click.group()
def workflows() -> None:
    """Workflows of a service. ID|NAME is a workflow's id, or its name."""


@workflows.command("list")
@click.argument("words", nargs=-1)
@click.option("--status", metavar="STATUS", help="Only those that have it.")
@click.option("--tag", metavar="TAG", help="Only those that have it.")
@at_most
@connected
def list_workflows(
    client: Client, output: Output, words: tuple[str, ...], status: str | None, tag: str | None, limit: int
) -> None:
    """List workflows, newest first; those that have all WORDS in name, description or tags."""
    found = client.workflows.list(q=" ".join(words) or None, status=status, tags=tag, limit=min(limit, 200))
    output.rows(
        islice(found, limit),
        {
            "ID": field("id"),
            "NAME": field("name"),
            "STATUS": field("status"),
            "VERSION": field("version"),
            "PROJECT": field("project"),
            "CHANGED": field("updated_at", moment),
        },
    )


@workflows.command()
@_WORKFLOW
@connected
def show(client: Client, output: Output, workflow: str) -> None:
    """Show a workflow and what became of its executions."""
    output.record(client.workflows.get(workflow_id(client, workflow)), _SHOWN)


@workflows.command()
@_FILE
@click.option("--activate", is_flag=True, help="Let triggers and users start it at once.")
@connected
def create(client: Client, output: Output, file: Path, activate: bool) -> None:
    """Create a workflow, as a draft."""
    with reading(file) as definition:
        made = client.workflows.create(**definition.body)
    if activate:
        made = client.workflows.activate(made["id"])
    output.done(made, f"workflow {made['id']} {made['name']!r} is created, {made['status']}")


@workflows.command()
@_WORKFLOW
@_FILE
@click.option("--version", type=click.IntRange(min=1), help="Only if this is still the newest version.")
@connected
def update(client: Client, output: Output, workflow: str, file: Path, version: int | None) -> None:
    """Change a workflow to what a file says."""
    id = workflow_id(client, workflow)
    with reading(file) as definition:
        changed = client.workflows.update(id, version=version, **definition.changes)
    output.done(changed, f"workflow {id} {changed['name']!r} has version {changed['version']}")


@workflows.command()
@_WORKFLOW
@asked_before("Remove the workflow with its versions and executions?")
@connected
def delete(client: Client, output: Output, workflow: str) -> None:
    """Remove a workflow with its versions and executions."""
    id = workflow_id(client, workflow)
    client.workflows.delete(id)
    output.done({"id": id}, f"workflow {id} is removed")


@workflows.command()
@_WORKFLOW
@click.option("-o", "--out", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="Write it to a file.")
@connected
def export(client: Client, output: Output, workflow: str, out: TextIO) -> None:
    """Print a workflow with its triggers as YAML, or with --json as JSON, for import."""
    document = client.workflows.export(workflow_id(client, workflow))
    if output.as_json:
        import yaml

        document = json.dumps(yaml.safe_load(document), ensure_ascii=False) + "\n"
    out.write(document)


@workflows.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--enable-triggers", is_flag=True, help="Have its triggers enabled.")
@connected
def import_(client: Client, output: Output, file: TextIO, enable_triggers: bool) -> None:
    """Make a workflow of an exported document (FILE, - for stdin), as a draft."""
    made = client.workflows.import_(file.read(), enable_triggers=enable_triggers)
    output.done(made, f"workflow {made['id']} {made['name']!r} is created, {made['status']}")


@workflows.command()
@_WORKFLOW
@input_options
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="9 is the highest.")
@click.option("--idempotency-key", metavar="KEY", help="Start it once, however often this is called with the same key.")
@click.option("--wait", is_flag=True, help="Show its progress; exit with 1 unless it completes.")
@connected
def execute(
    client: Client,
    output: Output,
    workflow: str,
    pairs: tuple[str, ...],
    input_file: Path | None,
    priority: int,
    idempotency_key: str | None,
    wait: bool,
) -> None:
    """Start an execution of the newest version."""
    from orchestrator.cli.progress import watch

    given = read_inputs(pairs, input_file)
    id = workflow_id(client, workflow)
    started = client.workflows.execute(id, given, priority=priority, idempotency_key=idempotency_key)
    if not wait:
        output.done(started, f"execution {started['id']} {started['status']}")
        return
    click.get_current_context().exit(watch(client, started["id"], output.as_json))


@workflows.command()
@_WORKFLOW
@at_most
@connected
def versions(client: Client, output: Output, workflow: str, limit: int) -> None:
    """List a workflow's versions, newest first."""
    found = islice(client.workflows.versions(workflow_id(client, workflow)), limit)
    columns = {
        "VERSION": field("version"),
        "CREATED": field("created_at", moment),
        "SAYS AGAIN": field("restored_from"),
    }
    output.rows(found, columns)


def _control(name: str, told: str) -> None:
    @workflows.command(name, help=told)
    @_WORKFLOW
    @connected
    def command(client: Client, output: Output, workflow: str) -> None:
        moved: Any = getattr(client.workflows, name)(workflow_id(client, workflow))
        output.done(moved, f"workflow {moved['id']} {moved['name']!r} is {moved['status']}")


_control("activate", "Let triggers and users start it.")
_control("pause", "Let nothing start it until it is resumed; what runs goes on.")
_control("resume", "Undo a pause.")
_control("cancel", "Retire it for good, and cancel what runs.")


@contextmanager
def reading(file: Path) -> Iterator[DefinitionFile]:
    """What a file says; what is found wrong with it, here or by the service, ends the command with FILE:LINE."""
    from orchestrator.cli.definition_file import DefinitionFile
    from orchestrator.cli.progress import print_problems
    from orchestrator.client import Invalid
    from orchestrator.errors import DefinitionError

    try:
        definition = DefinitionFile.read(file)
        try:
            yield definition
        except Invalid as error:
            definition.complain(error)
            click.get_current_context().exit(2)
    except DefinitionError as error:
        print_problems(file, error.problems)
        click.get_current_context().exit(2)


def workflow_id(client: Client, given: str) -> str:
    """The id of the workflow that has this id or name. Raises NotFound."""
    return id_of(given, "workflow", client.workflows.find, listed_by="workflows")
