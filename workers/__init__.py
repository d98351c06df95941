"""What runs inside a Celery worker. `celery -A workers ...` finds the app here."""

from workers.app import app

__all__ = ["app"]
