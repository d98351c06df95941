"""Projects: what workflows belong to, and roles are held in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response, jsonify, url_for
from flask.views import MethodView

from api.access import allowed
from api.access_schemas import ProjectChange, ProjectIn, ProjectOut, ProjectPage, ProjectQuery
from api.body import Blueprint
from api.resources.paging import page
from api.service import service
from orchestrator.store import access

blueprint = Blueprint("projects", __name__, url_prefix="/api/v1/projects", description="Projects")


@blueprint.route("")
class Projects(MethodView):
    @blueprint.arguments(ProjectQuery(), location="query")
    @blueprint.response(200, ProjectPage)
    def get(self, query: dict[str, Any]) -> Response:
        """List the projects in which you hold a role."""
        with service().store.single() as connection:
            return page(
                query, access.PROJECT_ORDERS, lambda window: access.list_projects(connection, window, allowed())
            )

    @blueprint.arguments(ProjectIn())
    @blueprint.response(201, ProjectOut)
    def post(self, given: dict[str, Any]) -> Response:
        """Create a project."""
        with service().store.single() as connection:
            id = access.insert_project(connection, given["name"], given["description"])
        response = _shown(id)
        response.status_code = 201
        response.headers["Location"] = url_for("projects.Project", project_id=id)
        return response


@blueprint.route("/<uuid:project_id>")
class Project(MethodView):
    @blueprint.response(200, ProjectOut)
    def get(self, project_id: UUID) -> Response:
        """A project."""
        return _shown(str(project_id))

    @blueprint.arguments(ProjectChange())
    @blueprint.response(200, ProjectOut)
    def put(self, given: dict[str, Any], project_id: UUID) -> Response:
        """Change what is given."""
        with service().store.single() as connection:
            access.update_project(connection, str(project_id), given)
        return _shown(str(project_id))

    @blueprint.response(204)
    def delete(self, project_id: UUID) -> None:
        """Remove a project, and the roles held in it; 409 while it has workflows."""
        with service().store.single() as connection:
            access.delete_project(connection, str(project_id))


def _shown(id: str) -> Response:
    with service().store.single() as connection:
        return jsonify(access.get_project(connection, id))
