"""Copies of workflows: within the service, and from one to another as a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from flask import Response, g

from api.access import caller, project_for
from api.body import Blueprint
from api.resources.workflows import TAGGED, create, made, masks_in, owner_of
from api.schemas import WorkflowDetail
from api.service import service
from api.transfer_schemas import CloneIn, ImportIn, ImportQuery
from api.trigger_secrets import NOT_A_SECRET, masked, masked_definition, places_of_masks
from orchestrator.access import Role
from orchestrator.definition import load_definition
from orchestrator.definition.complaints import Hints
from orchestrator.definition.paths import join_all
from orchestrator.definition.trigger_checks import check_trigger
from orchestrator.definition.writing_yaml import write_yaml
from orchestrator.engine import triggers as engine
from orchestrator.errors import InputError, Problem
from orchestrator.store import triggers, workflows

blueprint = Blueprint("transfer", __name__, url_prefix="/api/v1/workflows", description="Workflows")

_YAML = "application/yaml"


@blueprint.route("/<uuid:workflow_id>/clone", methods=["POST"])
@blueprint.arguments(CloneIn())
@blueprint.response(201, WorkflowDetail, headers=TAGGED)
def clone(given: dict[str, Any], workflow_id: UUID) -> Response:
    """Make another draft of a workflow's newest version. Its triggers are there, and none of them is enabled: what
    starts the original starts the copy when somebody says so."""
    here = service()
    with here.store.single() as connection:
        original = workflows.original(connection, str(workflow_id))
        others = [one for one in triggers.of_workflow(connection, str(workflow_id)) if not one.from_definition]
    definition = original["definition"]
    project_id = project_for(given["project"]) if "project" in given else original["project_id"]
    caller().check(Role.EDITOR, project_id)
    load_definition(original["resolved"] or definition, here.catalogue)
    with here.store.transaction() as connection:
        copy_id = workflows.copy(
            connection,
            original,
            name=given.get("name") or f"{original['name'][:190]} (copy)",
            description=given.get("description", original["description"]),
            tags=given.get("tags", original["tags"]),
            owner_id=owner_of(given),
            project_id=project_id,
        )
        engine.keep_in_step(connection, here.trigger_types, copy_id, definition, enabled=False)
        for one in others:
            engine.create(
                connection,
                here.trigger_types,
                copy_id,
                type=one.type,
                name=one.name,
                config=one.config,
                is_enabled=False,
            )
        copy = workflows.get(connection, copy_id)
    return made(copy)


@blueprint.route("/<uuid:workflow_id>/export")
@blueprint.response(200, {"type": "object"}, content_type=_YAML, description="A YAML document for POST .../import")
def export(workflow_id: UUID) -> Response:
    """The workflow with its newest definition and its triggers as a YAML document. Secrets of triggers are shown as
    ***."""
    with service().store.single() as connection:
        original = workflows.original(connection, str(workflow_id))
        others = [one for one in triggers.of_workflow(connection, str(workflow_id)) if not one.from_definition]
    document = {key: original[key] for key in ("name", "description", "tags", "is_template")}
    document |= {"definition": masked_definition(original["definition"])}
    if others:
        document["triggers"] = [
            masked({"type": one.type, "name": one.name, "config": one.config, "is_enabled": one.is_enabled})
            for one in others
        ]
    response = Response(write_yaml(document), mimetype=_YAML)
    response.headers.set("Content-Disposition", "attachment", filename=f"{workflow_id}.yaml")
    return response


@blueprint.route("/import", methods=["POST"])
@blueprint.arguments(ImportIn())
@blueprint.arguments(ImportQuery(), location="query")
@blueprint.response(201, WorkflowDetail, headers=TAGGED)
def import_(given: dict[str, Any], query: dict[str, Any]) -> Response:
    """Make a workflow of an exported document, as a draft. Its triggers are not enabled unless the call says so."""
    enabled = query["enable_triggers"]
    others = given.pop("triggers")
    _check(others, [*masks_in(given), *places_of_masks({"triggers": others})])
    brought = (
        {
            "type": one["type"],
            "name": one.get("name", one["type"]),
            "config": one["config"],
            "is_enabled": enabled and one["is_enabled"],
        }
        for one in others
    )
    return create(given, enabled=enabled, others=brought)


def _check(others: Sequence[Mapping[str, Any]], masks: Iterable[tuple[Any, ...]]) -> None:
    """Raises InputError, with the lines of a YAML body."""
    types, hints = service().trigger_types, Hints()
    found = [(keys, NOT_A_SECRET) for keys in masks]
    for at, one in enumerate(others):
        found += check_trigger(one["type"], one["config"], ("triggers", at), types, hints)
    if found:
        paths = [(join_all(keys), message) for keys, message in found]
        raise InputError([Problem(path, message, g.document.line_of(path)) for path, message in paths])
