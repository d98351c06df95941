"""Rate limits: at most `limit` uses of a key in any window of `per` seconds.

Every use is a row with its key's next number. So the use with the number `limit` before the next one says when that
may be: when it is older than `per`. This is exact for any window, whereas a token bucket (or the one row of GCRA) lets
through twice as many in a window that begins just before it is full, or nothing at once if its bucket is made that
small. It takes two looks at an index, however large the limit. And there is nothing to give back: a use is made when
what it is for begins, and passes with its time, whatever becomes of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from orchestrator.config import RateLimit
from orchestrator.store.session import run

AWAITS_RATE = "rate"
"""What a step waits for whose connection may not be used yet (step_executions.awaits); see rate_line.py."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`limit` uses of `key` in any window of `per` seconds."""

    key: str
    limit: int
    per: float

    @classmethod
    def of(cls, key: str, limit: RateLimit | None) -> Rate | None:
        return None if limit is None else cls(key, limit.limit, limit.per)


def opens_at(key: str, limit: str, per: str, ahead: str = "0") -> str:
    """SQL: from when on `key` may be used by one that lets `ahead` others (less than the limit) go first. NULL: at any
    time."""
    return (
        f"(SELECT u.used_at + {per} * interval '1 second' FROM rate_uses u WHERE u.key = {key} AND u.number = "
        f"1 + {ahead} - {limit} + coalesce((SELECT max(l.number) FROM rate_uses l WHERE l.key = {key}), 0))"
    )


def is_open(moment: str, key: str, limit: str, per: str, ahead: str = "0") -> str:
    """SQL: whether `key` may be used at `moment`."""
    return f"({ahead} < {limit} AND coalesce({opens_at(key, limit, per, ahead)} <= {moment}, true))"


def use(moment: str, key: str, per: str) -> str:
    """SQL: a statement that uses `key`. Whoever asks and then uses holds a lock meanwhile, one for the key."""
    return f"""
        INSERT INTO rate_uses (key, number, used_at, expires_at)
        SELECT {key}, coalesce(last.number, 0) + 1, {moment},
               greatest({moment} + {per} * interval '1 second', last.expires_at)
        FROM (SELECT) AS one LEFT JOIN LATERAL (
            SELECT l.number, l.expires_at FROM rate_uses l WHERE l.key = {key} ORDER BY l.number DESC LIMIT 1
        ) AS last ON true
    """


def purge(connection: Connection, limit: int) -> None:
    """Remove uses whose time is over."""
    run(
        connection,
        "DELETE FROM rate_uses WHERE (key, number) IN (SELECT u.key, u.number FROM rate_uses u "
        "WHERE u.expires_at < clock_timestamp() ORDER BY u.expires_at LIMIT %(limit)s)",
        {"limit": limit},
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """`ahead` come before, and `at` is when it is let in at the earliest."""

    rate: Rate
    ahead: int
    at: datetime


def turn(connection: Connection, rate: Rate, ahead: int) -> Turn:
    """If all those `ahead` come: a whole `limit` of them takes `per` each."""
    windows, left = divmod(ahead, rate.limit)
    at: datetime = run(
        connection,
        "SELECT greatest(clock_timestamp(), "
        f"{opens_at('%(key)s', '%(limit)s', '%(per)s', '%(left)s')}) + %(windows)s * %(per)s * interval '1 second'",
        {"key": rate.key, "limit": rate.limit, "per": rate.per, "left": left, "windows": windows},
    ).scalar_one()
    return Turn(rate, ahead, at)
