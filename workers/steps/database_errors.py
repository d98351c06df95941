"""What a database's error means for a step.

| kind | | tried again |
| --- | --- | --- |
| `connection` | the server was not reached, was lost, or has no room | yes |
| `timeout` | the time was up | yes |
| `deadlock` | another transaction was in the way: deadlock, serialization, a lock | yes |
| `constraint` | unique, foreign key, check, not null | no |
| `sql` | anything else that the server refused | no |
| `config` | the connection's settings | no |
"""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError, StatementError

from orchestrator.errors import StepFailed, StepTimeout

_IN_THE_WAY = frozenset({"40001", "40P01", "55P03"})
_BUSY = frozenset({"SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_LOCKED", "SQLITE_LOCKED_SHAREDCACHE"})
_CANCELLED = "57014"
_RETRYABLE = frozenset({"connection", "deadlock"})


def translated(error: Exception, name: str, url: sa.URL, phase: str, ends_at: float, seconds: float) -> Exception:
    """`error` as a StepFailed, whose message has the server's own sentence and nothing of the parameters.

    SQLSTATE's classes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    if not isinstance(error, (SQLAlchemyError, ValueError, OverflowError)):
        return error
    kind = _kind(error, phase)
    # The wait for SQLite's lock ends with the step's time.
    if kind == "timeout" or (kind == "deadlock" and _sqlite_name(error) and time.monotonic() >= ends_at - 0.05):
        return StepTimeout(f"connection {name}: not done within {seconds:g} s: {_said(error, url)}")
    doubt = "; whether it was committed is not known" if (kind, phase) == ("connection", "commit") else ""
    return StepFailed(f"connection {name}: {_said(error, url)}{doubt}", kind=kind, retryable=kind in _RETRYABLE)


def _kind(error: Exception, phase: str) -> str:
    state = getattr(getattr(error, "orig", None), "pgcode", None) or ""
    sqlite = _sqlite_name(error)
    if state == _CANCELLED or sqlite == "SQLITE_INTERRUPT":
        return "timeout"
    if state in _IN_THE_WAY or sqlite in _BUSY:
        return "deadlock"
    if isinstance(error, IntegrityError):
        return "constraint"
    if isinstance(error, DBAPIError):
        lost = error.connection_invalidated or sqlite == "SQLITE_CANTOPEN" or state[:2] in ("08", "53")
        if not lost and phase == "connect" and isinstance(error, ProgrammingError):
            return "config"  # an option in the url that libpq does not know
        if lost or phase == "connect" or state.startswith("57P"):
            return "connection"
    return "sql"


def _sqlite_name(error: Exception) -> str:
    return getattr(getattr(error, "orig", None), "sqlite_errorname", None) or ""


def _said(error: Exception, url: sa.URL) -> str:
    cause: Any = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    lines = (primary or str(cause)).strip().splitlines()
    text = lines[0].strip() if lines else type(cause).__name__
    return text.replace(url.password, "***") if url.password else text
