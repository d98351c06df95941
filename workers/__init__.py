"""What runs inside a Celery worker. `celery -A workers ...` finds the app here."""
