"""What a step type hands back, as it can be stored.

A type may be anybody's. What could not be recorded is refused here, as a failed attempt: a lane that stumbled over it
while it records would leave the step to be performed again, as if its worker had been lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from orchestrator.definition.paths import join
from orchestrator.engine.start import check_payload, encoded
from orchestrator.errors import InputError, StepFailed
from orchestrator.store.executions import AWAITS_CHILD
from workers.steps.contract import Done, Spawn, Wait

Json = Any
_LONGEST_MESSAGE = 10_000
_LONGEST_KIND = 100


def check_outcome(
    outcome: object, *, bodies: Collection[str], dependents: Callable[[], Collection[str]], limit: int
) -> None:
    """Raise StepFailed unless `outcome` is a Done, a Wait or a Spawn that can be recorded of a step with these `bodies`
    and ids of `dependents`. What a rest keeps has `limit` bytes at most. A Done's output is for `plain` to check."""
    match outcome:
        case Done():
            if outcome.skip:
                _check_skip(outcome.skip, dependents())
        case Wait():
            _check_wait(outcome, limit)
        case Spawn():
            _check_spawn(outcome, bodies, limit)
        case _:
            raise _mistake(f"perform() returned {_a(outcome)}; it is to return Done, Wait or Spawn")


def plain(value: object) -> tuple[Json, bytes]:
    """`value` as it is read back from where it is stored, and as JSON. Raises StepFailed of kind `output`."""
    try:
        written = encoded(value, path="output")
    except InputError as error:
        raise StepFailed(f"the step's {error}", kind="output", retryable=False) from None
    if b"null" in written:  # which is what is written of a number that is none
        _check_numbers(value)
    return orjson.loads(written), written


def storable_text(value: object) -> str:
    """`value` as a text that PostgreSQL takes: without NUL and halves of characters."""
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def storable_failure(failure: StepFailed, message: str, output: Json) -> StepFailed:
    """`failure` with another message and output, within bounds."""
    return StepFailed(
        storable_text(message)[:_LONGEST_MESSAGE],
        kind=storable_text(failure.kind)[:_LONGEST_KIND],
        retryable=failure.retryable,
        output=output,
    )


def what_was_raised(error: BaseException) -> str:
    """The name of an exception, and what it says if it can say it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  (its __str__ is the type's own, too)
        return type(error).__name__


def _check_skip(skip: Collection[str], dependents: Collection[str]) -> None:
    others = sorted(id for id in skip if id not in dependents)
    if others:
        raise _mistake(f"`skip` names {others[0]!r}, which does not depend on the step")


def _check_wait(wait: Wait, limit: int) -> None:
    if wait.until is not None and (not isinstance(wait.until, datetime) or wait.until.tzinfo is None):
        raise _mistake(f"`until` of a Wait is a datetime with its time zone, not {wait.until!r}")
    if wait.awaits is not None and (not isinstance(wait.awaits, str) or storable_text(wait.awaits) != wait.awaits):
        raise _mistake(f"`awaits` of a Wait is a text, not {wait.awaits!r}")
    if wait.awaits == AWAITS_CHILD and not _is_id(wait.state, "execution_id"):
        raise _mistake("`awaits` is 'child', and `state` has no execution_id")
    _check_kept(wait.state, limit)


def _check_spawn(spawn: Spawn, bodies: Collection[str], limit: int) -> None:
    unknown = sorted({scope.body for scope in spawn.scopes} - set(bodies))
    if unknown:
        raise _mistake(f"it spawns scopes of the body {unknown[0]!r}, which the step does not have")
    try:
        encoded([scope.loop for scope in spawn.scopes], path="loop")
    except InputError as error:
        raise _mistake(f"what the scopes that it spawns see as `loop` cannot be kept: {error}") from None
    _check_kept(spawn.state, limit)


def _check_kept(state: Json, limit: int) -> None:
    try:
        check_payload(state, limit, path="state")
    except InputError as error:
        raise _mistake(f"what the step is to keep while it rests cannot be kept: {error}") from None


def _check_numbers(value: object, path: str = "output") -> None:
    """Without a bound of its own: what is nested too deep could not be written."""
    if isinstance(value, float) and not math.isfinite(value):
        raise StepFailed(f"the step's {path}: is {value}, which is no JSON number", kind="output", retryable=False)
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        _check_numbers(item, join(path, key))


def _is_id(state: Json, name: str) -> bool:
    try:
        return isinstance(state, Mapping) and bool(UUID(str(state[name])))
    except (LookupError, ValueError):
        return False


def _a(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _mistake(message: str) -> StepFailed:
    return StepFailed(message, kind="error", retryable=False)
