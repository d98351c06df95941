"""`orchestrator run FILE`: execute a definition file to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--input", "pairs", multiple=True, metavar="K=V", help="One input; V is JSON, else text.")
@click.option(
    "--input-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON or YAML file with all inputs.",
)
@click.option("--server", metavar="URL", help="The service to use.  [default: the data folder's]")
@click.option("--json", "as_json", is_flag=True, help="Print the execution as the API gives it.")
@click.option("--data-dir", type=click.Path(file_okay=False), help="Data folder.  [default: ~/.orchestrator]")
def run(
    file: Path,
    pairs: tuple[str, ...],
    input_file: Path | None,
    server: str | None,
    as_json: bool,
    data_dir: str | None,
) -> None:
    """Execute the workflow in FILE to its end, showing its progress.

    Without --server, the `orchestrator up` of the data folder is used; if none runs, the service is started
    there for as long as this takes. The exit code is 0 only if the execution completed, 1 if it failed or
    was cancelled, 2 if it could not be started.
    """
    from orchestrator.cli.progress import print_problems, print_result, show_progress
    from orchestrator.cli.service import service
    from orchestrator.cli.shared import load
    from orchestrator.client import DefinitionFile
    from orchestrator.errors import DefinitionError, InputError

    context = click.get_current_context()
    settings = load(data_dir=data_dir)
    given = _inputs(pairs, input_file)
    try:
        definition = DefinitionFile.read(file)
        body = definition.body
    except DefinitionError as error:
        print_problems(file, error.problems)
        context.exit(2)
    with service(settings, server) as found:
        client = found.client
        try:
            workflow = client.save(body)
        except InputError as error:
            for line in definition.problems(error.problems):
                click.echo(line, err=True)
            context.exit(2)
        execution = client.execute(workflow["id"], given)
        try:
            execution = show_progress(client, execution["id"])
        except KeyboardInterrupt:
            goes_on = (
                f"GET {client.url}/api/v1/executions/{execution['id']}"
                if found.lasting
                else f"with the next `orchestrator up` on {settings.data_path}"
            )
            click.echo(f"\nexecution {execution['id']} goes on: {goes_on}", err=True)
            context.exit(130)
    print_result(execution, as_json)
    context.exit(0 if execution["status"] == "completed" else 1)


def _inputs(pairs: tuple[str, ...], file: Path | None) -> dict[str, Any]:
    """All inputs; one given by name goes before the file's."""
    import json

    given: dict[str, Any] = {}
    if file is not None:
        from orchestrator.client import DefinitionFile
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
            raise click.BadParameter(f"{pair!r} is not of the form NAME=VALUE", param_hint="--input")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return given
