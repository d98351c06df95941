"""The `orchestrator` command: one file a subcommand, each of which imports what it needs when it runs."""

from __future__ import annotations

import click

from orchestrator.cli.demo import demo
from orchestrator.cli.migrate import migrate
from orchestrator.cli.run import run
from orchestrator.cli.schema import schema
from orchestrator.cli.secrets import secrets
from orchestrator.cli.up import up
from orchestrator.cli.validate import validate


class _Commands(click.Group):
    """Turns the errors that we raise on purpose into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        from orchestrator.errors import OrchestratorError

        try:
            return super().invoke(ctx)
        except OrchestratorError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"orchestrator {version('orchestrator')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def main() -> None:
    """Durable workflow orchestration.

    Settings come from the file that ORCHESTRATOR_CONFIG names and from ORCHESTRATOR_* variables.
    """


for command in (up, run, validate, schema, secrets, migrate, demo):
    main.add_command(command)
