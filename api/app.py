"""The application factory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flask_swagger_ui  # type: ignore[import-untyped]
import orjson
from flask import Flask, Response, send_from_directory
from flask.json.provider import JSONProvider
from flask_smorest import Api

from api import guard, headers
from api.errors import ProblemApi
from api.live.hub import Hub
from api.openapi import TAGS, EveryOperation
from api.resources import (
    audit,
    events,
    executing_many,
    executions,
    health,
    keys,
    live,
    logs,
    metrics,
    projects,
    scheduler,
    schema,
    secrets,
    stats,
    step_templates,
    transfer,
    triggers,
    trying,
    versions,
    waiting,
    webhooks,
    workflows,
)
from api.service import Service
from orchestrator import __version__
from orchestrator.config import Settings, load_settings
from orchestrator.exposure import check_exposure

BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key, the admin key, or a token of an OpenID Connect issuer that the settings name",
}

_ABOUT = """Workflows, their executions, and what became of every step.

Whatever takes JSON takes YAML as well. Every error is `application/problem+json`: `detail` says what is wrong and what
to do, `errors` lists all that is wrong with a body, each with its path. Lists have `next`, to be handed back as
`cursor` with the same query. A call that starts something takes an `Idempotency-Key`, with which it may be repeated.
"""

_MOST_OVERHEAD = 64 * 1024
"""Bytes of a body around the definition or input whose size is limited."""


class _Json(JSONProvider):
    """orjson, several times faster than the default on an execution with many steps; times are RFC 3339."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return _encoded(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        body = _encoded(self._prepare_response_obj(args, kwargs))
        return Response(body, mimetype="application/json")


def _encoded(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)


def create_app(settings: Settings | None = None) -> Flask:
    """The API over the database and the broker that `settings` name (default: this process's settings).

    Raises ConfigurationError if there is no admin key or no database, or if keys would travel as plain text.
    """
    settings = settings or load_settings()
    check_exposure(settings)
    app = Flask("api", static_folder=None)
    app.json_provider_class = _Json
    app.json = _Json(app)
    app.config.update(
        API_TITLE="Orchestrator",
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        OPENAPI_SWAGGER_UI_PATH="/docs",
        OPENAPI_SWAGGER_UI_URL="/docs/assets/",
        API_SPEC_OPTIONS={
            "components": {"securitySchemes": {"bearer": BEARER}},
            "security": [{"bearer": []}],
            "info": {"description": _ABOUT, "license": {"name": "MIT", "identifier": "MIT"}},
            "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        },
        MAX_CONTENT_LENGTH=settings.executor.max_payload * 4 + _MOST_OVERHEAD,
    )
    app.extensions["orchestrator"] = Service(settings)
    app.extensions["live"] = Hub(app.extensions["orchestrator"].store)
    guard.install(app, app.extensions["orchestrator"])
    headers.install(app, settings)
    api: Api = ProblemApi(app, spec_kwargs={"extra_plugins": [EveryOperation()]})
    for resource in (
        workflows,
        executing_many,
        versions,
        transfer,
        step_templates,
        executions,
        logs,
        live,
        waiting,
        triggers,
        webhooks,
        events,
        trying,
        scheduler,
        schema,
        projects,
        keys,
        secrets,
        stats,
        metrics,
        audit,
        health,
    ):
        api.register_blueprint(resource.blueprint)
    _serve_docs(app)
    return app


def _serve_docs(app: Flask) -> None:
    """What flask-smorest leaves out: the assets of the documentation page, and its address with a slash."""
    folder = Path(flask_swagger_ui.__file__).parent / "dist"
    app.add_url_rule("/docs/", "docs", app.view_functions["api-docs.openapi_swagger_ui"])

    @app.get("/docs/assets/<path:name>")
    def docs_assets(name: str) -> Response:
        return send_from_directory(os.fspath(folder), name, max_age=86400)
