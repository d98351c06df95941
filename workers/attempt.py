"""One attempt of one step: render its configuration, perform it, and make its result fit to be stored."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import marshmallow

from orchestrator.config import Settings
from orchestrator.definition.model import Step
from orchestrator.definition.templates import Compiled, compile_expression, compile_value
from orchestrator.engine.advance import execution_facts
from orchestrator.engine.programs import Program
from orchestrator.engine.start import check_payload
from orchestrator.errors import InputError, StepFailed, StepTimeout, TemplateError
from orchestrator.store import Store, logs, steps
from orchestrator.store.logs import LogLine
from orchestrator.store.steps import Claim, ExecutionFacts
from workers.secrets import Secrets
from workers.steps.contract import Done, LogLevel, StepContext, StepType, Wait

logger = logging.getLogger(__name__)

ALARM_GRACE = 0.5
"""Seconds past the deadline before a step is interrupted: a step type that watches the time itself has the
better error message."""


@dataclass(slots=True)
class Prepared:
    """What is the same for every attempt of a step in any execution of its workflow version."""

    type: StepType
    config: Tree
    input_mapping: Compiled | None
    references: frozenset[str]
    """Steps whose outputs the templates name."""
    loaded: Mapping[str, Any] | None
    """The checked configuration, if it has no templates."""


class Tree:
    """A configuration compiled field by field: expressions as such, raw fields not at all."""

    def __init__(self, config: Mapping[str, Any], step_type: StepType) -> None:
        self._type = step_type
        self.parts: list[Compiled] = []
        self._root = self._compile(dict(config), "")
        self.constant = all(part.constant for part in self.parts)

    def render(self, context: Mapping[str, object]) -> Any:
        return self._render(self._root, context)

    def _compile(self, value: Any, path: str) -> Any:
        if path and path in self._type.raw_fields:
            return value
        if path in self._type.expression_fields and isinstance(value, str):
            return self._part(compile_expression(value))
        if isinstance(value, dict):
            return {key: self._compile(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._compile(item, path) for item in value]
        return self._part(compile_value(value)) if isinstance(value, str) else value

    def _part(self, compiled: Compiled) -> Compiled:
        self.parts.append(compiled)
        return compiled

    def _render(self, node: Any, context: Mapping[str, object]) -> Any:
        if isinstance(node, Compiled):
            return node.render(context)
        if isinstance(node, dict):
            return {key: self._render(item, context) for key, item in node.items()}
        if isinstance(node, list):
            return [self._render(item, context) for item in node]
        return node


def prepare(program: Program, step: Step, catalogue: Mapping[str, Any]) -> Prepared:
    """Compile a step's templates; kept with the program. Raises StepFailed for a type that is not here."""
    known: Prepared | None = program.prepared.get(step.id)
    if known is not None:
        return known
    step_type: StepType | None = catalogue.get(step.type)
    if step_type is None:
        raise StepFailed(
            f"this worker does not know the step type {step.type!r}; start it with the plugin that has it",
            kind="config",
        )
    config = Tree(step.config or {}, step_type)
    mapping = None if step.input_mapping is None else compile_value(dict(step.input_mapping))
    parts = [*config.parts, *([] if mapping is None else [mapping])]
    prepared = Prepared(
        step_type,
        config,
        mapping,
        frozenset(reference for part in parts for reference in part.steps),
        _load(step_type, config.render({})) if config.constant else None,
    )
    program.prepared[step.id] = prepared
    return prepared


def _load(step_type: StepType, config: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = step_type.Config().load(config)
    except marshmallow.ValidationError as error:
        raise StepFailed(
            f"the rendered config is not valid: {error.messages}", kind="config", retryable=False
        ) from None
    return loaded


class StoreFailed(Exception):
    """What the step reads could not be had from our own store: no failure of the step."""


@dataclass(slots=True)
class Attempt:
    """A claimed step about to be performed; `seen` is `steps.<id>` as far as the worker knows it already."""

    store: Store
    settings: Settings
    program: Program
    step: Step
    claim: Claim
    execution: ExecutionFacts
    catalogue: Mapping[str, Any]
    secrets: Secrets
    seen: dict[str, dict[str, Any]]
    ends_at: float | None
    """On time.monotonic()'s clock: when the execution's time is up."""
    recorded_input: Any = None

    def perform(self) -> Done | Wait | StepFailed:
        """The outcome, fit to be stored: secrets masked, JSON, within the size limit."""
        log = LogBuffer(self)
        try:
            outcome = self._perform(log)
            return self._storable(outcome) if isinstance(outcome, Done) else outcome
        except StoreFailed:
            raise
        except StepFailed as failure:
            return self._masked_failure(failure)
        except TemplateError as error:
            return self._masked_failure(StepFailed(str(error), kind="template", retryable=False))
        except Exception as error:  # whatever a step raises is a failed attempt
            logger.info("step %s raised", self.claim.path, exc_info=True)
            return self._masked_failure(StepFailed(f"{type(error).__name__}: {error}", kind="error"))
        finally:
            log.close()

    def _perform(self, log: LogBuffer) -> Done | Wait:
        prepared = prepare(self.program, self.step, self.catalogue)
        context = self._template_context(prepared)
        rendered = prepared.config.render(context)
        mapped = None if prepared.input_mapping is None else prepared.input_mapping.render(context)
        self.recorded_input = self.secrets.mask(rendered if mapped is None else mapped)
        config = _load(prepared.type, rendered) if prepared.loaded is None else prepared.loaded
        deadline = self._deadline()
        step_context = StepContext(
            execution_id=self.execution.id,
            step_execution_id=self.claim.id,
            step_id=self.step.id,
            path=self.claim.path,
            attempt=self.claim.attempt,
            config=config,
            input=self.execution.input if mapped is None else mapped,
            settings=self.settings,
            reveal=self._reveal,
            log=log.add,
            deadline=deadline,
            state=self.claim.state,
        )
        with interrupted_at(deadline):
            return prepared.type.perform(step_context)

    def _template_context(self, prepared: Prepared) -> Mapping[str, Any]:
        unread = prepared.references - self.seen.keys()
        if unread:
            try:
                with self.store.single() as connection:
                    self.seen |= steps.outputs(connection, self.execution.id, unread)
            except Exception as error:
                raise StoreFailed from error
        execution = self.execution
        return {
            "variables": self.program.variables,
            "input": execution.input,
            "steps": self.seen,
            "secrets": self.secrets,
            "trigger": {"id": execution.trigger_id},
            "execution": execution_facts(execution.id, execution.workflow_id, execution.version, execution.priority),
        }

    def _reveal(self, value: Any) -> Any:
        try:
            return compile_value(value).render({"secrets": self.secrets})
        except TemplateError as error:
            raise StepFailed(f"a setting of the worker: {error}", kind="config", retryable=False) from None

    def _deadline(self) -> float | None:
        limits = [self.ends_at] if self.ends_at is not None else []
        if self.step.timeout is not None:
            limits.append(time.monotonic() + self.step.timeout)
        return min(limits, default=None)

    def _storable(self, done: Done) -> Done:
        output = self.secrets.mask(done.output)
        try:
            check_payload(output, self.settings.executor.max_payload, path="output")
        except InputError as error:
            raise StepFailed(f"the step's {error}", kind="output", retryable=False) from None
        return Done(output, done.skip)

    def _masked_failure(self, failure: StepFailed) -> StepFailed:
        message = self.secrets.mask(str(failure)).replace("\0", "\N{REPLACEMENT CHARACTER}")[:10_000]
        output = None
        if failure.output is not None:
            try:
                output = self._storable(Done(failure.output)).output
            except StepFailed:
                message += " (its output was too large to keep)"
        return StepFailed(message, kind=failure.kind, retryable=failure.retryable, output=output)


@contextmanager
def interrupted_at(deadline: float | None) -> Iterator[None]:
    """Raise StepTimeout in the block once `deadline` has passed.

    Only a process's main thread can be interrupted, as the prefork pool's is; elsewhere the step types bound
    themselves, and reconcile gives the step up by its row's deadline.
    """
    if deadline is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise StepTimeout("the step's time is up")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic() + ALARM_GRACE))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class LogBuffer:
    """Log lines on their way to the store: at most half a second apart from it, many to a statement."""

    _LINES = 200
    _SECONDS = 0.5

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._lines: list[LogLine] = []
        self._left = attempt.settings.executor.max_log
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, message: str, level: LogLevel = "info") -> None:
        with self._lock:
            if self._left <= 0:
                return
            self._left -= len(message) + 1
            if self._left <= 0:
                message, level = "the log is longer than executor.max_log; the rest is dropped", "warning"
            clean = self._attempt.secrets.mask(message).replace("\0", "\N{REPLACEMENT CHARACTER}")
            self._lines.append(LogLine(datetime.now(UTC), level, clean))
            full = len(self._lines) >= self._LINES
            if not full and self._timer is None:
                self._timer = threading.Timer(self._SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()
        if full:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if not lines:
            return
        attempt = self._attempt
        try:
            with attempt.store.single() as connection:
                logs.append(
                    connection, attempt.execution.id, attempt.claim.id, attempt.step.id, attempt.claim.attempt, lines
                )
        except Exception:  # a step does not fail for its log
            logger.warning("%d log lines of step %s were lost", len(lines), attempt.claim.path, exc_info=True)

    def close(self) -> None:
        self.flush()
