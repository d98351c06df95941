"""`orchestrator up`: the whole service on this machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 8084]")
@click.option("--data-dir", type=click.Path(file_okay=False), help="Data folder.  [default: ~/.orchestrator]")
@click.option("--behind-tls", is_flag=True, help="A reverse proxy with TLS is in front: listen beyond loopback.")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without TLS: keys can be read on the way.")
@click.option("-v", "--verbose", is_flag=True, help="Show the logs of all processes.")
@click.option(
    "--demo",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Load every workflow file of the folder PATH and execute the first; or PATH, if it is a file.",
)
@click.option("--until-eof", is_flag=True, hidden=True, help="Stop when stdin ends.")
def up(
    host: str | None,
    port: int | None,
    data_dir: str | None,
    behind_tls: bool,
    insecure: bool,
    verbose: bool,
    demo: Path | None,
    until_eof: bool,
) -> None:
    """Start the service and keep it running until Ctrl-C.

    PostgreSQL and Valkey are started in the data folder unless ORCHESTRATOR_DATABASE_URL and
    ORCHESTRATOR_BROKER_URL name others. The API's bearer key is ORCHESTRATOR_ADMIN_KEY, else the one in
    the data folder's file admin-key. The line `ready: http://...` says that requests are answered.
    """
    from orchestrator.cli.shared import load
    from orchestrator.processes import guarded
    from orchestrator.supervisor import Options, Supervisor

    settings = load(host=host, port=port, data_dir=data_dir)
    api = settings.api
    api = replace(api, behind_tls=api.behind_tls or behind_tls, insecure=api.insecure or insecure)
    settings = replace(settings, api=api)
    fixed = port is not None or "ORCHESTRATOR_PORT" in os.environ or settings.port != 8084
    options = Options(port_is_fixed=fixed, verbose=verbose, until_eof=until_eof, demo=demo)
    context = click.get_current_context()
    context.exit(guarded(lambda guardian: Supervisor(settings, options, guardian).run()))
