"""Statuses, what each means and who moves it on, and the transitions between them.

A transition has a name; the store turns it into one UPDATE that is guarded by the transition's sources and
says whether it won. Nothing else writes a status.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from enum import StrEnum


class WorkflowStatus(StrEnum):
    DRAFT = "draft"
    """Being written. Can be executed by hand to try it; a user activates it."""
    ACTIVE = "active"
    """Triggers and users may start it."""
    PAUSED = "paused"
    """Nothing starts it, and what waits for a place is paused with it; a user resumes it."""
    COMPLETED = "completed"
    """Its run limit or end date was reached; a user activates it again."""
    FAILED = "failed"
    """Disabled after too many failures in a row; a user activates it again."""
    CANCELLED = "cancelled"
    """Retired by a user; it and its history stay readable."""


class ExecutionStatus(StrEnum):
    QUEUED = "queued"
    """Accepted and stored; the first claim of one of its steps moves it on."""
    RUNNING = "running"
    """Steps are being done or are about to be; the advance that finds nothing left ends it."""
    PAUSED = "paused"
    """No step of it is claimed; a user resumes it."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    PENDING = "pending"
    """Not all of its dependencies are done; the advance after the last of them moves it on."""
    QUEUED = "queued"
    """Ready, and a message for it has been or is about to be sent; the worker's claim moves it on. A lost
    message is found by reconcile."""
    RUNNING = "running"
    """A worker process holds its claim token; that worker records the result, or reconcile finds it gone."""
    WAITING = "waiting"
    """It rests until next_attempt_at (a retry, a timer) or until somebody decides; holds no worker."""
    COMPLETED = "completed"
    FAILED = "failed"
    """Every attempt it was allowed has failed."""
    SKIPPED = "skipped"
    """Not to run: a branch not taken, or a dependency that failed or was skipped."""
    CANCELLED = "cancelled"
    """Its execution was ended before it was done."""


class FireOutcome(StrEnum):
    """What came of a trigger's fire."""

    PENDING = "pending"
    """Recorded; whoever recorded it is about to start the execution, or reconcile does."""
    QUEUED = "queued"
    """It waits until the execution that the trigger started before has ended; reconcile moves it on."""
    STARTED = "started"
    """There is an execution."""
    SKIPPED = "skipped"
    """Nothing was to be started: the workflow is not active, the trigger is not to overlap itself, or it was missed."""
    FAILED = "failed"
    """Nothing could be started: the input does not fit the workflow."""


STARTABLE = frozenset({WorkflowStatus.DRAFT, WorkflowStatus.ACTIVE})
"""Workflows of which an execution can be started by hand."""

EXECUTION_TERMINAL = frozenset({ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED})
STEP_TERMINAL = frozenset({StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED})
EXECUTION_LIVE = frozenset(ExecutionStatus) - EXECUTION_TERMINAL
STEP_LIVE = frozenset(StepStatus) - STEP_TERMINAL
UNSETTLED = frozenset({FireOutcome.PENDING, FireOutcome.QUEUED})
"""Fires that somebody has still to see to."""


@dataclass(frozen=True, slots=True)
class Transition:
    """From any of `sources` to `target`."""

    name: str
    sources: frozenset[StrEnum]
    target: StrEnum

    @property
    def guard(self) -> str:
        """SQL that holds for rows this transition may move; the words come from the enums above."""
        return f"status IN ({sql_words(self.sources)})"

    @property
    def assignment(self) -> str:
        """SQL that writes the new status, and with that of an execution or a step the number of this change."""
        return f"status = '{self.target}'" + ("" if isinstance(self.target, WorkflowStatus) else numbered(self.target))


def numbered(target: StrEnum | None = None) -> str:
    """SQL that numbers a change of status for live streams (store/feed.py). What it was to begin with is kept, since
    the next change often comes before anybody has looked."""
    begun = target in (ExecutionStatus.RUNNING, StepStatus.RUNNING)
    return ", seq = nextval('feed_seq')" + (", begun_seq = nextval('feed_seq')" if begun else "")


def sql_words(statuses: Iterable[StrEnum]) -> str:
    """The statuses as a SQL list, for `status IN (...)`."""
    return ", ".join(f"'{status}'" for status in sorted(statuses))


def _step(name: str, sources: Set[StepStatus], target: StepStatus) -> Transition:
    return Transition(name, frozenset(sources), target)


# --- step executions ---------------------------------------------------------------------------------------
QUEUE = _step("queue", {StepStatus.PENDING}, StepStatus.QUEUED)
"""Its last dependency is done (advance)."""
CLAIM = _step("claim", {StepStatus.QUEUED}, StepStatus.RUNNING)
"""A worker takes it on."""
FOLLOW = _step("follow", {StepStatus.PENDING, StepStatus.QUEUED}, StepStatus.RUNNING)
"""The worker that just recorded the step before it goes straight on with it."""
COMPLETE = _step("complete", {StepStatus.RUNNING}, StepStatus.COMPLETED)
FAIL = _step("fail", {StepStatus.RUNNING}, StepStatus.FAILED)
DECLINE = _step("decline", {StepStatus.RUNNING}, StepStatus.SKIPPED)
"""Its `when` turned out not to be true."""
REST = _step("rest", {StepStatus.RUNNING}, StepStatus.WAITING)
"""A failed attempt with another one to come, or a step that asked to wait."""
WAKE = _step("wake", {StepStatus.WAITING}, StepStatus.QUEUED)
"""Its time has come (reconcile), or what it waits for has."""
EXPIRE = _step("expire", {StepStatus.WAITING}, StepStatus.RUNNING)
"""It rested for longer than its attempt may take (reconcile, which takes it on in order to fail it)."""
LOSE = _step("lose", {StepStatus.RUNNING}, StepStatus.QUEUED)
"""Its worker is gone (reconcile)."""
HAND_ON = _step("hand_on", {StepStatus.RUNNING}, StepStatus.QUEUED)
"""Its worker is asked to stop, and leaves it to others."""
SKIP = _step("skip", {StepStatus.PENDING}, StepStatus.SKIPPED)
CANCEL_STEP = _step("cancel", STEP_LIVE, StepStatus.CANCELLED)

RESET = _step("reset", {StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SKIPPED}, StepStatus.PENDING)
"""A user has its execution, or the step itself, tried again."""

# --- executions --------------------------------------------------------------------------------------------
BEGIN = Transition("begin", frozenset({ExecutionStatus.QUEUED}), ExecutionStatus.RUNNING)
"""Its first step is claimed."""
FINISH = Transition("finish", frozenset({ExecutionStatus.QUEUED, ExecutionStatus.RUNNING}), ExecutionStatus.COMPLETED)
"""Every step has ended and none failed that counts."""
FAIL_EXECUTION = Transition(
    "fail",
    frozenset({ExecutionStatus.QUEUED, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED}),
    ExecutionStatus.FAILED,
)
PAUSE_EXECUTION = Transition("pause", FINISH.sources, ExecutionStatus.PAUSED)
RESUME_EXECUTION = Transition("resume", frozenset({ExecutionStatus.PAUSED}), ExecutionStatus.RUNNING)
REQUEUE_EXECUTION = Transition("resume", RESUME_EXECUTION.sources, ExecutionStatus.QUEUED)
"""The same, of an execution of which no step had begun."""
RETRY_EXECUTION = Transition(
    "retry", frozenset({ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}), ExecutionStatus.QUEUED
)
"""It waits for a place like any other."""
CANCEL_EXECUTION = Transition("cancel", FAIL_EXECUTION.sources, ExecutionStatus.CANCELLED)

# --- workflows ---------------------------------------------------------------------------------------------
ACTIVATE = Transition(
    "activate",
    frozenset({WorkflowStatus.DRAFT, WorkflowStatus.PAUSED, WorkflowStatus.FAILED, WorkflowStatus.COMPLETED}),
    WorkflowStatus.ACTIVE,
)
PAUSE_WORKFLOW = Transition("pause", frozenset({WorkflowStatus.ACTIVE}), WorkflowStatus.PAUSED)
RESUME_WORKFLOW = Transition("resume", frozenset({WorkflowStatus.PAUSED}), WorkflowStatus.ACTIVE)
COMPLETE_WORKFLOW = Transition(
    "complete", frozenset({WorkflowStatus.ACTIVE, WorkflowStatus.PAUSED}), WorkflowStatus.COMPLETED
)
"""As many executions have ended as it is to have (the last of them), or its end date has come (reconcile)."""
FAIL_WORKFLOW = Transition("fail", COMPLETE_WORKFLOW.sources, WorkflowStatus.FAILED)
"""Too many of its executions have failed in a row (the last of them)."""
CANCEL_WORKFLOW = Transition("cancel", frozenset(WorkflowStatus) - {WorkflowStatus.CANCELLED}, WorkflowStatus.CANCELLED)
"""A user retires it, for good."""
