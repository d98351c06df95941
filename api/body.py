"""Request bodies: JSON, or YAML wherever JSON is accepted."""

from __future__ import annotations

from typing import Any

import flask
import marshmallow
from flask import g
from flask_smorest import Blueprint as SmorestBlueprint
from webargs import missing
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import UnsupportedMediaType

from api.schemas import WorkflowIn
from orchestrator.definition import Document, read_definition

_MEDIA = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
}


class BodyParser(FlaskParser):
    """Reads either, and keeps the document, which knows the line of each of its parts."""

    def load_json(self, req: flask.Request, schema: marshmallow.Schema) -> Any:
        text = req.get_data(cache=True)
        if not text.strip():
            return missing
        media = _MEDIA.get(req.mimetype)
        if media is None:
            raise UnsupportedMediaType(f"send {' or '.join(_MEDIA)}, not {req.mimetype or 'a body without a type'}")
        g.document = read_definition(text, media)  # type: ignore[arg-type]
        data = g.document.data
        # A definition document by itself stands for a workflow that has nothing else to say.
        g.bare = isinstance(schema, WorkflowIn) and isinstance(data, dict) and "steps" in data
        return {"definition": data} if g.bare else data


class Blueprint(SmorestBlueprint):  # type: ignore[misc]
    ARGUMENTS_PARSER = BodyParser()


def given_definition() -> tuple[Document, str]:
    """The definition in this request's body, and what its paths begin with there."""
    whole: Document = g.document
    if g.bare:
        return whole, ""
    return whole.part("definition"), "definition"
