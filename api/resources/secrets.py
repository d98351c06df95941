"""Secrets: written here, never read back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response, jsonify, url_for
from flask.views import MethodView
from marshmallow import ValidationError, fields, validate, validates_schema

from api.access import ADMIN, EDITOR, allowed, caller, project_named
from api.body import Blueprint
from api.resources.paging import page
from api.schemas import Page, PageQuery, Sort, _In, _is_stored_as_text, _Out
from api.service import service
from orchestrator.errors import Conflict, InputError, Problem
from orchestrator.store import access, new_id, secrets
from orchestrator.vault import Sealed

blueprint = Blueprint("secrets", __name__, url_prefix="/api/v1/secrets", description="Secrets")

_NAME = validate.Regexp(
    r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z",
    error="must be a name as templates have them: letters, digits and _, no digit first",
)
_VALUE = validate.Length(1, 64 * 1024)


class SecretIn(_In):
    """Without a project or a workflow it is everybody's."""

    name = fields.String(required=True, validate=_NAME, metadata={"description": "what templates say after `secrets.`"})
    value = fields.String(
        required=True,
        validate=_VALUE,
        load_only=True,
        metadata={"description": "the secret itself, which no answer ever has"},
    )
    project = fields.String(
        load_default=None, allow_none=True, metadata={"description": "the name of the project whose workflows see it"}
    )
    workflow_id = fields.UUID(
        load_default=None, allow_none=True, metadata={"description": "the only workflow that sees it"}
    )
    description = fields.String(
        load_default="",
        validate=[validate.Length(max=10_000), _is_stored_as_text],
        metadata={"description": "what it is for"},
    )

    @validates_schema
    def _one_scope(self, data: dict[str, Any], **_: object) -> None:
        if data.get("project") is not None and data.get("workflow_id") is not None:
            raise ValidationError("is not needed beside a workflow, which belongs to a project", "project")


class SecretChange(_In):
    value = fields.String(
        validate=_VALUE, load_only=True, metadata={"description": "the secret itself, which no answer ever has"}
    )
    description = fields.String(
        validate=[validate.Length(max=10_000), _is_stored_as_text], metadata={"description": "what it is for"}
    )


class SecretQuery(PageQuery):
    project_id = fields.UUID(metadata={"description": "secrets of this project"})
    workflow_id = fields.UUID(metadata={"description": "secrets of this workflow"})
    sort = Sort(secrets.ORDERS, default="name")


class SecretOut(_Out):
    id = fields.UUID()
    name = fields.String()
    project_id = fields.UUID(allow_none=True)
    workflow_id = fields.UUID(allow_none=True)
    description = fields.String()
    key_id = fields.String(metadata={"description": "which key it is encrypted with"})
    created_at = fields.DateTime()
    updated_at = fields.DateTime()


class SecretPage(Page):
    items = fields.List(fields.Nested(SecretOut))


@blueprint.route("")
class Secrets(MethodView):
    @blueprint.arguments(SecretQuery(), location="query")
    @blueprint.response(200, SecretPage)
    def get(self, query: dict[str, Any]) -> Response:
        """List the secrets that workflows of yours may name, without what they are."""
        wanted = {name: str(query[name]) for name in ("project_id", "workflow_id") if name in query}
        with service().store.single() as connection:
            return page(
                query,
                secrets.ORDERS,
                lambda window: secrets.listing(connection, window, projects=allowed(EDITOR), **wanted),
            )

    @blueprint.arguments(SecretIn())
    @blueprint.response(201, SecretOut)
    def post(self, given: dict[str, Any]) -> Response:
        """Write a secret: for one workflow, the workflows of a project, or all (which takes the role admin in all
        projects). Workers know it within seconds."""
        scope = _scope(given["project"], given["workflow_id"])
        id, name = new_id(), given["name"].lower()
        sealed = _sealed(id, name, given["value"])
        with service().store.single() as connection:
            secrets.insert(connection, id, name, sealed, description=given["description"], **scope)
        response = _shown(id)
        response.status_code = 201
        response.headers["Location"] = url_for("secrets.Secret", secret_id=id)
        return response


@blueprint.route("/<uuid:secret_id>")
class Secret(MethodView):
    @blueprint.response(200, SecretOut)
    def get(self, secret_id: UUID) -> Response:
        """A secret, without what it is."""
        return _shown(str(secret_id))

    @blueprint.arguments(SecretChange())
    @blueprint.response(200, SecretOut)
    def put(self, given: dict[str, Any], secret_id: UUID) -> Response:
        """Change what is given. Workers know it within seconds."""
        id = str(secret_id)
        name = _mine(id)["name"]
        sealed = _sealed(id, name, given["value"]) if "value" in given else None
        with service().store.single() as connection:
            secrets.update(connection, id, sealed=sealed, description=given.get("description"))
        return _shown(id)

    @blueprint.response(204)
    def delete(self, secret_id: UUID) -> None:
        """Remove it. Steps that name it fail from then on."""
        _mine(str(secret_id))
        with service().store.single() as connection:
            secrets.delete(connection, str(secret_id))


def _scope(project: str | None, workflow_id: UUID | None) -> dict[str, str | None]:
    """Raises Forbidden, InputError."""
    if workflow_id is not None:
        with service().store.single() as connection:
            owner = access.project_of(connection, "workflow", str(workflow_id))
        if owner is None or not caller().may(EDITOR, owner):
            raise InputError([Problem("workflow_id", f"there is no workflow {workflow_id} that you may change")])
        return {"project_id": None, "workflow_id": str(workflow_id)}
    if project is not None:
        return {"project_id": project_named(project, EDITOR, "project"), "workflow_id": None}
    caller().check(ADMIN, None)
    return {"project_id": None, "workflow_id": None}


def _mine(id: str) -> dict[str, Any]:
    """What everybody's workflows see is for administrators to change. Raises NotFound, Forbidden."""
    with service().store.single() as connection:
        found = secrets.get(connection, id)
    if found["project_id"] is None and found["workflow_id"] is None:
        caller().check(ADMIN, None)
    return found


def _sealed(id: str, name: str, value: str) -> Sealed:
    vault = service().vault
    if vault is None:
        raise Conflict(
            "the service has no key to encrypt secrets with; make one with `orchestrator secrets new-key` and set "
            "ORCHESTRATOR_VAULT_KEY, or vault.key_file, for the API and the workers",
            "no key",
        )
    return vault.seal(value, secrets.bound_to(id, name))


def _shown(id: str) -> Response:
    with service().store.single() as connection:
        return jsonify(secrets.get(connection, id))
