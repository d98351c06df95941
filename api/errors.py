"""One shape for every error: RFC 9457 problem+json. The error tree becomes HTTP here and nowhere else."""

from __future__ import annotations

import http
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import psycopg2
import sqlalchemy.exc
from flask import Response, g, request
from flask_smorest import Api
from flask_smorest.utils import prepare_response
from marshmallow import Schema, fields
from werkzeug.exceptions import BadRequest, HTTPException, ServiceUnavailable
from werkzeug.http import HTTP_STATUS_CODES

from api.examples import example_error
from orchestrator.definition.paths import join
from orchestrator.errors import (
    ArtifactGone,
    ArtifactsAway,
    Conflict,
    DefinitionError,
    Forbidden,
    InputError,
    NotFound,
    OrchestratorError,
    Outdated,
    PayloadTooLarge,
    Problem,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_LOCATIONS = frozenset(("json", "query", "headers", "path"))


class ProblemItem(Schema):
    path = fields.String(required=True, metadata={"description": "where, as in steps[2].config.url"})
    message = fields.String(required=True)
    line = fields.Integer(metadata={"description": "in a YAML document, from 1"})


class ProblemSchema(Schema):
    type = fields.String(required=True, dump_default="about:blank")
    title = fields.String(required=True, metadata={"description": "what the status means"})
    status = fields.Integer(required=True)
    detail = fields.String(required=True, metadata={"description": "what is wrong, and what to do"})
    state = fields.String(metadata={"description": "of a conflict: the state that stands in the way"})
    role = fields.String(metadata={"description": "of what is forbidden: the least role that it takes"})
    errors = fields.List(fields.Nested(ProblemItem))
    fire_id = fields.UUID(metadata={"description": "of a webhook: the record of what came"})
    execution_id = fields.UUID(allow_none=True, metadata={"description": "of a webhook: null, since none was started"})


def problem(status: int, detail: str, *, errors: Iterable[Problem] = (), headers: Any = None, **more: Any) -> Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTP_STATUS_CODES.get(status, "Error"),
        "status": status,
        "detail": _encodable(detail),
        **more,
    }
    listed = [
        {"path": _encodable(item.path), "message": _encodable(item.message)}
        | ({"line": item.line} if item.line else {})
        for item in errors
    ]
    if listed:
        body["errors"] = listed
    return Response(orjson.dumps(body), status, headers, mimetype=MEDIA_TYPE)


class Unreadable(BadRequest):
    """The body is no document at all."""

    def __init__(self, media: str, problems: Sequence[Problem]) -> None:
        super().__init__(f"the body cannot be read as {media.upper()}")
        self.problems = problems


class ProblemApi(Api):
    """flask-smorest's Api with its errors, and ours, in that shape."""

    ERROR_SCHEMA = ProblemSchema

    def _register_error_handlers(self) -> None:
        self._app.register_error_handler(HTTPException, self.handle_http_exception)
        self._app.register_error_handler(OrchestratorError, _translate)
        for unreachable in (
            sqlalchemy.exc.OperationalError,
            sqlalchemy.exc.TimeoutError,
            psycopg2.OperationalError,
        ):
            self._app.register_error_handler(unreachable, _no_database)

    def handle_http_exception(self, error: HTTPException) -> Response:
        status = error.code or 500
        if status >= 500 and not isinstance(error, ServiceUnavailable):
            # Flask has logged what raised it.
            return problem(status, "the service failed on this request; its log says why")
        messages = (getattr(error, "data", None) or {}).get("messages") or {}
        found = list(error.problems if isinstance(error, Unreadable) else flatten(messages))
        headers = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
        if status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        detail = str(error.description)
        if status == 413:
            detail = (
                f"the body is larger than {request.max_content_length:,} bytes, "
                "a limit that follows from the setting executor.max_payload"
                + (" or is the key's own" if "principal" in g and g.principal.max_body is not None else "")
            )
        elif messages:
            detail = "a field is not valid" if len(found) == 1 else f"{len(found)} fields are not valid"
        return problem(status, detail, errors=found, headers=headers)

    def _register_responses(self) -> None:
        """As flask-smorest does, with the media type that our errors have."""
        for status in http.HTTPStatus:
            if status >= 400:
                example = example_error(status)
                self._register_response(status.name, status.phrase, **({"example": example} if example else {}))
        self._register_response(self.DEFAULT_ERROR_RESPONSE_NAME, "Any other error")

    def _register_response(self, name: str, phrase: str, **more: Any) -> None:
        response = {"description": phrase, "schema": ProblemSchema, **more}
        prepare_response(response, self.spec, MEDIA_TYPE)
        self.spec.components.response(name, response, lazy=True)

    def register_blueprint(self, blp: Any, **options: Any) -> None:
        """As flask-smorest does, without a tag by the blueprint's name: api/openapi.py has them by path."""
        tags = list(self.spec._tags)
        super().register_blueprint(blp, **options)
        self.spec._tags = tags


def _translate(error: OrchestratorError) -> Response:
    if isinstance(error, NotFound):
        return problem(404, str(error))
    if isinstance(error, Forbidden):
        return problem(403, str(error), role=error.role)
    if isinstance(error, Conflict):
        return problem(409, str(error), state=str(error.state))
    if isinstance(error, ArtifactGone):
        return problem(410, str(error))
    if isinstance(error, Outdated):
        return problem(412, str(error))
    if isinstance(error, PayloadTooLarge):
        return problem(413, str(error), errors=error.problems)
    if isinstance(error, DefinitionError):
        return problem(422, "the definition is not valid", errors=error.problems)
    if isinstance(error, InputError):
        return problem(422, "the request is not valid", errors=error.problems)
    if isinstance(error, ArtifactsAway):
        logger.warning("%s", error)
        return problem(503, "large outputs cannot be reached; try again", headers={"Retry-After": "5"})
    logger.error("request failed", exc_info=error)
    return problem(500, "the service failed on this request; its log says why")


def _no_database(error: Exception) -> Response:
    logger.warning("the database does not answer: %s", error)
    return problem(
        503,
        "the database does not answer; try again (an execution with the same Idempotency-Key)",
        headers={"Retry-After": "5"},
    )


def flatten(messages: Any, path: str = "") -> Iterable[Problem]:
    """marshmallow's nested messages as a list; webargs' outermost key, the location, is left out."""
    if isinstance(messages, dict) and path == "" and messages.keys() <= _LOCATIONS:
        for inner in messages.values():
            yield from _flatten(inner, "")
    else:
        yield from _flatten(messages, path)


def _flatten(messages: Any, path: str) -> Iterable[Problem]:
    if isinstance(messages, dict):
        for key, inner in messages.items():
            yield from _flatten(inner, path if key == "_schema" else join(path, key))
    elif isinstance(messages, (list, tuple)):
        for message in messages:
            yield from _flatten(message, path)
    else:
        yield Problem(path, str(messages))


def _encodable(text: str) -> str:
    """`text` without halves of surrogate pairs, which a body may bring in as a field's name."""
    return text.encode("utf-8", "replace").decode()
