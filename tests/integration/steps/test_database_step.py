"""`database` on a real PostgreSQL and on SQLite files; what goes wrong goes wrong at the server."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from deployment import SOON, Deployment, own_port, wait_until
from marshmallow import ValidationError
from performing import context_of

from orchestrator.config import ConnectionSettings, ExecutorSettings, Settings
from orchestrator.definition import load_definition
from orchestrator.errors import DefinitionError, StepFailed, StepTimeout
from workers.prepared import Tree
from workers.steps import database_call
from workers.steps.database import Database
from workers.steps.database_values import plain


class Target:
    """A database that a step works on, and a look at it past the step."""

    def __init__(self, url: str, schema: str = "") -> None:
        self.url = url
        self.prefix = f"{schema}." if schema else ""
        self.is_postgres = bool(schema)
        self.engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"), poolclass=sa.NullPool)
        json_type = "jsonb" if schema else "text"
        self.run(f"CREATE TABLE {self.prefix}items (id integer PRIMARY KEY, name text DEFAULT 'none', doc {json_type})")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        with self.engine.begin() as connection:
            result = connection.exec_driver_sql(sql.replace("%", "%%") if self.is_postgres else sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    def items(self) -> list[tuple[Any, ...]]:
        return self.run(f"SELECT id, name FROM {self.prefix}items ORDER BY id")

    def perform(self, operation: str, **config: Any) -> dict[str, Any]:
        return perform(self.url, operation, **config)

    def failure(self, operation: str, **config: Any) -> StepFailed:
        return failure(self.url, operation, **config)

    @property
    def table(self) -> str:
        return f"{self.prefix}items"


@pytest.fixture
def postgres(servers: Deployment) -> Iterator[Target]:
    schema = f"t{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(servers.settings.database.url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    yield Target(servers.settings.database.url, schema)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture
def sqlite(tmp_path: Path) -> Target:
    return Target(f"sqlite:///{tmp_path / 'file.db'}")


@pytest.fixture(params=["postgres", "sqlite"])
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.getfixturevalue(request.param)
    return found


def perform(url: str, operation: str, *, max_payload: int = 10**6, secrets: Any = None, **more: Any) -> dict[str, Any]:
    context_fields = {name: more.pop(name) for name in ("input", "deadline") if name in more}
    settings = Settings(
        executor=ExecutorSettings(max_payload=max_payload), connections={"db": ConnectionSettings(url=url)}
    )
    config = {"connection": "db", "operation": operation, **more}
    context = context_of(Database(), config, settings=settings, secrets=secrets, **context_fields)
    output: dict[str, Any] = Database().perform(context).output
    json.dumps(output, allow_nan=False)
    return output


def failure(url: str, operation: str, **config: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        perform(url, operation, **config)
    return failed.value


def no_calls_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("database-")]


# --- operations ----------------------------------------------------------------------------------------------


def test_the_mapped_data_is_inserted_as_a_row_or_as_rows(target: Target) -> None:
    assert target.perform("insert", table=target.table, input={"data": {"id": 1, "name": "a"}}) == {"row_count": 1}
    rows = [{"id": 2, "name": "b"}, {"id": 3, "name": None}]
    assert target.perform("insert", table=target.table, input={"data": rows})["row_count"] == 2
    assert target.items() == [(1, "a"), (2, "b"), (3, None)]


def test_rows_of_the_config_win_over_the_mapped_data(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": 1}], input={"data": {"id": 2}})
    assert target.items() == [(1, "none")]


def test_rows_in_batches_that_name_different_columns_return_in_order(target: Target) -> None:
    rows = [{"id": n} if n % 3 else {"name": f"n{n}", "id": n} for n in range(20)]
    output = target.perform("insert", table=target.table, rows=rows, batch_size=3, returning=["id", "name"])
    assert output["row_count"] == 20
    assert output["rows"] == [{"id": n, "name": "none" if n % 3 else f"n{n}"} for n in range(20)]


def test_a_row_that_fails_takes_all_batches_with_it(target: Target) -> None:
    rows = [{"id": n} for n in (1, 2, 3, 1)]
    failed = target.failure("insert", table=target.table, rows=rows, batch_size=1)
    assert (failed.kind, failed.retryable) == ("constraint", False)
    assert target.items() == []


def test_no_rows_are_no_work(target: Target) -> None:
    assert target.perform("insert", table=target.table, input={"data": []}) == {"row_count": 0}


@pytest.mark.parametrize("given", [None, {}, {"data": None}, {"data": "x"}, {"data": [{"id": 1}, 5]}])
def test_input_that_is_not_rows_is_a_mistake_in_the_config(sqlite: Target, given: Any) -> None:
    failed = sqlite.failure("insert", table="items", input=given)
    assert (failed.kind, failed.retryable) == ("config", False)
    assert sqlite.items() == []


def test_objects_and_lists_are_stored_as_json(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": 1, "doc": {"a": [1, "ü"]}}, {"id": 2, "doc": [True]}])
    output = target.perform("query", sql=f"SELECT doc FROM {target.table} ORDER BY id")
    docs = [row["doc"] if target.is_postgres else json.loads(row["doc"]) for row in output["rows"]]
    assert docs == [{"a": [1, "ü"]}, [True]]


def test_an_upsert_inserts_updates_and_keeps_the_last_row_of_a_key(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": 1, "name": "old", "doc": [1]}])
    rows = [{"id": 1, "name": "new"}, {"id": 2, "name": "first"}, {"id": 2, "name": "last"}]
    target.perform("upsert", table=target.table, key=["id"], rows=rows)
    assert target.items() == [(1, "new"), (2, "last")]
    assert target.run(f"SELECT doc FROM {target.table} WHERE id = 1")[0][0] in ([1], "[1]")
    target.perform("upsert", table=target.table, key=["id"], rows=[{"id": 1}, {"id": 3}])
    assert target.items() == [(1, "new"), (2, "last"), (3, "none")]


def test_every_row_of_a_large_batch_is_counted(target: Target) -> None:
    columns = [f"c{n}" for n in range(30)]
    target.run(f"CREATE TABLE {target.prefix}wide (id integer PRIMARY KEY, {' integer, '.join(columns)} integer)")
    rows = [{"id": n, **dict.fromkeys(columns, n)} for n in range(2500)]
    table = f"{target.prefix}wide"
    assert target.perform("insert", table=table, rows=rows, batch_size=10_000) == {"row_count": 2500}
    assert target.perform("upsert", table=table, key=["id"], rows=rows, batch_size=10_000) == {"row_count": 2500}
    output = target.perform("upsert", table=table, key=["id"], rows=rows[:3], returning=["c9"])
    assert output == {"row_count": 3, "rows": [{"c9": 0}, {"c9": 1}, {"c9": 2}]}
    assert target.failure("upsert", table=table, key=["c1"], rows=rows[:3]).kind == "sql"


def test_an_upsert_whose_row_lacks_the_key_says_which(sqlite: Target) -> None:
    failed = sqlite.failure("upsert", table="items", key=["id"], rows=[{"id": 1}, {"name": "a"}])
    assert failed.kind == "config"
    assert str(failed) == "row 1 has no 'id', which is in `key`"


def test_update_and_delete_touch_what_where_names(target: Target) -> None:
    rows = [{"id": n, "name": name} for n, name in enumerate(["a", "b", None, "d", "e"])]
    target.perform("insert", table=target.table, rows=rows)
    output = target.perform("update", table=target.table, values={"name": "x"}, where={"name": None}, returning=["id"])
    assert output == {"row_count": 1, "rows": [{"id": 2}]}
    output = target.perform("update", table=target.table, values={"name": None}, where={"id": [0, 1], "name": "b"})
    assert output == {"row_count": 1}
    assert target.perform("delete", table=target.table, where={"name": ["d", None]}) == {"row_count": 2}
    assert target.perform("delete", table=target.table, where={"name": []}) == {"row_count": 0}
    assert target.items() == [(0, "a"), (2, "x"), (4, "e")]
    assert target.perform("delete", table=target.table, all=True) == {"row_count": 3}


def test_names_and_values_are_never_read_as_sql(target: Target) -> None:
    odd = 'we"ird; %s (col):x'
    quoted = odd.replace('"', '""')
    target.run(f'CREATE TABLE {target.prefix}"Odd%" (id integer, "{quoted}" text)')
    value = "'; DROP TABLE items; -- %s :id {{ 1 }}"
    target.perform("insert", table=f"{target.prefix}Odd%", rows=[{"id": 1, odd: value}, {"id": 2, odd: ""}])
    target.perform("update", table=f"{target.prefix}Odd%", values={"id": 9}, where={odd: value})
    sql = f'SELECT * FROM {target.prefix}"Odd%" WHERE id = :id'
    assert target.perform("query", sql=sql, params={"id": 9})["rows"] == [{"id": 9, odd: value}]
    failed = target.failure("insert", table=f"{target.prefix}items (id) VALUES (1) --", rows=[{"id": 1}])
    assert failed.kind == "sql"
    assert target.items() == []


def test_a_query_has_rows_columns_and_bound_parameters(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": n, "name": f"n{n}"} for n in range(5)])
    sql = f"SELECT id, name FROM {target.table} WHERE id IN (:ids) AND id IN :more AND name <> :name ORDER BY id"
    params = {"ids": [1, 2, 3], "more": [1, 3, 4], "name": "n3' OR 1=1"}
    output = target.perform("query", sql=sql, params=params)
    rows = [{"id": 1, "name": "n1"}, {"id": 3, "name": "n3"}]
    assert output == {"rows": rows, "row_count": 2, "columns": ["id", "name"]}
    assert target.perform("query", sql=f"SELECT id FROM {target.table} WHERE 1=0")["columns"] == ["id"]


def test_an_empty_list_is_in_nothing(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": 1, "name": "a"}])
    for column in ("id", "name"):
        sql = f"SELECT id FROM {target.table} WHERE {column}"
        assert target.perform("query", sql=f"{sql} IN :none", params={"none": []})["rows"] == []
        assert target.perform("query", sql=f"{sql} not in (:none)", params={"none": []})["rows"] == [{"id": 1}]


def test_a_query_reads_no_more_than_max_rows(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": n} for n in range(300)])
    sql = f"SELECT id FROM {target.table}"
    assert target.perform("query", sql=sql, max_rows=300)["row_count"] == 300
    failed = target.failure("query", sql=sql, max_rows=299)
    assert (failed.kind, failed.retryable) == ("too_many_rows", False)
    assert "max_rows" in str(failed)


def test_an_endless_query_is_read_up_to_its_bounds(postgres: Target) -> None:
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    sql = f"{counting} SELECT i, repeat('x', 1000) AS text FROM n"
    assert postgres.failure("query", sql=sql, max_rows=150).kind == "too_many_rows"
    failed = postgres.failure("query", sql=sql, max_rows=10**9, max_payload=50_000)
    assert (failed.kind, failed.retryable) == ("output_too_large", False)


def test_statements_without_a_cursor_can_be_queried_too(postgres: Target) -> None:
    assert postgres.perform("query", sql="SHOW server_encoding")["rows"] == [{"server_encoding": "UTF8"}]
    sql = f"-- a comment\n INSERT INTO {postgres.table} (id) VALUES (7) RETURNING id, name"
    assert postgres.perform("query", sql=sql)["rows"] == [{"id": 7, "name": "none"}]
    sql = "/* one */ WITH a AS (SELECT 1 AS one) SELECT * FROM a"
    assert postgres.perform("query", sql=sql)["rows"] == [{"one": 1}]


def test_execute_counts_rows_and_returns_what_comes_back(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": 1}, {"id": 2}])
    update = f"UPDATE {target.table} SET name = :name"
    assert target.perform("execute", sql=update, params={"name": {"a": 1}}) == {"row_count": 2}
    assert target.items()[0] == (1, '{"a":1}')
    assert target.perform("execute", sql=f"DELETE FROM {target.table} WHERE id = 1 RETURNING id") == {
        "row_count": 1,
        "rows": [{"id": 1}],
    }
    assert target.perform("execute", sql=f"CREATE TABLE {target.prefix}other (id integer)") == {"row_count": 0}


def test_a_transaction_is_all_or_nothing_tables_included(target: Target) -> None:
    insert = f"INSERT INTO {target.table} (id, name) VALUES (:id, :name)"
    good = [
        {"sql": f"CREATE TABLE {target.prefix}made (id integer)"},
        {"sql": insert, "params": {"id": 1, "name": "a"}},
        {"sql": f"SELECT count(*) AS n FROM {target.table}"},
    ]
    bad = [*good, {"sql": insert, "params": {"id": 1, "name": "b"}}]
    assert target.failure("transaction", statements=bad).kind == "constraint"
    assert target.items() == []
    assert target.perform("transaction", statements=good) == {
        "results": [{"row_count": 0}, {"row_count": 1}, {"row_count": 1, "rows": [{"n": 1}]}]
    }
    assert target.items() == [(1, "a")]


# --- values --------------------------------------------------------------------------------------------------


def test_values_of_postgresql_come_as_json(postgres: Target) -> None:
    expressions = {
        "1::bigint": 1,
        "1.10::numeric": 1.1,
        "12345678901234567890.123::numeric": "12345678901234567890.123",
        "3::numeric": 3,
        "99999999999999999999::numeric": "99999999999999999999",
        "'NaN'::numeric": "NaN",
        "'NaN'::float8": "NaN",
        "'-Infinity'::float8": "-Infinity",
        "date '2026-02-03'": "2026-02-03",
        "time '10:11:12.5'": "10:11:12.500000",
        "timestamp '2026-02-03 10:11:12'": "2026-02-03T10:11:12",
        "timestamptz '2026-02-03 10:11:12+00'": "2026-02-03T10:11:12+00:00",
        "interval '1 day 2 seconds'": 86402.0,
        "'6f1c1f0e-8a58-4a8c-9d0a-0d5a9f0c1b2a'::uuid": "6f1c1f0e-8a58-4a8c-9d0a-0d5a9f0c1b2a",
        "'\\x00ff'::bytea": "AP8=",
        "ARRAY[1.5, 2]::numeric[]": [1.5, 2],
        "'{\"a\": [1, null, 1e400]}'::json": {"a": [1, None, "Infinity"]},
        "'10.0.0.1'::inet": "10.0.0.1",
        "int4range(1, 5)": "[1, 5)",
        "true": True,
        "null": None,
    }
    sql = "SELECT " + ", ".join(f"{expression} AS c{n}" for n, expression in enumerate(expressions))
    statements = [{"sql": "SET LOCAL timezone = 'UTC'"}, {"sql": sql}]
    row = postgres.perform("transaction", statements=statements)["results"][1]["rows"][0]
    assert dict(zip(expressions, row.values(), strict=True)) == expressions


def test_a_number_beyond_what_json_keeps_is_a_text() -> None:
    assert [plain(2**64 - 1), plain(2**64), plain(-(2**63) - 1)] == [2**64 - 1, str(2**64), str(-(2**63) - 1)]


def test_two_columns_of_one_name_are_refused(target: Target) -> None:
    failed = target.failure("query", sql="SELECT 1 AS a, 2 AS a, 3 AS b")
    assert (failed.kind, str(failed)) == ("sql", "two columns are called 'a'; name them apart with AS")


# --- time ----------------------------------------------------------------------------------------------------


def is_running(postgres: Target, mark: str) -> bool:
    found = postgres.run(
        f"SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() AND query LIKE '%{mark}%'"
    )
    return bool(found)


def test_a_statement_past_the_timeout_ends_at_the_server(postgres: Target) -> None:
    mark = uuid.uuid4().hex
    started = time.monotonic()
    failed = postgres.failure("execute", sql=f"SELECT pg_sleep(60) /* {mark} */", timeout="300ms")
    assert isinstance(failed, StepTimeout)
    assert (failed.kind, failed.retryable) == ("timeout", True)
    assert 0.25 <= time.monotonic() - started < SOON
    wait_until(lambda: not is_running(postgres, mark), SOON)
    assert postgres.perform("query", sql="SELECT 1 AS one")["rows"] == [{"one": 1}]


def test_a_later_statement_that_outlives_the_limit_is_cancelled(postgres: Target) -> None:
    mark = uuid.uuid4().hex
    sleep = f"SELECT pg_sleep(60) /* {mark} */"
    insert = f"INSERT INTO {postgres.table} (id) VALUES (1)"
    statements = [{"sql": insert}, {"sql": "SET LOCAL statement_timeout = 0"}, {"sql": sleep}]
    started = time.monotonic()
    assert isinstance(postgres.failure("transaction", statements=statements, timeout=0.3), StepTimeout)
    assert time.monotonic() - started < SOON
    wait_until(lambda: not is_running(postgres, mark), SOON)
    wait_until(no_calls_left)
    assert postgres.items() == []


def test_a_wait_for_a_lock_ends_in_time_and_leaves_nothing(target: Target) -> None:
    target.perform("insert", table=target.table, rows=[{"id": 1}])
    with target.engine.connect() as holder:
        if not target.is_postgres:
            holder.connection.driver_connection.isolation_level = None
            holder.exec_driver_sql("BEGIN IMMEDIATE")
        holder.exec_driver_sql(f"UPDATE {target.table} SET name = 'held'")
        started = time.monotonic()
        failed = target.failure("update", table=target.table, values={"name": "mine"}, where={"id": 1}, timeout=0.3)
        assert isinstance(failed, StepTimeout)
        assert 0.2 <= time.monotonic() - started < SOON
        holder.rollback()
    wait_until(no_calls_left)
    assert target.items() == [(1, "none")]


@pytest.mark.parametrize("sql", ["ATTACH '{}' AS other", "VACUUM INTO '{}'"])
def test_no_other_file_is_reached_through_sqlite(sqlite: Target, tmp_path: Path, sql: str) -> None:
    other = tmp_path / "other.db"
    alone = sqlite.failure("execute", sql=sql.format(other))
    after_a_commit = sqlite.failure("transaction", statements=[{"sql": "COMMIT"}, {"sql": sql.format(other)}])
    assert {alone.kind, after_a_commit.kind} == {"sql"}
    assert not other.exists()


def test_a_computation_in_sqlite_ends_in_time(sqlite: Target) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS c FROM n"
    started = time.monotonic()
    assert isinstance(sqlite.failure("query", sql=endless, timeout=0.3), StepTimeout)
    assert time.monotonic() - started < SOON
    wait_until(no_calls_left)


def test_the_steps_deadline_bounds_it_too(postgres: Target) -> None:
    started = time.monotonic()
    failed = postgres.failure("query", sql="SELECT pg_sleep(60)", timeout="1h", deadline=started + 0.3)
    assert isinstance(failed, StepTimeout)
    assert time.monotonic() - started < SOON


def test_a_server_that_never_answers_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        failed = failure(f"postgresql://u@127.0.0.1:{mute.getsockname()[1]}/d", "query", sql="SELECT 1", timeout=0.3)
        assert isinstance(failed, StepTimeout)
        assert time.monotonic() - started < SOON
    wait_until(no_calls_left)


# --- a server in between that can be told to stall or to hang up ---------------------------------------------


class Relay:
    """Passes bytes between clients and PostgreSQL's socket until it is told not to."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.flows = threading.Event()
        self.flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        port = self._listener.getsockname()[1]
        url = self._url.set(host="127.0.0.1", port=port, query={}, drivername="postgresql")
        return url.update_query_dict({"sslmode": "disable", "gssencmode": "disable"}).render_as_string(False)

    def _upstream(self) -> socket.socket:
        host = self._url.host or str(self._url.query.get("host", ""))
        port = self._url.port or int(str(self._url.query.get("port", 5432)))
        if host.startswith("/"):
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(f"{host}/.s.PGSQL.{port}")
            return upstream
        return socket.create_connection((host, port))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = self._upstream()
            self._sockets += [client, upstream]
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def hang_up(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        self.flows.set()
        self.hang_up()
        self._listener.close()


@pytest.fixture
def relay(postgres: Target) -> Iterator[Relay]:
    relay = Relay(postgres.url)
    yield relay
    relay.close()


def test_connections_are_kept_and_replaced_when_the_server_dropped_them(relay: Relay) -> None:
    def backend() -> int:
        pid: int = perform(relay.url, "query", sql="SELECT pg_backend_pid() AS pid")["rows"][0]["pid"]
        return pid

    first = backend()
    assert backend() == first
    relay.hang_up()
    assert backend() != first


def test_a_server_that_stands_still_is_left_in_time_and_commits_nothing(relay: Relay, postgres: Target) -> None:
    perform(relay.url, "query", sql="SELECT 1 AS one")
    relay.flows.clear()
    started = time.monotonic()
    rows = [{"id": 1}]
    assert isinstance(failure(relay.url, "insert", table=postgres.table, rows=rows, timeout=0.3), StepTimeout)
    assert time.monotonic() - started < SOON
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "database-call"])
    relay.flows.set()
    wait_until(no_calls_left)
    assert postgres.items() == []
    assert perform(relay.url, "query", sql="SELECT 1 AS one")["row_count"] == 1


def test_a_connection_lost_in_the_middle_may_be_tried_again(relay: Relay, postgres: Target) -> None:
    mark = uuid.uuid4().hex

    def cut() -> None:
        wait_until(lambda: is_running(postgres, mark))
        relay.hang_up()

    cutter = threading.Thread(target=cut)
    cutter.start()
    failed = failure(relay.url, "execute", sql=f"SELECT pg_sleep(60) /* {mark} */")
    cutter.join()
    assert (failed.kind, failed.retryable) == ("connection", True)


def test_a_backend_that_an_administrator_ends_may_be_tried_again(postgres: Target) -> None:
    mark = uuid.uuid4().hex
    others = f"query LIKE '%{mark}%' AND pid <> pg_backend_pid()"

    def end() -> None:
        wait_until(lambda: is_running(postgres, mark))
        postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")

    ender = threading.Thread(target=end)
    ender.start()
    failed = postgres.failure("execute", sql=f"SELECT pg_sleep(60) /* {mark} */")
    ender.join()
    assert (failed.kind, failed.retryable) == ("connection", True)


# --- failures ------------------------------------------------------------------------------------------------


def test_a_constraint_is_named_and_the_parameters_are_not(target: Target) -> None:
    target.run(f"CREATE UNIQUE INDEX one_name ON {target.prefix}items (name)")
    target.perform("insert", table=target.table, rows=[{"id": 1, "name": "private words"}])
    failed = target.failure("insert", table=target.table, rows=[{"id": 2, "name": "private words"}])
    assert (failed.kind, failed.retryable) == ("constraint", False)
    assert ("one_name" if target.is_postgres else "items.name") in str(failed)
    assert "private" not in str(failed)


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT * FROM nowhere", "SELECT 1 WHERE nothing = 1"])
def test_sql_that_the_server_refuses_is_not_tried_again(target: Target, sql: str) -> None:
    failed = target.failure("query", sql=sql)
    assert (failed.kind, failed.retryable) == ("sql", False)
    assert str(failed).startswith("connection db: ")
    assert "\n" not in str(failed)


def test_values_that_cannot_be_sent_fail_for_good(postgres: Target, sqlite: Target) -> None:
    failed = postgres.failure("insert", table=postgres.table, rows=[{"id": 1, "name": "a\0b"}])
    assert (failed.kind, failed.retryable) == ("sql", False)
    assert "NUL" in str(failed)
    failed = sqlite.failure("insert", table="items", rows=[{"id": 2**70}])
    assert (failed.kind, failed.retryable) == ("sql", False)


def test_a_deadlock_may_be_tried_again(postgres: Target) -> None:
    postgres.perform("insert", table=postgres.table, rows=[{"id": 1}, {"id": 2}])
    outcomes: list[StepFailed | dict[str, Any]] = []
    barrier = threading.Barrier(2)

    def work(first: int, second: int) -> None:
        touch = f"UPDATE {postgres.table} SET name = 'x' WHERE id = :id"
        statements = [
            {"sql": "SET LOCAL deadlock_timeout = '50ms'"},
            {"sql": touch, "params": {"id": first}},
            {"sql": "SELECT pg_sleep(0.3)"},
            {"sql": touch, "params": {"id": second}},
        ]
        barrier.wait()
        try:
            outcomes.append(postgres.perform("transaction", statements=statements))
        except StepFailed as failed:
            outcomes.append(failed)

    threads = [threading.Thread(target=work, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = next(outcome for outcome in outcomes if isinstance(outcome, StepFailed))
    assert (failed.kind, failed.retryable) == ("deadlock", True)
    assert len([outcome for outcome in outcomes if isinstance(outcome, dict)]) == 1


def test_a_refused_connection_may_be_tried_again_and_shows_no_password() -> None:
    with own_port() as port:
        url = f"postgres://user:{{{{ secrets.pw }}}}@127.0.0.1:{port}/d?sslmode=disable"
        failed = failure(url, "query", sql="SELECT 1", secrets={"pw": "s3cret%40word"})
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert "refused" in str(failed)
    assert "s3cret" not in str(failed)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense s3cret",
        "postgresql://u:s3cret@host:port/d",
        "postgresql://u:half@s3cret@host/d",
        "nosuch://u:s3cret@host/d",
        "postgresql+asyncpg://u:s3cret@host/d",
        "postgresql://u:s3cret@127.0.0.1/d?unknown=1",
    ],
)
def test_a_url_that_cannot_be_used_is_a_mistake_that_does_not_show_it(url: str) -> None:
    failed = failure(url, "query", sql="SELECT 1")
    assert (failed.kind, failed.retryable) == ("config", False)
    assert str(failed).startswith("connection db: ")
    assert "s3cret" not in str(failed)


def test_an_unknown_connection_lists_the_known_ones() -> None:
    failed = failure("sqlite://", "query", sql="SELECT 1", connection="other")
    assert str(failed) == "there is no connection 'other'; the setting `connections` has db"


def test_a_file_that_cannot_be_opened_is_a_connection_failure(tmp_path: Path) -> None:
    failed = failure(f"sqlite:///{tmp_path / 'missing' / 'file.db'}", "query", sql="SELECT 1")
    assert (failed.kind, failed.retryable) == ("connection", True)


# --- processes and threads -----------------------------------------------------------------------------------


def test_many_threads_share_the_kept_connections(postgres: Target) -> None:
    pids: list[int] = []

    def work() -> None:
        for _ in range(5):
            pids.append(postgres.perform("query", sql="SELECT pg_backend_pid() AS pid")["rows"][0]["pid"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 40
    key = postgres.url, ConnectionSettings().pool_size
    assert database_call._engines[key].pool.checkedin() <= ConnectionSettings().pool_size  # type: ignore[attr-defined]


def test_a_forked_child_has_connections_of_its_own(postgres: Target) -> None:
    url = sa.make_url(postgres.url).update_query_dict({"application_name": "forked"}).render_as_string(False)

    def backend() -> int:
        pid: int = perform(url, "query", sql="SELECT pg_backend_pid() AS pid")["rows"][0]["pid"]
        return pid

    mine = backend()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(backend()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        theirs = int(answer.read())
    assert theirs != mine
    assert backend() == mine


# --- configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"operation": "query"}, {"sql"}),
        ({"operation": "query", "sql": "  "}, {"sql"}),
        ({"operation": "query", "sql": "SELECT {{ input.x }}"}, {"sql"}),
        ({"operation": "query", "sql": "SELECT 1 {% if true %}"}, {"sql"}),
        ({"operation": "query", "sql": "SELECT :a, :b, x::int", "params": {"a": 1}}, {"sql"}),
        ({"operation": "query", "sql": "SELECT 1", "table": "t", "where": {"a": 1}}, {"table", "where"}),
        ({"operation": "query", "sql": "SELECT 1", "max_rows": 0, "timeout": "soon"}, {"max_rows", "timeout"}),
        ({"operation": "insert"}, {"table"}),
        ({"operation": "insert", "table": "a.b.c", "rows": [1, {}], "batch_size": 0}, {"table", "rows", "batch_size"}),
        ({"operation": "upsert", "table": "t"}, {"key"}),
        ({"operation": "upsert", "table": "t", "key": []}, {"key"}),
        ({"operation": "update", "table": "t"}, {"values", "where"}),
        ({"operation": "update", "table": "t", "values": {}, "where": {}}, {"values", "where"}),
        ({"operation": "delete", "table": "t", "where": {}}, {"where"}),
        ({"operation": "delete", "table": "t", "all": False}, {"where"}),
        ({"operation": "delete", "table": "t", "all": True, "where": {"a": 1}}, {"all"}),
        ({"operation": "transaction", "statements": []}, {"statements"}),
        ({"operation": "transaction", "statements": [{"sql": "{{ x }}"}, {"sql": "SELECT :a"}]}, {"statements"}),
        ({"operation": "truncate"}, {"operation"}),
        ({"operation": "query", "sql": "SELECT 1", "query": "x"}, {"query"}),
    ],
)
def test_a_config_with_mistakes_is_refused_at_each_field(config: dict[str, Any], wrong: set[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Database.Config().load({"connection": "db", **config})
    assert set(refused.value.messages_dict) == wrong


def test_a_template_in_sql_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(ValidationError) as refused:
        Database.Config().load({"connection": "db", "operation": "query", "sql": "SELECT '{{ input.x }}'"})
    assert "write :name, and give its value under `params`" in refused.value.messages_dict["sql"][0]


def problems_of(config: dict[str, Any]) -> list[str]:
    step = {"id": "a", "type": "database", "config": {"connection": "db", **config}}
    try:
        load_definition({"name": "w", "steps": [step]}, {"database": Database()})
    except DefinitionError as error:
        return [problem.path for problem in error.problems]
    return []


def test_templates_may_stand_anywhere_but_in_sql() -> None:
    assert problems_of({"operation": "query", "sql": "SELECT :a", "params": "{{ input }}"}) == []
    assert problems_of({"operation": "insert", "table": "{{ input.t }}", "rows": ["{{ input.a }}"]}) == []
    assert problems_of({"operation": "delete", "table": "t", "all": "{{ input.all }}"}) == []
    assert problems_of({"operation": "update", "table": "t", "values": {"a": "{{ input.a }}"}, "where": {}}) == [
        "steps[0].config.where"
    ]
    statements = [{"sql": "SELECT :a", "params": {"a": "{{ input.a }}"}}, {"sql": "SELECT '{{ input.a }}'"}]
    assert problems_of({"operation": "transaction", "statements": statements}) == ["steps[0].config.statements[1].sql"]


def test_what_looks_like_a_template_in_sql_is_never_rendered() -> None:
    sql = "SELECT '{{ 1 + 1 }}'"
    config = {"sql": sql, "statements": [{"sql": sql, "params": {"a": "{{ 1 + 1 }}"}}]}
    rendered = Tree(config, Database()).render({})
    assert rendered == {"sql": sql, "statements": [{"sql": sql, "params": {"a": 2}}]}
