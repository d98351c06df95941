"""The guarded transitions, the constraints behind them, and what reconcile finds, on a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psutil
import psycopg2.errors
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from deployment import Deployment

from orchestrator.engine import reconcile
from orchestrator.engine.plan import Message, Plan
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.lifecycle import StepStatus
from orchestrator.metrics import BROKER_ERRORS, LOSSES, RECONCILE_ERRORS, tally
from orchestrator.plugins import load_catalogue
from orchestrator.store import (
    Store,
    claims,
    execution_views,
    executions,
    new_id,
    records,
    recovery,
    session,
    steps,
    workers,
)
from orchestrator.store.claims import Claim
from orchestrator.store.migrate import migrate
from orchestrator.store.models import metadata
from orchestrator.store.records import Result
from workers.broker import Broker


@pytest.fixture
def at_rest(servers: Deployment) -> Iterator[Deployment]:
    """The servers, with nothing live in them before or after."""
    end_everything(servers)
    yield servers
    end_everything(servers)


def end_everything(servers: Deployment) -> None:
    for (id,) in servers.sql("SELECT id::text FROM executions WHERE finished_at IS NULL"):
        with servers.store.transaction() as connection:
            assert executions.cancel(connection, id, "the test is over")
            steps.cancel_all(connection, id)
    servers.sql("DELETE FROM worker_processes")


CHAIN = {
    "steps": [
        {"id": "a", "type": "noop"},
        {"id": "b", "type": "io_noop", "depends_on": ["a"]},
        {"id": "c", "type": "noop", "depends_on": ["b"]},
    ]
}


def started(servers: Deployment, definition: dict[str, Any] = CHAIN) -> str:
    return servers.execute(servers.create(definition))


def claimed(servers: Deployment, execution_id: str, path: str = "a", worker: str | None = None) -> Claim:
    found = claims.claim(servers.store, execution_id, path, worker or servers.leased())
    assert found is not None
    return found[0]


def lost(servers: Deployment, execution_id: str) -> None:
    """A step whose worker has no lease any more."""
    assert servers.claim(execution_id) is not None


def row(servers: Deployment, execution_id: str, path: str = "a") -> Any:
    (found,) = servers.sql(
        "SELECT * FROM step_executions WHERE execution_id = %(id)s::uuid AND path = %(path)s",
        id=execution_id,
        path=path,
    )
    return found


# --- claims ------------------------------------------------------------------------------------------------


def test_a_step_is_claimed_by_one_worker_only(at_rest: Deployment):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    assert (claim.path, claim.attempt, claim.losses) == ("a", 1, 0)
    assert claims.claim(at_rest.store, execution_id, "a", at_rest.leased()) is None


def test_a_step_is_claimed_by_nobody_without_a_lease(at_rest: Deployment):
    """It would have lost its worker at once, and with the third time have failed for that."""
    execution_id = started(at_rest)
    assert claims.claim(at_rest.store, execution_id, "a", new_id()) is None
    at_rest.sql("UPDATE executions SET status = 'running' WHERE id = %(id)s::uuid", id=execution_id)
    assert claims.claim_queued(at_rest.store, execution_id, ["cpu"], new_id()) is None
    assert (row(at_rest, execution_id).status, row(at_rest, execution_id).attempt) == ("queued", 0)
    assert claims.claim_queued(at_rest.store, execution_id, ["cpu"], at_rest.leased()) is not None


def test_a_step_that_waits_for_another_is_not_claimed(at_rest: Deployment):
    assert claims.claim(at_rest.store, started(at_rest), "b", at_rest.leased()) is None


def test_the_first_claim_begins_the_execution(at_rest: Deployment):
    execution_id = started(at_rest)
    assert at_rest.execution(execution_id)["status"] == "queued"
    claimed(at_rest, execution_id)
    execution = at_rest.execution(execution_id)
    assert execution["status"] == "running"
    assert execution["start_time"] is not None


@pytest.mark.parametrize("status", ["paused", "cancelled", "completed", "failed"])
def test_nothing_of_an_execution_that_is_paused_or_ended_is_claimed(at_rest: Deployment, status: str):
    execution_id = started(at_rest)
    at_rest.sql(
        "UPDATE executions SET status = %(status)s, "
        "finished_at = CASE WHEN %(status)s = 'paused' THEN NULL ELSE now() END WHERE id = %(id)s::uuid",
        status=status,
        id=execution_id,
    )
    assert claims.claim(at_rest.store, execution_id, "a", at_rest.leased()) is None
    assert row(at_rest, execution_id).status == "queued"


# --- records -----------------------------------------------------------------------------------------------


def stranger(claim: Claim) -> Claim:
    """The claim as somebody would show it who does not hold it any more."""
    return Claim(claim.id, claim.path, claim.attempt, claim.losses, str(uuid.uuid4()))


def test_a_record_without_the_token_writes_nothing(at_rest: Deployment):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    before = row(at_rest, execution_id)
    forged, result = stranger(claim), Result(output={"forged": True})
    store = at_rest.store

    assert records.complete_and_follow(store, execution_id, forged, result, "b", at_rest.leased()) == (False, None)
    assert records.complete_and_finish(store, execution_id, forged, result) == (False, False, None)
    with records.ending(store, execution_id, forged, result, StepStatus.FAILED, ["b"]) as opened:
        assert opened is None
    with store.single() as connection:
        assert not records.rest(connection, forged, result, delay=1, resumes=False)
        assert not recovery.lose(connection, forged)

    assert row(at_rest, execution_id) == before
    assert row(at_rest, execution_id, "b").status == "pending"
    assert at_rest.execution(execution_id)["status"] == "running"


def test_a_result_is_recorded_once(at_rest: Deployment):
    execution_id = started(at_rest)
    claim, worker = claimed(at_rest, execution_id), at_rest.leased()
    first, second = Result(output={"n": 1}), Result(output={"n": 2})
    recorded, follower = records.complete_and_follow(at_rest.store, execution_id, claim, first, "b", worker)
    assert recorded
    assert follower is not None
    assert records.complete_and_follow(at_rest.store, execution_id, claim, second, "b", worker) == (False, None)
    assert row(at_rest, execution_id).output == {"n": 1}
    assert str(row(at_rest, execution_id, "b").claim_token) == follower.token


def test_a_record_counts_even_if_the_execution_was_paused_meanwhile_but_nothing_follows(at_rest: Deployment):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    at_rest.sql("UPDATE executions SET status = 'paused' WHERE id = %(id)s::uuid", id=execution_id)
    recorded, follower = records.complete_and_follow(
        at_rest.store, execution_id, claim, Result(), "b", at_rest.leased()
    )
    assert (recorded, follower) == (True, None)
    assert at_rest.statuses(execution_id) == {"a": "completed", "b": "pending", "c": "pending"}


def test_a_cancelled_step_takes_no_result(at_rest: Deployment):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    with at_rest.store.transaction() as connection:
        executions.cancel(connection, execution_id, "enough")
        steps.cancel_all(connection, execution_id)
    assert records.complete_and_finish(at_rest.store, execution_id, claim, Result(output=1)) == (False, False, None)
    assert set(at_rest.statuses(execution_id).values()) == {"cancelled"}


def test_an_execution_that_has_ended_does_not_end_again(at_rest: Deployment):
    execution_id = started(at_rest)
    with at_rest.store.transaction() as connection:
        assert executions.fail(connection, execution_id, "first")
        assert not executions.fail(connection, execution_id, "second")
        assert not executions.finish(connection, execution_id, {})
        assert not executions.cancel(connection, execution_id, "third")
        steps.cancel_all(connection, execution_id)
    assert at_rest.execution(execution_id)["error_message"] == "first"


# --- constraints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nonsense", "constraint"),
    [
        ("UPDATE executions SET status = 'dancing'", "ck_executions_status_known"),
        ("UPDATE executions SET status = 'completed'", "ck_executions_terminal_is_finished"),
        ("UPDATE executions SET finished_at = now()", "ck_executions_terminal_is_finished"),
        ("UPDATE executions SET priority = 10", "ck_executions_priority_range"),
        ("UPDATE step_executions SET status = 'dancing'", "ck_step_executions_status_known"),
        ("UPDATE step_executions SET status = 'running'", "ck_step_executions_running_is_claimed"),
        ("UPDATE step_executions SET status = 'failed'", "ck_step_executions_terminal_is_finished"),
        ("UPDATE step_executions SET next_attempt_at = now()", "ck_step_executions_timer_is_waiting"),
        (
            "UPDATE step_executions SET claim_token = gen_random_uuid()",
            "ck_step_executions_running_is_claimed",
        ),
        ("UPDATE step_executions SET awaits = 'a word'", "ck_step_executions_waiter_is_waiting"),
        ("UPDATE executions SET outcome = 'dancing'", "ck_executions_outcome_known"),
        ("UPDATE workflows SET status = 'dancing'", "ck_workflows_status_known"),
    ],
)
def test_the_database_refuses_nonsense(at_rest: Deployment, nonsense: str, constraint: str):
    execution_id = started(at_rest)
    (workflow_id,) = {at_rest.execution(execution_id)["workflow_id"]}
    column, id = {
        "executions": ("id", execution_id),
        "step_executions": ("execution_id", execution_id),
        "workflows": ("id", workflow_id),
    }[nonsense.split()[1]]
    with pytest.raises(sa.exc.IntegrityError) as refused:
        at_rest.sql(f"{nonsense} WHERE {column} = %(id)s::uuid", id=id)
    assert isinstance(refused.value.orig, psycopg2.errors.CheckViolation)
    assert refused.value.orig.diag.constraint_name == constraint


def test_a_path_is_there_once_in_an_execution(at_rest: Deployment):
    execution_id = started(at_rest)
    with pytest.raises(sa.exc.IntegrityError, match="uq_step_executions_path"):
        at_rest.sql(
            "UPDATE step_executions SET path = 'a' WHERE execution_id = %(id)s::uuid AND path = 'b'",
            id=execution_id,
        )


def test_a_workflow_version_cannot_be_changed(at_rest: Deployment):
    workflow_id = at_rest.create(CHAIN)
    with pytest.raises(sa.exc.DBAPIError, match="immutable"):
        at_rest.sql("UPDATE workflow_versions SET definition = '{}' WHERE workflow_id = %(id)s::uuid", id=workflow_id)


# --- migrations --------------------------------------------------------------------------------------------


def test_models_and_migrations_agree(servers: Deployment):
    with servers.store.engine.connect() as connection:
        leaves = set(connection.exec_driver_sql("SELECT relname FROM pg_class WHERE relispartition").scalars())
        opts = {
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "table" or name not in leaves,
        }
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing(servers: Deployment):
    workflow_id = servers.create(CHAIN)
    migrate(servers.settings.database.url)
    assert servers.client.get(f"/api/v1/workflows/{workflow_id}").status_code == 200


def test_a_transaction_that_stands_still_lets_go_of_what_it_holds(at_rest: Deployment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "IDLE_AT_MOST", 0.2)
    execution_id, frozen = started(at_rest), Store(at_rest.settings.database)

    def stand_still() -> None:
        with frozen.transaction() as connection:
            assert executions.lock(connection, execution_id) is not None
            with at_rest.store.transaction() as another:
                assert executions.lock(another, execution_id) is not None
            session.run(connection, "SELECT 1")

    with pytest.raises(sa.exc.OperationalError):
        stand_still()
    with frozen.single() as connection:
        assert session.run(connection, "SELECT 1").scalar_one() == 1
    frozen.close()


def test_times_are_in_utc_whatever_zone_the_server_is_set_to(at_rest: Deployment):
    execution_id = started(at_rest)
    at_rest.sql("ALTER ROLE CURRENT_USER SET timezone = 'Asia/Kathmandu'")
    try:
        elsewhere = Store(at_rest.settings.database)
        with elsewhere.single() as connection:
            row = execution_views.get(connection, execution_id)
        elsewhere.close()
    finally:
        at_rest.sql("ALTER ROLE CURRENT_USER RESET timezone")
    assert row["created_at"].utcoffset() == timedelta(0)
    shown = at_rest.client.get(f"/api/v1/executions/{execution_id}").json["created_at"]
    assert shown == row["created_at"].isoformat().replace("+00:00", "Z")


# --- what reconcile finds ----------------------------------------------------------------------------------


class Bench:
    """A reconciler that sees the broker as it is, and whose own messages are kept instead of sent."""

    def __init__(self, servers: Deployment, host: str = "here") -> None:
        self.sent: list[Plan] = []
        self.reconciler = Reconciler(
            servers.store,
            Programs(load_catalogue("sample_steps"), servers.settings),
            servers.settings,
            Broker(),
            self.sent.append,
            holder=new_id(),
            host=host,
        )

    @property
    def rung(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """(execution, queue, starts) of every message's branch."""
        return [
            (plan.execution_id, message.queue, message.starts) for plan in self.sent for message, *_ in plan.branches
        ]


@pytest.fixture
def bench(at_rest: Deployment) -> Iterator[Bench]:
    at_rest.sql("DELETE FROM duties")
    _ = at_rest.client  # points the app at these servers
    yield Bench(at_rest)
    at_rest.sql("DELETE FROM duties")


def test_the_step_of_a_worker_without_a_lease_is_queued_again(at_rest: Deployment, bench: Bench):
    execution_id, worker = started(at_rest), at_rest.leased()
    lost = claimed(at_rest, execution_id, worker=worker)
    bench.reconciler.recover_orphans()
    assert row(at_rest, execution_id).status == "running", "its worker lives"

    with at_rest.store.single() as connection:
        workers.remove(connection, [worker])
    bench.reconciler.recover_orphans()
    assert bench.rung == [(execution_id, "cpu", ("a",))]
    again = claimed(at_rest, execution_id)
    assert (again.attempt, again.losses) == (2, 1)
    late = Result(output="late")
    assert records.complete_and_finish(at_rest.store, execution_id, lost, late) == (False, False, None)


def test_a_step_that_lost_its_worker_too_often_fails(at_rest: Deployment, bench: Bench):
    execution_id = started(at_rest)
    for _ in range(3):
        lost(at_rest, execution_id)
        bench.reconciler.recover_orphans()
    execution = at_rest.execution(execution_id)
    assert execution["status"] == "failed"
    assert at_rest.statuses(execution_id) == {"a": "failed", "b": "skipped", "c": "skipped"}
    assert row(at_rest, execution_id).error_kind == "lost"


def test_a_disowned_step_is_an_orphan_while_its_worker_goes_on(at_rest: Deployment, bench: Bench):
    worker = at_rest.leased()
    kept, given_up = started(at_rest), started(at_rest)
    for execution_id in (kept, given_up):
        claimed(at_rest, execution_id, worker=worker)
    with at_rest.store.single() as connection:
        recovery.disown(connection, given_up, worker)
    bench.reconciler.recover_orphans()
    assert bench.rung == [(given_up, "cpu", ("a",))]
    assert row(at_rest, kept).status == "running"


def test_a_step_past_its_deadline_fails_even_if_its_worker_lives(at_rest: Deployment, bench: Bench):
    execution_id = started(at_rest, {"steps": [{"id": "a", "type": "noop", "timeout": 10}]})
    claimed(at_rest, execution_id)
    at_rest.sql(
        "UPDATE step_executions SET deadline = now() - interval '1 second' WHERE execution_id = %(id)s::uuid",
        id=execution_id,
    )
    bench.reconciler.recover_orphans()
    assert (row(at_rest, execution_id).status, row(at_rest, execution_id).error_kind) == ("failed", "timeout")
    assert at_rest.execution(execution_id)["status"] == "failed"


def test_a_process_that_is_gone_from_this_host_loses_its_lease_at_once(at_rest: Deployment, bench: Bench):
    me = psutil.Process()
    alive = at_rest.leased(host="here", pid=os.getpid(), born=me.create_time())
    same_pid_born_before = at_rest.leased(host="here", pid=os.getpid(), born=me.create_time() - 1000)
    on_another_host = at_rest.leased(host="there", pid=os.getpid(), born=0)
    bench.reconciler.find_lost_workers()
    left = {id for (id,) in at_rest.sql("SELECT id::text FROM worker_processes")}
    assert left == {alive, on_another_host}
    assert same_pid_born_before not in left


def silent_for(servers: Deployment, worker: str, seconds: float) -> None:
    servers.sql(
        "UPDATE worker_processes SET seen_at = now() - %(seconds)s * interval '1 second' WHERE id = %(id)s::uuid",
        seconds=seconds,
        id=worker,
    )


def test_a_lease_that_was_not_kept_lapses(at_rest: Deployment, bench: Bench):
    kept, silent = at_rest.leased(), at_rest.leased()
    silent_for(at_rest, silent, 11)
    for now in range(11):
        bench.reconciler.tick(float(now))
    assert at_rest.sql("SELECT id::text FROM worker_processes") == [(kept,)]


def test_no_lease_lapses_while_the_database_was_away(at_rest: Deployment, bench: Bench):
    worker = at_rest.leased()
    for now in range(11):
        bench.reconciler.tick(float(now))
    silent_for(at_rest, worker, 60)
    bench.reconciler.tick(70.0)  # the first for a minute: nobody could beat
    assert at_rest.sql("SELECT id::text FROM worker_processes") == [(worker,)]


def test_one_reconciler_at_a_time_is_active(at_rest: Deployment, bench: Bench):
    bench.reconciler.tick(0.0)
    second = Bench(at_rest)
    execution_id = started(at_rest)
    lost(at_rest, execution_id)
    second.reconciler.tick(0.0)
    assert second.sent == []
    at_rest.sql("UPDATE duties SET at = now() - interval '1 minute'")
    second.reconciler.tick(1.0)
    assert second.rung == [(execution_id, "cpu", ("a",))]


def test_a_tick_that_takes_long_is_no_time_in_which_nobody_could_keep_a_lease(
    at_rest: Deployment, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    silent = at_rest.leased()
    for now in range(11):
        bench.reconciler.tick(float(now))
    elapsed = [0.0, 30.0]
    with monkeypatch.context() as patched:
        patched.setattr(reconcile, "time", SimpleNamespace(monotonic=lambda: elapsed.pop(0)))
        bench.reconciler.tick(11.0)
    silent_for(at_rest, silent, 11)
    bench.reconciler.tick(41.5)
    assert at_rest.sql("SELECT id FROM worker_processes") == []


def test_a_lost_step_is_counted(at_rest: Deployment, bench: Bench):
    lost(at_rest, started(at_rest))
    tally.take()
    bench.reconciler.recover_orphans()
    assert tally.take() == {(LOSSES.name, ()): 1.0}


def test_what_one_act_stumbles_over_keeps_no_other_from_its_work(
    at_rest: Deployment, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def find_lost_workers() -> None:
        raise RuntimeError("an odd row")

    monkeypatch.setattr(bench.reconciler, "find_lost_workers", find_lost_workers)
    execution_id = started(at_rest)
    lost(at_rest, execution_id)
    tally.take()
    bench.reconciler.tick(0.0)
    bench.reconciler.tick(1.0)
    assert bench.rung == [(execution_id, "cpu", ("a",))]
    assert bench.reconciler.stumbled == {"find_lost_workers": 2}
    assert tally.take()[RECONCILE_ERRORS.name, ("find_lost_workers",)] == 2


def test_one_odd_execution_keeps_no_other_from_being_seen_to(at_rest: Deployment, bench: Bench):
    odd, sound = started(at_rest), started(at_rest)
    for execution_id in (odd, sound):
        lost(at_rest, execution_id)
    # As if its version had been written by a later release.
    with at_rest.store.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # versions are immutable
        connection.exec_driver_sql(
            "UPDATE workflow_versions v SET definition = '{}' FROM executions e "
            "WHERE e.id = %(id)s::uuid AND v.workflow_id = e.workflow_id",
            {"id": odd},
        )
    bench.reconciler.tick(0.0)
    assert bench.rung == [(sound, "cpu", ("a",))]
    assert bench.reconciler.stumbled == {"recover": 1}
    assert row(at_rest, odd).status == "queued", "it is rung for when its turn comes"


def test_a_broker_that_is_away_is_tried_once_a_tick(at_rest: Deployment, bench: Bench, monkeypatch: pytest.MonkeyPatch):
    tried: list[Plan] = []

    def away(plan: Plan) -> None:
        tried.append(plan)
        raise OSError("connection refused")

    monkeypatch.setattr(bench.reconciler, "send", away)
    ids = [started(at_rest) for _ in range(3)]
    for execution_id in ids:
        lost(at_rest, execution_id)
    tally.take()
    bench.reconciler.tick(0.0)
    assert len(tried) == 1
    assert tally.take()[BROKER_ERRORS.name, ()] == 1
    assert {row(at_rest, execution_id).status for execution_id in ids} == {"queued"}


def test_a_due_timer_is_fired_once(at_rest: Deployment, bench: Bench):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    with at_rest.store.single() as connection:
        assert records.rest(connection, claim, Result(), delay=1000, resumes=False)
    bench.reconciler.fire_timers()
    assert bench.sent == []
    at_rest.sql(
        "UPDATE step_executions SET next_attempt_at = now() WHERE execution_id = %(id)s::uuid AND path = 'a'",
        id=execution_id,
    )
    bench.reconciler.fire_timers()
    bench.reconciler.fire_timers()
    assert bench.sent == [Plan(execution_id, 5, ((Message("cpu", ("a",)),),))]
    assert claimed(at_rest, execution_id).attempt == 2


def test_a_step_that_asked_to_wait_goes_on_with_the_same_attempt(at_rest: Deployment, bench: Bench):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    with at_rest.store.single() as connection:
        assert records.rest(connection, claim, Result(), delay=0, resumes=True)
    bench.reconciler.fire_timers()
    assert claimed(at_rest, execution_id).attempt == 1


def test_an_execution_that_nobody_advances_is_planned_anew(at_rest: Deployment, bench: Bench):
    execution_id = started(at_rest)
    claim = claimed(at_rest, execution_id)
    # As if the worker had died between the record and what follows from it.
    at_rest.sql(
        "UPDATE step_executions SET status = 'completed', claim_token = NULL, finished_at = now() "
        "WHERE id = %(id)s::uuid",
        id=claim.id,
    )
    bench.reconciler.restart_stalled()
    assert bench.rung == [(execution_id, "io", ("b",))]
    assert at_rest.statuses(execution_id) == {"a": "completed", "b": "queued", "c": "pending"}


def test_an_execution_past_its_deadline_is_ended(at_rest: Deployment, bench: Bench):
    execution_id = started(at_rest)
    claimed(at_rest, execution_id)
    at_rest.sql("UPDATE executions SET deadline = now() WHERE id = %(id)s::uuid", id=execution_id)
    bench.reconciler.end_overdue()
    execution = at_rest.execution(execution_id)
    assert (execution["status"], execution["error_message"]) == ("failed", "the execution's time was up")
    assert set(at_rest.statuses(execution_id).values()) == {"cancelled"}


def test_a_migration_installs_the_routines_of_every_module():
    """A routine is known once its module is imported; a process that only migrates imports few."""
    code = (
        "import pkgutil, importlib, orchestrator.store.migrate as migrate, orchestrator.store as store\n"
        "before = len(migrate.routines._registered)\n"
        "[importlib.import_module(f'orchestrator.store.{one.name}') for one in pkgutil.iter_modules(store.__path__)"
        " if one.name != 'migrations']\n"
        "assert len(migrate.routines._registered) == before > 5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_id_is_text_whoever_asks(servers: Deployment):
    execution_id = started(servers)
    with servers.store.single() as connection:
        by_hand = session.run(connection, "SELECT id FROM executions WHERE id = %(id)s::uuid", {"id": execution_id})
        assert by_hand.scalar_one() == execution_id
        found = execution_views.get(connection, execution_id)
    assert found["id"] == execution_id
    assert [step["path"] for step in found["step_executions"]] == ["a", "b", "c"]
