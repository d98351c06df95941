"""The core: definitions, lifecycle, engine and store. It knows neither Flask nor Celery."""

__version__ = "0.1.0"
