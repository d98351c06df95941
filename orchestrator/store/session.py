"""The connection to PostgreSQL, and how rows and values cross it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import orjson
import psycopg2
import sqlalchemy as sa
import uuid_utils
from psycopg2.errorcodes import UNIQUE_VIOLATION
from psycopg2.extras import NamedTupleCursor
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Engine

from orchestrator.config import DatabaseSettings
from orchestrator.errors import ConfigurationError
from orchestrator.metrics import STORE_ERRORS, tally
from orchestrator.store.routines import Routine

Params = Mapping[str, Any]


class Row(Protocol):
    """A named tuple of a statement's columns."""

    _fields: tuple[str, ...]

    def __getattr__(self, column: str) -> Any: ...
    def __getitem__(self, number: int) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def _asdict(self) -> dict[str, Any]: ...


IDLE_AT_MOST = 10.0
"""Seconds for which a transaction may stand still: a process that is frozen, or whose host is gone, would keep what it
has locked from everybody, reconcile included, for as long as its connection seems to live."""

_SERVER_TROUBLE = (psycopg2.OperationalError, psycopg2.InterfaceError)
DatabaseAway = (
    *_SERVER_TROUBLE,
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.TimeoutError,
)
"""What is raised when the server cannot be reached, whatever was asked."""


def new_id() -> str:
    """A UUIDv7: unique anywhere, and sorted by time, so that new rows stand together in every index."""
    return str(uuid_utils.uuid7())


def id_at(milliseconds: float) -> str:
    """The first id that could have been made so long after 1970: what is older has a smaller one."""
    digits = f"{min(max(int(milliseconds), 0), 2**48 - 1):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"


def sql_id_at(moment: str) -> str:
    """SQL that has what `id_at` makes of the timestamptz `moment`."""
    milliseconds = f"floor(extract(epoch FROM {moment}) * 1000)::bigint"
    return f"(lpad(to_hex({milliseconds}), 12, '0') || '70008000000000000000')::uuid"


def to_json(value: object) -> str:
    """`value` as PostgreSQL takes it for a jsonb parameter."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


REFUSED = "OR001"
REFUSE = f"RAISE EXCEPTION 'refused' USING ERRCODE = '{REFUSED}'"
"""PL/pgSQL of a routine that is called together with another."""


EXECUTIONS_FIRST = "LOCK TABLE executions IN ACCESS SHARE MODE"
"""PL/pgSQL that comes before a statement which would name the steps' table first: whoever lays both aside takes the
executions' first, and must not find everybody between the two. It takes 2 us."""


class Refused(Exception):
    """What was to be done together with something else could not be: nothing was."""


@dataclass(frozen=True, slots=True)
class Call:
    """A routine to be called together with another: both take effect, or neither."""

    routine: Routine
    params: Params


class Store:
    """One pool of connections. A process makes its own after a fork: psycopg2 connections do not cross it.

    The connections are in autocommit mode, since a transition is one statement and then takes one round trip
    instead of three. There is no session state beyond a transaction, so PgBouncer in transaction mode may stand
    in between.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self.engine = create_engine(settings)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction at READ COMMITTED, committed at the end and rolled back by an exception."""
        with self.transaction_from("SELECT", {}) as (connection, _):
            yield connection

    @contextmanager
    def transaction_from(
        self, first: str, params: Params, before: Sequence[Call] = ()
    ) -> Iterator[tuple[Connection, Row | None]]:
        """A transaction whose first statements, `first`, travel with its BEGIN; the first row of their last. They may
        refuse, as may what is called `before`: Refused."""
        with self.engine.connect() as connection:
            try:
                if before:
                    _call_all(connection, before)
                with _refusals():
                    row = run(connection, first if before else f"BEGIN; {first}", params).first()
                yield connection, row
                run(connection, "COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """A connection on which every statement is its own transaction."""
        with self.engine.connect() as connection:
            yield connection

    def call(self, routine: Routine, params: Params, first: Sequence[Call] = ()) -> list[tuple[Any, ...]]:
        """The rows of one of the hot statements, past everything that SQLAlchemy would add to it. What is called
        `first` travels with it, in one transaction; Refused if one of them all refuses."""
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            if first:
                calls = [cursor.mogrify(one.routine.call, one.params) for one in (*first, Call(routine, params))]
                cursor.execute(b"; ".join(calls))
            else:
                cursor.execute(routine.call, cast(Any, params))
            return cast("list[tuple[Any, ...]]", cursor.fetchall())
        except Exception as error:
            if _is_refusal(error):
                raise Refused from error
            connection.invalidate(error)
            if isinstance(error, _SERVER_TROUBLE):
                tally.add(STORE_ERRORS)
                # The server went away, and with it every other connection: one failed step is enough.
                self.engine.dispose()
            raise
        finally:
            connection.close()

    def close(self) -> None:
        self.engine.dispose()


def _call_all(connection: Connection, calls: Sequence[Call]) -> None:
    run(connection, "BEGIN")
    with _refusals():
        for call in calls:
            run(connection, call.routine.call, call.params)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        if _is_refusal(error.orig):
            raise Refused from error
        raise


def _is_refusal(error: BaseException | None) -> bool:
    """What is there already under the same key is refused, too."""
    return getattr(error, "pgcode", None) in (REFUSED, UNIQUE_VIOLATION)


def _roll_back(connection: Connection) -> None:
    try:
        run(connection, "ROLLBACK")
    except sa.exc.SQLAlchemyError:
        connection.invalidate()  # the connection is gone, and the transaction with it


def create_engine(settings: DatabaseSettings) -> Engine:
    """An engine for `settings.url`, which may name no driver. Raises ConfigurationError for another database."""
    try:
        url = sa.make_url(settings.url)
    except sa.exc.ArgumentError:
        raise ConfigurationError("database.url is not a URL; write it like postgresql://user@host/name") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(f"database.url names {url.get_backend_name()}; only postgresql is supported")
    url = url.set(drivername="postgresql+psycopg2")
    engine = sa.create_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=10,
        pool_use_lifo=True,  # the server process that was asked last has the most at hand
        pool_pre_ping=False,  # a lost connection surfaces in a statement that is safe to repeat
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,  # nothing is ever left open: see Store.transaction
        connect_args={"connect_timeout": 5, "application_name": "orchestrator"},
        json_serializer=to_json,
        json_deserializer=orjson.loads,
    )
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "handle_error", _count_errors)
    return engine


_UUID_AS_TEXT = psycopg2.extensions.new_type((2950,), "uuid", psycopg2.extensions.UNICODE)


def _prepare(connection: Any, _record: object) -> None:
    """Every connection of ours has the same, so that it does no harm behind a PgBouncer which hands it around."""
    # SQLAlchemy has an object made of each, of which it makes text again: a tenth of what a list takes.
    psycopg2.extensions.register_type(_UUID_AS_TEXT, connection)
    with connection.cursor() as cursor:
        # Times then need no conversion, whatever zone the server happens to be set to.
        cursor.execute("SET timezone = 'UTC'; SET idle_in_transaction_session_timeout = %s", [int(IDLE_AT_MOST * 1000)])


def _count_errors(context: sa.ExceptionContext) -> None:
    if isinstance(context.original_exception, _SERVER_TROUBLE):
        tally.add(STORE_ERRORS)


class Rows:
    """All that a statement returned; `rowcount` is how many rows it was about."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: list[Row], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def all(self) -> list[Row]:
        return self._rows

    def first(self) -> Row | None:
        return self._rows[0] if self._rows else None

    def one(self) -> Row:
        (row,) = self._rows
        return row

    def scalar(self) -> Any:
        """The first column of the first row; None if there is none."""
        return self._rows[0][0] if self._rows else None

    def scalar_one(self) -> Any:
        return self.one()[0]

    def scalars(self) -> list[Any]:
        """The first column of each row."""
        return [row[0] for row in self._rows]


def run(connection: Connection, sql: str, params: Params | Sequence[Params] = ()) -> Rows:
    """Execute hand-written SQL with %(name)s parameters, once for each of several. It goes past SQLAlchemy, which takes
    this process three times as long as the statement itself does; errors are raised as SQLAlchemy would."""
    cursor = connection.connection.cursor(cursor_factory=NamedTupleCursor)
    try:
        if isinstance(params, Mapping) or not params:
            cursor.execute(sql, cast(Any, params))
        else:
            cursor.executemany(sql, cast(Any, params))
        rows = [] if cursor.description is None else cursor.fetchall()
        return Rows(cast("list[Row]", rows), cursor.rowcount)
    except psycopg2.Error as error:
        raise _as_sqlalchemys(error, connection, sql) from error
    finally:
        cursor.close()


def _as_sqlalchemys(error: psycopg2.Error, connection: Connection, sql: str) -> BaseException:
    """What SQLAlchemy makes of it. A connection that is lost is not used again, nor are those beside it."""
    if isinstance(error, _SERVER_TROUBLE):
        tally.add(STORE_ERRORS)
    lost = connection.dialect.is_disconnect(cast(Any, error), connection.connection.dbapi_connection, None)
    if lost:
        connection.invalidate(error)
        connection.engine.dispose()
    return sa.exc.DBAPIError.instance(
        sql, None, error, psycopg2.Error, hide_parameters=True, connection_invalidated=lost, dialect=connection.dialect
    )


def compiled(query: sa.Select[Any]) -> str:
    """A query that is always the same, as SQL for `run`: its parameters are its bindparams."""
    return str(query.compile(dialect=postgresql.psycopg2.dialect()))  # type: ignore[no-untyped-call]


def as_dicts(rows: Iterable[Any]) -> list[dict[str, Any]]:
    rows = list(rows)
    fields = rows[0]._fields if rows else ()
    return [dict(zip(fields, row, strict=True)) for row in rows]
