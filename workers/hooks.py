"""Telling the plugins what became of executions and steps: after the commit, beside the work, whatever they do.

Each plugin that implements a lifecycle hook has a thread of its own in each process that tells, so that one which is
slow or raises keeps neither a step nor another plugin waiting. See class Hooks in orchestrator/plugins.py for what a
plugin may count on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pluggy

from orchestrator.config import Settings
from orchestrator.definition.model import Step
from orchestrator.engine.advance import Failure
from orchestrator.errors import StepFailed
from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus, StepStatus
from orchestrator.metrics import HOOK_DROPS, HOOK_ERRORS, tally
from orchestrator.plugins import ExecutionEvent, StepEvent, load_plugins
from orchestrator.store import Store, execution_views
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.session import DatabaseAway, to_json
from workers.attempt import Skipped
from workers.secrets import SecretSource
from workers.steps.contract import Done, Spawn, Wait

logger = logging.getLogger(__name__)

BACKLOG = 1000
"""Calls that may wait for a plugin; it is not told what comes on top of them."""

LAST_WORDS = 2.0
"""Seconds for which a process that ends tells its plugins what is left."""

Event = ExecutionEvent | StepEvent

_ARGUMENTS = {
    "workflow_started": "execution",
    "step_started": "step",
    "step_completed": "step",
    "workflow_completed": "execution",
}


def announcer(settings: Settings, store: Store, secrets: SecretSource) -> Announcer | None:
    """Who tells the plugins of this process; None if none of them wants to be told anything."""
    listeners = _listeners(load_plugins(settings.plugins))
    return Announcer(listeners, store, secrets) if listeners else None


def _listeners(manager: pluggy.PluginManager) -> list[Listener]:
    plugins = manager.list_name_plugin()
    listeners = []
    for name, plugin in plugins:
        others = [other for _, other in plugins if other is not plugin]
        hooks = {}
        for hook, argument in _ARGUMENTS.items():
            caller = manager.subset_hook_caller(hook, others)
            if caller.get_hookimpls():
                hooks[hook] = _calling(caller, argument)
        if hooks:
            listeners.append(Listener(name, hooks))
    return listeners


def _calling(caller: Callable[..., Any], argument: str) -> Callable[[Event], None]:
    def call(event: Event) -> None:
        caller(**{argument: event})

    return call


class Announcer:
    """Makes the events and hands them to the plugins. No method raises or waits for a plugin."""

    def __init__(self, listeners: Sequence[Listener], store: Store, secrets: SecretSource) -> None:
        self._listeners = listeners
        self._store = store
        self._secrets = secrets
        self._hooks = frozenset(hook for listener in listeners for hook in listener.hooks)

    def execution_began(self, facts: ExecutionFacts) -> None:
        given = self._masked(facts.workflow_id, facts.input)
        event = ExecutionEvent(facts.id, facts.workflow_id, facts.version, ExecutionStatus.RUNNING.value, given)
        self.tell("workflow_started", event)

    def step_taken(self, facts: ExecutionFacts, step: Step, held: Claim) -> Report:
        """Tell that a worker has a step, and begin the report on it."""
        event = _event(facts.id, step, held)
        if held.state is None:
            self.tell("step_started", event)
        return Report(self, event)

    def attempt_failed(self, execution_id: str, step: Step, held: Claim, failure: Failure, *, retries: bool) -> None:
        failed = _failed(_event(execution_id, step, held), failure.kind, failure.message, failure.output)
        self.tell("step_completed", replace(failed, retries=retries))

    def execution_ended(self, execution_id: str) -> None:
        if "workflow_completed" not in self._hooks:
            return
        try:
            with self._store.single() as connection:
                shown = execution_views.summary(connection, execution_id)
        except Exception:
            logger.warning("the plugins are not told how execution %s ended", execution_id, exc_info=True)
            return
        if shown is None or shown["status"] not in EXECUTION_TERMINAL:
            return  # deleted; or paused just before it ended: it will end again when it is resumed
        workflow_id = str(shown["workflow_id"])
        mask = partial(self._masked, workflow_id)
        event = ExecutionEvent(
            execution_id,
            workflow_id,
            shown["version"],
            shown["status"],
            mask(shown["input"]),
            mask(shown["output"]),
            mask(shown["error_message"]),
            shown["duration"],
        )
        self.tell("workflow_completed", event)

    def _masked(self, workflow_id: str, value: Any) -> Any:
        """A value without the secrets that the workflow may name; nothing, if these cannot be had."""
        try:
            return self._secrets.of(workflow_id).mask(value)
        except DatabaseAway:
            return None

    def tell(self, hook: str, event: Event) -> None:
        for listener in self._listeners:
            listener.tell(hook, event)

    def close(self) -> None:
        """Tell what is left, for LAST_WORDS at most."""
        end = time.monotonic() + LAST_WORDS
        for listener in self._listeners:
            listener.close()
        for listener in self._listeners:
            listener.join(max(0.0, end - time.monotonic()))


class Report:
    """What is to be told of the end of an attempt, as soon as it is known that its record counted."""

    def __init__(self, announcer: Announcer, event: StepEvent) -> None:
        self._announcer = announcer
        self._event = event
        self._ended: StepEvent | None = None
        self._began = time.monotonic()

    def performed(self, outcome: Done | Wait | Spawn | Skipped | StepFailed) -> None:
        taken = time.monotonic() - self._began
        if isinstance(outcome, (Wait, Spawn)):
            return
        if isinstance(outcome, Done):
            ended = replace(self._event, status=StepStatus.COMPLETED.value, output=outcome.output)
        elif isinstance(outcome, Skipped):
            ended = replace(self._event, status=StepStatus.SKIPPED.value, error_message=outcome.reason)
        else:
            ended = _failed(self._event, outcome.kind, str(outcome), outcome.output)
        self._ended = replace(ended, duration=taken)

    def recorded(self, *, retries: bool, ended: bool) -> None:
        """The record counted; `ended`: with it, the execution has ended."""
        if self._ended is not None:
            self._announcer.tell("step_completed", replace(self._ended, retries=retries))
            self._ended = None
        if ended:
            self._announcer.execution_ended(self._event.execution_id)


def _event(execution_id: str, step: Step, held: Claim) -> StepEvent:
    return StepEvent(
        execution_id, held.id, held.path, step.id, step.type, held.attempt, status=StepStatus.RUNNING.value
    )


def _failed(event: StepEvent, kind: str, message: str, output: Any) -> StepEvent:
    return replace(event, status=StepStatus.FAILED.value, error_kind=kind, error_message=message, output=output)


class Listener:
    """One plugin, and the calls that wait for it."""

    def __init__(self, plugin: str, hooks: Mapping[str, Callable[[Event], None]]) -> None:
        self.plugin = plugin
        self.hooks = hooks
        self._calls: deque[tuple[str, Event]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._behind = False
        self._thread = threading.Thread(target=self._call_all, name=f"hooks of {plugin}", daemon=True)
        self._thread.start()

    def tell(self, hook: str, event: Event) -> None:
        if hook not in self.hooks:
            return
        with self._changed:
            if len(self._calls) < BACKLOG:
                self._calls.append((hook, event))
                self._changed.notify()
                return
            was_behind, self._behind = self._behind, True
        tally.add(HOOK_DROPS, self.plugin, hook)
        if not was_behind:
            logger.warning("the plugin %s is too slow: %d calls wait, others are dropped", self.plugin, BACKLOG)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _call_all(self) -> None:
        while (call := self._next()) is not None:
            hook, event = call
            try:
                self.hooks[hook](_own(event))
            except (Exception, SystemExit):  # whatever a plugin does is no harm to executions
                tally.add(HOOK_ERRORS, self.plugin, hook)
                logger.exception("the hook %s of the plugin %s raised", hook, self.plugin)

    def _next(self) -> tuple[str, Event] | None:
        with self._changed:
            while not self._calls:
                self._behind = False
                if self._closed:
                    return None
                self._changed.wait()
            return self._calls.popleft()


def _own(event: Event) -> Event:
    """A copy for one plugin to do with as it likes, with values as they come from the store."""
    if isinstance(event, StepEvent):
        return replace(event, output=_copied(event.output))
    return replace(event, input=_copied(event.input), output=_copied(event.output))


def _copied(value: Any) -> Any:
    return orjson.loads(to_json(value))
