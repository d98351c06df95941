"""`orchestrator run FILE`: execute a definition file to its end."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.inputs import input_options, read_inputs


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@input_options
@click.option(
    "--server", envvar="ORCHESTRATOR_URL", metavar="URL", help="The service to use.  [default: the data folder's]"
)
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
    was cancelled, 2 or more if it could not be started.
    """
    from orchestrator.cli.definition_file import DefinitionFile
    from orchestrator.cli.progress import print_problems, print_result, show_progress
    from orchestrator.cli.service import service
    from orchestrator.cli.shared import load
    from orchestrator.client import Invalid
    from orchestrator.errors import DefinitionError

    context = click.get_current_context()
    settings = load(data_dir=data_dir)
    given = read_inputs(pairs, input_file)
    try:
        definition = DefinitionFile.read(file)
        body = definition.body
    except DefinitionError as error:
        print_problems(file, error.problems)
        context.exit(2)
    with service(settings, server) as found:
        client = found.client
        try:
            workflow = client.workflows.save(body)
        except Invalid as error:
            definition.complain(error)
            context.exit(2)
        execution = client.workflows.execute(workflow["id"], given)
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
