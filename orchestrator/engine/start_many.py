"""Start many executions of one workflow: a statement for some hundreds of them, and each has an outcome of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.engine.programs import Program, Programs
from orchestrator.engine.start import Started, check_payload, check_startable, first_plan, limits_of
from orchestrator.errors import Conflict, InputError
from orchestrator.store import Store, executions, workflows
from orchestrator.store.executions import Inserted, New

_TOGETHER = 200
"""Executions in one statement at most: whoever starts another one waits for it."""
_STEPS_TOGETHER = 4000


@dataclass(frozen=True, slots=True)
class Wanted:
    input: Any
    priority: int = 5
    idempotency_key: str | None = None


Outcome = Started | InputError | Conflict


def start_executions(store: Store, programs: Programs, workflow_id: str, wanted: Sequence[Wanted]) -> list[Outcome]:
    """Store an execution of the workflow's newest version for each; the caller dispatches the plans. An outcome for
    each, in their order: what is wrong with its input, or that the workflow was paused meanwhile, keeps no other back.

    Raises NotFound; Conflict if the workflow's status allows none of them, or it is a template.
    """
    with store.single() as connection:
        status, version = workflows.current(connection, workflow_id)
        check_startable(workflow_id, status, workflows.is_template(connection, workflow_id))
    outcomes: dict[int, Outcome] = {}
    left: Sequence[int] = range(len(wanted))
    while left:
        program = programs.get(store, workflow_id, version)
        new = _checked(programs, program, workflow_id, {at: wanted[at] for at in left}, outcomes)
        left = []
        for chunk in _chunks(list(new), program.step_rows.number):
            last = _insert(store, program, workflow_id, version, {at: new[at] for at in chunk}, outcomes)
            left += [at for at in chunk if at not in outcomes]
        if left:  # the workflow is no longer what it was
            try:
                check_startable(workflow_id, last.status, last.is_template)
            except Conflict as error:
                outcomes |= dict.fromkeys(left, error)
                break
            version = last.version
    programs.newest[workflow_id] = version
    return [outcomes[at] for at in range(len(wanted))]


def _checked(
    programs: Programs,
    program: Program,
    workflow_id: str,
    wanted: Mapping[int, Wanted],
    outcomes: dict[int, Outcome],
) -> dict[int, New]:
    """Those whose input fits; what is wrong with the others is their outcome."""
    fitting: dict[int, New] = {}
    for at, one in wanted.items():
        try:
            check_payload(one.input, programs.settings.executor.max_payload)
            given = program.checked_input(one.input)
            limits = limits_of(programs, program, workflow_id, given)
            fitting[at] = New(given, one.priority, limits, one.idempotency_key)
        except InputError as error:
            outcomes[at] = error
    return fitting


def _chunks(all_of_them: Sequence[int], steps: int) -> Iterator[Sequence[int]]:
    size = max(1, min(_TOGETHER, _STEPS_TOGETHER // steps))
    return (all_of_them[at : at + size] for at in range(0, len(all_of_them), size))


def _insert(
    store: Store,
    program: Program,
    workflow_id: str,
    version: int,
    new: Mapping[int, New],
    outcomes: dict[int, Outcome],
) -> Inserted:
    """Those that are there afterwards have their outcome; the last answer says why the others have none."""
    with store.single() as connection:
        inserted = executions.insert_many(
            connection,
            workflow_id,
            version,
            list(new.values()),
            program.step_rows,
            timeout=program.timeout,
        )
        keys = {key for key in (one.idempotency_key for one in new.values()) if key is not None}
        refused = any(one.id is None for one in inserted)
        there = executions.ids_by_idempotency_keys(connection, workflow_id, keys) if refused and keys else {}
    for (at, one), came in zip(new.items(), inserted, strict=True):
        if came.id is not None:
            outcomes[at] = Started(came.id, True, first_plan(program, came.id, one.priority, came.admitted))
        elif one.idempotency_key in there:
            outcomes[at] = Started(there[one.idempotency_key], False, None)
    return inserted[-1]
