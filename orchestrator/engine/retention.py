"""What grows with time is removed when it has been kept long enough: executions with their steps by archives, logs,
fires and the audit log by partitions. What is to be kept for less long than others is removed a few at a time.

Any one process at a time does this, like reconcile (engine/reconcile.py), but in a thread of its own: to carry rows
over into another partition may take minutes, in which lost workers are still to be found. Each act is a transaction,
so that whoever dies leaves nothing half done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from math import inf

import psycopg2.errors
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.artifacts import Artifacts
from orchestrator.config import Settings
from orchestrator.store import Store, archives, artifacts, bulk, partitions, removals, workers, workflows
from orchestrator.store.everywhere import everywhere
from orchestrator.store.partitions import Partitioned
from orchestrator.store.session import id_at, run

logger = logging.getLogger(__name__)

DUTY = "retention"
_EVERY = 60.0
"""Seconds from one look to the next."""
_LAPSE = 5 * _EVERY
_LOOKED_FOR = 1_000
"""Executions to be removed that are sought at a time."""
_BATCH = 20
"""Executions removed by one transaction: their steps, which may be thousands, go with them."""
_SWEPT_EVERY = 600.0
"""Seconds from one look for artifacts without an execution to the next."""
_GRACE = 3600.0
"""Seconds for which artifacts are left alone that no row refers to: somebody may be about to commit one."""
_SWEPT = 1_000
"""Executions asked for at a time."""
_BUSY = 1.0
"""Seconds for which batches follow each other, and the pause that then leaves the server to others."""


class Retention:
    def __init__(self, store: Store, settings: Settings, *, holder: str) -> None:
        self.store = store
        self.settings = settings
        self.artifacts = Artifacts.of(settings.artifacts)
        self.holder = holder
        self._is_more = False
        self._sweep_at = -inf

    def tick(self) -> float:
        """Do what is due; the seconds until the next tick."""
        with self.store.single() as connection:
            holds = workers.hold_duty(connection, DUTY, self.holder, lapse=_LAPSE)
        if not holds:
            return _EVERY
        self._is_more = False
        for act in self._acts():
            try:
                act()
            except Exception as error:
                if not _is_locked_out(error):
                    logger.exception("retention: what failed is tried again in %d s", _EVERY)
        return _BUSY if self._is_more else _EVERY

    def _acts(self) -> Iterator[Callable[[], None]]:
        yield self.lay_executions_aside
        yield self.drop_archives
        yield self.remove_executions
        kept = {
            partitions.LOGS: self.settings.executor.log_retention,
            partitions.FIRES: self.settings.retention.fires,
            partitions.AUDIT: self.settings.retention.audit,
        }
        for table in partitions.TABLES:
            yield partial(self.make_ahead, table, kept[table])
            yield partial(self.drop_expired, table, kept[table])
        if self.artifacts.is_there and time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEPT_EVERY
            yield self.sweep_artifacts

    def lay_executions_aside(self) -> None:
        with self.store.transaction() as connection:
            if not partitions.alone(connection):
                return
            is_due = archives.is_due(connection, self._each(connection))
            if not archives.make_ready(connection) or not is_due:
                return
            archives.lay_aside(connection)
        with self.store.single() as connection:
            # Of what inherits from them PostgreSQL has statistics by itself, not of all together.
            for table in archives.TABLES:
                run(connection, everywhere(f"ANALYZE {table}"))
        logger.info("the executions that have ended have been laid aside")

    def drop_archives(self) -> None:
        while True:
            with self.store.transaction() as connection:
                if not partitions.alone(connection):
                    return
                expired = archives.expired(connection, self.settings.retention.executions)
                if expired is None:
                    return
                is_gone = archives.remove(connection, expired)
                removals.count(connection, "archives", int(is_gone))
            if is_gone:
                logger.info("the executions that had ended by %s have been removed", expired.until.isoformat())

    def remove_executions(self) -> None:
        """Those that are not to wait for the end of an archive: whose workflow keeps them for less long than others, or
        that are among the present ones still."""
        until = time.monotonic() + _BUSY
        with self.store.transaction() as connection:
            each = self._each(connection).total_seconds()
            expired = bulk.expired(connection, self.settings.retention.executions, each, _LOOKED_FOR)
        for start in range(0, len(expired), _BATCH):
            with self.store.transaction() as connection:
                number = bulk.remove(connection, expired[start : start + _BATCH])
                removals.count(connection, "executions", number)
            self._is_more |= number > 0
            if time.monotonic() > until:
                return

    def _each(self, connection: Connection) -> timedelta:
        """What one archive holds."""
        return partitions.span(self.settings.retention.executions, workflows.longest_retention(connection))

    def make_ahead(self, table: Partitioned, kept: float) -> None:
        with self.store.transaction() as connection:
            if partitions.alone(connection):
                longest = workflows.longest_retention(connection)
                partitions.make_ahead(connection, table, partitions.span(kept, longest))

    def drop_expired(self, table: Partitioned, kept: float) -> None:
        while True:
            with self.store.transaction() as connection:
                if not partitions.alone(connection):
                    return
                expired = partitions.expired(connection, table, kept)
                if expired is None:
                    return
                partitions.remove(connection, table, expired)
                removals.count(connection, f"{table.name} partitions")
            logger.info("what %s had until %s has been removed", table.name, expired.end.isoformat())

    def sweep_artifacts(self) -> None:
        """Remove the artifacts of executions that are not there, whatever removed those, and what nobody refers to of
        one that ended a while ago: a worker died before it recorded its result, or another attempt made another."""
        found, coming = self.artifacts.executions(), id_at((time.time() - _GRACE) * 1000)
        known: dict[str, frozenset[str] | None] = {}
        for start in range(0, len(found), _SWEPT):
            with self.store.single() as connection:
                known |= artifacts.referred(
                    connection,
                    found[start : start + _SWEPT],
                    ended_after=_GRACE + 3 * _SWEPT_EVERY,
                    ended_before=_GRACE,
                )
        if found and not known:
            logger.warning("no execution of this database has artifacts, but %d others: none is removed", len(found))
            return
        for execution_id in found:
            keys = known.get(execution_id)
            if keys is not None:
                self.artifacts.remove_others(execution_id, keys)
            elif execution_id not in known and execution_id < coming:
                self.artifacts.remove(execution_id)
                with self.store.single() as connection:
                    removals.count(connection, "artifacts of executions")


def _is_locked_out(error: Exception) -> bool:
    """Somebody reads for long what is to be dropped: there is time."""
    busy = (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected)
    return isinstance(error, sa.exc.OperationalError) and isinstance(error.orig, busy)
