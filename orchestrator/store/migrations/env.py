"""What Alembic runs: the connection is handed over by orchestrator.store.migrate."""

from alembic import context

from orchestrator.store.models import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
