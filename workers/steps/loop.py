"""`loop`: its steps for each item of a list, or for as long as an expression is true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.engine.bodies import MAX_ITEMS, scopes_over
from orchestrator.errors import StepFailed
from workers.steps.condition import is_true
from workers.steps.contract import BodyInfo, Done, QueueClass, Round, Scope, Spawn, StepContext, StepType
from workers.steps.fields import validates_whole

SHOWN_ERRORS = 100


class Loop(StepType):
    """Over `items`, all of them at the same time or `concurrency` at a time; or, one after the other, `while` an
    expression is true, `max_iterations` times at most. In the steps, `loop.item` and `loop.index` (from 0) say where
    they are; in a `while`, `loop.index` is the number of rounds done and `loop.last` the result of the last.

    Output: `results` in the order of the items (the output of the last step; of several last steps, theirs by id;
    null for an item that failed), `count`, `succeeded`, `failed`, `errors` (of the first failures: index, step, type,
    kind, message). With `on_item_error: fail` the first failure ends the others and fails the step.
    """

    type: ClassVar[str] = "loop"
    queue: ClassVar[QueueClass] = "control"
    repeatable: ClassVar[bool] = True
    raw_fields: ClassVar[frozenset[str]] = frozenset({"steps"})
    deferred_fields: ClassVar[frozenset[str]] = frozenset({"while"})

    class Config(Schema):
        items = fields.Raw(allow_none=True)
        while_ = fields.Raw(data_key="while")
        max_iterations = fields.Integer(strict=True, load_default=1000, validate=validate.Range(1, MAX_ITEMS))
        concurrency = fields.Integer(strict=True, validate=validate.Range(1, 10_000))
        on_item_error = fields.String(load_default="fail", validate=validate.OneOf(["fail", "continue"]))
        collect = fields.Boolean(load_default=True)
        steps = fields.List(
            fields.Raw(metadata={"step": True}),
            required=True,
            validate=validate.Length(min=1, error="has no steps"),
        )

        @validates_whole
        def _one_form(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
            wrong = {}
            if {"while", "items"} <= written:
                wrong["while"] = ["write either `items` or `while`, not both"]
            if written.isdisjoint({"while", "items"}):
                wrong["items"] = ["is missing; write `items` (a list), or `while` (an expression)"]
            if {"while", "concurrency"} <= written:
                wrong["concurrency"] = ["is for `items`; the rounds of a `while` follow each other"]
            if wrong:
                raise ValidationError(wrong)

    def bodies(self, config: Mapping[str, object]) -> Iterable[BodyInfo]:
        steps: Any = config.get("steps")
        if isinstance(steps, list):
            yield BodyInfo("", ("steps",), steps, loops=True, limited="concurrency" in config)

    def perform(self, context: StepContext) -> Done | Spawn:
        return self._next_round(context) if "while_" in context.config else self._over_items(context)

    def _over_items(self, context: StepContext) -> Done | Spawn:
        config = context.config
        if context.state is not None:
            return _done(context, context.body())
        rounds = scopes_over(config["items"])
        if not rounds:
            return _done(context, ())
        return Spawn(
            rounds,
            state={},
            concurrency=config.get("concurrency"),
            stops_on_failure=config["on_item_error"] == "fail",
        )

    def _next_round(self, context: StepContext) -> Done | Spawn:
        count, last = _so_far(context)
        if last is not None and last.status != "completed" and context.config["on_item_error"] == "fail":
            return _done(context, context.body())
        seen = {"index": count, "last": last.output if last else None}
        if not is_true(context.evaluate("while", loop=seen)):
            return _done(context, context.body() if count else ())
        if count >= context.config["max_iterations"]:
            raise StepFailed(
                f"`while` was still true after {count} rounds (max_iterations)", kind="loop", retryable=False
            )
        return Spawn([Scope(count, seen)], state={} if context.state is None else {"rounds": count + 1})


def _so_far(context: StepContext) -> tuple[int, Round | None]:
    """(the rounds of a `while` that have ended, the last of them). An attempt may find those of one before it: so it
    reads them all once, and then the last one only."""
    if context.state is None:
        return 0, None
    count = context.state.get("rounds")
    ended = context.body() if count is None else context.body(count - 1)
    return len(ended) if count is None else count, ended[-1]


def _done(context: StepContext, rounds: Sequence[Round]) -> Done:
    failed = [one for one in rounds if one.status == "failed"]
    output: dict[str, Any] = {
        "count": len(rounds),
        "succeeded": sum(one.status == "completed" for one in rounds),
        "failed": len(failed),
        "errors": [{"index": one.name, **(one.error or {})} for one in failed[:SHOWN_ERRORS]],
    }
    if context.config["collect"]:
        output["results"] = [one.output for one in rounds]
    if failed and context.config["on_item_error"] == "fail":
        first = failed[0]
        raise body_failed(f"item {first.name}", first, output)
    return Done(output)


def body_failed(where: str, first: Round, output: Any) -> StepFailed:
    """The failure of a step because of one in its body: that has had its own attempts, so there are no more."""
    error = first.error or {}
    return StepFailed(
        f"{where}: step {error.get('step')} ({error.get('type')}) failed: {error.get('message')}",
        kind="body",
        retryable=False,
        output=output,
    )
