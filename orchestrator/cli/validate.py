"""`orchestrator validate FILE...`: check definition files without a service."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE...",
)
def validate(files: tuple[Path, ...]) -> None:
    """Check workflow definitions, exported ones too; every problem is printed as FILE:LINE: path: message.

    Step templates are the service's: steps that use one are checked by it when the workflow is saved.

    The exit code is 1 if any is not valid.
    """
    import sys
    from dataclasses import replace

    from orchestrator.cli.definition_file import DefinitionFile
    from orchestrator.cli.progress import print_problems
    from orchestrator.config import load_settings
    from orchestrator.definition.step_templates import check_without_templates
    from orchestrator.errors import DefinitionError
    from orchestrator.plugins import load_catalogue

    settings = load_settings()
    if settings.plugins:
        sys.path.append(str(Path.cwd()))  # as for the processes of `up`: a plugin may be a file here
    catalogue = load_catalogue(settings.plugins)
    valid = True
    for file in files:
        try:
            document, before = DefinitionFile.read(file).definition
            found, uses = check_without_templates(document, catalogue)
            problems = [replace(problem, path=f"{before}{problem.path}".rstrip(".")) for problem in found]
        except DefinitionError as error:
            problems = list(error.problems)
        if problems:
            valid = False
            print_problems(file, problems)
            continue
        count = len(document.data["steps"])
        unseen = f"; {uses} by a step template, which only the service can check" if uses else ""
        click.echo(f"{file}: valid ({count} step{'' if count == 1 else 's'}{unseen})")
    click.get_current_context().exit(0 if valid else 1)
