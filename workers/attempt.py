"""One attempt of one step: render its configuration, perform it, and make its result fit to be stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from orchestrator.artifacts import Artifacts
from orchestrator.config import OutputLimit, Settings
from orchestrator.definition.model import Step
from orchestrator.definition.scopes import phase_of
from orchestrator.definition.templates import compile_value
from orchestrator.engine.endings import NOT_TRIGGERED, execution_facts, trigger_facts
from orchestrator.engine.programs import Program
from orchestrator.engine.start import encoded
from orchestrator.errors import (
    OrchestratorError,
    StepFailed,
    TemplateError,
)
from orchestrator.lifecycle import StepStatus
from orchestrator.metrics import tally
from orchestrator.store import Store, cached_results, executions, logs, rate_line, signals, steps
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.logs import LogLine
from orchestrator.store.rates import AWAITS_RATE, Rate
from orchestrator.store.session import Call
from orchestrator.store.step_rows import EndedRow
from workers.inline import Room, perform_body
from workers.interrupting import interruptible
from workers.log_buffer import LogBuffer
from workers.outcomes import check_outcome, plain, storable_failure, what_was_raised
from workers.pending_signals import PendingSignals
from workers.prepared import Prepared, load, prepare
from workers.rounds import named, rounds
from workers.secrets import Secrets
from workers.steps.condition import is_true
from workers.steps.contract import Done, Round, Spawn, StepContext, Wait, Workflows
from workers.stopping import Watch

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The step's `when` is not true."""

    reason: str


Outcome = Done | Wait | Spawn | Skipped | StepFailed


class StoreFailed(Exception):
    """What the step reads could not be had from our own store: no failure of the step."""


@contextmanager
def own_store() -> Iterator[None]:
    """Raise StoreFailed for whatever fails in the block, unless it is an answer."""
    try:
        yield
    except OrchestratorError:
        raise
    except Exception as error:
        raise StoreFailed from error


def _counted_as(outcome: Outcome) -> str:
    if isinstance(outcome, Done):
        return "completed"
    if isinstance(outcome, StepFailed):
        return "failed"
    return "skipped" if isinstance(outcome, Skipped) else "waiting"


@dataclass(slots=True)
class Attempt:
    """A claimed step about to be performed; `seen` is what templates see of other steps, by their paths, as far as
    the worker knows it already."""

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
    watch: Watch
    workflows: Workflows | None
    """None where no other may be started."""
    recorded_input: Any = None
    variables: Any = None
    """What the output was mapped to."""
    room: Room | None = None
    """For bodies that only compute, which are performed in this attempt then."""
    body: Sequence[EndedRow] = ()
    """The steps in those that were."""
    pending_signals: PendingSignals | None = None
    """Signals that are taken when the result is recorded; None to take them at once."""
    besides: list[Call] = field(default_factory=list)
    """What is recorded with the result, or neither is."""
    signals: list[str] = field(default_factory=list)
    """The ids of those of the pending signals that it took."""

    @property
    def artifacts(self) -> Artifacts:
        return self.program.artifacts

    def perform(self) -> Outcome:
        """The outcome, fit to be stored: secrets masked, JSON, within the size limit."""
        began = time.monotonic()
        outcome = self._tried(self._perform)
        tally.attempt(self.step.type, _counted_as(outcome), time.monotonic() - began)
        return outcome

    def cancel(self) -> StepFailed | None:
        """Have the type cancel what this attempt has begun elsewhere; why that came to nothing, if it did."""
        return self._tried(self._cancel)

    def _tried(self, act: Callable[[LogBuffer], T]) -> T | StepFailed:
        log = LogBuffer(self)
        try:
            return act(log)
        except StoreFailed:
            raise
        except StepFailed as failure:
            return self._masked_failure(failure)
        except TemplateError as error:
            return self._masked_failure(StepFailed(str(error), kind="template", retryable=False))
        except BaseException as error:  # whatever a step raises is a failed attempt: nobody else would end it
            logger.info("step %s raised", self.claim.path, exc_info=True)
            return self._masked_failure(StepFailed(what_was_raised(error)))
        finally:
            log.close()

    def _cancel(self, log: LogBuffer) -> None:
        prepared = prepare(self.program, self.step, self.catalogue)
        context = self._step_context(prepared, self._template_context(prepared), log)
        with interruptible(context.deadline):
            prepared.type.cancel(context)

    def _perform(self, log: LogBuffer) -> Done | Wait | Spawn | Skipped:
        prepared = prepare(self.program, self.step, self.catalogue)
        context = self._template_context(prepared)
        if not self._is_wanted(prepared, context):
            return Skipped(f"`when` is not true: {self.step.when}")
        cached, key = self._cached(prepared, context)
        outcome = self._performed(prepared, context, log) if cached is None else cached
        if not isinstance(outcome, Done):
            return outcome
        done, written = self._storable(outcome)
        if prepared.output_mapping is not None:
            mapped = prepared.output_mapping.render({**context, "output": done.output})
            self.variables = self.secrets.mask(mapped)
        if cached is not None:
            log.add("the result was taken from the cache")
        elif key is not None and self.step.cache is not None:
            if len(written) > self.settings.executor.max_payload:
                log.add(f"the result is not cached: it has {len(written):,} bytes (executor.max_payload)", "warning")
            else:
                with own_store(), self.store.single() as connection:
                    cached_results.keep(connection, key, done.output, self.step.cache.ttl)
        return self._kept(done, written)

    def _is_wanted(self, prepared: Prepared, context: Mapping[str, Any]) -> bool:
        if self.claim.state is not None or self.step.when is None:
            return True
        return is_true(self.step.when if prepared.when is None else prepared.when.render(context))

    def _cached(self, prepared: Prepared, context: Mapping[str, Any]) -> tuple[Done | None, cached_results.Key | None]:
        if prepared.cache_key is None:
            return None, None
        rendered = prepared.cache_key.render(context)
        key = cached_results.key(self.execution.workflow_id, self.step.id, rendered)
        if self.claim.state is not None:
            return None, key
        with own_store(), self.store.single() as connection:
            found = cached_results.find(connection, key)
        return (None if found is None else Done(found[0])), key

    def _performed(self, prepared: Prepared, context: Mapping[str, Any], log: LogBuffer) -> Done | Wait | Spawn:
        step_context = self._step_context(prepared, context, log)
        rate = prepared.type.rate(step_context.config, self.settings)
        if rate is not None and self.claim.state is None and not self._may_begin(rate):
            return Wait(until=None, awaits=AWAITS_RATE)
        outcome = self._perform_type(prepared, step_context)
        # Once rounds have been done the long way, the result is made of those as well: the rest goes that way, too.
        in_one_go = prepared.has_pure_bodies and self.claim.state is None
        if not isinstance(outcome, Spawn) or self.room is None or not in_one_go:
            return outcome
        return self._with_body(prepared, self.room, step_context, context, outcome)

    def _step_context(self, prepared: Prepared, context: Mapping[str, Any], log: LogBuffer) -> StepContext:
        rendered = prepared.config.render(context)
        mapped = None if prepared.input_mapping is None else prepared.input_mapping.render(context)
        self.recorded_input = self.secrets.mask(self._worth_recording(rendered) if mapped is None else mapped)
        if prepared.loaded is None:
            config = load(prepared.type, rendered)
        else:
            config = {**prepared.loaded, **{name: rendered[name] for name in prepared.config.variable}}
        return StepContext(
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
            mask=self.secrets.mask,
            deadline=self._deadline(),
            state=self._state(),
            evaluate=partial(self._evaluate, prepared, context),
            body=self._rounds,
            take_signal=self._take_signal,
            workflows=self.workflows,
        )

    def _may_begin(self, rate: Rate) -> bool:
        with own_store():
            return rate_line.take(self.store, rate, self.claim.id)

    def _perform_type(self, prepared: Prepared, step_context: StepContext) -> Done | Wait | Spawn:
        with self.watch.over(self.claim), interruptible(step_context.deadline):
            outcome = prepared.type.perform(step_context)
        check_outcome(
            outcome,
            bodies=self.step.bodies,
            dependents=self._dependents,
            limit=self.settings.executor.max_payload,
        )
        return self._masked_body(outcome) if isinstance(outcome, Spawn) else outcome

    def _dependents(self) -> Collection[str]:
        """The ids of the steps that wait for this one."""
        graph = self.program.scopes.of(self.claim.path)
        return [graph.steps[path].id for path in graph.children[self.claim.path]]

    def _with_body(
        self, prepared: Prepared, room: Room, step_context: StepContext, context: Mapping[str, Any], spawn: Spawn
    ) -> Done | Spawn:
        def perform_again(inside: Attempt, state: Any, made: Sequence[Round]) -> Done | Wait | Spawn:
            evaluate = partial(inside._evaluate, prepared, context)
            return self._perform_type(
                prepared, replace(step_context, state=state, body=partial(named, made), evaluate=evaluate)
            )

        performed = perform_body(self, room, spawn, perform_again)
        if performed is None:
            return spawn
        done, self.body = performed
        return done

    def _masked_body(self, spawn: Spawn) -> Spawn:
        """Items are kept with the rows of their rounds."""
        return replace(spawn, scopes=[replace(scope, loop=self.secrets.mask(scope.loop)) for scope in spawn.scopes])

    def _worth_recording(self, rendered: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config without the steps in it, which have rows of their own."""
        if not self.step.bodies:
            return rendered
        raw = self.catalogue[self.step.type].raw_fields
        return {name: value for name, value in rendered.items() if name not in raw}

    def _state(self) -> Any:
        """What the type itself left; of a step with a body, the engine keeps more beside it."""
        state = self.claim.state
        return state["own"] if self.step.bodies and isinstance(state, dict) and "own" in state else state

    def _template_context(self, prepared: Prepared) -> Mapping[str, Any]:
        path, scopes = self.claim.path, self.program.scopes
        if not prepared.roots:
            return {}
        named = {step_id: scopes.path_of(step_id, path) for step_id in prepared.references}
        mappers = self.program.mappers(path) if "variables" in prepared.roots else ()
        seen = self._seen({other for other in (*named.values(), *mappers) if other is not None})
        execution = self.execution
        context = {
            "variables": self.program.variables_after(execution.input, mappers, seen),
            "input": execution.input,
            "steps": {
                id: self._lazily(seen[other]) for id, other in named.items() if other is not None and other in seen
            },
            "secrets": self.secrets,
            "trigger": self._trigger() if "trigger" in prepared.roots else None,
            "execution": execution_facts(execution.id, execution.workflow_id, execution.version, execution.priority),
        }
        if "execution" in prepared.roots and phase_of(path):
            context["execution"] |= self._outcome()
        if self.claim.loop is not None:
            context["loop"] = self._lazily(self.claim.loop)
        return context

    def _lazily(self, seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """What large outputs `seen` refers to is read when a template touches it."""
        return self.artifacts.lazily(self.execution.id, seen)

    def _seen(self, paths: set[str]) -> Mapping[str, dict[str, Any]]:
        """What templates see of other steps. Only what has completed is kept: it stays as it is."""
        known = {path: self.seen[path] for path in paths if path in self.seen}
        unread = paths - known.keys()
        if not unread:
            return known
        with own_store(), self.store.single() as connection:
            read = steps.outputs(connection, self.execution.id, unread)
        self.seen |= {path: one for path, one in read.items() if one["status"] == StepStatus.COMPLETED}
        return known | read

    def _rounds(self, *names: int | str) -> Sequence[Round]:
        """What became of the scopes of the step's own body."""
        with own_store():
            return rounds(self.store, self.execution.id, self.claim.path, self.step, *names)

    def _trigger(self) -> Mapping[str, Any]:
        if self.execution.trigger_id is None:
            return NOT_TRIGGERED
        with own_store(), self.store.single() as connection:
            return trigger_facts(executions.trigger_data(connection, self.execution.id))

    def _outcome(self) -> dict[str, Any]:
        """What a step that runs at the end sees of how its execution ends."""
        with own_store(), self.store.single() as connection:
            locked = executions.look(connection, self.execution.id)
        if locked is None or locked.outcome is None:
            return {}
        return {"status": locked.outcome.value, "error": locked.error_message}

    def _evaluate(self, prepared: Prepared, context: Mapping[str, Any], field: str, **names: Any) -> Any:
        """A deferred field: what stands in the body is seen as the last round left it."""
        compiled = prepared.config.deferred[field]
        last = names.get("loop", {}).get("index", 0) - 1
        inner = {
            step.id: f"{self.claim.path}[{last}].{step.id}" for body in self.step.bodies.values() for step in body.steps
        }
        named = {id: inner.get(id) or self.program.scopes.path_of(id, self.claim.path) for id in compiled.steps}
        read = self._seen({path for path in named.values() if path is not None})
        seen = {id: self._lazily(read[path]) for id, path in named.items() if path is not None and path in read}
        shown = {name: self._lazily(value) if isinstance(value, dict) else value for name, value in names.items()}
        return compiled.render({**context, "steps": seen, **shown})

    def _reveal(self, value: Any) -> Any:
        try:
            return compile_value(value).render({"secrets": self.secrets})
        except TemplateError as error:
            raise StepFailed(f"a setting of the worker: {error}", kind="config", retryable=False) from None

    def _take_signal(self, name: str) -> Any:
        # What an attempt took that was lost with its worker is the next one's.
        with own_store():
            if self.pending_signals is None or self.claim.attempt > 1 or self.claim.losses:
                return signals.take(self.store, self.execution.id, self.claim, name)
            found = self.pending_signals.next(name)
        if found is None:
            return None
        signal_id, signal = found
        self.signals.append(signal_id)
        return signal

    def _deadline(self) -> float | None:
        limits = [self.ends_at] if self.ends_at is not None else []
        seconds = self.step.timeout if self.claim.time_left is None else self.claim.time_left
        if seconds is not None:
            limits.append(time.monotonic() + seconds)
        return min(limits, default=None)

    def _storable(self, done: Done) -> tuple[Done, bytes]:
        """The outcome as it may be stored, and its output as JSON."""
        read, written = plain(done.output)
        output = self.secrets.mask(read)
        if self.step.bodies:  # it is made of the outputs of others
            output = self.artifacts.expand(self.execution.id, output, self.settings.executor.max_output)
        if output is not read:
            written = encoded(output, path="output")
        limit = self._output_limit()
        if len(written) > limit.bytes:
            raise StepFailed(
                f"the output of step {self.claim.path} has {len(written):,} bytes as JSON; the limit ({limit.setting}) "
                f"is {limit.bytes:,}: let the step return less, or write the data elsewhere and return where it is, or "
                "raise the limit",
                kind="output",
                retryable=False,
            )
        return Done(output, done.skip), written

    def _output_limit(self) -> OutputLimit:
        return self.settings.output_limit

    def _kept(self, done: Done, written: bytes) -> Done:
        """As the row is to have it: a large output is in the artifact store before there is a row that says so."""
        if not self.artifacts.takes(len(written)):
            return done
        return Done(self.artifacts.put(self.execution.id, written), done.skip)

    def keep_log(self, lines: Sequence[LogLine]) -> None:
        """Called now and then while the step is performed, from any thread; what it raises is logged."""
        with self.store.single() as connection:
            logs.append(connection, self.execution.id, self.claim.id, self.step.id, self.claim.attempt, lines)

    def _masked_failure(self, failure: StepFailed) -> StepFailed:
        message = self.secrets.mask(str(failure))
        output = None
        if failure.output is not None:
            try:
                output = self._kept(*self._storable(Done(failure.output))).output
            except StepFailed as error:
                message += f" (its output could not be kept: {error})"
        return storable_failure(failure, message, output)
