"""`orchestrator schema`: the JSON Schema of definitions, for editors."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it to FILE.")
def schema(out: Path | None) -> None:
    """Print the JSON Schema of workflow definitions, by which editors complete and check them.

    It has the step types that are installed here and those of ORCHESTRATOR_PLUGINS. An editor with
    yaml-language-server takes it for files that begin with

        # yaml-language-server: $schema=FILE
    """
    import json
    import sys

    from orchestrator.config import load_settings
    from orchestrator.definition.json_schema import json_schema
    from orchestrator.plugins import load_catalogue

    settings = load_settings()
    if settings.plugins:
        sys.path.append(str(Path.cwd()))  # as for the processes of `up`: a plugin may be a file here
    text = json.dumps(json_schema(load_catalogue(settings.plugins)), indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
    else:
        try:
            out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise click.BadParameter(f"{out} cannot be written: {error.strerror}", param_hint="--out") from error
