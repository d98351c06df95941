"""What `orchestrator up --demo` does once the service is ready."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orchestrator.client import Client

_SUFFIXES = (".yaml", ".yml", ".json")


@click.command(hidden=True)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--server", required=True)
def demo(path: Path, server: str) -> None:
    """Load every workflow of a folder, execute one, and say how to go on.

    PATH is the folder, whose first file is executed, or the file to execute.
    """
    from orchestrator.cli.shared import load
    from orchestrator.client import Client
    from orchestrator.datafolder import DataFolder
    from orchestrator.errors import OrchestratorError

    settings = load()
    client = Client(server, settings.admin_key)
    files = sorted(file for file in (path if path.is_dir() else path.parent).iterdir() if file.suffix in _SUFFIXES)
    chosen = path if path.is_file() else next(iter(files), None)
    try:
        _load_and_execute(client, files, chosen)
    except OrchestratorError as error:  # the service is up all the same, and how to use it is said below
        click.echo(f"Error: {error}", err=True)
    key_file = DataFolder(settings.data_path).key_file
    key = f'$(cat "{key_file}")' if key_file.exists() else "$ORCHESTRATOR_ADMIN_KEY"
    click.echo(
        f"\nThe service is at {server}, its API described at {server}/docs. Every call needs the key:\n"
        f'  curl -H "Authorization: Bearer {key}" {server}/api/v1/workflows\n'
        "Ctrl-C ends it; the data stays."
    )


def _load_and_execute(client: Client, files: list[Path], chosen: Path | None) -> None:
    from orchestrator.cli.definition_file import DefinitionFile
    from orchestrator.cli.progress import print_problems, print_result, step_line
    from orchestrator.client import Invalid
    from orchestrator.errors import DefinitionError

    workflows = {}
    for file in files:
        try:
            definition = DefinitionFile.read(file)
            workflows[file] = client.workflows.save(definition.body)
        except DefinitionError as error:
            print_problems(file, error.problems)
        except Invalid as error:
            definition.complain(error)
        else:
            click.echo(f"loaded {file.name} as workflow {workflows[file]['name']!r}")
    if chosen in workflows:
        click.echo(f"executing {chosen.name}:")
        execution = client.workflows.execute(workflows[chosen]["id"], {})
        print_result(client.executions.follow(execution["id"], lambda step: click.echo(f"  {step_line(step)}")), False)
