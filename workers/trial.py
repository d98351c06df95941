"""A step that is tried out: an attempt outside of any execution, of which nothing but its result is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Artifacts
from orchestrator.config import ArtifactSettings, OutputLimit
from orchestrator.engine.programs import Program
from orchestrator.engine.start import check_payload
from orchestrator.engine.trying import GRACE, Trial
from orchestrator.errors import InputError, StepFailed
from orchestrator.store import rate_line, step_tests
from orchestrator.store.claims import Claim, ExecutionFacts
from orchestrator.store.logs import LogLine
from orchestrator.store.rates import Rate
from workers.attempt import Attempt, Skipped
from workers.prepared import Prepared
from workers.secrets import Secrets
from workers.steps.contract import Done, Spawn, Wait
from workers.stopping import Unwatched

if TYPE_CHECKING:
    from workers.process import WorkerProcess

Json = Any
_STEP_ID = "step"
_LAST_WORDS = 1.0
"""Seconds that a result may take on its way."""


def test_step(process: WorkerProcess, id: str) -> None:
    """Perform the step that the row `id` asks for, unless another worker has, and keep what came of it there."""
    with process.store.single() as connection:
        given = step_tests.start(connection, id)
    if given is None:
        return
    trial = Trial.of(given.request)
    # What waited long for a worker has less time: whoever asked does not wait longer for it.
    seconds = min(trial.timeout, trial.timeout + GRACE - _LAST_WORDS - given.age)
    secrets = process.secrets.of_project(given.request["project_id"])
    result = _performed(_attempt(process, id, trial, secrets, time.monotonic() + seconds))
    with process.store.single() as connection:
        step_tests.finish(connection, id, result)


def performed(process: WorkerProcess, id: str, trial: Trial, secrets: Secrets) -> dict[str, Json]:
    """What comes of performing a step here and now, as StepTestOut of the API has it. `id` stands for that of an
    execution."""
    return _performed(_attempt(process, id, trial, secrets, time.monotonic() + trial.timeout))


def _performed(attempt: _Attempt) -> dict[str, Json]:
    began = time.monotonic()
    outcome = attempt.perform()
    duration = time.monotonic() - began
    return {
        **_shown(outcome, attempt.secrets),
        "logs": [{"level": line.level, "message": line.message, "at": _text(line.at)} for line in attempt.lines],
        "duration": round(duration, 6),
        "rendered": _if_it_fits(attempt.recorded_input, attempt.settings.executor.max_payload),
    }


def _attempt(process: WorkerProcess, id: str, trial: Trial, secrets: Secrets, ends_at: float) -> _Attempt:
    written = {"id": _STEP_ID, "type": trial.type, "config": trial.config}
    program = Program({"steps": [written]}, process.programs.catalogue, process.settings)
    return _Attempt(
        store=process.store,
        settings=process.settings,
        program=program,
        step=program.definition.steps[0],
        claim=Claim(id, _STEP_ID, attempt=1, losses=0, token=id),
        execution=ExecutionFacts(id, "", 1, trial.input, 5, None, None),
        catalogue=process.programs.catalogue,
        secrets=secrets,
        seen={},
        ends_at=ends_at,
        watch=Unwatched(),
        workflows=None,
        names=trial.seen(id),
    )


@dataclass(slots=True)
class _Attempt(Attempt):
    """An attempt that is told what its templates see, and keeps its log lines to itself."""

    names: Mapping[str, Json] = field(default_factory=dict)
    lines: list[LogLine] = field(default_factory=list)

    def keep_log(self, lines: Sequence[LogLine]) -> None:
        self.lines += lines

    def _template_context(self, prepared: Prepared) -> Mapping[str, Any]:  # noqa: ARG002
        return {**self.names, "secrets": self.secrets}

    @property
    def artifacts(self) -> Artifacts:
        """None: what comes of a trial is an answer."""
        return Artifacts(ArtifactSettings())

    def _output_limit(self) -> OutputLimit:
        return OutputLimit(self.settings.executor.max_payload, "executor.max_payload")

    def _take_signal(self, name: str) -> None:
        """Nobody sends one to a trial."""

    def _may_begin(self, rate: Rate) -> bool:
        """A trial does not stand in the line: whoever asked for it may ask again."""
        return rate_line.take(self.store, rate, self.claim.id, joins=False)

    def _evaluate(self, prepared: Prepared, context: Mapping[str, Any], field: str, **names: Any) -> Any:
        return prepared.config.deferred[field].render({**context, **names})


def _shown(outcome: Done | Wait | Spawn | Skipped | StepFailed, secrets: Secrets) -> dict[str, Json]:
    """What came of it; a Done and a StepFailed have their secrets masked already."""
    if isinstance(outcome, Done):
        return _OUTCOME | {"status": "completed", "output": outcome.output}
    if isinstance(outcome, Wait):
        until = None if outcome.until is None else _text(outcome.until)
        return _OUTCOME | {"status": "waiting", "waits_for": {"until": until, "awaits": secrets.mask(outcome.awaits)}}
    if not isinstance(outcome, StepFailed):
        outcome = StepFailed("it has steps inside it, which only an execution can run", kind="config")
    error = {"kind": outcome.kind, "message": str(outcome)}
    return _OUTCOME | {"status": "failed", "output": outcome.output, "error": error}


_OUTCOME = {"output": None, "error": None, "waits_for": None}


def _if_it_fits(rendered: Json, limit: int) -> Json:
    try:
        check_payload(rendered, limit)
    except InputError:
        return None
    return rendered


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
