"""One shape for every error: RFC 9457 problem+json. The error tree is translated to HTTP here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import orjson
from flask import Response
from flask_smorest import Api
from marshmallow import Schema, fields
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from orchestrator.errors import (
    Conflict,
    DefinitionError,
    InputError,
    NotFound,
    OrchestratorError,
    PayloadTooLarge,
    Problem,
)

logger = logging.getLogger(__name__)


class ProblemItem(Schema):
    path = fields.String(metadata={"description": "where, as in steps[2].config.url"})
    message = fields.String()
    line = fields.Integer(metadata={"description": "in a YAML document, from 1"})


class ProblemSchema(Schema):
    type = fields.String(dump_default="about:blank")
    title = fields.String()
    status = fields.Integer()
    detail = fields.String()
    state = fields.String(metadata={"description": "of a conflict: the state that stands in the way"})
    errors = fields.List(fields.Nested(ProblemItem))


def problem(
    status: int, detail: str, *, errors: Iterable[Problem] = (), headers: Any = None, **more: Any
) -> Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTP_STATUS_CODES.get(status, "Error"),
        "status": status,
        "detail": detail,
        **more,
    }
    listed = [
        {"path": item.path, "message": item.message} | ({"line": item.line} if item.line else {}) for item in errors
    ]
    if listed:
        body["errors"] = listed
    return Response(orjson.dumps(body), status, headers, mimetype="application/problem+json")


class ProblemApi(Api):  # type: ignore[misc]
    """flask-smorest's Api with its errors, and ours, in that shape."""

    ERROR_SCHEMA = ProblemSchema

    def _register_error_handlers(self) -> None:
        self._app.register_error_handler(HTTPException, self.handle_http_exception)
        self._app.register_error_handler(OrchestratorError, _translate)

    def handle_http_exception(self, error: HTTPException) -> Response:
        data = getattr(error, "data", None) or {}
        found = list(flatten(data.get("messages") or data.get("errors") or {}))
        status = error.code or 500
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else data.get("headers")
        if status >= 500:
            logger.error("request failed", exc_info=getattr(error, "original_exception", None) or error)
            return problem(status, "the service failed on this request; its log says why")
        detail = f"{len(found)} fields are not valid" if found else str(error.description)
        return problem(status, detail, errors=found, headers=headers)


def _translate(error: OrchestratorError) -> Response:
    if isinstance(error, NotFound):
        return problem(404, str(error))
    if isinstance(error, Conflict):
        return problem(409, str(error), state=str(error.state))
    if isinstance(error, PayloadTooLarge):
        return problem(413, str(error), errors=error.problems)
    if isinstance(error, DefinitionError):
        return problem(422, "the definition is not valid", errors=error.problems)
    if isinstance(error, InputError):
        return problem(422, "the request is not valid", errors=error.problems)
    logger.error("request failed", exc_info=error)
    return problem(500, "the service failed on this request; its log says why")


def flatten(messages: Any, path: str = "") -> Iterable[Problem]:
    """marshmallow's nested messages as a list; webargs' outermost key, the location, is left out."""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            if path == "" and key in ("json", "query", "headers", "path", "json_or_form"):
                yield from flatten(inner, "")
            elif isinstance(key, int):
                yield from flatten(inner, f"{path}[{key}]")
            else:
                yield from flatten(inner, f"{path}.{key}" if path and key != "_schema" else path or str(key))
    elif isinstance(messages, (list, tuple)):
        for message in messages:
            yield from flatten(message, path)
    else:
        yield Problem("" if path == "_schema" else path, str(messages))
