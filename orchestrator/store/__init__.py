"""PostgreSQL, the truth: tables, migrations, and the queries of each aggregate in one file."""

from orchestrator.store.session import Store, new_id

__all__ = ["Store", "new_id"]
