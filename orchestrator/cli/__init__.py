"""The `orchestrator` command: one file a subcommand, each of which imports what it needs when it runs."""

from __future__ import annotations

import click

from orchestrator.cli.audit import audit
from orchestrator.cli.demo import demo
from orchestrator.cli.events import events
from orchestrator.cli.executions import executions
from orchestrator.cli.keys import keys
from orchestrator.cli.migrate import migrate
from orchestrator.cli.projects import grants, projects
from orchestrator.cli.run import run
from orchestrator.cli.schema import schema
from orchestrator.cli.secrets import secrets
from orchestrator.cli.step_templates import step_templates
from orchestrator.cli.triggers import triggers
from orchestrator.cli.up import up
from orchestrator.cli.validate import validate
from orchestrator.cli.workflows import workflows


class _Commands(click.Group):
    """Turns the errors that we raise on purpose into a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        from orchestrator.errors import OrchestratorError

        try:
            return super().invoke(ctx)
        except OrchestratorError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(_exit_code(error))
        except KeyboardInterrupt:
            ctx.exit(130)


def _exit_code(error: Exception) -> int:
    """3: it is not there. 4: not now, but the same call may do later. 2: not so."""
    from orchestrator.client import errors
    from orchestrator.errors import NotFound

    if isinstance(error, NotFound | errors.NotFound):
        return 3
    return 4 if isinstance(error, errors.Unreachable | errors.Unavailable | errors.TooManyRequests) else 2


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

    Settings come from the file that ORCHESTRATOR_CONFIG names and from ORCHESTRATOR_* variables. Commands that
    call a service use the one of the data folder, or that of --server (ORCHESTRATOR_URL) with the key
    ORCHESTRATOR_KEY.

    Exit codes: 0 done; 1 an execution failed or was cancelled; 2 refused, or not a call that there is; 3 what was
    named is not there; 4 not now: the service cannot be reached or is busy, try again.
    """


for command in (
    up,
    run,
    validate,
    workflows,
    executions,
    triggers,
    events,
    step_templates,
    secrets,
    projects,
    keys,
    grants,
    audit,
    schema,
    migrate,
    demo,
):
    main.add_command(command)
