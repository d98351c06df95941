"""Trying out a step: a worker performs it outside of any execution, while the request waits."""

from __future__ import annotations

import time
from typing import Any

from flask import Response, g, jsonify

from api.access import project_for
from api.audit import tell
from api.body import Blueprint
from api.errors import MEDIA_TYPE, ProblemSchema, problem
from api.schemas import StepTestIn, StepTestOut
from api.service import service
from orchestrator.engine.start import check_payload
from orchestrator.engine.trying import GRACE, Trial, check
from orchestrator.errors import InputError, Problem
from orchestrator.store import Store, step_tests

blueprint = Blueprint("trying", __name__, url_prefix="/api/v1/steps", description="Trying out steps")

_SOON, _LATE = 0.02, 0.25
"""Seconds between looks for the result: a twentieth of what it has taken so far, within these."""


@blueprint.route("/test", methods=["POST"])
@blueprint.arguments(StepTestIn())
@blueprint.response(200, StepTestOut)
@blueprint.alt_response(503, schema=ProblemSchema, content_type=MEDIA_TYPE, description="The broker is away")
@blueprint.alt_response(504, schema=ProblemSchema, content_type=MEDIA_TYPE, description="No result in time")
def test_step(given: dict[str, Any]) -> Response:
    """Perform one step, outside of an execution and for real, in a worker: what it asks others to do is done. A step
    that fails answers 200 as well, with the status `failed`."""
    here = service()
    project_id = project_for(given.pop("project", None))
    trial = Trial.of(given)
    queue = _queue_of(trial)
    check_payload(given, here.settings.executor.max_payload, "")
    with here.store.single() as connection:
        id = step_tests.insert(connection, {**given, "project_id": project_id})
    if not here.try_step(id, queue):
        with here.store.single() as connection:
            step_tests.withdraw(connection, id)
        return problem(503, "the broker does not answer; try again", headers={"Retry-After": "5"})
    result = _awaited(here.store, id, trial.timeout + GRACE)
    if result is None and _withdrawn(here.store, id):
        return _untaken(trial, queue)
    status = "unknown" if result is None else result["status"]
    tell({project_id: {"type": trial.type, "config": trial.config, "status": status}})
    return _late(trial) if result is None else jsonify(result)


def _queue_of(trial: Trial) -> str:
    """Raises InputError, with the lines of a YAML body."""
    try:
        return check(trial, service().catalogue)
    except InputError as error:
        raise InputError(
            [Problem(one.path, one.message, g.document.line_of(one.path)) for one in error.problems]
        ) from None


def _awaited(store: Store, id: str, seconds: float) -> dict[str, Any] | None:
    began = time.monotonic()
    while True:
        with store.single() as connection:
            result = step_tests.result(connection, id)
        passed = time.monotonic() - began
        if result is not None or passed > seconds:
            return result
        time.sleep(min(max(_SOON, passed / 20), _LATE))


def _withdrawn(store: Store, id: str) -> bool:
    with store.single() as connection:
        return step_tests.withdraw(connection, id)


def _untaken(trial: Trial, queue: str) -> Response:
    return problem(
        504,
        f"no worker took the step within {trial.timeout + GRACE:g} s, and none will now: start one for the queue "
        f"'{queue}', or more",
    )


def _late(trial: Trial) -> Response:
    waited = f"within {trial.timeout + GRACE:g} s"
    return problem(504, f"a worker took the step, which did not end {waited}; what it does goes on without a result")
