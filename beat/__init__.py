"""The clock: `celery -A beat beat -S beat.scheduler.Scheduler`, and the types of triggers.

RedBeat only rings; what is due, and that it is done once, is decided in PostgreSQL. Timers of executions
(retries, waits) are rows that reconcile fires, and need no entry here.
"""

from workers.app import app

__all__ = ["app"]
