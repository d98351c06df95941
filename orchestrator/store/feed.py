"""What live streams are read from: executions, steps and log lines, numbered in one row by what last became of them.

There is no table of events. A change of status gives the row its next number in the same UPDATE, and a stream is the
rows in the order of their numbers: so it can be resumed at any number, however long ago, and a change costs a number
and an entry of an index (5 us of PostgreSQL's time, where a row in a table of events took 13). The price: a state that
was over before anybody looked is not told, except for `running`, whose number is kept.

Numbers are given out before their transactions commit, so that a higher one may be seen before a lower. `Settled` says
up to which number nothing can come any more: every writer holds a lock on its table from before it takes a number until
it has ended, as PostgreSQL has it for any INSERT or UPDATE, and pg_locks shows who does. (The oldest transaction of a
snapshot would say the same, but stands still with any other transaction on the server, for as long as that takes.)
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import EXECUTION_TERMINAL, ExecutionStatus, StepStatus, sql_words
from orchestrator.store.everywhere import everywhere, first_anywhere
from orchestrator.store.session import Store, run

Kind = Literal["execution", "step", "log"]
KINDS: tuple[Kind, ...] = ("execution", "step", "log")
START = -1
"""Before all numbers. 0 have rows from before there were numbers, and steps that have not been touched."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A state that an execution or a step came to, or a log line, which has a `level`. `message` is the error, or the
    line; `at` is None of a state whose time is not kept. Ids are texts."""

    seq: int
    execution_id: str
    workflow_id: str
    project_id: str
    step_execution_id: str | None
    step_id: str | None
    path: str | None
    attempt: int | None
    status: str | None
    level: str | None
    message: str | None
    at: datetime | None

    @property
    def kind(self) -> Kind:
        if self.level is not None:
            return "log"
        return "execution" if self.step_execution_id is None else "step"

    @property
    def is_end(self) -> bool:
        return self.kind == "execution" and self.status in EXECUTION_TERMINAL


# --- how far it is complete ----------------------------------------------------------------------------------

_WRITERS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation IN ('executions'::regclass, 'step_executions'::regclass, 'step_logs'::regclass)
"""
_SETTLES_IN, _SETTLES_WITHIN = 0.005, 3.0


class Settled:
    """How far the feed is complete, as one reader knows it."""

    def __init__(self) -> None:
        self.upto = START
        self._candidate = START
        self._writers: frozenset[str] | None = None
        """Those of the moment when the candidate was the last number, as far as they still write; None: there is no
        candidate."""

    @property
    def is_waiting(self) -> bool:
        """Whether all it takes is another look."""
        return self._writers is not None

    def look(self, connection: Connection) -> int:
        """The number up to which statements see everything from now on."""
        if self._writers is None:
            # The number first: whoever has taken it, or one before, and still writes is then among the writers.
            last = last_number(connection)
            if last == self.upto:
                return last
            self._candidate, self._writers = last, _writers(connection)
        else:
            self._writers &= _writers(connection)
        if not self._writers:
            self.upto, self._writers = self._candidate, None
        return self.upto


def settled(store: Store) -> int | None:
    """The number up to which everything can be seen that has committed by now. It waits for who is just writing; None
    if that takes longer than a few seconds."""
    reader, patience = Settled(), time.monotonic() + _SETTLES_WITHIN
    with store.single() as connection:
        while time.monotonic() < patience:
            upto = reader.look(connection)
            if not reader.is_waiting:
                return upto
            time.sleep(_SETTLES_IN)
    return None


def last_number(connection: Connection) -> int:
    """The last that was given out."""
    number: int = run(connection, "SELECT last_value FROM feed_seq").scalar_one()
    return number


def _writers(connection: Connection) -> frozenset[str]:
    return frozenset(transaction for (transaction,) in run(connection, _WRITERS))


# --- what it says --------------------------------------------------------------------------------------------

_COLUMNS = "seq, execution_id, step_execution_id, step_id, path, attempt, status, level, message, at"
# An execution's or step's row stands for the state that it is in, and for that of having been begun, which has the same
# number while it lasts and afterwards. What they belong to is looked up for those that are told only.
_EXECUTIONS = f"""
SELECT n.seq, e.id, NULL::uuid, NULL, NULL, NULL::int, n.status, NULL, n.message, n.at
FROM executions e CROSS JOIN LATERAL (VALUES
    (CASE e.status WHEN '{ExecutionStatus.RUNNING}' THEN coalesce(e.begun_seq, e.seq) ELSE e.seq END,
     e.status, e.error_message, coalesce(e.finished_at, CASE e.status
        WHEN '{ExecutionStatus.RUNNING}' THEN e.started_at WHEN '{ExecutionStatus.PAUSED}' THEN e.paused_at END)),
    (CASE WHEN e.status NOT IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}') THEN e.begun_seq END,
     '{ExecutionStatus.RUNNING}', NULL, e.started_at)) AS n (seq, status, message, at)
WHERE {{which}} AND n.seq > %(after)s AND n.seq <= %(upto)s
ORDER BY n.seq FETCH FIRST %(limit)s ROWS WITH TIES
"""
_STEPS = f"""
SELECT n.seq, s.execution_id, s.id, s.step_id, s.path, s.attempt, n.status, NULL, n.message, n.at
FROM step_executions s CROSS JOIN LATERAL (VALUES
    (CASE s.status WHEN '{StepStatus.RUNNING}' THEN coalesce(s.begun_seq, s.seq) ELSE s.seq END,
     s.status, s.error_message,
     coalesce(s.finished_at, CASE s.status WHEN '{StepStatus.RUNNING}' THEN s.started_at END)),
    (CASE WHEN s.status NOT IN ('{StepStatus.PENDING}', '{StepStatus.RUNNING}') THEN s.begun_seq END,
     '{StepStatus.RUNNING}', NULL, s.started_at)) AS n (seq, status, message, at)
WHERE {{which}} AND n.seq > %(after)s AND n.seq <= %(upto)s AND (n.seq > 0 OR n.status <> '{StepStatus.PENDING}')
ORDER BY n.seq FETCH FIRST %(limit)s ROWS WITH TIES
"""
_LINES = """
SELECT l.seq, l.execution_id, l.step_execution_id, l.step_id,
       (SELECT path FROM step_executions WHERE id = l.step_execution_id), l.attempt, NULL, l.level, l.message, l.at
FROM step_logs l WHERE {which} AND l.seq > %(after)s AND l.seq <= %(upto)s
ORDER BY l.seq FETCH FIRST %(limit)s ROWS WITH TIES
"""
# Rows that have changed after `upto` may have begun before it, so the index has no upper end here.
_PARTS: dict[Kind, tuple[str, str, str]] = {
    "execution": (_EXECUTIONS, "e.seq > %(after)s AND e.seq > 0", "e.id"),
    "step": (_STEPS, "s.seq > %(after)s AND s.seq > 0", "s.execution_id"),
    "log": (_LINES, "l.seq > %(after)s AND l.attempt >= 0", "l.execution_id"),
}
"""What is read of a kind; which rows these are if it is of all executions, as an index has it; and the column that says
of which it is."""


def entries(
    connection: Connection,
    after: int,
    upto: int,
    limit: int,
    *,
    executions: Collection[str] | None = None,
    kinds: Collection[Kind] = KINDS,
) -> list[Entry]:
    """The first `limit` entries with numbers from `after`, exclusive, to `upto`, in their order, and more if those have
    the last one's number too: of these executions; or of all, and then `after` is 0 or more.

    What has changed since `upto` is not among them with the state that it had."""
    parts = []
    for kind in (kind for kind in KINDS if kind in kinds):
        part, of_all, execution = _PARTS[kind]
        of_some = f"{execution} = ANY(%(of)s::uuid[])"
        parts.append("(" + part.format(which=of_all if executions is None else of_some) + ")")
    sql = (
        "SELECT n.seq, n.execution_id::text, e.workflow_id::text, w.project_id::text, n.step_execution_id::text, "
        "n.step_id, n.path, n.attempt, n.status, n.level, n.message, n.at "
        f"FROM (SELECT * FROM ({' UNION ALL '.join(parts)}) AS p ({_COLUMNS}) ORDER BY seq "
        "FETCH FIRST %(limit)s ROWS WITH TIES) AS n "
        "JOIN executions e ON e.id = n.execution_id JOIN workflows w ON w.id = e.workflow_id"
    )
    params = {"after": after, "upto": upto, "limit": limit, "of": None if executions is None else list(executions)}
    rows = [] if _is_among_archives(connection, after) else run(connection, sql, params).all()
    # Asked again, since what was read has waited for whoever has just laid something aside.
    if _is_among_archives(connection, after):
        rows = run(connection, everywhere(sql), params).all()
    # Of the same number, what became of the steps before what became of all.
    return sorted((Entry(*tuple(row)) for row in rows), key=lambda entry: (entry.seq, entry.kind == "execution"))


def _is_among_archives(connection: Connection, after: int) -> bool:
    """Whether some of what comes after this number may have been laid aside."""
    found: bool = run(
        connection, "SELECT coalesce(max(seq), 0) > %(after)s FROM archives", {"after": after}
    ).scalar_one()
    return found


@dataclass(frozen=True, slots=True)
class End:
    """How an execution has ended, and the number of the last entry of it."""

    execution_id: str
    status: str
    seq: int


def end_of(connection: Connection, execution_id: str) -> End | None:
    """None if it has not ended, or is not there."""
    row = first_anywhere(
        connection,
        f"""
        SELECT e.id::text, e.status, CASE WHEN e.status IN ({sql_words(EXECUTION_TERMINAL)})
               THEN greatest(e.seq, (SELECT max(seq) FROM step_executions WHERE execution_id = e.id),
                             (SELECT max(seq) FROM step_logs WHERE execution_id = e.id)) END AS seq
        FROM executions e WHERE e.id = %(id)s::uuid
        """,
        {"id": execution_id},
    )
    return None if row is None or row.seq is None else End(*tuple(row))
