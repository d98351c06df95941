"""From a plan to Celery's canvas: the only file that builds signatures.

========================================  =============================================
shape of the plan                         canvas
========================================  =============================================
one branch of one message                 a single task
one branch of several messages            chain (each link rings for the next run)
several branches                          group of tasks and chains
several branches that meet in one join    chord(group, join)
========================================  =============================================

Every signature is immutable (`.si`) and carries ids only. Chords are one level deep and never have an empty
header. A task that the canvas follows up (`rung`) leaves the sending of that step's message to it.
"""

from __future__ import annotations

from celery import chain, chord, group
from celery.canvas import Signature
from kombu import Producer

from orchestrator.engine.plan import Message, Plan
from workers.app import app, broker_priority
from workers.transport import GOES_FIRST

RUN_STEPS = "run_steps"
_LATE_LOOK = 60
"""Seconds after which a look is of no use any more."""


def dispatch(plan: Plan, producer: Producer | None = None) -> None:
    """Send the plan's messages. Raises kombu's OperationalError if the broker is away: reconcile will ring."""
    canvas(plan).apply_async(producer=producer)  # every signature has its own priority


def canvas(plan: Plan) -> Signature:
    joined = () if plan.join is None else plan.join.starts
    branches = [_branch(plan, branch, joined) for branch in plan.branches]
    if plan.join is not None:
        return chord(group(branches), _task(plan, plan.join, ()))
    return branches[0] if len(branches) == 1 else group(branches)


def _branch(plan: Plan, branch: tuple[Message, ...], joined: tuple[str, ...]) -> Signature:
    rung = [message.starts for message in branch[1:]] + [joined]
    links = [_task(plan, message, follow) for message, follow in zip(branch, rung, strict=True)]
    return links[0] if len(links) == 1 else chain(*links)


def _task(plan: Plan, message: Message, rung: tuple[str, ...]) -> Signature:
    arguments = [plan.execution_id, list(message.starts)]
    return app.signature(
        RUN_STEPS,
        args=[*arguments, list(rung)] if rung else arguments,
        immutable=True,
        # Nobody reads a result but a chord, which counts without it; else each send would subscribe to one.
        ignore_result=True,
        queue=message.queue,
        priority=broker_priority(plan.priority if message.priority is None else message.priority),
        **({"headers": {GOES_FIRST: True}} if message.goes_first else {}),
    )


def trial(id: str, queue: str) -> Signature:
    """The message that has the step `id` of the table step_tests tried out. Somebody waits for it: it goes first."""
    return app.signature(
        "test_step", args=[id], immutable=True, ignore_result=True, queue=queue, priority=broker_priority(9)
    )


def cancellation(id: str, queue: str) -> Signature:
    """The message that has a worker cancel what a row of the table cancellations is about."""
    return app.signature(
        "cancel_step", args=[id], immutable=True, ignore_result=True, queue=queue, priority=broker_priority(8)
    )


def look(trigger_id: str) -> Signature:
    """The message that has a worker look at a trigger's condition. There is another soon: a late one is dropped."""
    return app.signature(
        "look",
        args=[trigger_id],
        immutable=True,
        ignore_result=True,
        queue="io",
        priority=broker_priority(8),
        expires=_LATE_LOOK,
    )
