"""One call for many executions: each is cancelled, retried or deleted for itself, and what is in the way of one keeps
no other from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from orchestrator.engine import control
from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Programs
from orchestrator.errors import Conflict, NotFound
from orchestrator.lifecycle import CANCEL_EXECUTION, EXECUTION_TERMINAL, RETRY_EXECUTION, ExecutionStatus
from orchestrator.store import Store, bulk
from orchestrator.store.bulk import Selection

MOST = 1000
"""Executions in one call."""
_DELETED_AT_ONCE = 50
"""In one transaction: an execution may have thousands of steps."""


class Action(StrEnum):
    CANCEL = "cancel"
    RETRY = "retry"
    DELETE = "delete"


_APPLIES = {
    Action.CANCEL: CANCEL_EXECUTION.sources,
    Action.RETRY: RETRY_EXECUTION.sources,
    Action.DELETE: EXECUTION_TERMINAL,
}


@dataclass(frozen=True, slots=True)
class Refused:
    """`state` is None if there is no such execution."""

    id: str
    state: str | None
    detail: str


@dataclass(slots=True)
class Outcome:
    """Of the executions that `matched`, each with its project, some are `done`; `plans` are to be dispatched."""

    projects: Mapping[str, str]
    done: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    @property
    def matched(self) -> int:
        return len(self.projects)

    def done_in(self) -> dict[str, list[str]]:
        """Those that are done, by their projects."""
        found: dict[str, list[str]] = {}
        for id in self.done:
            found.setdefault(self.projects[id], []).append(id)
        return found


def apply(store: Store, programs: Programs, action: Action, which: Selection, limit: int = MOST) -> Outcome:
    """Do `action` to the oldest `limit` of the executions. If neither ids nor statuses choose them, those are meant to
    which it can be done."""
    if which.ids is None and which.statuses is None:
        which = replace(which, statuses=frozenset(ExecutionStatus(status) for status in _APPLIES[action]))
    with store.single() as connection:
        matching = bulk.matching(connection, which, limit)
        known = bulk.statuses(connection, which.ids or (), which.projects)
    ids, outcome = list(matching), Outcome(matching)
    outcome.refused += [_missing(id) for id in which.ids or () if id not in known]
    if action is Action.DELETE:
        for at in range(0, len(ids), _DELETED_AT_ONCE):
            chunk = ids[at : at + _DELETED_AT_ONCE]
            refused = list(_delete(store, chunk))
            outcome.refused += refused
            stay = {one.id for one in refused}
            outcome.done += (id for id in chunk if id not in stay)
        return outcome
    act = _cancel if action is Action.CANCEL else control.retry
    for id in ids:
        _try(outcome, id, partial(act, store, programs, id))
    return outcome


def delete(store: Store, execution_id: str) -> None:
    """Remove one that has ended. Raises NotFound, Conflict."""
    for refused in _delete(store, [execution_id]):
        if refused.state is None:
            raise NotFound("execution", execution_id)
        raise Conflict(refused.detail, refused.state)


def _delete(store: Store, ids: Sequence[str]) -> Iterator[Refused]:
    """Those that stay, and why."""
    with store.single() as connection:
        deleted = bulk.delete(connection, ids)
        left = [id for id in ids if id not in deleted]
        states = bulk.statuses(connection, left) if left else {}
    for id in left:
        if id not in states:
            yield _missing(id)
        elif states[id] in EXECUTION_TERMINAL:
            detail = "a step that waits for this execution, or an execution that it started, has not ended"
            yield Refused(id, states[id], detail)
        else:
            detail = f"an execution that is {states[id]} cannot be deleted; cancel it first"
            yield Refused(id, states[id], detail)


def _cancel(store: Store, programs: Programs, execution_id: str) -> list[Plan]:
    return control.cancel(store, programs, execution_id, "cancelled by a user")


def _try(outcome: Outcome, id: str, act: Callable[[], list[Plan]]) -> None:
    try:
        outcome.plans += act()
    except Conflict as error:
        outcome.refused.append(Refused(id, error.state, str(error)))
    except NotFound:
        outcome.refused.append(_missing(id))  # deleted meanwhile
    else:
        outcome.done.append(id)


def _missing(id: str) -> Refused:
    return Refused(id, None, f"there is no execution {id}")
