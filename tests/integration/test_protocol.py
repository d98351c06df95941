"""The protocol of claim, record, advance and reconcile, under any order of events that Hypothesis can think of.

Simulated workers perform random definitions over the real store (see simulation.py) while messages are lost, doubled
and reordered, processes die at every point between two statements, or are taken for dead and wake up. PostgreSQL notes
each change of a row, and after each event the notes and the rows have to agree with what is promised. At the end the
faults cease, and every execution has to come to the end that a reference computes from what its steps were made to
return.

PROTOCOL_EXAMPLES=2000 makes a long run of it, with other examples each time.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from deployment import Deployment, deployed
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from simulation import Broker, HaltingStore, Message, OneAfterTheOther, Order, Outcome, Worker, World

from orchestrator import lifecycle
from orchestrator.engine import control
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.start import start_execution
from orchestrator.engine.why import Why, why_execution, why_step
from orchestrator.errors import Conflict
from orchestrator.lifecycle import EXECUTION_TERMINAL, STEP_TERMINAL, Transition, sql_words
from orchestrator.plugins import load_catalogue
from orchestrator.store import new_id, workflows
from workers import runner

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "0"))
PHASES = [Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate]
"""To find the shortest example of a failure takes minutes."""
PLACES, WORKERS, MAX_LOSSES = 2, 3, 2
POINTS = ("perform", "store", "between", "ring")
LEASE = 600.0
"""Seconds, so that a slow machine takes no lease away; the test ages the rows of those that are to lose theirs."""

TERMINAL = sql_words(EXECUTION_TERMINAL)
LIVE_STEP = f"status NOT IN ({sql_words(STEP_TERMINAL)})"


# --- definitions -----------------------------------------------------------------------------------------------

ACTS = ["act", "act", "io_act"]
KINDS = [*ACTS, *ACTS, "condition", "loop", "parallel"]
RULES = ["all_success"] * 4 + ["all_done", "one_success", "one_failed", "none_failed"]


@st.composite
def graphs(draw: st.DrawFn, prefix: str, kinds: Sequence[str], least: int, most: int) -> list[dict[str, Any]]:
    """Steps that depend on others before them: chains as often as forks."""
    steps: list[dict[str, Any]] = []
    for n in range(draw(st.integers(least, most))):
        needs = draw(st.just({n - 1}) | st.sets(st.integers(0, n - 1), max_size=3)) if n else set()
        kind = draw(st.sampled_from(kinds))
        one: dict[str, Any] = {
            "id": f"{prefix}{n}",
            "type": kind,
            "config": {},
            "depends_on": [f"{prefix}{at}" for at in sorted(needs)],
            "on_error": draw(st.sampled_from(["fail", "fail", "continue"])),
        }
        if needs:
            one["trigger_rule"] = draw(st.sampled_from(RULES))
        if kind in ACTS:
            one["retry_policy"] = {"max_attempts": draw(st.integers(1, 2)), "initial_delay": "1h"}
            one |= draw(st.sampled_from([{}, {"timeout": "1h"}, {"timeout": "1h"}, {"when": "{{ false }}"}]))
        elif kind == "loop":
            one["config"] = draw(loops(f"{prefix}{n}_"))
        elif kind == "parallel":
            one["config"] = draw(forks(f"{prefix}{n}_"))
        elif kind == "condition":
            one["config"] = {"expression": draw(st.sampled_from(["{{ false }}", "{{ true }}"]))}
        steps.append(one)
    for one in steps:
        # A step that may begin early cannot be a branch: whether it had begun by then would be a matter of time.
        dependents = [other for other in steps if one["id"] in other["depends_on"]]
        children = [other["id"] for other in dependents if not other["trigger_rule"].startswith("one_")]
        if one["type"] == "condition" and children:
            one["config"]["then"] = draw(st.lists(st.sampled_from(children), unique=True))
    return steps


@st.composite
def loops(draw: st.DrawFn, prefix: str) -> dict[str, Any]:
    limit = draw(st.sampled_from([{}, {"concurrency": 1}]))
    return {
        "items": list(range(draw(st.integers(0, 3)))),
        "on_item_error": draw(st.sampled_from(["continue", "fail"])),
        "steps": draw(graphs(prefix, ACTS, 1, 2)),
        **limit,
    }


@st.composite
def forks(draw: st.DrawFn, prefix: str) -> dict[str, Any]:
    branches = {name: draw(graphs(f"{prefix}{name}_", ACTS, 1, 2)) for name in ("left", "right")}
    return {"branches": branches, "fail_fast": draw(st.booleans())}


MEETING = [
    {
        "id": id,
        "type": "act",
        "config": {},
        "depends_on": needs,
        "on_error": "fail",
        "retry_policy": {"max_attempts": 1, "initial_delay": "1h"},
        **more,
    }
    for id, needs, more in (("m0", [], {"when": "{{ false }}"}), ("m1", [], {}), ("m2", ["m0", "m1"], {}))
]
"""What follows the end of `m1` takes more than a look at what completed: its record is one commit, and that another."""


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    definition: dict[str, Any] = {"steps": draw(graphs("s", KINDS, 2, 5))}
    if draw(st.booleans()):
        definition["steps"] += MEETING
    for part in ("on_failure", "finally"):
        if draw(st.integers(0, 3)) == 0:
            definition[part] = draw(graphs(part[0], ACTS, 1, 2))
    if draw(st.integers(0, 3)) == 0:
        definition["max_concurrent"] = 1
    return definition


def every_step(steps: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in steps:
        yield one
        yield from every_step(one["config"].get("steps", ()))
        for branch in one["config"].get("branches", {}).values():
            yield from every_step(branch)


# --- the reference -----------------------------------------------------------------------------------------------


@dataclass
class Run:
    """An execution, and what the test made of it."""

    definition: dict[str, Any]
    failed: set[str] = field(default_factory=set)
    """The paths of steps whose last attempt that counted was made to fail, timed out or was lost."""
    lost: set[str] = field(default_factory=set)
    """Those of them that lost their worker too often."""
    kept: dict[str, str] = field(default_factory=dict)
    """What a retry took over: path -> state."""
    ended_as: str | None = None
    """It was ended early: cancelled, or failed because its time was up."""
    is_tried_again: bool = False
    was_untouched: bool = False
    """It was cancelled while it waited for its place: nothing runs at its end."""

    def __post_init__(self) -> None:
        parts = (self.definition.get(part, []) for part in ("steps", "on_failure", "finally"))
        self.steps = {one["id"]: one for part in parts for one in every_step(part)}


def is_wanted(step: Mapping[str, Any], states: Mapping[str, str], blocking: set[str]) -> bool | None:
    """Whether a step is to run; None as long as that is open. `blocking` are the ids of steps that failed, or were
    kept from running by a failure."""
    needs, wants = step["depends_on"], step.get("trigger_rule", "all_success")
    good = any(states[one] in ("completed", "failed") and one not in blocking for one in needs)
    bad = not blocking.isdisjoint(needs)
    if (wants == "one_success" and good) or (wants == "one_failed" and bad):
        return True
    if any(states[one] not in STEP_TERMINAL for one in needs):
        return None
    return {
        "all_success": not bad and (good or not needs),
        "all_done": True,
        "one_success": False,
        "one_failed": False,
        "none_failed": not bad,
    }[wants]


class Reference:
    """How an execution has to end. Steps stand in the definition after what they wait for, so one pass decides them.

    `open` are the paths in bodies that end at their first failure: which of these were done by then is a matter of
    time.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.states: dict[str, str] = {}
        self.open: set[str] = set()
        definition = run.definition
        failed = self._decide(definition["steps"], "")
        self.status = run.ended_as or ("failed" if failed else "completed")
        if run.ended_as is not None:
            self.open |= self.states.keys()
        if run.was_untouched:
            return
        if self.status != "completed":
            self._decide(definition.get("on_failure", []), "on_failure.")
        spoilt = self._decide(definition.get("finally", []), "finally.")
        if spoilt and self.status == "completed":
            self.status = "failed"

    def _decide(self, steps: Sequence[dict[str, Any]], scope: str) -> bool:
        """Whether this graph fails."""
        states: dict[str, str] = {}
        blocking: set[str] = set()
        not_taken: set[str] = set()
        for step in steps:
            id, path = step["id"], scope + step["id"]
            wanted = id not in not_taken and is_wanted(step, states, blocking)
            if path in self._run.kept:
                states[id] = self._run.kept[path]
            elif not wanted:
                states[id] = "skipped"
                bad = not blocking.isdisjoint(step["depends_on"])
                if id not in not_taken and step.get("trigger_rule") != "one_failed" and bad:
                    blocking.add(id)
            elif "when" in step and path not in self._run.failed:
                states[id] = "skipped"
            else:
                states[id] = "failed" if self._fails(step, path) else "completed"
            if states[id] == "failed" and step["on_error"] == "fail":
                blocking.add(id)
            if states[id] == "completed" and step["config"].get("expression") == "{{ false }}":
                not_taken.update(step["config"].get("then", ()))
            if states[id] != "skipped":
                self._decide_bodies(step, path)
        self.states |= {scope + id: state for id, state in states.items()}
        return any(state == "failed" and id in blocking for id, state in states.items())

    def _fails(self, step: dict[str, Any], path: str) -> bool:
        if path in self._run.lost:
            return True
        if step["type"] == "loop":
            return step["config"]["on_item_error"] == "fail" and any(self._decide_bodies(step, path))
        if step["type"] == "parallel":
            return any(self._decide_bodies(step, path))
        return path in self._run.failed

    def _decide_bodies(self, step: dict[str, Any], path: str) -> list[bool]:
        """Of each scope in the body of a step, whether it fails."""
        config, before = step["config"], set(self.states)
        if step["type"] == "loop":
            results = [self._decide(config["steps"], f"{path}[{index}].") for index in config["items"]]
            stops = config["on_item_error"] == "fail"
        elif step["type"] == "parallel":
            results = [self._decide(steps, f"{path}.{name}.") for name, steps in config["branches"].items()]
            stops = config["fail_fast"]
        else:
            return []
        if (stops and any(results)) or path in self._run.lost:
            self.open |= set(self.states) - before
        return results


# --- what PostgreSQL notes -----------------------------------------------------------------------------------------

_NOTES = """
    CREATE TABLE notes (n bigserial, of text, execution_id text, was jsonb, now jsonb, seen jsonb);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE seen jsonb;
    BEGIN
        IF TG_TABLE_NAME = 'executions' THEN
            INSERT INTO notes (of, execution_id, was, now) VALUES ('execution', NEW.id, to_jsonb(OLD), to_jsonb(NEW));
            RETURN NULL;
        END IF;
        IF NEW.status = 'running' THEN
            SELECT jsonb_build_object(
                'status', e.status, 'admitted', e.admitted_at IS NOT NULL,
                'steps', (SELECT jsonb_object_agg(s.path, jsonb_build_array(s.status, s.error_kind))
                          FROM step_executions s WHERE s.execution_id = e.id))
            INTO seen FROM executions e WHERE e.id = NEW.execution_id;
        ELSIF OLD.status = 'running' THEN
            seen := jsonb_build_object('lives', EXISTS (SELECT FROM worker_processes WHERE id = OLD.worker_id));
        END IF;
        INSERT INTO notes (of, execution_id, was, now, seen)
        VALUES ('step', NEW.execution_id, to_jsonb(OLD), to_jsonb(NEW), seen);
        RETURN NULL;
    END $$;
    CREATE TRIGGER noted AFTER UPDATE ON step_executions FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
        EXECUTE FUNCTION note();
    CREATE TRIGGER noted AFTER UPDATE ON executions FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
        EXECUTE FUNCTION note();
"""

_WRONG = f"""
    SELECT 'an execution that has ended has a step that has not', e.id FROM all_executions e
    WHERE e.status IN ({TERMINAL})
      AND EXISTS (SELECT FROM all_step_executions s WHERE s.execution_id = e.id AND s.{LIVE_STEP})
    UNION ALL
    SELECT 'finished_at does not say whether it has ended', id FROM all_executions
    WHERE (status IN ({TERMINAL})) <> (finished_at IS NOT NULL)
    UNION ALL
    SELECT 'finished_at does not say whether it has ended', id FROM all_step_executions
    WHERE ({LIVE_STEP}) <> (finished_at IS NULL)
    UNION ALL
    SELECT 'a claim of a step that does not run', id FROM all_step_executions
    WHERE (status = 'running') <> (claim_token IS NOT NULL)
    UNION ALL
    SELECT 'more than have a place', min(id::text)::uuid FROM all_executions
    WHERE status NOT IN ({TERMINAL}) AND admitted_at IS NOT NULL HAVING count(*) > {PLACES}
    UNION ALL
    SELECT 'more than their own limit', min(id::text)::uuid
    FROM all_executions, unnest(limit_keys, limits) AS own(key, most)
    WHERE status NOT IN ({TERMINAL}) AND admitted_at IS NOT NULL GROUP BY key, most HAVING count(*) > most
"""


def moves(*unless: Transition) -> dict[type, set[tuple[str, str]]]:
    """The (from, to) of all named transitions, by the kind of status."""
    found: dict[type, set[tuple[str, str]]] = {}
    for one in vars(lifecycle).values():
        if isinstance(one, Transition) and one not in unless:
            found.setdefault(type(one.target), set()).update((source, one.target) for source in one.sources)
    return found


MOVES = moves(lifecycle.RESET, lifecycle.RETRY_EXECUTION)
MOVES_OF_A_RETRY = moves()


class Notes:
    """Reads what was noted, and holds it against what is promised."""

    def __init__(self, world: World, runs: Mapping[str, Run]) -> None:
        self._world = world
        self._runs = runs
        self._tokens: set[str] = set()
        self._recorded: set[tuple[str, int]] = set()
        self._resets: Counter[str] = Counter()
        self._failures: Counter[tuple[str, int]] = Counter()

    def check(self, allowed: Mapping[type, set[tuple[str, str]]]) -> None:
        with self._world.store.single() as connection:
            notes = connection.exec_driver_sql(
                "WITH read AS (DELETE FROM notes RETURNING *) SELECT * FROM read ORDER BY n"
            ).all()
            wrong = connection.exec_driver_sql(_WRONG).all()
        for note in notes:
            try:
                self._check(note, allowed)
            except AssertionError as error:
                error.add_note(f"{note.of} of {note.execution_id}: was {note.was}, now {note.now}, seen {note.seen}")
                raise
        assert not wrong

    def _check(self, note: Any, allowed: Mapping[type, set[tuple[str, str]]]) -> None:
        was, now = note.was, note.now
        move = (was["status"], now["status"])
        kind = lifecycle.ExecutionStatus if note.of == "execution" else lifecycle.StepStatus
        if move[0] != move[1]:
            assert move in allowed[kind], "no transition goes this way"
        else:
            assert was["finished_at"] is None, "what has ended was written to"
        if note.of == "step":
            self._step(note.execution_id, was, now, note.seen)

    def _step(self, execution_id: str, was: Any, now: Any, seen: Any) -> None:
        run = self._runs[execution_id]
        if was["status"] == now["status"]:
            assert was["claim_token"] == now["claim_token"], "a second claim of a running step"
            return
        if was["status"] in STEP_TERMINAL:
            self._resets[now["id"]] += 1
            run.failed.discard(now["path"])
            run.lost.discard(now["path"])
        if now["status"] == "running":
            self._claimed(run, was, now, seen)
        if was["status"] == "running":
            self._left(run, was, now, seen)

    def _claimed(self, run: Run, was: Any, now: Any, seen: Any) -> None:
        assert now["claim_token"] not in self._tokens
        self._tokens.add(now["claim_token"])
        assert seen["status"] == "running", "a step of an execution that does not run was claimed"
        assert seen["admitted"]
        assert now["attempt"] == was["attempt"] + (0 if was["resumes"] else 1)
        step = run.steps[now["step_id"]]
        most = step.get("retry_policy", {"max_attempts": 1})["max_attempts"]
        assert now["attempt"] - now["losses"] - (now["forgiven"] or 0) <= most, "more attempts than the policy allows"
        scope = now["path"].removesuffix(now["step_id"])
        states = {id: seen["steps"].get(scope + id, (None, None)) for id in (now["step_id"], *step["depends_on"])}
        blocking = {
            id
            for id, (status, error_kind) in states.items()
            if (status == "failed" and run.steps[id]["on_error"] == "fail")
            or status == "cancelled"
            or error_kind == "upstream"
        }
        wanted = is_wanted(step, {id: status for id, (status, _) in states.items()}, blocking)
        assert wanted, "a step was claimed that its rule does not let run"
        if now["path"].startswith(("on_failure.", "finally.")):
            own = {path: one for path, (one, _) in seen["steps"].items() if "on_failure." not in path}
            main = {one for path, one in own.items() if not path.startswith("finally.")}
            assert main <= STEP_TERMINAL, "what runs at the end began before it"

    def _left(self, run: Run, was: Any, now: Any, seen: Any) -> None:
        """A claim came to its end. It had a token of its own, so that this is the only time."""
        step, path = run.steps[now["step_id"]], now["path"]
        given = self._world.given.get(was["claim_token"])
        kind, status = now["error_kind"], now["status"]
        generation = (now["id"], self._resets[now["id"]])
        if status == "cancelled":
            return
        if status == "queued":
            is_lost = now["losses"] == was["losses"] + 1
            assert is_lost != now["resumes"], "a step was given to others for no reason"
            assert not (is_lost and seen["lives"]), "a step was taken from a worker that lives"
            return
        if status == "waiting" and now["resumes"]:
            assert given is Outcome.RESTED or now["awaits"] == "body"
            return
        result = (now["id"], now["attempt"])
        assert result not in self._recorded, "a second result of one attempt"
        self._recorded.add(result)
        if status == "skipped":
            assert "when" in step
            return
        if status == "completed":
            assert given in (None, Outcome.COMPLETED)
            assert given is None or now["output"] == {"token": was["claim_token"]}, "the result of somebody else"
            assert given is not None or step["type"] not in ACTS
            run.failed.discard(path)
            return
        most = step.get("retry_policy", {"max_attempts": 1})["max_attempts"]
        self._failures[generation] += 1
        failures = self._failures[generation]
        if kind == "lost":
            assert not seen["lives"], "a step was taken from a worker that lives"
            assert now["losses"] + 1 == MAX_LOSSES
            run.lost.add(path)
        elif kind == "timeout":
            assert step.get("timeout")
        elif step["type"] in ACTS:
            assert given in (Outcome.FAILED, Outcome.FAILED_FOR_GOOD)
        else:
            assert kind == "body"
        if status == "waiting":
            assert failures < most, "another attempt than the policy allows"
            return
        run.failed.add(path)
        ends_now = kind in ("lost", "body") or given is Outcome.FAILED_FOR_GOOD
        assert ends_now or failures == most, "a step failed before its last attempt"


# --- the machine ---------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """What all examples share: servers, and two reconcilers that have watched for a whole lease."""

    deployment: Deployment
    world: World
    reconcilers: list[Reconciler]
    now: float = 0.0
    began: tuple[float, list[dict[str, Any]]] = (0.0, [])
    """What time it was, and what the reconcilers knew, when the first example began."""

    def is_set(self) -> None:
        self.began = self.now, [dict(vars(reconciler)) for reconciler in self.reconcilers]

    def tick(self, which: int, seconds: float) -> None:
        self.now += seconds
        self.deployment.sql("UPDATE duties SET at = at - interval '1 day'")  # the other lets go of it
        self.reconcilers[which].tick(self.now)
        assert not self.reconcilers[which].stumbled

    def clear(self) -> None:
        """So that an example comes to the same whatever came before it."""
        self.now, known = self.began
        for reconciler, state in zip(self.reconcilers, known, strict=True):
            vars(reconciler).update(state)
        self.deployment.sql("DELETE FROM workflows")
        self.deployment.sql("DELETE FROM worker_processes")
        self.deployment.sql("DELETE FROM notes")
        self.world.broker.messages.clear()
        self.world.broker.is_away = False
        self.world.given.clear()
        self.world.surprises.clear()


IN_THE_WAY = {Why.PAUSED, Why.ADVANCING}
REASONS = {
    "pending": {*IN_THE_WAY, Why.WAITING_FOR_DEPENDENCIES, Why.WAITING_FOR_TURN},
    "waiting": {*IN_THE_WAY, Why.RETRY_AT, Why.WAITING_FOR_TIME, Why.WAITING_FOR_BODY},
    "queued": {
        *(*IN_THE_WAY, Why.LIMIT_REACHED, Why.HELD_BY_LIMIT, Why.NO_WORKER, Why.BUSY, Why.BROKER_UNREACHABLE),
        *(Why.MESSAGE_ON_ITS_WAY, Why.MESSAGE_LATE),
    },
}
"""Why a step with this status does not run; one with another has that for its reason."""
OUTCOMES = [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.RESTED, *Outcome]


class Protocol(RuleBasedStateMachine):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.world = stage.world
        self.broker: Broker = stage.world.broker
        self.runs: dict[str, Run] = {}
        stage.clear()
        self.workers = [Worker(self.world) for _ in range(WORKERS)]
        self.notes = Notes(self.world, self.runs)
        self.allowed = MOVES

    def sql(self, statement: str, **params: Any) -> list[Any]:
        return self.stage.deployment.sql(statement, **params)

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.task is None and not worker.watch.is_stopping]

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def status(self, execution_id: str) -> str:
        ((status,),) = self.sql("SELECT status FROM all_executions WHERE id = %(id)s::uuid", id=execution_id)
        return str(status)

    # --- what may happen -------------------------------------------------------------------------------------------

    @initialize(definition=definitions(), executions=st.integers(1, 3))
    def begin(self, definition: dict[str, Any], executions: int) -> None:
        self._start(definition, executions, False)

    @rule(data=st.data())
    def happens(self, data: st.DataObject) -> None:
        """Something that makes sense now. (As rules of their own these would be chosen by swarm testing: most examples
        would have to do without some, and none of the faults shows anything unless work goes on.)"""
        getattr(self, data.draw(st.sampled_from(list(self._possible())), label="what"))(data)

    def _possible(self) -> Iterator[str]:
        """What occurs more often is worth more."""
        if len(self.runs) < 5:
            yield "start"
        if self.broker.messages and self.idle():
            yield from ("take",) * 4
        if self.broker.messages:
            yield "lose"
        if self.busy():
            yield from ("go_on",) * 4
            yield from ("creep", "creep", "die", "freeze", "beat", "stop", "overstay", "lose_database")
        if self._between():
            yield from ("die_between",) * 8
        if self._resting("running", "paused"):
            yield from ("oversleep",) * 2
        yield from ("tick", "tick", "lose_patience", "user", "lay_aside")

    # --- what users do ---------------------------------------------------------------------------------------------

    def start(self, data: st.DataObject) -> None:
        self._start(data.draw(definitions()), data.draw(st.integers(1, 2)), data.draw(st.booleans(), label="silent"))

    def _start(self, definition: dict[str, Any], executions: int, is_silent: bool) -> None:
        with self.world.store.transaction() as connection:
            workflow_id = workflows.insert(
                connection,
                name="any",
                description="",
                tags=[],
                owner_id=None,
                is_template=False,
                definition=definition,
            )
        for _ in range(executions):
            started = start_execution(self.world.store, self.world.programs, workflow_id, {})
            self.runs[started.execution_id] = Run(definition)
            if not is_silent:  # else the API died before it could send
                self.broker.send(started.plan)

    def user(self, data: st.DataObject) -> None:
        calls = [self._pause, self._resume, self._resume, self._retry, self._retry, self._cancel]
        data.draw(st.sampled_from(calls))(data.draw(st.sampled_from(list(self.runs))))

    def _pause(self, execution_id: str) -> None:
        with suppress(Conflict):
            control.pause(self.world.store, execution_id)

    def _resume(self, execution_id: str) -> None:
        with suppress(Conflict):
            for plan in control.resume(self.world.store, self.world.programs, execution_id):
                self.broker.send(plan)

    def _cancel(self, execution_id: str) -> None:
        ((is_untouched, outcome),) = self.sql(
            "SELECT admitted_at IS NULL AND NOT EXISTS (SELECT FROM all_step_executions s WHERE s.execution_id = e.id "
            "AND s.attempt > coalesce(s.forgiven, 0)), outcome FROM all_executions e WHERE id = %(id)s::uuid",
            id=execution_id,
        )
        before = self.status(execution_id)
        try:
            plans = control.cancel(self.world.store, self.world.programs, execution_id, "by a user")
        except Conflict:
            assert before in ("completed", "failed") or outcome in ("completed", "failed")
            return
        run = self.runs[execution_id]
        if run.ended_as is None:
            run.ended_as, run.was_untouched = "cancelled", is_untouched
        for plan in plans:
            self.broker.send(plan)

    def _retry(self, execution_id: str) -> None:
        before = self.status(execution_id)
        run = self.runs[execution_id]
        kept = self._kept(execution_id, run)
        try:
            plans = control.retry(self.world.store, self.world.programs, execution_id)
        except Conflict:
            assert before == "completed" or (before not in ("failed", "cancelled") and not run.is_tried_again)
            return
        if before not in ("failed", "cancelled"):  # said twice
            assert run.is_tried_again
            return
        run.is_tried_again = True
        self.allowed = MOVES_OF_A_RETRY
        run.kept, run.ended_as, run.was_untouched = kept, None, False
        for plan in plans:
            self.broker.send(plan)

    def _kept(self, execution_id: str, run: Run) -> dict[str, str]:
        """What a retry is to take over as it is."""
        rows = self.sql(
            "SELECT path, step_id, status, error_kind FROM all_step_executions WHERE execution_id = %(id)s::uuid",
            id=execution_id,
        )
        return {
            path: status
            for path, step_id, status, error_kind in rows
            if not path.startswith(("on_failure.", "finally."))
            and (
                status == "completed"
                or (status == "skipped" and error_kind is None)
                or (status == "failed" and run.steps[step_id]["on_error"] == "continue")
            )
        }

    # --- what the broker does --------------------------------------------------------------------------------------

    def lose(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 3), label="all of four"):
            self._message(data, again=False)
        else:
            self.broker.messages.clear()

    def _message(self, data: st.DataObject, *, again: bool) -> Message:
        """Any of them, in any order; one that is delivered `again` stays there."""
        at = data.draw(st.integers(0, len(self.broker.messages) - 1), label="message")
        return self.broker.messages[at] if again else self.broker.messages.pop(at)

    # --- what workers do -------------------------------------------------------------------------------------------

    def take(self, data: st.DataObject) -> None:
        taker = self.idle()[0]
        taker.take(self._message(data, again=data.draw(st.integers(0, 2), label="again") == 2))
        if data.draw(st.integers(0, 2), label="late") < 2:  # else it does not even come to its claim
            taker.go_to("perform")

    def go_on(self, data: st.DataObject) -> None:
        """To the middle of the next step, if there is one; or to where nobody knows what follows the last."""
        self._go(data, self._busy_one(data), "perform", "between")

    def creep(self, data: st.DataObject) -> None:
        """Just to the next statement or message."""
        self._go(data, self._busy_one(data), *POINTS)

    def _go(self, data: st.DataObject, worker: Worker, *points: str) -> None:
        assert worker.task is not None
        if worker.task.at == "perform":
            worker.task.outcome = data.draw(st.sampled_from(OUTCOMES))
        worker.go_to(*points)

    def _busy_one(self, data: st.DataObject) -> Worker:
        return self.busy()[data.draw(st.integers(0, len(self.busy()) - 1), label="worker")]

    def die(self, data: st.DataObject) -> None:
        """In the middle of a step, or between two of the statements and messages that follow it."""
        worker = self._creep_on(data)
        if worker.task is not None:
            self._replace(worker)

    def die_between(self, data: st.DataObject) -> None:
        """The record of a step is one commit, and another look at what follows, where it takes one, is a second: nobody
        else knows of it."""
        self._replace(data.draw(st.sampled_from(self._between())))

    def _between(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.task is not None and worker.task.at == "between"]

    def _creep_on(self, data: st.DataObject) -> Worker:
        worker = self._busy_one(data)
        for _ in range(data.draw(st.integers(0, 2), label="points")):
            if worker.task is not None:
                self._go(data, worker, *POINTS)
        return worker

    def _replace(self, worker: Worker) -> None:
        worker.die()
        self._age_lease(worker)
        self.workers[self.workers.index(worker)] = Worker(self.world)

    def freeze(self, data: st.DataObject) -> None:
        """For so long that it is taken for dead; it wakes up when it is its turn."""
        self._age_lease(self._busy_one(data))
        self.stage.tick(0, 0.1)

    def _age_lease(self, worker: Worker) -> None:
        self.sql(
            "UPDATE worker_processes SET seen_at = seen_at - interval '1 day' WHERE id = %(id)s::uuid",
            id=worker.lease.id,
        )

    def beat(self, data: st.DataObject) -> None:
        """Perhaps under a new id; what it performs meanwhile was claimed under the old one."""
        self._busy_one(data).lease.beat()

    def stop(self, data: st.DataObject) -> None:
        self._busy_one(data).stop()

    def overstay(self, data: st.DataObject) -> None:
        """The time is up of the step that it performs, or of all of its execution."""
        task = self._busy_one(data).task
        assert task is not None
        if data.draw(st.booleans(), label="all of it") and self._is_in_its_main_part(task.message.execution_id):
            self._overrun(task.message.execution_id)
            return
        token = None if task.claim is None else task.claim.token
        self.sql(
            "UPDATE step_executions SET deadline = deadline - interval '1 day' WHERE claim_token = %(token)s::uuid",
            token=token,
        )
        self.stage.tick(0, 0.1)
        late = "claim_token = %(token)s::uuid AND deadline < clock_timestamp()"
        assert not self.sql(f"SELECT FROM all_step_executions WHERE {late}", token=token), "a step takes for ever"

    def _overrun(self, execution_id: str) -> None:
        self.sql(
            "UPDATE executions SET deadline = deadline - interval '1 day' WHERE id = %(id)s::uuid", id=execution_id
        )
        self.stage.tick(0, 0.1)
        assert not self._is_in_its_main_part(execution_id), "an execution takes for ever"
        self.runs[execution_id].ended_as = "failed"

    def _is_in_its_main_part(self, execution_id: str) -> bool:
        return bool(
            self.sql(
                "SELECT FROM all_executions WHERE id = %(id)s::uuid AND status = 'running' AND outcome IS NULL",
                id=execution_id,
            )
        )

    def oversleep(self, data: st.DataObject) -> None:
        """The time of a step is up that rests in the middle of an attempt: no worker has to take it on for that."""
        step_id = data.draw(st.sampled_from(self._resting("running", "paused")), label="step")
        self.sql(
            "UPDATE step_executions SET deadline = deadline - interval '1 day' WHERE id = %(id)s::uuid", id=step_id
        )
        self.stage.tick(0, 0.1)
        assert step_id not in self._resting("running"), "a step rests on although its time is up"

    def _resting(self, *statuses: str) -> list[str]:
        """The steps with a time that rest in the middle of an attempt, in executions with these statuses."""
        rows = self.sql(
            "SELECT s.id::text FROM all_step_executions s JOIN all_executions e ON e.id = s.execution_id "
            "WHERE s.status = 'waiting' AND s.resumes AND s.deadline IS NOT NULL AND e.status = ANY(%(statuses)s) "
            "ORDER BY s.id",
            statuses=list(statuses),
        )
        return [id for (id,) in rows]

    def lose_database(self, data: st.DataObject) -> None:
        """The answer to a statement does not come; the lane does not know what became of it."""
        worker = self._creep_on(data)
        if worker.task is not None and worker.task.at in ("store", "between"):
            worker.go(Order.LOSE_DATABASE)

    def lose_patience(self, _data: st.DataObject) -> None:
        """What lanes have kept and not begun goes out; those that were asked to stop, and have, are replaced."""
        for worker in list(self.workers):
            worker.doorbell.lose_patience()
            if worker.watch.is_stopping and worker.task is None:
                self._replace(worker)

    def lay_aside(self, _data: st.DataObject) -> None:
        """What has ended; a user may still have it tried again."""
        self.stage.deployment.lay_aside()

    # --- what reconcile does ---------------------------------------------------------------------------------------

    def tick(self, data: st.DataObject) -> None:
        if data.draw(st.booleans(), label="late"):
            self._let_time_pass()
        self.broker.is_away = data.draw(st.integers(0, 3), label="away") == 3
        self.stage.tick(data.draw(st.integers(0, 1), label="reconciler"), data.draw(st.sampled_from([10.0, 0.1])))

    def _let_time_pass(self) -> None:
        """Timers come due, and what was not claimed was rung for long ago."""
        # Once a message: it is by its time that reconcile knows a step again.
        self.sql(
            "UPDATE step_executions SET rung_at = rung_at - interval '1 day' "
            f"WHERE rung_at > clock_timestamp() - interval '1 hour' AND {LIVE_STEP}"
        )
        self.sql(f"UPDATE step_executions SET next_attempt_at = next_attempt_at - interval '2 h' WHERE {LIVE_STEP}")

    # --- what has to hold ------------------------------------------------------------------------------------------

    @invariant()
    def promises_are_kept(self) -> None:
        if self.world.surprises:
            raise self.world.surprises[0]
        allowed, self.allowed = self.allowed, MOVES
        self.notes.check(allowed)

    def teardown(self) -> None:
        try:
            if sys.exception() is None and self.runs:
                self._ask_why()
                self._come_to_an_end()
                for execution_id, run in self.runs.items():
                    self._check_end(execution_id, run)
        finally:
            for worker in self.workers:
                worker.die()

    def _ask_why(self) -> None:
        """Of whatever there is now: one reason that fits its status."""
        for execution_id in self.runs:
            why_execution(self.world.store, self.world.programs, self.broker.look, execution_id)
            for step in self.stage.deployment.execution(execution_id)["step_executions"]:
                told = why_step(self.world.store, self.world.programs, self.broker.look, str(step["id"]))
                assert told.reason in REASONS.get(step["status"], {step["status"]}), (step["path"], told)

    def _come_to_an_end(self) -> None:
        """Without any more faults, it takes reconcile and the workers a bounded number of rounds."""
        self.broker.is_away = False
        for worker in self.workers:
            worker.watch.is_stopping = False
            worker.lease.beat()
        for execution_id in self.runs:
            self._resume(execution_id)
        for _ in range(100):
            self._let_time_pass()
            self.stage.tick(0, 10.0)
            self._work()
            self.promises_are_kept()
            if self._is_quiet():
                return
        raise AssertionError(f"it does not come to an end: {self._unfinished()}")

    def _work(self) -> None:
        while self.busy() or self.broker.messages:
            for worker in self.workers:
                if worker.task is None and self.broker.messages:
                    worker.take(self.broker.messages.pop(0))
                if worker.task is not None:
                    worker.task.outcome = Outcome.COMPLETED
                    worker.go_to("perform")
                worker.doorbell.lose_patience()

    def _is_quiet(self) -> bool:
        return not self.sql(f"SELECT FROM all_executions WHERE status NOT IN ({TERMINAL}) LIMIT 1")

    def _unfinished(self) -> list[Any]:
        return self.sql(
            "SELECT e.id::text, e.status, e.admitted_at IS NOT NULL, e.outcome, s.path, s.status, s.awaits, s.attempt, "
            "s.losses FROM all_executions e JOIN all_step_executions s ON s.execution_id = e.id "
            f"WHERE e.status NOT IN ({TERMINAL}) ORDER BY e.id, s.id"
        )

    def _check_end(self, execution_id: str, run: Run) -> None:
        expected = Reference(run)
        found = self.stage.deployment.statuses(execution_id)
        for path in expected.open:
            assert found.get(path, "skipped") in STEP_TERMINAL
        settled = expected.states.keys() - expected.open
        assert {path: found.get(path) for path in settled} == {path: expected.states[path] for path in settled}
        assert found.keys() <= expected.states.keys()
        assert self.status(execution_id) == expected.status


# --- the test ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        deployed(
            tmp_path_factory.mktemp("protocol"), max_concurrent=PLACES, lease=LEASE, max_losses=MAX_LOSSES
        ) as deployment,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(runner, "INLINE_BUDGET", math.inf)  # or what happens would depend on how fast
        patched.setattr(runner, "ThreadPoolExecutor", OneAfterTheOther)
        deployment.sql(_NOTES)
        settings = deployment.settings
        store = HaltingStore(settings.database)
        programs = Programs(load_catalogue("simulation"), settings)
        world = World(settings, store, programs)
        reconcilers = [
            Reconciler(
                store,
                programs,
                settings,
                world.broker,
                world.broker.dispatch,
                holder=new_id(),
                host="where it reconciles",
            )
            for _ in range(2)
        ]
        stage = Stage(deployment, world, reconcilers)
        for _ in range(8):
            for which in (0, 1):
                stage.tick(which, LEASE / 8)
        stage.is_set()
        yield stage
        store.close()


@pytest.mark.timeout(0 if EXAMPLES else 1800)
def test_every_execution_ends_as_it_should_whatever_is_lost_doubled_late_or_dead(stage: Stage):
    run_state_machine_as_test(
        partial(Protocol, stage),
        settings=settings(
            max_examples=EXAMPLES or 20,
            stateful_step_count=40,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
