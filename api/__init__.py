"""The Flask API: thin views over the store and the engine. `gunicorn "api:create_app()"` serves it."""

from api.app import create_app

__all__ = ["create_app"]
