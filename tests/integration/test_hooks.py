"""What plugins are told of executions and steps: when, how often, and that nothing they do harms any of these.

The worker is this very process, so that what a plugin was told and what was counted can be looked at.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployment import PATIENCE, Deployment, wait_until
from test_execution import step, workflow

from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.errors import ConfigurationError
from orchestrator.metrics import HOOK_DROPS, HOOK_ERRORS, Measure
from orchestrator.plugins import ExecutionEvent, StepEvent, hookimpl, load_plugins
from orchestrator.store import claims, counters, executions, new_id, steps, workers
from workers import hooks
from workers.hooks import Announcer
from workers.process import WorkerProcess


class Told:
    """A plugin that keeps what it is told, and then does as `then` says."""

    def __init__(self, then: Callable[[Any], None] = lambda event: None) -> None:
        self.events: list[tuple[str, ExecutionEvent | StepEvent]] = []
        self.then = then

    def keep(self, hook: str, event: Any) -> None:
        self.events.append((hook, event))
        self.then(event)

    @hookimpl
    def workflow_started(self, execution: ExecutionEvent) -> None:
        self.keep("workflow_started", execution)

    @hookimpl
    def step_started(self, step: StepEvent) -> None:
        self.keep("step_started", step)

    @hookimpl
    def step_completed(self, step: StepEvent) -> None:
        self.keep("step_completed", step)

    @hookimpl
    def workflow_completed(self, execution: ExecutionEvent) -> None:
        self.keep("workflow_completed", execution)

    def of(self, execution_id: str) -> list[str]:
        """What it was told of an execution, in order: `step_started a`."""
        return [
            f"{hook} {getattr(event, 'path', '')}".strip()
            for hook, event in list(self.events)
            if execution_id in (getattr(event, "id", ""), getattr(event, "execution_id", ""))
        ]

    def the(self, hook: str) -> Any:
        (event,) = [event for name, event in self.events if name == hook]
        return event


class InProcess:
    """A worker process made of this one, with plugins named `told`, `other`, ..."""

    def __init__(self, servers: Deployment, plugins: dict[str, object]) -> None:
        self.servers = servers
        self.settings = replace(servers.settings, plugins=",".join(["sample_steps", *plugins]))
        self.worker = WorkerProcess(self.settings, "in@process")
        servers.sql("DELETE FROM untold_ends")  # those of other tests

    def start(self, *those: dict[str, Any], input: dict[str, Any] | None = None, **more: Any) -> str:
        return self.servers.execute(self.servers.create(workflow(*those, **more)), input)

    def perform(self, execution_id: str, *starts: str) -> None:
        self.worker.run_steps(execution_id, starts, ())

    def run(self, *those: dict[str, Any], input: dict[str, Any] | None = None, **more: Any) -> str:
        """An execution whose first step is the first of `those`, performed as far as one worker takes it."""
        execution_id = self.start(*those, input=input, **more)
        self.perform(execution_id, those[0]["id"])
        return execution_id

    def reconciler(self) -> Reconciler:
        worker = self.worker
        programs = Programs(worker.programs.catalogue, self.settings)
        return Reconciler(
            worker.store, programs, self.settings, None, lambda plan: None,  # type: ignore[arg-type]
            holder=new_id(), host="here", observer=worker.hooks,
        )  # fmt: skip


class Dying(Announcer):
    """It is killed as it is about to tell."""

    def __init__(self) -> None:
        pass

    def execution_ended(self, execution_id: str) -> None:
        raise ProcessLookupError


Start = Callable[..., InProcess]


@pytest.fixture
def start(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    processes: list[InProcess] = []
    monkeypatch.setattr(hooks, "LAST_WORDS", PATIENCE)

    def started(**plugins: object) -> InProcess:
        for name, plugin in plugins.items():
            monkeypatch.setitem(sys.modules, name, plugin)
        processes.append(InProcess(servers, plugins))
        return processes[-1]

    yield started
    for process in processes:
        process.worker.close()
    for (id,) in servers.sql("SELECT id::text FROM executions WHERE finished_at IS NULL"):
        with servers.store.transaction() as connection:
            executions.cancel(connection, id, "the test is over")
            steps.cancel_all(connection, id)


@pytest.fixture
def told() -> Told:
    return Told()


def until_told(told: Told, execution_id: str, count: int) -> list[str]:
    wait_until(lambda: len(told.of(execution_id)) >= count, what=f"{count} calls, not just {told.of(execution_id)}")
    return told.of(execution_id)


def counted(servers: Deployment, measure: Measure, plugin: str, hook: str) -> float:
    with servers.store.single() as connection:
        counters.flush(connection)
        return counters.read(connection).get((measure.name, (plugin, hook)), 0)


# --- what is told --------------------------------------------------------------------------------------------


def test_an_execution_is_told_of_from_its_begin_to_its_end_in_order(start: Start, told: Told):
    process = start(told=told)
    fork = [step("b", needs="a"), step("c", needs="a"), step("d", needs="b c", value=3)]
    execution_id = process.run(step("a", value="{{ input.x }}"), *fork, input={"x": 1})
    calls = until_told(told, execution_id, 10)
    assert len(calls) == len(set(calls)) == 10
    assert calls[:3] == ["workflow_started", "step_started a", "step_completed a"]
    assert calls[-3:] == ["step_started d", "step_completed d", "workflow_completed"]
    assert told.the("workflow_started").input == {"x": 1}
    ended = told.the("workflow_completed")
    assert (ended.status, ended.output, ended.error_message) == ("completed", {"d": {"result": 3}}, None)
    assert ended.duration > 0


def test_an_execution_that_is_one_run_is_told_of_as_any_other(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.run(step("a", value=1), step("b", needs="a", value=2))
    assert until_told(told, execution_id, 6) == [
        "workflow_started",
        "step_started a",
        "step_completed a",
        "step_started b",
        "step_completed b",
        "workflow_completed",
    ]
    assert told.the("workflow_completed").output == {"b": {"result": 2}}


def test_a_failed_attempt_says_whether_another_follows(start: Start, told: Told):
    process = start(told=told)
    policy = {"max_attempts": 2, "initial_delay": "1h"}
    execution_id = process.run(step("a", "fail", retry_policy=policy), step("b", needs="a"))
    until_told(told, execution_id, 3)
    process.servers.sql("UPDATE step_executions SET next_attempt_at = now() WHERE status = 'waiting'")
    process.reconciler().fire_timers()
    process.perform(execution_id, "a")
    calls = until_told(told, execution_id, 6)
    assert calls == [
        "workflow_started",
        "step_started a",
        "step_completed a",
        "step_started a",
        "step_completed a",
        "workflow_completed",
    ], "and nothing of b, which no worker took on"
    first, second = [event for hook, event in told.events if hook == "step_completed"]
    assert isinstance(first, StepEvent)
    assert isinstance(second, StepEvent)
    assert (first.attempt, first.status, first.retries) == (1, "failed", True)
    assert (second.attempt, second.status, second.retries) == (2, "failed", False)
    assert (second.error_kind, second.error_message) == ("asked", "asked to fail")
    ended = told.the("workflow_completed")
    assert (ended.status, ended.error_message) == ("failed", "step a (fail) failed: asked to fail")


def test_a_step_skipped_by_when_is_told_of(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.run({**step("a"), "when": "input.wanted"}, input={"wanted": False})
    until_told(told, execution_id, 4)
    event = told.the("step_completed")
    assert (event.status, event.error_message, event.retries) == ("skipped", "`when` is not true: input.wanted", False)


def test_a_step_that_rests_is_one_attempt(start: Start, told: Told):
    process = start(told=told)
    loop = {"id": "each", "type": "loop", "config": {"items": [1, 2], "steps": [step("one")]}}
    execution_id = process.run(loop)
    process.perform(execution_id, "each[0].one", "each[1].one")
    calls = until_told(told, execution_id, 8)
    assert sorted(calls) == sorted(
        ["workflow_started", "workflow_completed"]
        + [
            f"step_{what} {path}"
            for what in ("started", "completed")
            for path in ("each", "each[0].one", "each[1].one")
        ]
    )
    assert calls[-2:] == ["step_completed each", "workflow_completed"]


def test_a_worker_that_lost_its_claim_tells_of_no_end(start: Start, tmp_path: Path):
    def take_away(event: Any) -> None:
        process.servers.sql("UPDATE step_executions SET claim_token = gen_random_uuid() WHERE status = 'running'")
        (tmp_path / "gate").touch()

    told = Told(take_away)
    process = start(told=told)
    execution_id = process.run(step("a", "gate", file=str(tmp_path / "gate")))
    assert process.servers.statuses(execution_id) == {"a": "running"}
    process.worker.close()
    assert told.of(execution_id) == ["workflow_started", "step_started a"]


def test_what_reconcile_ends_is_told_of(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a", retry_policy={"max_attempts": 1}))
    worker = process.worker
    assert claims.claim(worker.store, execution_id, "a", worker.lease.id) is not None
    process.servers.sql("UPDATE step_executions SET deadline = now() - interval '1 s' WHERE status = 'running'")
    process.reconciler().recover_orphans()
    assert until_told(told, execution_id, 2) == ["step_completed a", "workflow_completed"]
    event = told.the("step_completed")
    assert (event.status, event.error_kind, event.type, event.duration) == ("failed", "timeout", "noop", None)


def test_an_execution_that_is_overdue_is_told_of(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a", "gate", file="never"))
    assert claims.claim(process.worker.store, execution_id, "a", process.worker.lease.id) is not None
    process.servers.sql("UPDATE executions SET deadline = now() - interval '1 s' WHERE status = 'running'")
    process.reconciler().end_overdue()
    assert until_told(told, execution_id, 1) == ["workflow_completed"]
    ended = told.the("workflow_completed")
    assert (ended.status, ended.error_message) == ("failed", "the execution's time was up")


def test_an_execution_that_had_stalled_is_told_of_when_it_is_settled(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a"))
    process.servers.sql(
        "UPDATE step_executions SET status = 'completed', finished_at = now() WHERE execution_id = %(id)s::uuid",
        id=execution_id,
    )
    process.reconciler().restart_stalled()
    process.reconciler().restart_stalled()
    assert until_told(told, execution_id, 1) == ["workflow_completed"]


def test_an_end_that_came_by_way_of_the_api_is_told_of_by_a_worker(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a"), step("b", needs="a"))
    process.servers.client.post(f"/api/v1/executions/{execution_id}/cancel")
    for _ in range(2):
        process.reconciler().tell_ends()
    until_told(told, execution_id, 1)
    process.worker.close()
    assert told.of(execution_id) == ["workflow_completed"]
    assert (told.the("workflow_completed").status, told.the("workflow_completed").duration) == ("cancelled", 0)


def test_a_paused_execution_that_ends_when_it_is_resumed_is_told_of(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a"))
    process.servers.client.post(f"/api/v1/executions/{execution_id}/pause")
    process.servers.sql(
        "UPDATE step_executions SET status = 'completed', finished_at = now() WHERE execution_id = %(id)s::uuid",
        id=execution_id,
    )
    process.servers.client.post(f"/api/v1/executions/{execution_id}/resume")
    process.reconciler().tell_ends()
    assert until_told(told, execution_id, 1) == ["workflow_completed"]


def test_a_worker_that_dies_before_it_has_told_leaves_the_end_to_the_next(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a"))
    process.servers.client.post(f"/api/v1/executions/{execution_id}/cancel")
    dying = process.reconciler()
    dying.observer = Dying()
    with pytest.raises(ProcessLookupError):
        dying.tell_ends()
    process.reconciler().tell_ends()
    assert until_told(told, execution_id, 1) == ["workflow_completed"]


def test_an_end_that_comes_while_the_one_before_it_is_told_is_told_as_well(start: Start):
    class EndsAgain:
        def execution_ended(self, ended: str) -> None:
            told.append(ended)
            if len(told) == 1:
                for call in "retry", "cancel":
                    process.servers.client.post(f"/api/v1/executions/{ended}/{call}")

        def attempt_failed(self, *_: Any, **__: Any) -> None: ...

    told: list[str] = []
    process = start()
    execution_id = process.start(step("a"))
    process.servers.client.post(f"/api/v1/executions/{execution_id}/cancel")
    reconciler = process.reconciler()
    reconciler.observer = EndsAgain()
    for _ in range(3):
        reconciler.tell_ends()
    assert told == [execution_id] * 2


def test_ends_that_nobody_wants_to_hear_of_are_not_kept(start: Start):
    process = start()
    execution_id = process.start(step("a"))
    process.servers.client.post(f"/api/v1/executions/{execution_id}/cancel")
    process.reconciler().tell_ends()
    assert process.servers.sql("SELECT FROM untold_ends") == []


def test_secrets_are_masked_in_what_is_told(start: Start, told: Told, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORCHESTRATOR_SECRET_KEY", "hush-hush")
    process = start(told=told)
    given = {"word": "hush-hush"}
    execution_id = process.run(
        step("a", value="{{ secrets.key }}"), step("b", "fail", needs="a", message="no {{ secrets.key }}",
                                                   retry_policy={"max_attempts": 1}), input=given
    )  # fmt: skip
    until_told(told, execution_id, 6)
    assert told.the("workflow_started").input == {"word": "***"}
    assert told.the("workflow_completed").error_message == "step b (fail) failed: no ***"
    assert "hush-hush" not in repr(told.events)


# --- what plugins do -----------------------------------------------------------------------------------------


def test_without_a_hook_there_is_nobody_to_tell(start: Start):
    process = start()
    assert process.worker.hooks is None
    execution_id = process.run(step("a"))
    assert process.servers.execution(execution_id)["status"] == "completed"


def test_a_hook_that_raises_is_counted_and_keeps_no_other_from_being_told(
    start: Start, told: Told, caplog: pytest.LogCaptureFixture
):
    def refuse(event: Any) -> None:
        raise SystemExit("no") if event.status == "running" else RuntimeError("no")

    process = start(raises=Told(refuse), told=told)
    before = {
        hook: counted(process.servers, HOOK_ERRORS, "raises", hook) for hook in ("step_started", "step_completed")
    }
    execution_id = process.run(step("a"), step("b", needs="a"))
    until_told(told, execution_id, 6)
    assert process.servers.execution(execution_id)["status"] == "completed"
    process.worker.close()
    assert {hook: counted(process.servers, HOOK_ERRORS, "raises", hook) - count for hook, count in before.items()} == {
        "step_started": 2,
        "step_completed": 2,
    }
    assert counted(process.servers, HOOK_ERRORS, "told", "step_completed") == 0
    assert "the hook step_completed of the plugin raises raised" in caplog.text


def test_a_plugin_that_never_returns_holds_up_nobody(
    start: Start, told: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hooks, "BACKLOG", 3)
    monkeypatch.setattr(hooks, "LAST_WORDS", 0.1)
    goes_on = threading.Event()
    process = start(hangs=Told(lambda event: goes_on.wait(60) and None), told=told)
    try:
        execution_ids = [process.run(step("a"), step("b", needs="a")) for _ in range(3)]
        assert {process.servers.execution(id)["status"] for id in execution_ids} == {"completed"}
        wait_until(
            lambda: counted(process.servers, HOOK_DROPS, "hangs", "workflow_completed") >= 2, what="dropped calls"
        )
        assert "the plugin hangs is too slow: 3 calls wait" in caplog.text
    finally:
        goes_on.set()


def test_a_plugin_may_do_as_it_likes_with_its_copy(start: Start, told: Told):
    def spoil(event: Any) -> None:
        if event.output:
            event.output["result"] = "spoilt"

    process = start(spoils=Told(spoil), told=told)
    execution_id = process.run(step("a", value=[1]), step("b", needs="a", value="{{ steps.a.output.result }}"))
    until_told(told, execution_id, 6)
    assert process.servers.execution(execution_id)["output"] == {"b": {"result": [1]}}
    assert [event.output for hook, event in told.events if hook == "step_completed"] == [{"result": [1]}] * 2


def test_a_worker_that_stops_tells_what_is_left(start: Start):
    calls: list[str] = []
    may_go = threading.Event()

    def slowly(event: Any) -> None:
        may_go.wait(20)
        calls.append(event.status)

    process = start(slow=Told(slowly))
    process.run(step("a"))
    assert calls == []
    may_go.set()
    process.worker.close()
    assert calls == ["running", "running", "completed", "completed"]


class OnlyTheEnd:
    """A plugin with one hook, which does not care for its argument."""

    def __init__(self) -> None:
        self.calls = 0

    @hookimpl
    def workflow_completed(self) -> None:
        self.calls += 1


def test_a_plugin_implements_what_it_cares_for(start: Start):
    plugin = OnlyTheEnd()
    process = start(only_the_end=plugin)
    process.run(step("a"), step("b", needs="a"))
    process.worker.close()
    assert plugin.calls == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("@hookimpl\ndef step_finished(step): ...", r"unknown hook 'step_finished'"),
        ("@hookimpl\ndef step_started(task): ...", r"Argument\(s\) \{'task'\}"),
    ],
)
def test_a_hook_that_is_not_ours_is_refused(monkeypatch: pytest.MonkeyPatch, source: str, says: str):
    module = types.ModuleType("misspelt")
    exec(f"from orchestrator.plugins import hookimpl\n{source}", module.__dict__)
    monkeypatch.setitem(sys.modules, "misspelt", module)
    with pytest.raises(ConfigurationError, match=says):
        load_plugins("misspelt")


def test_an_installed_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "broken-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[orchestrator]\nbroken_one = no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"'broken_one' cannot be imported: ModuleNotFoundError"):
        load_plugins("")


def test_a_lost_worker_is_told_of_with_each_of_its_attempts(start: Start, told: Told):
    process = start(told=told)
    execution_id = process.start(step("a"))
    gone = new_id()
    with process.worker.store.single() as connection:
        workers.register(connection, gone, node="gone@test", host="elsewhere", pid=1, born=0)
    assert claims.claim(process.worker.store, execution_id, "a", gone) is not None
    with process.worker.store.single() as connection:
        workers.remove(connection, [gone])
    process.reconciler().recover_orphans()
    process.perform(execution_id, "a")
    assert until_told(told, execution_id, 3) == ["step_started a", "step_completed a", "workflow_completed"]
    assert told.the("step_completed").attempt == 2
