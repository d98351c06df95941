"""Step templates: create, list, get, update, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Response, g, jsonify, url_for
from flask.views import MethodView

from api.body import Blueprint
from api.resources.paging import page
from api.schemas import StepTemplateChange, StepTemplateDetail, StepTemplateIn, StepTemplatePage, StepTemplateQuery
from api.service import service
from orchestrator.definition import Document
from orchestrator.definition.step_template_checks import check_step_template
from orchestrator.definition.step_templates import StepTemplate
from orchestrator.engine.start import check_payload
from orchestrator.errors import InputError, Problem
from orchestrator.store import step_templates

blueprint = Blueprint("step_templates", __name__, url_prefix="/api/v1/step-templates", description="Step templates")


@blueprint.route("")
class StepTemplates(MethodView):
    @blueprint.arguments(StepTemplateQuery(), location="query")
    @blueprint.response(200, StepTemplatePage)
    def get(self, query: dict[str, Any]) -> Response:
        """List step templates, newest first."""
        with service().store.single() as connection:
            return page(
                query,
                step_templates.ORDERS,
                lambda window: step_templates.listing(connection, window, name=query.get("name")),
            )

    @blueprint.arguments(StepTemplateIn())
    @blueprint.response(201, StepTemplateDetail)
    def post(self, given: dict[str, Any]) -> Response:
        """Create a step template, which definitions use by its name."""
        _check(given)
        with service().store.transaction() as connection:
            id = step_templates.insert(connection, **given)
            created = step_templates.get(connection, id)
        response = jsonify(created)
        response.status_code = 201
        response.headers["Location"] = url_for("step_templates.OneStepTemplate", step_template_id=id)
        return response


@blueprint.route("/<uuid:step_template_id>")
class OneStepTemplate(MethodView):
    @blueprint.response(200, StepTemplateDetail)
    def get(self, step_template_id: UUID) -> Response:
        """A step template."""
        return _shown(step_template_id)

    @blueprint.arguments(StepTemplateChange(partial=True))
    @blueprint.response(200, StepTemplateDetail)
    def put(self, given: dict[str, Any], step_template_id: UUID) -> Response:
        """Change what is given. Workflow versions that use it stay as they are; a workflow that is saved again gets
        a new one."""
        with service().store.single() as connection:
            before = step_templates.get(connection, str(step_template_id))
        _check({**before, **given})
        with service().store.transaction() as connection:
            step_templates.update(connection, str(step_template_id), given)
        return _shown(step_template_id)

    @blueprint.response(204)
    def delete(self, step_template_id: UUID) -> None:
        """Remove a step template. Workflow versions that use it stay as they are."""
        with service().store.transaction() as connection:
            step_templates.delete(connection, str(step_template_id))


def _check(template: Mapping[str, Any]) -> None:
    """Raises InputError with all that is wrong with it, PayloadTooLarge."""
    here = service()
    for part in ("step", "parameters"):
        check_payload(template[part], here.settings.executor.max_payload, part)
    problems = check_step_template(
        StepTemplate(template["name"], template["step"], template["parameters"]), here.catalogue
    )
    if problems:
        given: Document = g.document
        raise InputError([Problem(found.path, found.message, given.line_of(found.path)) for found in problems])


def _shown(id: UUID) -> Response:
    with service().store.single() as connection:
        return jsonify(step_templates.get(connection, str(id)))
