"""What a step costs does not depend on how many executions wait, whatever PostgreSQL believed when it planned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from deployment import Deployment, deployed
from sqlalchemy.engine import Connection
from test_execute_many import started
from test_execution import step, workflow

from orchestrator.store import admission, claims, executions, records, recovery
from orchestrator.store.claims import Claim
from orchestrator.store.session import new_id, run

WAITING = 1_000
PLACES = 10
FEW = 100


@pytest.fixture(scope="module", params=["at a quiet time", "now"])
def busy(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """All places are taken and a thousand wait for one, after a quiet time in which everything had ended. The parameter
    says when PostgreSQL looked at its tables last."""
    with deployed(tmp_path_factory.mktemp("plans"), max_concurrent=PLACES) as deployment:
        workflow_id = deployment.create(workflow(step("only")))
        started(deployment, workflow_id, *[{}] * 500)
        with deployment.store.single() as connection:
            for table in ("step_executions", "executions"):
                # Or it may look again any minute.
                run(connection, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
                run(connection, f"UPDATE {table} SET status = 'cancelled', finished_at = clock_timestamp()")
            run(connection, "ANALYZE")
        for _ in range(2):
            started(deployment, workflow_id, *[{}] * (WAITING // 2))
        if request.param == "now":
            with deployment.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                run(connection, "VACUUM ANALYZE")
        yield deployment


@contextmanager
def reads_at_most(few: int, connection: Connection) -> Iterator[None]:
    """Rows and entries of indexes that are looked at."""
    before = _read(connection)
    yield
    assert _read(connection) - before <= few


def _read(connection: Connection) -> int:
    sql = """
        SELECT (SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index i
                JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname IN ('executions', 'step_executions'))
             + (SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables)
    """
    return int(run(connection, sql).scalar_one())


def test_an_execution_is_admitted_performed_and_ended_at_the_same_cost(busy: Deployment) -> None:
    worker = busy.leased()
    with busy.store.transaction() as connection:
        for _ in range(10):  # a plan is kept from the sixth time on
            with reads_at_most(FEW, connection):
                places = {"places": PLACES + 1, "freed": [], "opened": []}
                ((execution_id, path, *_),) = run(connection, admission._ADMIT_ROUTINE.call, places).all()
            claim = {"execution": execution_id, "path": path, "worker": worker, "token": new_id()}
            with reads_at_most(FEW, connection):
                claimed = run(connection, claims._CLAIM_ROUTINE.call, claim).one()
            held = claims.Claim(claimed.id, path, 1, 0, claim["token"])
            written = records._written(held, records.EMPTY) | {"execution": execution_id, "path": path}
            with reads_at_most(FEW, connection):
                assert run(connection, records._COMPLETE_AND_FINISH_ROUTINE.call, written).one().finished


def test_another_that_has_to_wait_is_started_at_the_same_cost(busy: Deployment) -> None:
    workflow_id = busy.create(workflow(step("only")), "another")
    with busy.store.transaction() as connection:
        turn = admission.next_turn("%(workflow)s::uuid", "5")
        with reads_at_most(FEW, connection):
            run(connection, f"SELECT {turn}", {"workflow": workflow_id})


def test_a_look_whether_a_claim_is_held_does_not_look_at_all_that_is_live(busy: Deployment) -> None:
    with busy.store.transaction() as connection, reads_at_most(FEW, connection):
        assert claims.held(connection, [Claim(new_id(), "only", 1, 0, new_id())]) == set()


def test_what_reconcile_looks_for_costs_a_look_at_each_that_is_live(busy: Deployment) -> None:
    with busy.store.transaction() as connection:
        with reads_at_most(5 * WAITING, connection):
            assert executions.stalled(connection, 500) == []
        with reads_at_most(5 * WAITING, connection):
            assert len(recovery.unclaimed(connection, older_than=0, limit=500)) == PLACES
