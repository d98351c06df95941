"""What has been laid aside is there for whoever asks, can go on again, and goes when its time is over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from deployment import Deployment, deployed, wait_until
from sqlalchemy.exc import InternalError, OperationalError

from orchestrator.engine.retention import Retention
from orchestrator.lifecycle import EXECUTION_LIVE, ExecutionStatus
from orchestrator.store import archives, bulk, feed, new_id, partitions, removals
from orchestrator.store.bulk import Selection
from orchestrator.store.execution_views import summary
from orchestrator.store.executions import lock
from orchestrator.store.logs import LogLine, append
from orchestrator.store.partitions import DAY, HOUR
from orchestrator.store.session import run

KEPT = 180 * DAY
EACH = 25 * DAY
"""What an archive holds of what is kept for so long."""
SETS = {"steps": [{"id": "a", "type": "set", "config": {"values": {"n": "{{ input.n | default(1) }}"}}}]}
WAITS = {"steps": [{"id": "a", "type": "signal", "config": {"name": "go"}}]}
FAILS = {
    "steps": [
        {"id": "a", "type": "set", "config": {"values": {"n": 1}}},
        {"id": "b", "type": "fail", "depends_on": ["a"]},
    ]
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("archives")) as deployment:
        deployment.start_worker(concurrency=2)
        yield deployment


@pytest.fixture
def retention(own: Deployment) -> Retention:
    return Retention(own.store, own.settings, holder=new_id())


@pytest.fixture
def travel(
    own: Deployment, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[timedelta], None]]:
    """Have what is done about archives take place later than it does. What there is of them is over afterwards, and
    before."""

    def to(later: timedelta) -> None:
        monkeypatch.setattr(partitions, "now", lambda _: datetime.now(UTC) + later)

    def drop_all() -> None:
        to(9000 * DAY)
        wait_until(lambda: patiently(retention.drop_archives) or own.sql("SELECT FROM archives") == [])
        monkeypatch.undo()

    drop_all()
    yield to
    drop_all()


def patiently(act: Callable[[], None]) -> None:
    """Until nobody is in the way, as it is when retention comes to it a minute later."""

    def is_done() -> bool:
        with suppress(OperationalError):
            act()
            return True
        return False

    wait_until(is_done)


def table_of(own: Deployment, execution_id: str) -> str | None:
    """Where it is; None if it is nowhere."""
    rows = own.sql("SELECT tableoid::regclass::text FROM all_executions WHERE id = %(id)s::uuid", id=execution_id)
    assert len(rows) < 2
    return rows[0][0] if rows else None


def is_present(own: Deployment, execution_id: str) -> bool:
    return table_of(own, execution_id) == "executions"


def is_there(own: Deployment, execution_id: str) -> bool:
    return own.client.get(f"/api/v1/executions/{execution_id}").status_code == 200


def waiting(own: Deployment) -> str:
    """An execution that waits for the signal go."""
    id = own.execute(own.create(WAITS))
    wait_until(lambda: own.statuses(id)["a"] == "waiting")
    return id


# --- laying aside --------------------------------------------------------------------------------------------


def test_what_has_ended_is_laid_aside_and_shown_as_before(own: Deployment):
    execution = own.run(SETS)
    id, workflow_id = execution["id"], execution["workflow_id"]
    step_id = execution["step_executions"][0]["id"]
    with own.store.single() as connection:
        append(connection, id, step_id, "a", 1, [LogLine(datetime.now(UTC), "INFO", "said")])
    asked = [
        f"/api/v1/executions/{id}",
        f"/api/v1/executions/{id}/steps",
        f"/api/v1/executions/{id}/logs",
        f"/api/v1/executions/{id}/why",
        f"/api/v1/step-executions/{step_id}",
        f"/api/v1/executions?workflow_id={workflow_id}",
        "/api/v1/executions?status=completed&limit=1",
        f"/api/v1/workflows/{workflow_id}",
        f"/api/v1/workflows/{workflow_id}/status",
    ]
    before = [own.client.get(path) for path in asked]
    own.lay_aside()
    assert (table_of(own, id) or "").startswith("executions_")
    after = [own.client.get(path) for path in asked]
    assert [answer.status_code for answer in after] == [answer.status_code for answer in before]
    assert [answer.json for answer in after] == [answer.json for answer in before]


def test_a_list_goes_through_all_of_them_in_its_order(own: Deployment):
    workflow_id = own.create(SETS)
    ids = []
    for _ in range(3):
        for _ in range(3):
            ids.append(own.execute(workflow_id))
        for id in ids:
            own.ended(id)
        own.lay_aside()
    ids.append(own.execute(workflow_id))
    found, cursor = [], ""
    while cursor is not None:
        page = own.client.get(f"/api/v1/executions?workflow_id={workflow_id}&limit=2&sort=created_at{cursor}").json
        found += [item["id"] for item in page["items"]]
        cursor = f"&cursor={page['next']}" if page["next"] else None
    assert found == ids


def test_what_is_live_goes_on(own: Deployment):
    id = waiting(own)
    ended = own.run(SETS)["id"]
    own.lay_aside()
    assert [is_present(own, each) for each in (id, ended)] == [True, False]
    assert own.client.post(f"/api/v1/executions/{id}/signals", json={"name": "go"}).status_code == 202
    assert own.ended(id)["status"] == "completed"


def test_nothing_is_lost_or_done_twice_while_executions_run(own: Deployment):
    steps = [{"id": f"s{n}", "type": "noop", "depends_on": [f"s{n - 1}"] if n else []} for n in range(10)]
    workflow_id = own.create({"steps": steps})
    ids, were_live = [], 0
    for _ in range(20):
        ids += [own.execute(workflow_id) for _ in range(5)]
        were_live += own.sql("SELECT count(*) FROM executions WHERE finished_at IS NULL")[0][0]
        own.lay_aside()
    assert were_live
    for id in ids:
        execution = own.ended(id)
        assert execution["status"] == "completed"
        assert [(step["path"], step["attempt"]) for step in execution["step_executions"]] == [
            (step["id"], 1) for step in steps
        ]


def test_whoever_reads_meanwhile_sees_each_execution_once(own: Deployment):
    live = waiting(own)
    workflow_id = own.execution(live)["workflow_id"]
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            with own.store.single() as connection:
                rows = connection.exec_driver_sql(
                    f"SELECT id::text FROM all_executions WHERE workflow_id = '{workflow_id}'"
                )
                seen.append([row.id for row in rows])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        own.run(SETS)
        own.lay_aside()
    stop.set()
    reader.join()
    assert len(seen) > 20
    assert all(ids == [live] for ids in seen)


def test_a_family_stays_together(own: Deployment):
    child = own.create(SETS, name="a child that ends")
    definition = {
        "steps": [
            {"id": "calls", "type": "workflow", "config": {"workflow": child}},
            {"id": "waits", "type": "signal", "depends_on": ["calls"], "config": {"name": "go"}},
        ]
    }
    parent = own.execute(own.create(definition))
    wait_until(lambda: own.statuses(parent)["waits"] == "waiting")
    ((child_id,),) = own.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=child)
    own.lay_aside()
    assert is_present(own, parent)
    assert is_present(own, child_id)
    own.client.post(f"/api/v1/executions/{parent}/signals", json={"name": "go"})
    own.ended(parent)
    own.lay_aside()
    assert table_of(own, parent) == table_of(own, child_id) != "executions"


def test_a_table_that_was_changed_meanwhile_is_made_anew(own: Deployment):
    with own.store.transaction() as connection:
        archives.make_ready(connection)
    own.sql("CREATE INDEX ix_executions_by_somebody ON executions (error_message) WHERE error_message IS NOT NULL")
    own.run(SETS)
    own.lay_aside()
    ((table,),) = own.sql("SELECT tablename FROM pg_indexes WHERE indexname = 'ix_executions_by_somebody'")
    assert table == "executions"
    own.sql("DROP INDEX ix_executions_by_somebody")


def test_the_new_tables_are_made_as_the_old_ones_were(own: Deployment):
    def made() -> list[Any]:
        return own.sql(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstattarget, "
            "pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum), c.reloptions, c.relacl::text "
            "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
            "LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum "
            "WHERE c.relname IN ('executions', 'step_executions') ORDER BY c.relname, a.attnum"
        ) + own.sql(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ('executions', 'step_executions') ORDER BY 1"
        ) + own.sql(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid IN ('executions'::regclass, 'step_executions'::regclass) ORDER BY 1, 2"
        ) + own.sql(
            "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal "
            "AND tgrelid IN ('executions'::regclass, 'step_executions'::regclass) ORDER BY 1, 2"
        )  # fmt: skip

    names = {name for (name,) in own.sql("SELECT indexname FROM pg_indexes")}
    assert names >= archives._OF_LIVE
    own.sql("GRANT SELECT ON executions TO pg_monitor; GRANT SELECT, INSERT ON step_executions TO PUBLIC")
    before = made()
    own.run(SETS)
    own.lay_aside()
    assert made() == before
    own.sql("REVOKE ALL ON executions FROM pg_monitor; REVOKE ALL ON step_executions FROM PUBLIC")


# --- what can still be done with it --------------------------------------------------------------------------


def test_it_is_tried_again_with_all_that_hangs_together_with_it(own: Deployment):
    child = own.create({**FAILS, "name": "a child that fails"})
    calls = {"id": "calls", "type": "workflow", "config": {"workflow": child}}
    parent = own.run({"steps": [calls]})
    assert parent["status"] == "failed"
    ((child_id,),) = own.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=child)
    own.lay_aside()
    assert not is_present(own, child_id)
    assert own.client.post(f"/api/v1/executions/{parent['id']}/retry").status_code == 200
    assert is_present(own, child_id)
    again = own.ended(parent["id"])
    assert again["status"] == "failed"
    assert again["step_executions"][0]["attempt"] == 2
    assert {step["path"]: step["attempt"] for step in own.execution(child_id)["step_executions"]} == {"a": 1, "b": 2}


def test_a_step_of_it_is_tried_again(own: Deployment):
    failed = own.run(FAILS)
    own.lay_aside()
    step = next(step for step in failed["step_executions"] if step["path"] == "b")
    assert own.client.post(f"/api/v1/step-executions/{step['id']}/retry").status_code == 200
    assert own.ended(failed["id"])["status"] == "failed"
    assert own.client.get(f"/api/v1/step-executions/{step['id']}").json["attempt"] == 2


def test_it_is_done_again(own: Deployment):
    id = own.run(SETS, {"n": 7})["id"]
    own.lay_aside()
    answer = own.client.post(f"/api/v1/executions/{id}/rerun")
    assert answer.status_code == 202, answer.text
    again = own.ended(answer.json["id"])
    assert again["output"] == {"a": {"n": 7}}
    assert own.client.get(f"/api/v1/executions?rerun_of={id}").json["items"][0]["id"] == again["id"]


def test_what_its_steps_saw_is_compared_with_other_input(own: Deployment):
    """The first is performed again, since what it is given is another thing now."""
    steps = [
        {"id": "a", "type": "set", "config": {"values": {"n": "{{ input.n }}"}}},
        {"id": "b", "type": "set", "depends_on": ["a"], "config": {"values": {"m": "{{ steps.a.output.n }}"}}},
        {"id": "each", "type": "loop", "depends_on": ["b"], "config": {
            "items": "{{ [steps.b.output.m, 5] }}",
            "steps": [{"id": "one", "type": "noop", "config": {"value": "{{ loop.item }}"}}],
        }},
        {"id": "c", "type": "noop", "depends_on": ["each"]},
    ]  # fmt: skip
    id = own.run({"steps": steps}, {"n": 5})["id"]
    own.lay_aside()
    answer = own.client.post(f"/api/v1/executions/{id}/rerun", json={"from_step": "each[1].one"})
    assert answer.status_code == 202, answer.text
    again = own.ended(answer.json["id"])
    attempts = {step["path"]: step["attempt"] for step in again["step_executions"]}
    assert again["status"] == "completed"
    assert (attempts["a"], attempts["each[0].one"], attempts["each[1].one"], attempts["c"]) == (0, 0, 1, 1)


def test_what_completed_of_it_is_kept_when_it_is_done_again(own: Deployment):
    failed = own.run(FAILS)
    own.lay_aside()
    answer = own.client.post(f"/api/v1/executions/{failed['id']}/rerun", json={"from_step": "b"})
    assert answer.status_code == 202, answer.text
    steps = {step["path"]: step for step in own.ended(answer.json["id"])["step_executions"]}
    assert (steps["a"]["attempt"], steps["a"]["output"]) == (0, {"n": 1})
    assert (steps["b"]["attempt"], steps["b"]["status"]) == (1, "failed")


@pytest.mark.parametrize("call", ["cancel", "pause", "resume", "signals"])
def test_what_has_ended_stays_so(own: Deployment, call: str):
    id = own.run(SETS)["id"]
    own.lay_aside()
    assert own.client.post(f"/api/v1/executions/{id}/{call}", json={"name": "go"}).status_code == 409
    assert not is_present(own, id)


def test_its_key_is_known(own: Deployment):
    workflow_id, key = own.create(SETS), {"Idempotency-Key": "once"}
    path = f"/api/v1/workflows/{workflow_id}/execute"
    id = own.client.post(path, json={}, headers=key).json["id"]
    own.ended(id)
    own.lay_aside()
    again = own.client.post(path, json={}, headers=key)
    many = own.client.post(f"{path}/bulk", json={"items": [{"input": {}, "idempotency_key": "once"}]})
    assert again.json["id"] == id
    assert [item["id"] for item in many.json["items"]] == [id], many.text
    done_again = own.client.post(f"/api/v1/executions/{id}/rerun", headers={"Idempotency-Key": "twice"}).json["id"]
    own.ended(done_again)
    own.lay_aside()
    assert own.client.post(f"/api/v1/executions/{id}/rerun", headers={"Idempotency-Key": "twice"}).json["id"] == (
        done_again
    )


def test_it_is_deleted_with_all_that_belongs_to_it(own: Deployment):
    id, other = waiting(own), own.run(SETS)["id"]
    for name in ("unheard", "go"):
        own.client.post(f"/api/v1/executions/{id}/signals", json={"name": name})
    own.ended(id)
    with own.store.single() as connection:
        append(connection, id, new_id(), "a", 1, [LogLine(datetime.now(UTC), "INFO", "said")])
    own.lay_aside()
    belongings = "SELECT count(*) FROM {} WHERE execution_id = %(id)s::uuid"
    tables = ("signals", "step_logs", "all_step_executions")
    assert [own.sql(belongings.format(table), id=id)[0][0] for table in tables] == [2, 1, 1]
    assert own.client.delete(f"/api/v1/executions/{id}").status_code == 204
    assert [own.sql(belongings.format(table), id=id)[0][0] for table in tables] == [0, 0, 0]
    assert is_there(own, other)
    assert own.client.delete(f"/api/v1/workflows/{own.execution(other)['workflow_id']}").status_code == 204
    assert table_of(own, other) is None


def test_a_stream_is_resumed_from_before_it_was_laid_aside(own: Deployment):
    with own.store.single() as connection:
        start = feed.last_number(connection)
    id = own.run(SETS)["id"]
    with own.store.single() as connection:
        end = feed.last_number(connection)

    def told(**more: Any) -> list[tuple[str, str | None]]:
        with own.store.single() as connection:
            entries = feed.entries(connection, start, end, 100, **more)
        return [(entry.kind, entry.status) for entry in entries if entry.execution_id == id]

    before = told(), told(executions=[id])
    own.lay_aside()
    assert (told(), told(executions=[id])) == before
    assert ("execution", "completed") in before[0]


def test_a_stream_misses_nothing_that_is_laid_aside_while_it_is_read(own: Deployment):
    with own.store.single() as connection:
        start = feed.last_number(connection)
    id = own.run(SETS)["id"]
    with own.store.transaction() as connection:
        end = feed.last_number(connection)
        archives.make_ready(connection)

    def told() -> list[tuple[str, str | None]]:
        with own.store.single() as connection:
            return [(entry.kind, entry.status) for entry in feed.entries(connection, start, end, 100)]

    with ThreadPoolExecutor() as readers:
        with laid_aside_and_held(own):
            reading = readers.submit(told)
            wait_until(lambda: own.sql("SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'"))
        assert ("execution", "completed") in reading.result()
    assert not is_present(own, id)


@contextmanager
def laid_aside_and_held(own: Deployment) -> Iterator[None]:
    """Nobody comes to the tables in between."""
    with ExitStack() as held:

        def lay_aside() -> None:
            with ExitStack() as trying:
                archives.lay_aside(trying.enter_context(own.store.transaction()), settles=0)
                held.push(trying.pop_all())

        patiently(lay_aside)
        yield


def test_whoever_reads_while_an_archive_is_dropped_finds_what_stays(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    stays, goes = own.run({**SETS, "retention": "300d"})["id"], own.run(SETS)["id"]
    own.lay_aside()
    travel(181 * DAY)

    def finds() -> bool:
        with own.store.single() as connection:
            return summary(connection, stays) is not None

    with ThreadPoolExecutor() as readers:
        reading = readers.submit(lambda: all(finds() for _ in range(300)))
        patiently(retention.drop_archives)
        assert reading.result()
    assert finds()
    assert not is_there(own, goes)


# --- when it is time -----------------------------------------------------------------------------------------


def test_they_are_laid_aside_when_they_have_been_written_for_long_enough(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    own.lay_aside()
    patiently(retention.lay_executions_aside)  # from now on, the new ones are written
    id = own.run(SETS)["id"]
    pass_seconds(own)
    travel(EACH - HOUR)
    patiently(retention.lay_executions_aside)
    assert is_present(own, id)
    travel(EACH + HOUR)
    wait_until(lambda: patiently(retention.lay_executions_aside) or not is_present(own, id))


def test_while_much_is_live_nothing_is_laid_aside(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
):
    patiently(retention.lay_executions_aside)
    live, id = waiting(own), own.run(SETS)["id"]
    pass_seconds(own)
    travel(500 * DAY)
    monkeypatch.setattr(archives, "_MOST", 0)
    for _ in range(3):
        patiently(retention.lay_executions_aside)
    assert is_present(own, id)
    monkeypatch.setattr(archives, "_MOST", 10)
    wait_until(lambda: patiently(retention.lay_executions_aside) or not is_present(own, id))
    assert is_present(own, live)
    own.client.post(f"/api/v1/executions/{live}/cancel")


def pass_seconds(own: Deployment) -> None:
    """As if all that has ended had done so a while ago."""
    own.sql("UPDATE executions SET finished_at = finished_at - interval '1 minute' WHERE finished_at IS NOT NULL")


def test_what_has_just_ended_stays_for_a_moment(own: Deployment):
    settled, just_now = own.run(SETS)["id"], own.run(SETS)["id"]
    own.sql("UPDATE executions SET finished_at = now() - interval '3 s' WHERE id = %(id)s::uuid", id=settled)
    own.sql("UPDATE executions SET finished_at = now() + interval '1 minute' WHERE id = %(id)s::uuid", id=just_now)
    with own.store.transaction() as connection:
        archives.make_ready(connection)

    def lay_aside() -> None:
        with own.store.transaction() as connection:
            archives.lay_aside(connection)

    patiently(lay_aside)
    assert [is_present(own, id) for id in (settled, just_now)] == [False, True]


def test_while_somebody_is_at_them_for_long_nobody_else_is_made_to_wait(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    patiently(retention.lay_executions_aside)
    id = own.run(SETS)["id"]
    pass_seconds(own)
    travel(500 * DAY)
    with own.store.transaction() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM executions")
        wait_until(lambda: reader.exec_driver_sql("SELECT clock_timestamp() > now() + interval '1.1 s'").scalar())
        with own.store.transaction() as connection:
            assert not archives.is_due(connection, EACH)
    wait_until(lambda: patiently(retention.lay_executions_aside) or not is_present(own, id))


def test_an_archive_is_dropped_when_all_in_it_has_been_kept_long_enough(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    id = waiting(own)
    own.client.post(f"/api/v1/executions/{id}/signals", json={"name": "go"})
    own.ended(id)
    with own.store.single() as connection:
        append(connection, id, new_id(), "a", 1, [LogLine(datetime.now(UTC), "INFO", "said")])
        before = removals.numbers(connection).get("archives", 0)
    own.lay_aside()
    table = table_of(own, id)
    travel(KEPT - HOUR)
    patiently(retention.drop_archives)
    assert is_there(own, id)
    travel(KEPT + HOUR)
    patiently(retention.drop_archives)
    assert not is_there(own, id)
    assert own.sql("SELECT to_regclass(%(table)s), to_regclass('step_' || %(table)s)", table=table) == [(None, None)]
    for belonging in ("signals", "step_logs", "all_step_executions"):
        assert own.sql(f"SELECT FROM {belonging} WHERE execution_id = %(id)s::uuid", id=id) == []
    with own.store.single() as connection:
        assert removals.numbers(connection)["archives"] == before + 1
    assert own.sql("SELECT FROM archives") == []


def test_children_are_performed_whole_before_and_after_the_tables_they_were_in_are_dropped(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    """What a server process has at hand of a function names the tables, and their rows, that it was made with."""
    child = own.create(SETS)
    calls = [
        {"id": f"s{n}", "type": "workflow", "depends_on": [f"s{n - 1}"] if n else [], "config": {"workflow": child}}
        for n in range(20)
    ]
    parent = own.create({"steps": calls})
    for number in range(1, 4):
        assert own.ended(own.execute(parent))["status"] == "completed"
        stats = own.client.get(f"/api/v1/workflows/{child}/stats").json
        assert stats["counts"]["completed"] == 20 * number
        own.lay_aside()
        travel(number * 2 * KEPT)
        patiently(retention.drop_archives)
        assert own.sql("SELECT FROM archives") == []


def test_what_a_workflow_keeps_for_longer_outlives_the_others(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    child = own.create(SETS, name="a child of one that is kept")
    calls = {"id": "calls", "type": "workflow", "config": {"workflow": child}}
    ids = {
        0: own.run(SETS)["id"],
        300: own.run({**SETS, "retention": "300d"})["id"],
        400: own.run({"steps": [calls], "retention": "400d"})["id"],
    }
    ((ids[401],),) = own.sql("SELECT id::text FROM executions WHERE workflow_id = %(id)s::uuid", id=child)
    own.lay_aside()
    for days, left in ((179, {0, 300, 400, 401}), (181, {300, 400, 401}), (301, {400, 401}), (401, set[int]())):
        travel(days * DAY)
        patiently(retention.drop_archives)
        assert {kept for kept, id in ids.items() if is_there(own, id)} == left, days
        assert len(own.sql("SELECT FROM archives")) == bool(left)
        assert len(own.sql("SELECT FROM pg_class WHERE relname ~ '^executions_[0-9]+$'")) == bool(left)
        for id in (ids[kept] for kept in left):
            assert own.execution(id)["status"] == "completed"
            assert own.execution(id)["step_executions"]


def test_what_still_counts_for_the_end_of_its_workflow_is_kept(
    own: Deployment, retention: Retention, travel: Callable[[timedelta], None]
):
    limited = own.create({**SETS, "run_limit": 2})
    own.sql("UPDATE workflows SET status = 'active' WHERE id = %(id)s::uuid", id=limited)
    first = own.execute(limited)
    own.ended(first)
    own.lay_aside()
    travel(500 * DAY)
    patiently(retention.drop_archives)
    assert is_there(own, first)
    own.ended(own.execute(limited))
    wait_until(lambda: own.client.get(f"/api/v1/workflows/{limited}").json["status"] == "completed")
    travel(502 * DAY)
    patiently(retention.drop_archives)
    assert not is_there(own, first)


def test_what_is_kept_for_less_long_does_not_wait_for_its_archive(own: Deployment, retention: Retention):
    ids = [own.run({**SETS, **more})["id"] for more in ({"retention": "2d"}, {"retention": "4d"}, {})]
    own.lay_aside()
    shorter, longer, other = (aged(own, id, 3 * DAY) for id in ids)
    retention.remove_executions()
    assert [is_there(own, id) for id in (shorter, longer, other)] == [False, True, True]


def test_what_was_old_when_the_first_archive_was_made_is_not_kept_for_twice_as_long(
    own: Deployment, retention: Retention
):
    ids = [own.run(SETS)["id"] for _ in range(2)]
    own.lay_aside()
    about_to_go, late = aged(own, ids[0], KEPT + EACH - DAY), aged(own, ids[1], KEPT + EACH + DAY)
    retention.remove_executions()
    assert [is_there(own, id) for id in (about_to_go, late)] == [True, False]


def aged(own: Deployment, execution_id: str, age: timedelta) -> str:
    """The id of one that has been laid aside, once it was made and has ended so long ago."""
    id = partitions.first_id(datetime.now(UTC) - age)[:14] + execution_id[14:]
    own.sql("DELETE FROM all_step_executions WHERE execution_id = %(id)s::uuid", id=execution_id)
    own.sql(
        "UPDATE all_executions SET id = %(id)s::uuid, finished_at = now() - %(age)s * interval '1 second' "
        "WHERE id = %(old)s::uuid",
        id=id,
        old=execution_id,
        age=age.total_seconds(),
    )
    return id


def test_archives_may_be_kept_for_ever(own: Deployment, travel: Callable[[timedelta], None]):
    id = own.run(SETS)["id"]
    own.lay_aside()
    travel(9000 * DAY)
    settings = replace(own.settings, retention=replace(own.settings.retention, executions=0))
    Retention(own.store, settings, holder=new_id()).drop_archives()
    assert is_there(own, id)


def test_what_they_inherit_from_stays_empty(own: Deployment):
    with pytest.raises(InternalError, match="all_executions has no rows of its own"):
        own.sql("INSERT INTO all_executions SELECT * FROM executions LIMIT 1")


def test_what_is_held_is_not_laid_aside_meanwhile(own: Deployment):
    id = own.run(SETS)["id"]
    with own.store.transaction() as connection:
        archives.make_ready(connection)
    with own.store.transaction() as holder:
        locked = lock(holder, id)
        assert locked is not None
        assert locked.status is ExecutionStatus.COMPLETED
        with own.store.transaction() as connection:
            with pytest.raises(OperationalError, match="lock timeout"):
                archives.lay_aside(connection)
            connection.exec_driver_sql("ROLLBACK; BEGIN")
    assert is_present(own, id)


def test_what_is_done_to_all_that_is_live_does_not_wait_for_an_archive(own: Deployment):
    own.run(SETS)
    id = waiting(own)
    own.lay_aside()
    projects = frozenset(id for (id,) in own.sql("SELECT id::text FROM projects"))
    live = Selection(statuses=EXECUTION_LIVE, projects=projects)
    ((name,),) = own.sql("SELECT 'executions_' || max(number) FROM archives")
    with own.store.transaction() as dropping, own.store.transaction() as connection:
        run(dropping, f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
        run(connection, "SET LOCAL lock_timeout = '2s'")
        assert id in bulk.matching(connection, live, 10)
        with pytest.raises(OperationalError, match="lock timeout"):
            bulk.matching(connection, replace(live, statuses=None), 10)
    assert own.client.post(f"/api/v1/executions/{id}/cancel").status_code < 300
