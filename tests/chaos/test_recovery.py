"""How soon what died goes on, with the settings that a deployment has unless it says otherwise."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployment import deployed, wait_until
from soak_work import step
from stack import WORKERS, Stack, stacked

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def thoroughly(break_it: Callable[..., None]) -> pytest.ParameterSet:
    """A way to break things that `make chaos` tries and `make test` does not."""
    return pytest.param(break_it, marks=pytest.mark.thorough)


HANDED_ON_WITHIN = 5.0
GONE_WITHIN = 12.0
LOST_WITHIN = 15.0
RUNG_AGAIN_WITHIN = 10.0


@pytest.fixture
def stack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    patience = request.config.getoption("--patience")
    with deployed(tmp_path, poll_interval=1.0) as deployment, stacked(deployment, patience) as stack:
        yield stack


class Gated:
    """A step that one worker performs until the gate is opened, and another worker beside it."""

    def __init__(self, stack: Stack, folder: Path, kind: str) -> None:
        self.stack, self.gate = stack, folder / "gate"
        self.first, self.second = f"{kind}-1", f"{kind}-2"
        stack.start(self.first)
        waits = {**step("a", "gate", file=str(self.gate)), "queue": kind}
        self.execution_id = stack.deployment.execute(stack.deployment.create({"steps": [waits]}))
        self.wait_for(self.first, LOST_WITHIN)
        stack.start(self.second)

    def wait_for(self, worker: str, seconds: float) -> None:
        self.stack.within(
            seconds, lambda: self.stack.performer_of(self.execution_id) == worker, f"the step on {worker}"
        )

    def open(self) -> tuple[str, int, int]:
        """(status, attempt, losses) of the step at its end."""
        self.gate.touch()
        self.stack.deployment.ended(self.execution_id)
        ((status, attempt, losses),) = self.stack.deployment.sql(
            "SELECT status, attempt, losses FROM step_executions WHERE execution_id = %(id)s::uuid",
            id=self.execution_id,
        )
        return status, attempt, losses


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_a_worker_that_is_asked_to_stop_hands_its_steps_on(stack: Stack, tmp_path: Path, kind: str):
    gated = Gated(stack, tmp_path, kind)
    stopped = stack.running[gated.first]
    stopped.signal(signal.SIGTERM)
    gated.wait_for(gated.second, HANDED_ON_WITHIN)
    stack.within(GONE_WITHIN, lambda: not stopped.alive, "the first worker to be gone")
    assert gated.open() == ("completed", 1, 0)  # a deploy is no failure of the step


@pytest.mark.thorough
def test_a_worker_that_is_asked_to_stop_comes_to_the_end_of_a_short_step(stack: Stack, tmp_path: Path):
    stack.start("cpu-1", "cpu-2")
    marks = tmp_path / "marks"
    definition = {
        "steps": [step(f"s{n}", "mark", f"s{n - 1}" if n else "", file=str(marks), seconds=0.5) for n in range(6)]
    }
    execution_id = stack.deployment.execute(stack.deployment.create(definition))
    name = wait_until(lambda: stack.performer_of(execution_id))
    stack.running[name].signal(signal.SIGTERM)
    assert stack.deployment.ended(execution_id)["status"] == "completed"
    assert [line.split()[1:] for line in marks.read_text().splitlines()] == [[f"s{n}", "1"] for n in range(6)]


@pytest.mark.parametrize("break_it", [Stack.kill, thoroughly(Stack.freeze)])
def test_the_step_of_a_worker_that_is_gone_runs_again(
    stack: Stack, tmp_path: Path, break_it: Callable[[Stack, str], None]
):
    gated = Gated(stack, tmp_path, "cpu")
    break_it(stack, gated.first)
    gated.wait_for(gated.second, LOST_WITHIN)
    assert gated.open() == ("completed", 2, 1)


def test_workers_that_are_started_before_the_database_work_as_soon_as_it_is_there(stack: Stack, tmp_path: Path):
    gate = tmp_path / "gate"
    execution_id = stack.deployment.execute(stack.deployment.create({"steps": [step("a", "gate", file=str(gate))]}))
    stack.kill_postgres()
    for name in ("cpu-1", "io-1"):
        stack.start_process(name)
    wait_until(lambda: stack.is_ready("cpu-1") and stack.is_ready("io-1"), what="workers that take messages")
    stack.start_postgres()
    wait_until(lambda: stack.is_there("cpu-1") and stack.is_there("io-1"), what="their leases")
    wait_until(lambda: stack.performer_of(execution_id) == "cpu-1", what="the step")
    reconciles = "SELECT FROM duties WHERE name = 'reconcile' AND at > clock_timestamp() - interval '5 s'"
    wait_until(lambda: stack.sql(reconciles), what="one of them to reconcile")
    stack.running["cpu-1"].signal(signal.SIGTERM)
    state = "SELECT status, attempt, losses FROM step_executions"
    wait_until(lambda: stack.sql(state) == [("queued", 1, 0)], what="the step to be handed on")


def asked_to_stop(stack: Stack, name: str) -> None:
    stack.running[name].signal(signal.SIGTERM)


@pytest.mark.thorough
@pytest.mark.parametrize("break_it", [Stack.kill, asked_to_stop])
def test_what_had_its_turn_does_not_wait_for_another_behind_a_backlog(
    stack: Stack, tmp_path: Path, break_it: Callable[[Stack, str], None]
):
    stack.start("io-1", "cpu-1")
    gate, marks = tmp_path / "gate", tmp_path / "marks"
    gated = stack.deployment.create({"steps": [step("a", "gate", file=str(gate))]}, "gated")
    held = [stack.deployment.execute(gated) for _ in range(WORKERS["cpu-1"].concurrency)]

    def are_with(worker: str) -> bool:
        return all(stack.performer_of(id) == worker for id in held)

    wait_until(lambda: are_with("cpu-1"), what="the worker to be busy")
    others = stack.deployment.create({"steps": [step("a", "mark", file=str(marks))]}, "others")
    backlog = [stack.deployment.execute(others) for _ in range(20)]
    break_it(stack, "cpu-1")
    wait_until(lambda: stack.messages() >= len(backlog) + len(held), what="what it had to be rung for")
    stack.start("cpu-2")
    wait_until(lambda: are_with("cpu-2"), what="another worker to go on with what the first one had")
    assert not marks.exists()
    gate.touch()
    for id in (*held, *backlog):
        assert stack.deployment.ended(id)["status"] == "completed"


def kill_valkey_for_long(stack: Stack) -> None:
    """For so long that kombu by itself would let twelve seconds pass until its next attempt."""
    stack.kill_valkey()
    time.sleep(8)


def killed_with_valkey(stack: Stack, name: str) -> None:
    """While a crowd of timers comes due, none of which can be rung for."""
    resting = stack.deployment.create({"steps": [{**step("a", "wait"), "config": {"duration": "1h"}}]}, "resting")
    for _ in range(30):
        stack.deployment.execute(resting)
    wait_until(lambda: stack.sql("SELECT FROM step_executions WHERE status = 'waiting' HAVING count(*) >= 30"))
    stack.kill_valkey()
    assert stack.sql("UPDATE step_executions SET next_attempt_at = now() WHERE status = 'waiting'") is not None
    time.sleep(8)
    stack.kill(name)
    time.sleep(2)
    stack.start_valkey()


def killed_with_postgres(stack: Stack, name: str) -> None:
    stack.kill_postgres()
    stack.kill(name)
    stack.start_postgres()


def killed_while_the_reconciler_is_frozen(stack: Stack, name: str) -> None:
    stack.freeze("io-1")
    stack.kill(name)


@pytest.mark.thorough
@pytest.mark.parametrize("break_it", [killed_with_valkey, killed_with_postgres, killed_while_the_reconciler_is_frozen])
def test_the_step_of_a_killed_worker_runs_again_soon_whatever_else_is_broken(
    stack: Stack, tmp_path: Path, break_it: Callable[[Stack, str], None]
):
    stack.start("io-1")
    wait_until(lambda: stack.sql("SELECT FROM duties WHERE name = 'reconcile'"), what="the first to reconcile")
    gated = Gated(stack, tmp_path, "cpu")
    break_it(stack, gated.first)
    gated.wait_for(gated.second, LOST_WITHIN)
    assert gated.open() == ("completed", 2, 1)


def test_messages_that_are_lost_under_a_steady_load_are_missed_soon(stack: Stack, tmp_path: Path):
    stack.start("cpu-1")
    marks = tmp_path / "marks"
    steps = [step("a"), step("b", "mark", "a", file=str(marks), seconds=0.4)]  # what runs was mostly not rung for
    workflow_id = stack.deployment.create({"steps": steps})

    def keep_busy() -> None:
        while stack.messages() < 10:
            stack.deployment.execute(workflow_id)

    keep_busy()
    lost = stack.lose_oldest(3)

    def are_done() -> bool:
        keep_busy()
        done = "SELECT count(*)::int FROM executions WHERE id = ANY(%(ids)s::uuid[]) AND status = 'completed'"
        return stack.sql(done, ids=lost) == [(len(lost),)]

    assert not are_done()
    stack.within(RUNG_AGAIN_WITHIN, are_done, "the executions whose messages were lost")
    performed = [line.split()[0] for line in marks.read_text().splitlines()]
    assert len(performed) == len(set(performed))


@pytest.mark.parametrize("forget", [Stack.forget, thoroughly(Stack.kill_valkey), thoroughly(kill_valkey_for_long)])
def test_what_was_queued_at_a_broker_that_lost_it_is_rung_for_again(
    stack: Stack, tmp_path: Path, forget: Callable[[Stack], None]
):
    stack.start("cpu-1")
    gate = tmp_path / "gate"
    workflow_id = stack.deployment.create({"steps": [step("a", "gate", file=str(gate)), step("b", needs="a")]})
    ids = [stack.deployment.execute(workflow_id) for _ in range(30)]
    wait_until(lambda: stack.messages() >= 20, what="a backlog")
    forget(stack)
    if forget is not Stack.forget:
        stack.start_valkey()
    gate.touch()
    done = "SELECT count(*) FROM executions WHERE status = 'completed' HAVING count(*) = %(all)s"
    stack.within(RUNG_AGAIN_WITHIN, lambda: stack.sql(done, all=len(ids)), "the backlog to be done")
