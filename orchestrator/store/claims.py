"""Claims: which worker holds a step, of which only it can record what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.lifecycle import BEGIN, CLAIM, ExecutionStatus
from orchestrator.store.routines import Routine
from orchestrator.store.session import EXECUTIONS_FIRST, Store, new_id, run


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that this worker holds: only a write that shows `token` counts."""

    id: str
    path: str
    attempt: int
    losses: int
    token: str
    state: Any = None
    """What this attempt left for itself when it went to rest."""
    loop: Any = None
    """What its templates see as `loop`."""
    time_left: float | None = None
    """Seconds that the attempt has, at the time of the claim; None without a limit."""
    forgiven: int = 0
    """Attempts from before somebody had it tried again."""

    @property
    def counted(self) -> int:
        """Attempts that use up its retry policy, this one included. What a dying worker took with it says nothing about
        the step."""
        return self.attempt - self.forgiven - self.losses


@dataclass(frozen=True, slots=True)
class ExecutionFacts:
    """What performing a step needs to know of its execution."""

    id: str
    workflow_id: str
    version: int
    input: Any
    priority: int
    trigger_id: str | None
    seconds_left: float | None
    """Until the execution's deadline, at the time of the claim."""
    parent_step_id: str | None = None
    depth: int = 0
    begun: bool = False
    """Whether it was this claim that began the execution."""


GRACE = 5.0
"""Seconds past a step's timeout after which reconcile takes the attempt for dead: the worker, which enforces
the timeout itself, is given the first chance to say so. A row's `deadline` is that much later than its time is up."""

TIME_IS_UP = f"deadline <= clock_timestamp() + {GRACE} * interval '1 second'"

# Taking on a step writes the same columns whichever statement does it. An attempt that goes on has the deadline of its
# beginning; what came in time to a worker that did not still counts, so there is a moment to make something of it.
TAKE = f"""
    attempt = s.attempt + CASE WHEN s.resumes THEN 0 ELSE 1 END, resumes = false,
    claim_token = %(token)s::uuid, worker_id = %(worker)s::uuid, started_at = clock_timestamp(),
    deadline = CASE WHEN s.deadline IS NULL THEN clock_timestamp() + (s.timeout + {GRACE}) * interval '1 second'
                    ELSE greatest(s.deadline, clock_timestamp() + {GRACE} * interval '1 second') END
"""
# What a claim returns, whichever statement makes it.
CLAIMED = {
    "id": "text",
    "path": "text",
    "attempt": "int",
    "losses": "int",
    "state": "jsonb",
    "iteration": "jsonb",
    "time_left": "float8",
    "forgiven": "int",
}
CLAIMED_ROW = (
    "s.id::text AS id, s.path, s.attempt, s.losses, s.state, s.iteration, "
    f"extract(epoch FROM s.deadline - clock_timestamp())::float8 - {GRACE} AS time_left, "
    "coalesce(s.forgiven, 0) AS forgiven"
)
HELD = "id = %(id)s::uuid AND claim_token = %(held_token)s::uuid"
# Of several claims. By the tokens alone, for which there is no index, all that is live would be looked at.
ARE_HELD = "s.id = ANY(%(ids)s::uuid[]) AND s.claim_token = ANY(%(tokens)s::uuid[])"


def held_params(claims: Collection[Claim]) -> dict[str, list[str]]:
    """For ARE_HELD."""
    return {"ids": [claim.id for claim in claims], "tokens": [claim.token for claim in claims]}


# What is claimed without a lease has lost its worker, and may do so as often as it is claimed again, until the step is
# taken for what kills its workers.
_HAS_LEASE = "EXISTS (SELECT FROM worker_processes w WHERE w.id = %(worker)s::uuid)"

_CLAIM = f"""
WITH claimed AS (
    UPDATE step_executions s SET {CLAIM.assignment}, {TAKE}
    FROM executions e
    WHERE s.execution_id = %(execution)s::uuid AND s.path = %(path)s AND s.{CLAIM.guard}
      AND e.id = s.execution_id AND e.status IN ('{ExecutionStatus.QUEUED}', '{ExecutionStatus.RUNNING}')
      AND e.admitted_at IS NOT NULL AND {_HAS_LEASE}
    RETURNING {CLAIMED_ROW}, e.workflow_id::text AS workflow_id, e.version, e.input,
        e.priority, e.trigger_id::text AS trigger_id,
        coalesce(extract(epoch FROM e.deadline - clock_timestamp())::float8, e.timeout) AS seconds_left,
        e.parent_step_id::text AS parent_step_id, e.depth
), begun AS (
    UPDATE executions SET {BEGIN.assignment}, started_at = clock_timestamp(),
        deadline = clock_timestamp() + timeout * interval '1 second'
    WHERE id = %(execution)s::uuid AND {BEGIN.guard} AND EXISTS (SELECT FROM claimed) RETURNING id
)
SELECT claimed.*, EXISTS (SELECT FROM begun) FROM claimed
"""
# Whoever wants the execution's row and its steps' takes the former first, or two could wait for each other. Only the
# claim that may begin the execution wants both.
_BEGIN_FIRST = f"""
DECLARE
BEGIN
    PERFORM FROM executions WHERE id = %(execution)s AND {BEGIN.guard} FOR NO KEY UPDATE;
    RETURN QUERY {_CLAIM};
END
"""

_CLAIM_ROUTINE = Routine(
    "claim_step",
    _BEGIN_FIRST,
    {"execution": "uuid", "path": "text", "worker": "uuid", "token": "uuid"},
    CLAIMED
    | {
        "workflow_id": "text",
        "version": "int",
        "input": "jsonb",
        "priority": "smallint",
        "trigger_id": "text",
        "seconds_left": "float8",
        "parent_step_id": "text",
        "depth": "smallint",
        "begun": "bool",
    },
)


def claim(store: Store, execution_id: str, path: str, worker_id: str) -> tuple[Claim, ExecutionFacts] | None:
    """Take on a queued step of an execution that is not paused or ended; None if somebody else has it, or the worker
    has no lease.

    The first claim of an execution begins it.
    """
    token = new_id()
    rows = store.call(_CLAIM_ROUTINE, {"execution": execution_id, "path": path, "worker": worker_id, "token": token})
    if not rows:
        return None
    claimed, facts = rows[0][: len(CLAIMED)], rows[0][len(CLAIMED) :]
    return claim_of(claimed, token), ExecutionFacts(execution_id, *facts)


def claim_of(row: Sequence[Any], token: str) -> Claim:
    """From a row with the columns CLAIMED."""
    id, path, attempt, losses, state, loop, time_left, forgiven = row
    return Claim(id, path, attempt, losses, token, state, loop, time_left, forgiven)


FEW = 64
"""Queued steps of one execution up to which a worker looks among them for its next; of more, most are on their way
in packs, in which they cost less."""

# A step taken without its message says nothing about how far the messages have come: see ring_again.
UNRUNG = "rung_at = NULL"
_CLAIM_QUEUED_ROUTINE = Routine(
    "claim_queued",
    f"""
    DECLARE
    BEGIN
        {EXECUTIONS_FIRST};
        RETURN QUERY
            UPDATE step_executions s SET {CLAIM.assignment}, {TAKE}, {UNRUNG}
            FROM executions e
            WHERE e.id = %(execution)s AND e.status = '{ExecutionStatus.RUNNING}' AND s.{CLAIM.guard} AND {_HAS_LEASE}
              AND (SELECT count(*) FROM (SELECT FROM step_executions q WHERE q.execution_id = %(execution)s
                                         AND q.{CLAIM.guard} LIMIT {FEW} + 1) AS few) <= {FEW}
              AND s.id = (SELECT q.id FROM step_executions q
                          WHERE q.execution_id = %(execution)s AND q.{CLAIM.guard} AND q.queue = ANY(%(queues)s)
                          ORDER BY q.height DESC LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING {CLAIMED_ROW};
    END
    """,
    {"execution": "uuid", "queues": "text[]", "worker": "uuid", "token": "uuid"},
    CLAIMED,
)


def claim_queued(store: Store, execution_id: str, queues: Collection[str], worker_id: str) -> Claim | None:
    """Take on the highest step of a running execution that is queued on one of `queues`.

    None too if many are queued, or the worker has no lease.
    """
    token = new_id()
    params = {"execution": execution_id, "queues": list(queues), "worker": worker_id, "token": token}
    rows = store.call(_CLAIM_QUEUED_ROUTINE, params)
    if not rows:
        return None
    return claim_of(rows[0], token)


def held(connection: Connection, claims: Collection[Claim]) -> set[str]:
    """The tokens of those that still hold."""
    sql = f"SELECT s.claim_token::text FROM step_executions s WHERE {ARE_HELD}"
    return {token for (token,) in run(connection, sql, held_params(claims))}
