"""`orchestrator migrate`: bring the database to the newest schema."""

from __future__ import annotations

import click


@click.command()
@click.option("--wait", type=click.FloatRange(min=0), default=0, help="Seconds to wait for the database.")
@click.option("--data-dir", type=click.Path(file_okay=False), help="Data folder.  [default: ~/.orchestrator]")
def migrate(wait: float, data_dir: str | None) -> None:
    """Bring the database to the newest schema.

    The database is the one ORCHESTRATOR_DATABASE_URL names, else the embedded one of the data folder
    (`orchestrator up` does this by itself).
    """
    from orchestrator.cli.shared import load

    settings = load(data_dir=data_dir)
    if settings.database.url:
        _migrate(settings.database.url, wait)
    else:
        from orchestrator.datafolder import DataFolder
        from orchestrator.embedded import Embedded

        folder = DataFolder(settings.data_path)
        folder.acquire()
        embedded = Embedded(folder.path, valkey=False)
        try:
            _migrate(embedded.start()[0], wait)
        finally:
            embedded.stop()
            folder.release()
    click.echo("the database has the newest schema")


def _migrate(url: str, wait: float) -> None:
    import time

    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, OperationalError
    from sqlalchemy.pool import NullPool

    from orchestrator.errors import ConfigurationError
    from orchestrator.store.migrate import migrate as apply

    try:
        engine = create_engine(url, poolclass=NullPool)
    except (ArgumentError, ImportError) as error:
        raise ConfigurationError(f"the database URL (ORCHESTRATOR_DATABASE_URL) is not usable: {error}") from error
    deadline = time.monotonic() + wait
    while True:
        try:
            engine.connect().close()
            break
        except OperationalError as error:
            if time.monotonic() > deadline:
                where = engine.url.render_as_string(hide_password=True)
                raise ConfigurationError(
                    f"cannot connect to the database {where}: {str(error.orig).strip()}. Check "
                    "ORCHESTRATOR_DATABASE_URL, and that the server runs."
                ) from error
            time.sleep(0.05)
    apply(url)
