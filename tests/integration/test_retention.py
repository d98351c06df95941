"""What has been kept long enough is removed, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from deployment import Deployment, deployed, wait_until

from orchestrator.engine.retention import Retention
from orchestrator.store import new_id, partitions, removals
from orchestrator.store import triggers as rows
from orchestrator.store.logs import LogLine, append
from orchestrator.store.partitions import AUDIT, DAY, FIRES, HOUR, LOGS, Partitioned
from orchestrator.store.session import id_at
from orchestrator.store.triggers import Fire

WEEK = 7 * DAY.total_seconds()
NOOP = {"steps": [{"id": "a", "type": "noop"}]}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("retention")) as deployment:
        yield deployment


@pytest.fixture
def retention(own: Deployment) -> Retention:
    return Retention(own.store, own.settings, holder=new_id())


@pytest.fixture
def travel(own: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[timedelta], None]]:
    """Have what is done about partitions take place later than it does. What there is of them is new afterwards, and
    before, since a day may have ended."""

    def to(later: timedelta) -> None:
        monkeypatch.setattr(partitions, "now", lambda _: datetime.now(UTC) + later)

    make_anew(own)
    yield to
    make_anew(own)


def make_anew(own: Deployment) -> None:
    """The partitions, as a migration does today."""
    for table in partitions.TABLES:
        with own.store.transaction() as connection:
            there = partitions.partitions(connection, table)
            for name in (*(part.name for part in there), f"{table.name}_default"):
                connection.exec_driver_sql(f"DROP TABLE {name}")
            partitions._create(connection, table, f"{table.name}_default")
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ATTACH PARTITION {table.name}_default DEFAULT")
            first = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            partitions._create(connection, table, f"{table.name}_first")
            partitions._attach(connection, table, partitions.Partition(f"{table.name}_first", None, first + DAY))


def old_id(age: timedelta) -> str:
    return id_at((datetime.now(UTC) - age).timestamp() * 1000)[:14] + str(uuid.uuid4())[14:]


def execution(
    own: Deployment, workflow_id: str, age: timedelta, *, status: str = "completed", parent: str | None = None
) -> str:
    """One that began and ended so long ago; its id."""
    id = old_id(age)
    own.sql(
        "INSERT INTO executions (id, workflow_id, version, status, input, created_at, finished_at, admitted_at, "
        "parent_step_id) SELECT %(id)s::uuid, %(workflow)s::uuid, 1, %(status)s, '{}', m, "
        "CASE WHEN %(status)s IN ('completed', 'failed', 'cancelled') THEN m END, m, %(parent)s::uuid "
        "FROM (SELECT now() - %(age)s * interval '1 second') AS t(m)",
        id=id,
        workflow=workflow_id,
        status=status,
        age=age.total_seconds(),
        parent=parent,
    )
    own.sql(
        "INSERT INTO step_executions (id, execution_id, path, step_id, type, queue, status, finished_at) "
        "VALUES (%(step)s::uuid, %(id)s::uuid, 'a', 'a', 'noop', 'cpu', 'completed', now())",
        step=old_id(age),
        id=id,
    )
    return id


def step_of(own: Deployment, execution_id: str) -> str:
    ((id,),) = own.sql("SELECT id::text FROM step_executions WHERE execution_id = %(id)s::uuid", id=execution_id)
    return str(id)


def log(own: Deployment, execution_id: str, message: str = "said") -> None:
    with own.store.single() as connection:
        append(connection, execution_id, new_id(), "a", 1, [LogLine(datetime.now(UTC), "INFO", message)])


def messages(own: Deployment) -> set[str]:
    return {message for (message,) in own.sql("SELECT message FROM step_logs")}


def is_there(own: Deployment, execution_id: str) -> bool:
    return own.client.get(f"/api/v1/executions/{execution_id}").status_code == 200


def names(own: Deployment, table: Partitioned) -> list[str]:
    with own.store.single() as connection:
        return [partition.name for partition in partitions.partitions(connection, table)]


def removed(own: Deployment, kind: str) -> int:
    with own.store.single() as connection:
        return removals.numbers(connection).get(kind, 0)


# --- executions ----------------------------------------------------------------------------------------------


def test_an_execution_is_removed_with_its_steps_when_it_has_been_kept_long_enough(
    own: Deployment, retention: Retention
):
    workflow_id, before = own.create(NOOP), removed(own, "executions")
    gone = execution(own, workflow_id, 181 * DAY)
    kept = [
        execution(own, workflow_id, 179 * DAY),
        execution(own, workflow_id, 400 * DAY, status="running"),
        execution(own, workflow_id, 400 * DAY, status="paused"),
    ]
    retention.remove_executions()
    assert not is_there(own, gone)
    assert own.sql("SELECT FROM step_executions WHERE execution_id = %(id)s::uuid", id=gone) == []
    assert all(is_there(own, id) for id in kept)
    assert removed(own, "executions") == before + 1
    assert f'orchestrator_removed_total{{kind="executions"}} {before + 1}.0' in own.client.get("/metrics").text


def test_what_ended_lately_is_kept_however_long_ago_it_began(own: Deployment, retention: Retention):
    id = execution(own, own.create(NOOP), 400 * DAY)
    own.sql("UPDATE executions SET finished_at = now() WHERE id = %(id)s::uuid", id=id)
    retention.remove_executions()
    assert is_there(own, id)


def test_a_workflow_says_how_long_its_executions_are_kept(own: Deployment, retention: Retention):
    shorter, longer = own.create({**NOOP, "retention": "2d"}), own.create({**NOOP, "retention": "3000d"})
    gone, kept = execution(own, shorter, 3 * DAY), execution(own, shorter, 1 * DAY)
    old = execution(own, longer, 2900 * DAY)
    retention.remove_executions()
    assert [is_there(own, id) for id in (gone, kept, old)] == [False, True, True]


def test_the_newest_version_says_how_long_executions_are_kept(own: Deployment, retention: Retention):
    workflow_id = own.create({**NOOP, "retention": "3000d"})
    id = execution(own, workflow_id, 200 * DAY)
    retention.remove_executions()
    assert is_there(own, id)
    assert own.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": NOOP}).status_code == 200
    retention.remove_executions()
    assert not is_there(own, id)


def test_executions_may_be_kept_for_ever(own: Deployment):
    settings = replace(own.settings, retention=replace(own.settings.retention, executions=0))
    kept, gone = execution(own, own.create(NOOP), 3000 * DAY), execution(own, own.create(NOOP), 3000 * DAY)
    own.sql(
        "UPDATE workflows SET retention = 60 WHERE id = (SELECT workflow_id FROM executions WHERE id = %(id)s::uuid)",
        id=gone,
    )
    Retention(own.store, settings, holder=new_id()).remove_executions()
    assert [is_there(own, id) for id in (kept, gone)] == [True, False]


def test_a_child_is_kept_for_as_long_as_its_parent(own: Deployment, retention: Retention):
    keeps, workflow_id = own.create({**NOOP, "retention": "3000d"}), own.create(NOOP)
    parent = execution(own, keeps, 300 * DAY)
    child = execution(own, workflow_id, 300 * DAY, parent=step_of(own, parent))
    retention.remove_executions()
    assert is_there(own, child)
    assert own.client.delete(f"/api/v1/executions/{parent}").status_code == 204
    retention.remove_executions()
    assert not is_there(own, child)


def test_a_parent_is_kept_while_a_child_runs(own: Deployment, retention: Retention):
    workflow_id = own.create(NOOP)
    parent = execution(own, workflow_id, 300 * DAY)
    child = execution(own, workflow_id, 300 * DAY, status="running", parent=step_of(own, parent))
    retention.remove_executions()
    assert is_there(own, parent)
    own.sql("UPDATE executions SET status = 'completed', finished_at = now() WHERE id = %(id)s::uuid", id=child)
    retention.remove_executions()
    assert not is_there(own, parent)


def test_executions_that_still_count_for_the_end_of_their_workflow_are_kept(own: Deployment, retention: Retention):
    limited = own.create({**NOOP, "run_limit": 5})
    failing = own.create({**NOOP, "max_failures": 5})
    own.sql("UPDATE workflows SET status = 'active' WHERE id IN (%(a)s::uuid, %(b)s::uuid)", a=limited, b=failing)
    counted = execution(own, limited, 300 * DAY)
    earlier = execution(own, failing, 303 * DAY, status="failed")
    last = execution(own, failing, 302 * DAY)
    failed = execution(own, failing, 301 * DAY, status="failed")
    retention.remove_executions()
    assert [is_there(own, id) for id in (counted, earlier, last, failed)] == [True, False, True, True]


def test_more_than_a_batch_is_removed_at_a_time(own: Deployment, retention: Retention):
    workflow_id = own.create(NOOP)
    for _ in range(45):
        execution(own, workflow_id, 200 * DAY)
    retention.remove_executions()
    assert own.sql("SELECT FROM executions WHERE workflow_id = %(id)s::uuid", id=workflow_id) == []


def test_one_process_at_a_time_removes_anything(own: Deployment, retention: Retention):
    own.sql("DELETE FROM duties WHERE name = 'retention'")
    retention.tick()
    id = execution(own, own.create(NOOP), 200 * DAY)
    Retention(own.store, own.settings, holder=new_id()).tick()
    assert is_there(own, id)
    retention.tick()
    assert not is_there(own, id)


def test_a_worker_removes_what_has_been_kept_long_enough(own: Deployment):
    own.sql("DELETE FROM duties WHERE name = 'retention'")
    id = execution(own, own.create(NOOP), 200 * DAY)
    worker = own.start_worker("nothing", concurrency=1)
    wait_until(lambda: not is_there(own, id), what="the removal of what has expired")
    own.stop_worker(worker)


def test_the_logs_of_a_deleted_execution_are_deleted(own: Deployment):
    id, other = (execution(own, own.create(NOOP), DAY) for _ in range(2))
    log(own, id, "of one that goes")
    log(own, other, "of one that stays")
    assert own.client.delete(f"/api/v1/executions/{id}").status_code == 204
    assert messages(own) & {"of one that goes", "of one that stays"} == {"of one that stays"}
    workflow_id = own.execution(other)["workflow_id"]
    assert own.client.delete(f"/api/v1/workflows/{workflow_id}").status_code == 204
    assert "of one that stays" not in messages(own)


# --- partitions ----------------------------------------------------------------------------------------------


def test_there_are_partitions_for_what_is_to_come(own: Deployment, retention: Retention, travel: Any):
    travel(10 * DAY)
    retention.make_ahead(LOGS, WEEK)
    with own.store.single() as connection:
        there = partitions.partitions(connection, LOGS)
    assert [earlier.end for earlier in there[:-1]] == [later.begin for later in there[1:]]
    assert there[-1].end >= datetime.now(UTC) + 13 * DAY
    made = len(there)
    retention.make_ahead(LOGS, WEEK)
    assert len(names(own, LOGS)) == made


def test_a_row_without_a_partition_is_kept_and_gets_into_the_one_that_is_made_for_it(
    own: Deployment, retention: Retention, travel: Any
):
    id = execution(own, own.create(NOOP), DAY)
    own.sql(
        "INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at) "
        "VALUES (%(id)s::uuid, %(execution)s::uuid, %(id)s::uuid, 'a', 1, 'INFO', 'early', now())",
        id=old_id(-400 * DAY),
        execution=id,
    )
    assert own.sql("SELECT tableoid::regclass::text FROM step_logs WHERE message = 'early'") == [("step_logs_default",)]
    travel(400 * DAY)
    retention.make_ahead(LOGS, WEEK)
    ((place,),) = own.sql("SELECT tableoid::regclass::text FROM step_logs WHERE message = 'early'")
    assert place != "step_logs_default"
    assert place in names(own, LOGS)


def test_logs_are_dropped_when_they_have_been_kept_long_enough(own: Deployment, retention: Retention, travel: Any):
    id, before = execution(own, own.create(NOOP), DAY), removed(own, "step_logs partitions")
    log(own, id, "forgotten")
    travel(7 * DAY - HOUR)
    retention.make_ahead(LOGS, WEEK)
    retention.drop_expired(LOGS, WEEK)
    assert "forgotten" in messages(own)
    travel(8 * DAY)
    retention.drop_expired(LOGS, WEEK)
    assert "forgotten" not in messages(own)
    assert "step_logs_first" not in names(own, LOGS)
    assert removed(own, "step_logs partitions") == before + 1
    assert is_there(own, id)


def test_logs_may_be_kept_for_ever(own: Deployment, retention: Retention, travel: Any):
    log(own, execution(own, own.create(NOOP), DAY), "unforgotten")
    travel(3000 * DAY)
    retention.make_ahead(LOGS, 0)
    retention.drop_expired(LOGS, 0)
    assert "unforgotten" in messages(own)


def test_the_logs_of_a_workflow_that_keeps_them_for_longer_outlive_the_others(
    own: Deployment, retention: Retention, travel: Any
):
    for name, more in {"short": {}, "20": {"retention": "20d"}, "40": {"retention": "40d"}}.items():
        log(own, execution(own, own.create({**NOOP, **more}), HOUR), name)
    known = {"short", "20", "40"}
    for days, left in ((8, {"20", "40"}), (19, {"20", "40"}), (22, {"40"}), (42, set[str]())):
        travel(days * DAY)
        retention.make_ahead(LOGS, WEEK)
        retention.drop_expired(LOGS, WEEK)
        assert messages(own) & known == left, days
        assert ("step_logs_first" in names(own, LOGS)) == bool(left)


def test_what_was_carried_over_is_found_and_goes_with_its_execution(own: Deployment, retention: Retention, travel: Any):
    id = execution(own, own.create({**NOOP, "retention": "3000d"}), HOUR)
    log(own, id, "carried")
    travel(8 * DAY)
    retention.make_ahead(LOGS, WEEK)
    retention.drop_expired(LOGS, WEEK)
    logs = own.client.get(f"/api/v1/executions/{id}/logs").json
    assert [line["message"] for line in logs["items"]] == ["carried"]
    assert own.client.delete(f"/api/v1/executions/{id}").status_code == 204
    assert "carried" not in messages(own)


def test_a_partition_that_somebody_reads_for_long_is_dropped_later(own: Deployment, retention: Retention, travel: Any):
    log(own, execution(own, own.create(NOOP), HOUR), "read")
    travel(9 * DAY)
    retention.make_ahead(LOGS, WEEK)
    with own.store.transaction() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM step_logs").scalar()
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            retention.drop_expired(LOGS, WEEK)
        assert "read" in messages(own)
    retention.drop_expired(LOGS, WEEK)
    assert "read" not in messages(own)


def test_the_newest_partition_stays_if_nobody_could_make_another(own: Deployment, retention: Retention, travel: Any):
    travel(3000 * DAY)
    retention.drop_expired(LOGS, WEEK)
    assert len(names(own, LOGS)) == 1
    retention.make_ahead(LOGS, WEEK)
    retention.drop_expired(LOGS, WEEK)
    with own.store.single() as connection:
        there = partitions.partitions(connection, LOGS)
    assert there[0].end >= datetime.now(UTC) + 3000 * DAY


def test_partitions_are_changed_by_one_at_a_time(own: Deployment, retention: Retention, travel: Any):
    travel(9 * DAY)
    before = names(own, LOGS)
    with own.store.transaction() as connection:
        assert partitions.alone(connection)
        retention.make_ahead(LOGS, WEEK)
        retention.drop_expired(LOGS, WEEK)
    assert names(own, LOGS) == before


def test_the_audit_log_is_dropped_in_time_and_closed_until_then(own: Deployment, retention: Retention, travel: Any):
    own.create(NOOP)
    travel(366 * DAY)
    retention.make_ahead(AUDIT, 365 * DAY.total_seconds())
    for name in (*names(own, AUDIT), "audit_log_default"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            own.sql(f"TRUNCATE {name}")
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            own.sql(f"DELETE FROM {name}")
    assert own.sql("SELECT FROM audit_log LIMIT 1")
    travel(367 * DAY)
    retention.drop_expired(AUDIT, 365 * DAY.total_seconds())
    assert own.sql("SELECT FROM audit_log LIMIT 1") == []


@pytest.mark.parametrize(
    ("kept", "longest", "each"),
    [
        (7 * DAY, timedelta(), DAY),
        (timedelta(minutes=1), timedelta(), HOUR),
        (12 * HOUR, timedelta(), HOUR),
        (180 * DAY, timedelta(), 25 * DAY),
        (3650 * DAY, timedelta(), 30 * DAY),
        (7 * DAY, 1000 * DAY, 10 * DAY),
        (7 * DAY, 3650 * DAY, 30 * DAY),
        (timedelta(), timedelta(), 30 * DAY),
    ],
)
def test_a_partition_is_small_beside_what_is_kept(kept: timedelta, longest: timedelta, each: timedelta):
    assert partitions.span(kept.total_seconds(), longest.total_seconds()) == each


# --- fires ---------------------------------------------------------------------------------------------------


def trigger(own: Deployment, **more: Any) -> str:
    workflow_id = own.create({**NOOP, **more})
    given = {"type": "schedule", "config": {"interval": "1d"}}
    return str(own.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json=given).json["id"])


def fire(own: Deployment, trigger_id: str, slot: str, outcome: str = "skipped", *, again: bool = False) -> list[str]:
    """The outcome of the fires that are new."""
    with own.store.single() as connection:
        found = rows.find(connection, trigger_id)
        new = rows.record(
            connection, [Fire(new_id(), found, slot, None, None, {}, rows.FireOutcome(outcome))], again=again
        )
        return [str(rows.get_fire(connection, one.id)["outcome"]) for one in new]


def slots(own: Deployment, trigger_id: str) -> set[str]:
    found = own.sql("SELECT slot FROM trigger_fires WHERE trigger_id = %(id)s::uuid", id=trigger_id)
    known = own.sql("SELECT slot FROM trigger_slots WHERE trigger_id = %(id)s::uuid", id=trigger_id)
    assert sorted(found) == sorted(known)
    return {slot for (slot,) in known}


def test_fires_are_dropped_in_time_with_their_slots_but_not_those_that_are_to_be_seen_to(
    own: Deployment, retention: Retention, travel: Any
):
    usual, keeping = trigger(own), trigger(own, retention="100d")
    for slot, outcome in {"1": "skipped", "2": "pending", "3": "failed"}.items():
        fire(own, usual, slot, outcome)
    fire(own, keeping, "1")
    travel(40 * DAY)
    retention.make_ahead(FIRES, 30 * DAY.total_seconds())
    retention.drop_expired(FIRES, 30 * DAY.total_seconds())
    assert (slots(own, usual), slots(own, keeping)) == ({"2"}, {"1"})
    assert fire(own, usual, "2") == []
    assert fire(own, keeping, "1") == []
    assert fire(own, usual, "1") == ["skipped"]


def test_a_slot_whose_fire_started_nothing_may_be_fired_again_and_no_other(own: Deployment):
    id = trigger(own)
    assert fire(own, id, "skipped", "skipped") == ["skipped"]
    assert fire(own, id, "waits", "pending") == ["pending"]
    assert fire(own, id, "skipped") == []
    assert fire(own, id, "skipped", "pending", again=True) == ["pending"]
    assert fire(own, id, "waits", "pending", again=True) == []
    assert fire(own, id, "new", "pending", again=True) == ["pending"]
    assert slots(own, id) == {"skipped", "waits", "new"}


def test_a_slot_that_is_released_may_be_taken_by_another_fire(own: Deployment):
    id = trigger(own)
    fire(own, id, "a", "failed")
    with own.store.single() as connection:
        first = rows.in_slot(connection, id, "a")
        assert first is not None
        assert rows.release(connection, first.id) == "failed"
    assert fire(own, id, "a", "pending") == ["pending"]
    with own.store.single() as connection:
        second = rows.in_slot(connection, id, "a")
        assert second is not None
        assert rows.release(connection, second.id) == "pending"
    assert fire(own, id, "a") == []


def test_the_fires_of_a_deleted_trigger_are_deleted(own: Deployment):
    id = trigger(own)
    fire(own, id, "a")
    assert own.client.delete(f"/api/v1/triggers/{id}").status_code == 204
    assert slots(own, id) == set()


# --- from a release without partitions -----------------------------------------------------------------------


def test_what_there_was_before_there_were_partitions_is_kept(own: Deployment):
    rows = """
        INSERT INTO workflows (id, name, version) VALUES (gen_random_uuid(), 'w', 1);
        INSERT INTO workflow_versions (workflow_id, version, definition) SELECT id, 1, '{}' FROM workflows;
        INSERT INTO executions (id, workflow_id, version, status, input)
            SELECT gen_random_uuid(), id, 1, 'queued', '{}' FROM workflows;
        INSERT INTO triggers (id, workflow_id, type, name, config)
            SELECT gen_random_uuid(), id, 'schedule', 't', '{}' FROM workflows;
        INSERT INTO audit_log (id, actor_kind, action, status)
            VALUES ('01000000-0000-7000-8000-000000000000', 'key', 'create', 201);
        INSERT INTO trigger_fires (id, trigger_id, slot, input)
            SELECT '01000000-0000-7000-8000-000000000000', id, 's', '{}' FROM triggers;
        INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at)
            SELECT '01000000-0000-7000-8000-000000000000', id, id, 'a', 1, 'INFO', 'm', now() FROM executions;
    """
    with own.older("0014", rows) as store, store.single() as connection:
        for table in partitions.TABLES:
            place = connection.exec_driver_sql(f"SELECT tableoid::regclass::text FROM {table.name}").scalar_one()
            assert place == f"{table.name}_first"
            assert len(partitions.partitions(connection, table)) > 1
        with pytest.raises(sa.exc.IntegrityError, match="pk_trigger_slots"):
            connection.exec_driver_sql("INSERT INTO trigger_slots SELECT id, 's', id FROM triggers")
        connection.exec_driver_sql("DELETE FROM workflows")
        assert connection.exec_driver_sql("SELECT count(*) FROM step_logs, trigger_fires").scalar_one() == 0
