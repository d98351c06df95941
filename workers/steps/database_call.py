"""One transaction on a named database that ends in time, whatever the server does.

PostgreSQL is told the limit itself (a `statement_timeout` for the transaction, so that PgBouncer may stand in between)
and SQLite asks us now and then. Neither covers all of it: a name that does not resolve, a server that stands still, the
second statement of a text. So the transaction runs in a thread of its own, which the caller leaves a moment after the
deadline; the statement is then cancelled and its socket shut down, so that the thread ends too. What was left never
commits.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from orchestrator.config import ConnectionSettings
from orchestrator.errors import StepTimeout
from workers.steps.contract import config_mistake
from workers.steps.database_errors import translated
from workers.stopping import ended_by

_GRACE = 0.2
"""Seconds past the deadline for the server to say itself that the time is up, and again for it to heed a cancel."""

_LONGEST = 2**31 - 1
"""Milliseconds: what PostgreSQL and SQLite take at most."""

_CONNECT_TIMEOUT = 10
"""Seconds. Only ends a thread that was left while it connected: the step's own limit is watched here."""

Work = Callable[[sa.Connection], Any]


def transact(name: str, settings: ConnectionSettings, work: Work, *, seconds: float, writes: bool) -> Any:
    """What `work` returns, committed: it gets a connection to the database that `name` stands for, in a transaction.

    `writes` takes SQLite's write lock at once: a transaction that reads first cannot wait for it later. Raises
    StepTimeout after `seconds`, and StepFailed of the kinds that database_errors names.
    """
    call = _Call(_engine(name, settings), work, seconds, writes)
    try:
        call.start()
        with ended_by(call.stop):
            call.join(seconds + _GRACE)
    finally:
        # Also on the way out of an interruption, which the prefork pool's main thread gets at the deadline.
        late = call.is_alive()
        if late:
            call.stop()
    if call.committed:
        return call.result
    if late or call.error is None:
        raise StepTimeout(f"connection {name}: not done within {seconds:g} s, and ended")
    raise translated(call.error, name, call.engine.url, call.phase, call.ends_at, seconds) from call.error


class _Call(threading.Thread):
    """The thread of one transaction."""

    _cancels = threading.BoundedSemaphore(4)
    """A cancel waits for as long as the server stands still, and this many may do so at a time."""

    def __init__(self, engine: sa.Engine, work: Work, seconds: float, writes: bool) -> None:
        super().__init__(name="database-call", daemon=True)
        self.engine = engine
        self.ends_at = time.monotonic() + seconds
        self.phase = "connect"
        self.result: Any = None
        self.committed = False
        self.error: Exception | None = None
        self._work = work
        self._begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        self._stopped = False
        self._driver: Any = None
        self._backend: int | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            with self._begun() as connection:
                self.phase = "work"
                self.result = self._work(connection)
                if self._stopped:
                    return
                self.phase = "commit"
                connection.commit()
                self.committed = True
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            self.error = error
        finally:
            self._forget()

    def _begun(self) -> sa.Connection:
        """A connection in a transaction that knows its limit. That is the first statement on it, and safe to say again
        on a new one: the pool may hold connections that were lost while they rested."""
        try:
            return self._limited()
        except DBAPIError as error:
            if not error.connection_invalidated or self._stopped:
                raise
        return self._limited()

    def _limited(self) -> sa.Connection:
        connection = self.engine.connect()
        try:
            self._watch(connection)
            milliseconds = max(1, min(_LONGEST, int((self.ends_at - time.monotonic()) * 1000)))
            if connection.dialect.name == "postgresql":
                limit = f"SELECT set_config('statement_timeout', '{milliseconds}', true), pg_backend_pid()"
                self._backend = connection.exec_driver_sql(limit).one()[1]
            elif connection.dialect.name == "sqlite":
                self._driver.execute(f"PRAGMA busy_timeout = {milliseconds}")
                self._driver.set_progress_handler(self._is_over, 10_000)
                connection.exec_driver_sql(self._begin)
        except BaseException:
            connection.close()
            raise
        return connection

    def _watch(self, connection: sa.Connection) -> None:
        self._driver = connection.connection.driver_connection
        if not hasattr(self._driver, "fileno"):
            return
        with self._lock:
            # A duplicate of the descriptor: it stays this socket's, whatever becomes of the original.
            previous, self._socket = self._socket, socket.socket(fileno=os.dup(self._driver.fileno()))
        if previous is not None:
            previous.close()
        if self._stopped:
            self._hang_up()

    def _is_over(self) -> bool:
        return time.monotonic() >= self.ends_at

    def stop(self) -> None:
        """End the call from another thread."""
        self._stopped = True
        if self._backend is not None and self._cancels.acquire(blocking=False):
            threading.Thread(target=self._cancel, name="database-cancel", daemon=True).start()
            self.join(_GRACE)
        self._hang_up()

    def _cancel(self) -> None:
        # Not psycopg2's cancel(): it keeps the interpreter's lock, and all threads with it, until the server answers.
        try:
            with suppress(SQLAlchemyError), self.engine.connect() as connection:
                connection.exec_driver_sql(f"SELECT pg_cancel_backend({self._backend})")
        finally:
            self._cancels.release()

    def _hang_up(self) -> None:
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _forget(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None


# --- engines -------------------------------------------------------------------------------------------------

_engines: dict[tuple[str, int], sa.Engine] = {}
_engines_lock = threading.Lock()


def _engine(name: str, settings: ConnectionSettings) -> sa.Engine:
    key = settings.url, settings.pool_size
    with _engines_lock:
        if key not in _engines:
            _engines[key] = _new_engine(name, settings)
        return _engines[key]


def _new_engine(name: str, settings: ConnectionSettings) -> sa.Engine:
    url = _url(name, settings.url)
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        # A file is opened in no time, and one that was replaced meanwhile is found.
        options["poolclass"] = sa.NullPool
    else:
        # The pool has no upper limit, as the worker's threads are one already.
        options |= {"pool_size": settings.pool_size, "max_overflow": -1}
        options["pool_pre_ping"] = url.get_backend_name() != "postgresql"  # there, the limit shows it
    if url.drivername == "postgresql+psycopg2":
        ours = {"connect_timeout": _CONNECT_TIMEOUT, "application_name": "orchestrator"}
        options["connect_args"] = {key: value for key, value in ours.items() if key not in url.query}
    try:
        engine = sa.create_engine(url, **options)
    except sa.exc.NoSuchModuleError:
        raise config_mistake(f"connection {name}: no database is called {url.drivername!r}") from None
    except ImportError as error:
        raise config_mistake(f"connection {name}: its driver is not installed where the worker runs: {error}") from None
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _confine)
    return engine


def _url(name: str, text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        url = None
    # An `@` in a password that is not encoded ends up, with what follows it, in the host, which error messages name.
    if url is None or "@" in (url.host or ""):
        raise config_mistake(
            f"connection {name}: its url cannot be read; write it like postgresql://user:password@host/name, "
            "with the password encoded as URLs are (@ as %40)"
        )
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg2")
    return url


def _confine(driver: sqlite3.Connection, _record: object) -> None:
    # Python's sqlite3 begins by itself, but only before some statements: a table created first would stay.
    driver.isolation_level = None
    # ATTACH and VACUUM INTO would read and write any file that the worker may, and not the connection's alone.
    driver.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)


def _forget_engines() -> None:
    """In the child of a fork: the parent's connections stay the parent's."""
    global _engines_lock
    _engines_lock = threading.Lock()
    for engine in _engines.values():
        engine.dispose(close=False)
    _engines.clear()


os.register_at_fork(after_in_child=_forget_engines)
