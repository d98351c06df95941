"""`parallel`: named branches of steps, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from marshmallow import Schema, fields, validate

from workers.steps.contract import BodyInfo, Done, QueueClass, Scope, Spawn, StepContext, StepType
from workers.steps.loop import body_failed

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}\Z")


class Parallel(StepType):
    """`branches`: lists of steps by name. Output: that of each branch by its name (of its last step; of several last
    steps, theirs by id).

    With `fail_fast` the first failure ends the other branches; without, they run to their end. Either way the step
    fails then.
    """

    type: ClassVar[str] = "parallel"
    queue: ClassVar[QueueClass] = "control"
    repeatable: ClassVar[bool] = True
    raw_fields: ClassVar[frozenset[str]] = frozenset({"branches"})

    class Config(Schema):
        branches = fields.Dict(
            keys=fields.String(
                validate=validate.Regexp(_NAME, error="'{input}' is no name; use letters, digits, '_' and '-'")
            ),
            values=fields.List(
                fields.Raw(metadata={"step": True}), validate=validate.Length(min=1, error="has no steps")
            ),
            required=True,
            validate=validate.Length(1, 1000, error="there must be 1 to 1,000 branches"),
        )
        fail_fast = fields.Boolean(load_default=True)

    def bodies(self, config: Mapping[str, object]) -> Iterable[BodyInfo]:
        branches: Any = config.get("branches")
        for name, steps in branches.items() if isinstance(branches, Mapping) else ():
            if isinstance(steps, list):
                yield BodyInfo(str(name), ("branches", str(name)), steps)

    def perform(self, context: StepContext) -> Done | Spawn:
        if context.state is None:
            scopes = [Scope(name) for name in context.config["branches"]]
            return Spawn(scopes, state={}, stops_on_failure=context.config["fail_fast"])
        branches = context.body()
        output = {str(branch.name): branch.output for branch in branches}
        failed = next((branch for branch in branches if branch.status == "failed"), None)
        if failed is not None:
            raise body_failed(f"branch {failed.name}", failed, output)
        return Done(output)
