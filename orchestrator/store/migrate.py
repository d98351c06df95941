"""Bring the database to the newest schema."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

from orchestrator import store
from orchestrator.config import DatabaseSettings
from orchestrator.store import partitions, routines
from orchestrator.store.session import create_engine

for _module in iter_modules(store.__path__, f"{store.__name__}."):
    if not _module.ispkg:
        import_module(_module.name)  # it registers its routines

# Any constant will do, as long as every release uses the same.
_LOCK = 0x6F726368


def migrate(url: str) -> None:
    """Apply what is missing, in order; a second process that does the same at the same time waits for us."""
    engine = create_engine(DatabaseSettings(url=url))
    try:
        # One transaction for all of it: a release is there whole or not at all.
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            command.upgrade(alembic_config(connection), "head")
            for table in partitions.TABLES:
                partitions.make_ahead(connection, table)
            routines.install(connection)
    finally:
        engine.dispose()


def alembic_config(connection: Connection) -> Config:
    config = Config()
    # The scripts' folder may hold a percent sign, which the configuration parser would take for its own.
    folder = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
