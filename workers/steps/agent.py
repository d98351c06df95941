"""`agent`: a task for an agent on the network, however long it takes it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

from marshmallow import Schema, validate

from orchestrator.config import Settings
from orchestrator.errors import StepFailed, StepTimeout
from workers.steps.agent_call import AgentCalls, Finished, RemoteAgent, Running
from workers.steps.agent_http import HttpAgent
from workers.steps.contract import Done, QueueClass, Rate, StepContext, StepType, Wait, config_mistake
from workers.steps.fields import Duration, Text

MAX_MISSES = 5
"""Looks in a row that may come to nothing before the attempt fails: the agent's work outlives a short outage."""

LONGEST_REST = 30.0
"""Seconds between two looks at most, unless the agent's poll_interval is longer."""

_LAST_LOOK = 5.0
"""Seconds that the look at the end of the task's time may take, and asking the agent to stop."""

_PASSING = frozenset({"connection", "timeout", "http_status", "agent_protocol"})
"""Kinds of failure that are the exchange's, not the task's."""

_POSITIVE = validate.Range(min=0, min_inclusive=False, error="must be more than 0 seconds")


class Agent(StepType):
    """Sends `task` with the step's input to the agent that the settings know as `agent_id`, and rests, without a
    worker, while it is at it. `timeout` is for the whole of that, `request_timeout` for one exchange.

    Output: `result`, `text`, `artifacts`, `task_id`, `state`. Kinds of failure besides those of `http`: `agent`
    (the agent failed), `agent_input` (it asks something), `agent_protocol` (it answers what cannot be understood).

    The state of a rest: `task_id` and what else finds the task, `polls`, `misses` (looks in a row that failed),
    `started` (ISO 8601).
    """

    type: ClassVar[str] = "agent"
    queue: ClassVar[QueueClass] = "io"
    extra: ClassVar[str] = "agent"
    modules: ClassVar[tuple[str, ...]] = ("a2a",)

    class Config(Schema):
        agent_id = Text(required=True, validate=validate.Length(min=1))
        task = Text(required=True, validate=validate.Length(min=1))
        timeout = Duration(load_default=600.0, validate=_POSITIVE)
        request_timeout = Duration(load_default=30.0, validate=_POSITIVE)

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:
        name = config["agent_id"]
        known = settings.agents.get(name)
        return None if known is None else Rate.of(f"agents.{name}", known.rate_limit)

    def cancel(self, context: StepContext) -> None:
        try:
            _agent(context, context.config["request_timeout"]).cancel(_task(context.state))
            context.log(f"the task {context.state['task_id']} was cancelled at the agent", "info")
        except StepFailed as failure:
            if failure.kind != "agent" and not _is_unknown(failure):
                raise
            context.log(f"the task {context.state['task_id']} has ended: {failure}", "info")

    def perform(self, context: StepContext) -> Done | Wait:
        state = context.state or {"polls": 0, "misses": 0, "started": datetime.now(UTC).isoformat()}
        seen, misses = (_begin(context), 0) if context.state is None else _look(context)
        if isinstance(seen, Finished):
            return Done(dict(seen.output))
        left = _left(context, state)
        if left <= 0:
            raise _give_up(context, seen.task)
        polls = state["polls"] + (context.state is not None)
        rest = min(_interval(context, polls), left)
        return Wait(
            until=datetime.now(UTC) + timedelta(seconds=rest),
            state={**seen.task, "polls": polls, "misses": misses, "started": state["started"]},
        )


def _begin(context: StepContext) -> Running | Finished:
    seen = _agent(context, context.config["timeout"]).begin()
    if isinstance(seen, Running):
        context.log(f"agent {context.config['agent_id']!r} is at the task {seen.task['task_id']}", "info")
    return seen


def _look(context: StepContext) -> tuple[Running | Finished, int]:
    """(what there is to see, looks in a row that failed)."""
    state = context.state
    task = _task(state)
    try:
        return _agent(context, max(_left(context, state), _LAST_LOOK)).look(task), 0
    except StepFailed as failure:
        if _is_unknown(failure):
            raise StepFailed(f"{failure}; it does not know the task any more", kind="agent") from None
        misses = state["misses"] + 1
        if failure.kind not in _PASSING or not failure.retryable or misses >= MAX_MISSES:
            raise
        context.log(f"looking at the task failed, which is tried again: {failure}", "warning")
        return Running(task), misses


def _task(state: Mapping[str, Any]) -> Mapping[str, str]:
    return {key: value for key, value in state.items() if key not in ("polls", "misses", "started")}


def _is_unknown(failure: StepFailed) -> bool:
    return isinstance(failure.output, dict) and failure.output.get("status_code") == 404


def _give_up(context: StepContext, task: Mapping[str, str]) -> StepTimeout:
    config = context.config
    try:
        _agent(context, _LAST_LOOK).cancel(task)
        cancelled = "it was asked to cancel it"
    except StepFailed as failure:
        cancelled = f"asking it to cancel it failed: {failure}"
    return StepTimeout(
        f"agent {config['agent_id']!r} did not finish the task {task['task_id']} within {config['timeout']:g} s "
        f"(timeout); {cancelled}"
    )


def _agent(context: StepContext, seconds: float) -> RemoteAgent:
    """The agent that the config names, for exchanges of `seconds` at most, and of the request_timeout."""
    agent_id = context.config["agent_id"]
    settings = context.settings.agents.get(agent_id)
    if settings is None:
        known = ", ".join(sorted(context.settings.agents)) or "none"
        raise config_mistake(f"there is no agent {agent_id!r} in the settings (agents); known there: {known}")
    url = context.reveal(settings.url)
    if not _is_address(url):
        raise config_mistake(f"agents.{agent_id}.url must be a whole address, such as https://example.com/agent")
    seconds = min(seconds, context.config["request_timeout"])
    calls = AgentCalls(context, agent_id, url, seconds, context.reveal(dict(settings.headers or {})))
    if settings.protocol == "http":
        return HttpAgent(calls)
    from workers.steps.agent_a2a import A2AAgent

    return A2AAgent(calls)


def _is_address(url: object) -> bool:
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _left(context: StepContext, state: Mapping[str, Any]) -> float:
    """Seconds that the task still has."""
    passed = datetime.now(UTC) - datetime.fromisoformat(state["started"])
    return float(context.config["timeout"] - passed.total_seconds())


def _interval(context: StepContext, polls: int) -> float:
    first = context.settings.agents[context.config["agent_id"]].poll_interval
    return float(min(first * 1.5 ** min(polls, 50), max(first, LONGEST_REST)))
