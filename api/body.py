"""Request bodies: JSON, or YAML wherever JSON is accepted."""

from __future__ import annotations

from typing import Any, Literal

import flask
import marshmallow
from flask import g
from flask_smorest import Blueprint as SmorestBlueprint
from webargs import missing
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from api.errors import Unreadable
from api.schemas import WorkflowIn
from orchestrator.definition import Document, read_definition
from orchestrator.definition.document import walk
from orchestrator.definition.paths import join, join_all
from orchestrator.errors import DefinitionError, InputError, Problem

MEDIA: dict[str, Literal["json", "yaml"]] = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
}


class BodyParser(FlaskParser):
    """Reads either, and keeps the document, which knows the line of each of its parts."""

    # A misspelled filter that is ignored would answer with everything; the schemas say what is refused.
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {  # noqa: RUF012  (as webargs declares it)
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": None,
    }

    def load_json(self, req: flask.Request, schema: marshmallow.Schema) -> Any:
        text = raw_body(req)
        if not text.strip():
            return missing
        media = MEDIA.get(req.mimetype)
        if media is None:
            raise UnsupportedMediaType(f"send {' or '.join(MEDIA)}, not {req.mimetype or 'a body without a type'}")
        try:
            g.document = read_definition(text, media)
        except DefinitionError as error:
            raise Unreadable(media, error.problems) from None
        data = g.document.data
        if b"\\" in text:
            _check_storable(g.document)
        # A definition document by itself stands for a workflow that has nothing else to say.
        g.bare = isinstance(schema, WorkflowIn) and isinstance(data, dict) and "steps" in data
        return {"definition": data} if g.bare else data


class Blueprint(SmorestBlueprint):
    ARGUMENTS_PARSER = BodyParser()

    def _prepare_arguments_doc(self, doc: Any, doc_info: Any, **options: Any) -> Any:
        doc = super()._prepare_arguments_doc(doc, doc_info, **options)
        content = doc.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            content["application/yaml"] = content["application/json"]
        return doc


def raw_body(req: flask.Request) -> bytes:
    """The body as it came. Raises RequestEntityTooLarge."""
    body = req.get_data(cache=True)
    limit = req.max_content_length
    if req.content_length is None and limit is not None and len(body) >= limit:
        raise RequestEntityTooLarge  # of a chunked body werkzeug hands on what fits
    return body


def given_definition() -> tuple[Document, str]:
    """The definition in this request's body, and what its paths begin with there."""
    whole: Document = g.document
    if g.bare:
        return whole, ""
    lines = None if whole.root is None else whole.root.children.get("definition")
    return Document(whole.data["definition"], lines), "definition"


def is_bare() -> bool:
    """Whether this request's body is a definition document by itself."""
    return bool(g.get("bare"))


def _check_storable(document: Document) -> None:
    """Escapes can spell what no text column takes. Raises InputError with each place."""
    found = []
    for keys, value in walk(document.data):
        texts = [(join_all(keys), value)] if isinstance(value, str) else []
        if isinstance(value, dict):
            texts = [(join(join_all(keys), key), key) for key in value]
        for path, text in texts:
            wrong = why_not_storable(text)
            if wrong:
                found.append(Problem(path, wrong, document.line_of(path)))
    if found:
        raise InputError(found)


def why_not_storable(text: str) -> str | None:
    """What PostgreSQL would refuse in `text`."""
    if "\0" in text:
        return "holds a NUL character (\\u0000), which cannot be stored; remove it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair (\\ud800 to \\udfff), which is no character; remove it"
    return None
