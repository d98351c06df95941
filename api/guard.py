"""What happens before and after every view: who calls, may they, and what is written down of it."""

from __future__ import annotations

from flask import Flask, Response, g, request

from api import audit
from api.access import check, rule_of_request
from api.auth import Authenticator
from api.limits import RateLimiter
from api.service import Service


def install(app: Flask, service: Service) -> None:
    """Raises ConfigurationError if there is no admin key."""
    authenticate = app.extensions["authenticate"] = Authenticator(service.settings, service.store)
    recorder = audit.Recorder(service)
    limiter = RateLimiter(service.settings)
    crosses_origins = bool(service.settings.api.cors_origins)

    @app.before_request
    def guard() -> None:
        rule = rule_of_request()
        if rule is not None and rule.is_open:
            return
        if crosses_origins and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return  # a browser asks whether it may ask, and sends no key with that
        g.principal = authenticate(request.headers.get("Authorization", ""))
        limiter.check(g.principal)
        if g.principal.max_body is not None:
            request.max_content_length = min(g.principal.max_body, app.config["MAX_CONTENT_LENGTH"])
        if request.url_rule is None or request.method == "OPTIONS":
            return  # Flask answers with 404 or 405, or which methods there are
        check(g.principal, rule)
        if rule is not None:
            recorder.before(rule)

    @app.after_request
    def record(response: Response) -> Response:
        if response.status_code == 404 and audit.is_foreign_to(g.get("principal")):
            g.is_foreign = True
        recorder.after(rule_of_request(), response)
        response.headers["X-Request-ID"] = audit.request_id()
        return response
