"""The definition language, for editors and other programs that write definitions."""

from __future__ import annotations

from flask import Response, jsonify

from api.body import Blueprint
from api.service import service
from orchestrator.definition.json_schema import json_schema

blueprint = Blueprint("schema", __name__, url_prefix="/api/v1/schema", description="The definition language")


@blueprint.route("")
@blueprint.response(200, {"type": "object"}, description="A JSON Schema, draft 2020-12")
def schema() -> Response:
    """The JSON Schema of a definition, with every step type that this service knows."""
    return jsonify(json_schema(service().catalogue))
