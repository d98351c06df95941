"""Workflows: create, list, get, update, delete, their status, and executing them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

from flask import Response, jsonify, url_for
from flask.views import MethodView

from api import audit
from api.access import allowed, caller, project_for
from api.audit import tell
from api.body import Blueprint, given_definition, is_bare
from api.errors import flatten
from api.resources.paging import page
from api.schemas import (
    ChangeHeaders,
    ExecuteHeaders,
    ExecuteIn,
    ExecuteQuery,
    ExecutionDetail,
    ExecutionPlan,
    InstantiateIn,
    WorkflowDetail,
    WorkflowIn,
    WorkflowPage,
    WorkflowQuery,
)
from api.service import service
from api.trigger_secrets import masked_definition, places_of_masks, refuse_masks, unmasked_definition
from orchestrator.definition import Document, load_definition
from orchestrator.definition.complaints import Hints
from orchestrator.definition.paths import Key, join
from orchestrator.definition.step_templates import load_with_templates
from orchestrator.engine import triggers
from orchestrator.engine.admission import admit, plans_of_admitted
from orchestrator.engine.control import retire
from orchestrator.engine.dry_run import dry_run
from orchestrator.engine.start import check_payload, start_execution
from orchestrator.errors import Conflict, DefinitionError, InputError, Problem
from orchestrator.lifecycle import ACTIVATE, PAUSE_WORKFLOW, RESUME_WORKFLOW, Transition, WorkflowStatus
from orchestrator.store import execution_views, workflow_ends, workflows
from orchestrator.store.step_templates import StoredTemplates

_WORKFLOW = WorkflowIn()

TAGGED = {"ETag": {"schema": {"type": "string"}, "description": "the version, for If-Match"}}

blueprint = Blueprint("workflows", __name__, url_prefix="/api/v1/workflows", description="Workflows")


@blueprint.route("")
class Workflows(MethodView):
    @blueprint.arguments(WorkflowQuery(), location="query")
    @blueprint.response(200, WorkflowPage)
    def get(self, query: dict[str, Any]) -> Response:
        """List workflows, newest first."""
        with service().store.single() as connection:
            return page(
                query,
                workflows.ORDERS,
                lambda window: workflows.listing(
                    connection,
                    window,
                    projects=allowed(),
                    owner_id=_text(query.get("owner_id")),
                    status=query.get("status"),
                    tag=query.get("tags"),
                    name=query.get("name"),
                    is_template=query.get("is_template"),
                    words=query.get("q"),
                ),
            )

    @blueprint.arguments(_WORKFLOW)
    @blueprint.response(201, WorkflowDetail, headers=TAGGED)
    def post(self, given: dict[str, Any]) -> Response:
        """Create a workflow, as a draft with version 1."""
        return create(given)


@blueprint.route("/<uuid:workflow_id>")
class Workflow(MethodView):
    @blueprint.response(200, WorkflowDetail, headers=TAGGED)
    def get(self, workflow_id: UUID) -> Response:
        """A workflow with its newest definition."""
        return shown(workflow_id)

    @blueprint.arguments(ChangeHeaders(), location="headers", unknown="exclude", error_status_code=412)
    @blueprint.arguments(_WORKFLOW)
    @blueprint.response(200, WorkflowDetail, headers=TAGGED)
    def put(self, headers: dict[str, Any], given: dict[str, Any], workflow_id: UUID) -> Response:
        """Change what is given; a definition that differs becomes a new version, and so does the same one if its step
        templates differ. Running executions keep theirs. A secret of a trigger that is sent as it is shown, as ***,
        stays."""
        seen = headers["seen"]
        if any(masks_in(given)):
            given, seen = _with_kept_secrets(given, workflow_id, seen)
        definition, resolved = _checked(given) if "definition" in given else (None, None)
        if definition is not None and is_bare():
            given = {**_own_words(definition), **given}
        changes = {key: value for key, value in given.items() if key != "definition"}
        if "owner_id" in changes:
            changes["owner_id"] = _text(changes["owner_id"])
        if "project" in changes:
            changes["project_id"] = project_for(changes.pop("project"))
        with service().store.transaction() as connection:
            workflows.update(connection, str(workflow_id), changes, definition, resolved, seen=seen)
            if definition is not None:
                triggers.keep_in_step(connection, service().trigger_types, str(workflow_id), definition)
        if "project_id" in changes:
            service().projects.forget()
        return shown(workflow_id)

    @blueprint.response(204)
    def delete(self, workflow_id: UUID) -> None:
        """Remove a workflow with its versions and executions; 409 while one of these is live."""
        with service().store.transaction() as connection:
            workflows.delete(connection, str(workflow_id))


@blueprint.route("/<uuid:workflow_id>/activate", methods=["POST"])
@blueprint.response(200, WorkflowDetail, headers=TAGGED)
def activate(workflow_id: UUID) -> Response:
    """Let triggers and users start it."""
    return _moved(workflow_id, ACTIVATE)


@blueprint.route("/<uuid:workflow_id>/pause", methods=["POST"])
@blueprint.response(200, WorkflowDetail, headers=TAGGED)
def pause(workflow_id: UUID) -> Response:
    """Let nothing start it until it is resumed; what waits for a place is paused with it, what has begun goes on."""
    return _moved(workflow_id, PAUSE_WORKFLOW)


@blueprint.route("/<uuid:workflow_id>/resume", methods=["POST"])
@blueprint.response(200, WorkflowDetail, headers=TAGGED)
def resume(workflow_id: UUID) -> Response:
    """Undo a pause, and those of the executions that were paused with it."""
    return _moved(workflow_id, RESUME_WORKFLOW)


@blueprint.route("/<uuid:workflow_id>/cancel", methods=["POST"])
@blueprint.response(200, WorkflowDetail, headers=TAGGED)
def cancel(workflow_id: UUID) -> Response:
    """Retire it for good: nothing starts it any more, and what runs is cancelled. It and its history stay readable."""
    here = service()
    here.send_all(list(retire(here.store, here.programs, str(workflow_id))))
    return shown(workflow_id)


@blueprint.route("/<uuid:workflow_id>/instantiate", methods=["POST"])
@blueprint.arguments(InstantiateIn())
@blueprint.response(201, WorkflowDetail, headers=TAGGED)
def instantiate(given: dict[str, Any], workflow_id: UUID) -> Response:
    """Make a workflow of a template's newest version, as a draft with variables of its own. Its step templates are
    what they were when the template was saved."""
    project_id = project_for(given.get("project"))
    with service().store.single() as connection:
        template = workflows.template(connection, str(workflow_id))
    definition = _with_own(template["definition"], given)
    resolved = None if template["resolved"] is None else _with_own(template["resolved"], given)
    check_payload(definition, service().settings.executor.max_payload, "variables")
    load_definition(resolved or definition, service().catalogue)
    with service().store.transaction() as connection:
        made_id = workflows.insert(
            connection,
            name=given["name"],
            description=given.get("description", template["description"]),
            tags=given.get("tags", template["tags"]),
            owner_id=owner_of(given),
            is_template=False,
            definition=definition,
            resolved=resolved,
            project_id=project_id,
        )
        triggers.keep_in_step(connection, service().trigger_types, made_id, definition)
        created = workflows.get(connection, made_id)
    return made(created)


@blueprint.route("/<uuid:workflow_id>/execute", methods=["POST"])
@blueprint.arguments(ExecuteIn())
@blueprint.arguments(ExecuteQuery(), location="query")
@blueprint.arguments(ExecuteHeaders(), location="headers", unknown="exclude")
@blueprint.response(202, ExecutionDetail)
@blueprint.alt_response(200, schema=ExecutionPlan, description="With `dry_run`: what it would do")
def execute(given: dict[str, Any], query: dict[str, Any], headers: dict[str, Any], workflow_id: UUID) -> Response:
    """Start an execution of the newest version. It is stored when this answers, whatever dies afterwards."""
    here = service()
    if query["dry_run"]:
        tell({})
        return jsonify(dry_run(here.store, here.programs, str(workflow_id), given["input"], priority=given["priority"]))
    started = start_execution(
        here.store,
        here.programs,
        str(workflow_id),
        given["input"],
        priority=given["priority"],
        idempotency_key=headers.get("idempotency_key"),
        log=audit.entry(202),
    )
    if started.is_new:
        audit.is_written()
    here.send(started.plan)
    with here.store.single() as connection:
        execution = execution_views.get(connection, started.execution_id)
    # A repeated call is answered like the first one; 200 says that it started nothing.
    status = 202 if started.is_new else 200
    return _created(execution, url_for("executions.Execution", execution_id=started.execution_id), status)


def create(given: Mapping[str, Any], *, enabled: bool = True, others: Iterable[Mapping[str, Any]] = ()) -> Response:
    """A new workflow, as the body `given` says it, with its definition's triggers, `enabled` or not, and `others`."""
    if "definition" not in given:
        raise InputError([Problem("definition", "is missing: a workflow needs a definition with its steps")])
    definition, resolved = _checked(given)
    given = {**_own_words(definition), **given}
    name = given.get("name")
    if not name:
        raise InputError([Problem("name", "is missing: give the workflow a name")])
    project_id = project_for(given.get("project"))
    here = service()
    with here.store.transaction() as connection:
        workflow_id = workflows.insert(
            connection,
            name=name,
            description=given.get("description", ""),
            tags=given.get("tags", []),
            owner_id=owner_of(given),
            is_template=given.get("is_template", False),
            definition=definition,
            resolved=resolved,
            project_id=project_id,
        )
        triggers.keep_in_step(connection, here.trigger_types, workflow_id, definition, enabled=enabled)
        for trigger in others:
            triggers.create(connection, here.trigger_types, workflow_id, **trigger)
        created = workflows.get(connection, workflow_id)
    return made(created)


def _checked(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """This request's definition, once it has been found valid, and the same with its step templates written out if
    it uses any. Raises InputError, DefinitionError, PayloadTooLarge."""
    definition: dict[str, Any] = given["definition"]
    refuse_masks(masks_in(given))
    here = service()
    limit = here.settings.executor.max_payload
    check_payload(definition, limit, "definition")
    as_sent, prefix = given_definition()
    document = Document(definition, as_sent.root)
    try:
        _, resolved = load_with_templates(document, here.catalogue, StoredTemplates(here.store), limit)
    except DefinitionError as error:
        raise DefinitionError(
            [Problem(_below(prefix, found.path), found.message, found.line) for found in error.problems]
        ) from None
    return definition, resolved


def masks_in(given: Mapping[str, Any]) -> Iterator[tuple[Key, ...]]:
    """Where this request's definition has *** for a secret."""
    return places_of_masks(given.get("definition"), () if is_bare() else ("definition",))


def _with_kept_secrets(
    given: Mapping[str, Any], workflow_id: UUID, seen: Collection[int] | None
) -> tuple[dict[str, Any], Collection[int]]:
    """`given` with the secrets of the newest version where it has the mask, and that version: no other may come in
    between, or a secret that is replaced at the same time would come back. Raises NotFound."""
    with service().store.single() as connection:
        newest = workflows.original(connection, str(workflow_id))
    filled = {**given, "definition": unmasked_definition(given["definition"], newest["definition"])}
    known = {newest["version"]}
    return filled, known if seen is None else known.intersection(seen)


def _with_own(definition: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A template's definition as that of the workflow `given`. Raises InputError for variables that it has not."""
    variables = definition.get("variables") or {}
    hints = Hints()
    unknown = [name for name in given["variables"] if name not in variables]
    if unknown:
        known = f"; it has {', '.join(variables) or 'none'}"
        raise InputError(
            [
                Problem(
                    join("variables", name), f"the template has no variable '{name}'{hints(name, variables, known)}"
                )
                for name in unknown
            ]
        )
    words: dict[str, Any] = {
        key: given[key] for key in ("name", "description", "tags") if key in definition and key in given
    }
    changed = {"variables": {**variables, **given["variables"]}} if given["variables"] else {}
    return {**definition, **words, **changed}


def _own_words(definition: Mapping[str, Any]) -> dict[str, Any]:
    """What a definition says of its workflow. Raises InputError where a workflow could not be so."""
    said = {key: definition[key] for key in ("name", "description", "tags") if definition.get(key)}
    wrong = _WORKFLOW.validate(said)
    if wrong:
        _, prefix = given_definition()
        raise InputError(list(flatten(wrong, prefix)))
    return said


def _below(prefix: str, path: str) -> str:
    return ".".join(part for part in (prefix, path) if part)


def _moved(workflow_id: UUID, transition: Transition) -> Response:
    here = service()
    with here.store.transaction() as connection:
        if not workflows.move(connection, str(workflow_id), transition):
            status, _ = workflows.current(connection, str(workflow_id))
            if transition is ACTIVATE and workflows.is_template(connection, str(workflow_id)):
                raise Conflict(
                    f"workflow {workflow_id} is a template and cannot be activated; make a workflow of it with "
                    "POST .../instantiate, and activate that",
                    "template",
                )
            if status in transition.sources and workflow_ends.is_past(connection, str(workflow_id)):
                raise Conflict(
                    f"the end_date of workflow {workflow_id} has passed; give it a later one or none, then activate it",
                    status,
                )
            # Said twice, done once: the second call finds what it asked for.
            if status != transition.target:
                raise Conflict(f"a workflow that is {status} cannot be {transition.name}d", status)
    if transition.target is WorkflowStatus.ACTIVE:  # what was paused with it may have a place
        here.send_all(plans_of_admitted(admit(here.store, here.settings)))
    return shown(workflow_id)


def shown(workflow_id: UUID) -> Response:
    with service().store.single() as connection:
        return _tagged(workflows.get(connection, str(workflow_id)))


def made(workflow: dict[str, Any]) -> Response:
    response = _tagged(workflow)
    response.status_code = 201
    response.headers["Location"] = url_for("workflows.Workflow", workflow_id=workflow["id"])
    return response


def _tagged(workflow: dict[str, Any]) -> Response:
    """The tag is for If-Match: it tells versions apart, not all that can change in an answer."""
    response = jsonify({**workflow, "definition": masked_definition(workflow["definition"])})
    response.set_etag(str(workflow["version"]))
    return response


def _created(body: dict[str, Any], location: str, status: int) -> Response:
    response = jsonify(body)
    response.status_code = status
    response.headers["Location"] = location
    return response


def owner_of(given: Mapping[str, Any]) -> str | None:
    """Whom it belongs to: as given, else to the caller."""
    return _text(given["owner_id"]) if "owner_id" in given else caller().owner_id


def _text(value: object) -> str | None:
    return None if value is None else str(value)
