"""Executions and step executions: what happened, and with which result."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

from flask import Response, jsonify, url_for
from flask.views import MethodView

from api.access import allowed
from api.audit import tell
from api.body import Blueprint
from api.errors import MEDIA_TYPE, ProblemSchema
from api.resources.paging import page
from api.schemas import (
    BulkIn,
    BulkOut,
    ExecuteHeaders,
    ExecutionDetail,
    ExecutionPage,
    ExecutionQuery,
    RerunIn,
    StepExecutionOut,
    StepOutput,
)
from api.service import service
from orchestrator.access import Role
from orchestrator.artifacts import Reference
from orchestrator.engine import bulk, control
from orchestrator.engine.plan import Plan
from orchestrator.engine.rerun import Wanted, rerun
from orchestrator.lifecycle import ExecutionStatus
from orchestrator.store import execution_views
from orchestrator.store.bulk import Selection

blueprint = Blueprint("executions", __name__, url_prefix="/api/v1", description="Executions")


@blueprint.route("/executions")
class Executions(MethodView):
    @blueprint.arguments(ExecutionQuery(), location="query")
    @blueprint.response(200, ExecutionPage)
    def get(self, query: dict[str, Any]) -> Response:
        """List executions, newest first, without their steps."""
        workflow_id, rerun_of = query.get("workflow_id"), query.get("rerun_of")
        with service().store.single() as connection:
            return page(
                query,
                execution_views.ORDERS,
                lambda window: execution_views.listing(
                    connection,
                    window,
                    projects=allowed(),
                    workflow_id=None if workflow_id is None else str(workflow_id),
                    status=query.get("status"),
                    rerun_of=None if rerun_of is None else str(rerun_of),
                    created_after=query.get("created_after"),
                    created_before=query.get("created_before"),
                ),
            )


@blueprint.route("/executions/<uuid:execution_id>")
class Execution(MethodView):
    @blueprint.response(200, ExecutionDetail)
    def get(self, execution_id: UUID) -> Response:
        """An execution with all its step executions."""
        return _shown(execution_id)

    @blueprint.response(204)
    def delete(self, execution_id: UUID) -> None:
        """Remove it with its steps and their logs; 409 while it is live."""
        bulk.delete(service().store, str(execution_id))


@blueprint.route("/executions/bulk", methods=["POST"])
@blueprint.arguments(BulkIn())
@blueprint.response(200, BulkOut)
@blueprint.doc(operationId="bulk_change_executions")
def many(given: dict[str, Any]) -> Response:
    """Cancel, retry or delete many executions: each for itself, the oldest first."""
    here = service()
    action = given["action"]
    projects = allowed(Role.EDITOR if action is bulk.Action.DELETE else Role.OPERATOR)
    outcome = bulk.apply(here.store, here.programs, action, _selection(projects, **given["filter"]), given["limit"])
    here.send_all(outcome.plans)
    tell({project_id: {"action": action, "executions": ids} for project_id, ids in outcome.done_in().items()})
    refused = [{"id": one.id, "state": one.state, "detail": one.detail} for one in outcome.refused]
    return jsonify({"matched": outcome.matched, "done": len(outcome.done), "refused": refused})


def _selection(
    projects: frozenset[str] | None,
    ids: list[UUID] | None = None,
    workflow_id: UUID | None = None,
    status: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Selection:
    return Selection(
        ids=None if ids is None else tuple(dict.fromkeys(map(str, ids))),
        workflow_id=None if workflow_id is None else str(workflow_id),
        statuses=None if status is None else frozenset({ExecutionStatus(status)}),
        created_after=created_after,
        created_before=created_before,
        projects=projects,
    )


@blueprint.route("/executions/<uuid:execution_id>/pause", methods=["POST"])
@blueprint.response(200, ExecutionDetail)
def pause(execution_id: UUID) -> Response:
    """Let no step of it begin any more; those that run come to their end. The executions that its steps wait for are
    paused with it."""
    control.pause(service().store, str(execution_id))
    return _shown(execution_id)


@blueprint.route("/executions/<uuid:execution_id>/resume", methods=["POST"])
@blueprint.response(200, ExecutionDetail)
def resume(execution_id: UUID) -> Response:
    """Undo a pause, and those that came of it. The time in between does not count towards its timeout."""
    here = service()
    _send(control.resume(here.store, here.programs, str(execution_id)))
    return _shown(execution_id)


@blueprint.route("/executions/<uuid:execution_id>/cancel", methods=["POST"])
@blueprint.response(200, ExecutionDetail)
def cancel(execution_id: UUID) -> Response:
    """End it: what runs is ended within seconds. What undoes its steps, and what runs at its end, still runs."""
    here = service()
    _send(control.cancel(here.store, here.programs, str(execution_id), "cancelled by a user"))
    return _shown(execution_id)


@blueprint.route("/executions/<uuid:execution_id>/retry", methods=["POST"])
@blueprint.response(200, ExecutionDetail)
def retry(execution_id: UUID) -> Response:
    """Do again what failed, was cancelled, or was kept from running by that. What completed is kept."""
    here = service()
    _send(control.retry(here.store, here.programs, str(execution_id)))
    return _shown(execution_id)


@blueprint.route("/executions/<uuid:execution_id>/rerun", methods=["POST"])
@blueprint.arguments(RerunIn())
@blueprint.arguments(ExecuteHeaders(), location="headers", unknown="exclude")
@blueprint.response(202, ExecutionDetail)
def do_again(given: dict[str, Any], headers: dict[str, Any], execution_id: UUID) -> Response:
    """Start a new execution that does this one again; `from_step` keeps the results of what stands before that step.
    What is not given is as it was, the version included."""
    here = service()
    wanted = Wanted(**given, idempotency_key=headers.get("idempotency_key"))
    started = rerun(here.store, here.programs, str(execution_id), wanted)
    _send(started.plans)
    response = _shown(UUID(started.execution_id))
    response.status_code = 202 if started.is_new else 200
    response.headers["Location"] = url_for("executions.Execution", execution_id=started.execution_id)
    return response


def _send(plans: Iterable[Plan]) -> None:
    service().send_all(list(plans))


def _shown(execution_id: UUID) -> Response:
    with service().store.single() as connection:
        return jsonify(execution_views.get(connection, str(execution_id)))


@blueprint.route("/step-executions/<uuid:step_execution_id>")
@blueprint.response(200, StepExecutionOut)
def step_execution(step_execution_id: UUID) -> Response:
    """A step in an execution: its attempts, its times, its result."""
    return _step_shown(step_execution_id)


@blueprint.route("/step-executions/<uuid:step_execution_id>/output")
@blueprint.response(200, StepOutput)
@blueprint.alt_response(410, schema=ProblemSchema, content_type=MEDIA_TYPE, description="It is there no longer")
def step_output(step_execution_id: UUID) -> Response:
    """A step's output alone, a large one too."""
    here = service()
    with here.store.single() as connection:
        step = execution_views.get_step(connection, str(step_execution_id))
    reference = Reference.of(step["output"])
    if reference is None:
        return jsonify({"output": step["output"]})
    return jsonify({"output": here.programs.artifacts.load(str(step["execution_id"]), reference)})


@blueprint.route("/executions/<uuid:execution_id>/steps/<string:path>/output")
@blueprint.response(200, {"description": "any JSON"}, description="The output, as the step returned it")
@blueprint.alt_response(410, schema=ProblemSchema, content_type=MEDIA_TYPE, description="It is there no longer")
def output(execution_id: UUID, path: str) -> Response:
    """The output of the step at this path, and nothing around it. A large one, of which elsewhere a reference is shown
    (`$artifact`), is sent as it is read."""
    here = service()
    with here.store.single() as connection:
        value = execution_views.output_at(connection, str(execution_id), path)
    reference = Reference.of(value)
    if reference is None:
        return jsonify(value)
    chunks = here.programs.artifacts.chunks(str(execution_id), reference)
    first = next(chunks, b"")  # whatever is wrong is said before the answer has begun
    response = Response(chain([first], chunks), mimetype=reference.media_type)
    response.content_length = reference.size
    return response


@blueprint.route("/step-executions/<uuid:step_execution_id>/retry", methods=["POST"])
@blueprint.response(200, StepExecutionOut)
def retry_step(step_execution_id: UUID) -> Response:
    """Do a step again that failed or was cancelled, and what hangs on it; its execution runs again with it."""
    here = service()
    _send(control.retry_step(here.store, here.programs, str(step_execution_id)))
    return _step_shown(step_execution_id)


def _step_shown(step_execution_id: UUID) -> Response:
    with service().store.single() as connection:
        return jsonify(execution_views.get_step(connection, str(step_execution_id)))
