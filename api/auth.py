"""The bearer key that every call needs but /health, the documentation, and webhooks, which have their own secrets."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from flask import request
from werkzeug.exceptions import Unauthorized

from orchestrator.config import Settings
from orchestrator.datafolder import DataFolder
from orchestrator.errors import ConfigurationError

_OPEN = ("/health", "/openapi.json", "/docs", "/webhook")


def require_key(settings: Settings) -> Callable[[], None]:
    """A before_request function. Raises ConfigurationError if no key is configured or generated."""
    key = DataFolder(settings.data_path).admin_key(settings.admin_key)
    if not key:
        raise ConfigurationError("there is no API key; set ORCHESTRATOR_ADMIN_KEY, or start with `orchestrator up`")
    expected = key.encode()

    def check() -> None:
        if any(request.path == path or request.path.startswith(path + "/") for path in _OPEN):
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected):
            raise Unauthorized("send the header 'Authorization: Bearer KEY' with the service's API key")

    return check
