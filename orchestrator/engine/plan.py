"""From the states of an execution's steps to the messages that move it on: pure functions.

Start, advance, retry and recovery all ask the same two questions here: what has become ready (`frontier`), and
which messages does that take (`plan`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from orchestrator.definition.graph import Graph, Graphs
from orchestrator.definition.model import EARLY, TriggerRule
from orchestrator.lifecycle import STEP_TERMINAL, StepStatus

PACKS = 8
"""A wide fork is spread over about this many messages; each costs as much as several small steps."""
PACK_SIZE = 50
"""Runs in one message at most, so that a very wide fork still spreads over many workers."""
CHORD_WIDTH = 3
"""Messages from which on a fork is worth a chord's counting; below, the last to finish looks for itself."""


@dataclass(frozen=True, slots=True)
class Message:
    """One `run_steps` task: the first steps of one or more runs, all served by `queue`. Without a `priority` of its
    own it has the plan's."""

    queue: str
    starts: tuple[str, ...]
    priority: int | None = None
    goes_first: bool = False
    """Before all that waits at its priority."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent for one execution. Each branch is a chain of messages; the branches go side by side,
    and when all have returned, `join` follows."""

    execution_id: str
    priority: int
    branches: tuple[tuple[Message, ...], ...]
    join: Message | None = None


@dataclass(frozen=True, slots=True)
class Frontier:
    """What the end of some steps has decided about their dependents."""

    ready: tuple[str, ...]
    skipped: Mapping[str, str]
    """Path -> reason."""
    blocked: frozenset[str] = frozenset()
    """Those of `skipped` for which a failure upstream is the cause, however far upstream."""


def frontier(
    graph: Graph,
    states: Mapping[str, StepStatus],
    ended: Iterable[str],
    blocked: Collection[str] = frozenset(),
) -> Frontier:
    """The pending dependents of `ended` whose fate their trigger rules decide; `states` must cover
    graph.outlook(ended), and `blocked` name the skipped ones in it that have a failure upstream."""
    ready: list[str] = []
    skipped: dict[str, str] = {}
    newly_blocked: set[str] = set()
    for child in dict.fromkeys(child for path in ended for child in graph.children[path]):
        if states[child] is not StepStatus.PENDING:
            continue
        verdict = _verdict(
            _Look(graph, states, blocked, graph.steps[child].depends_on), graph.steps[child].trigger_rule
        )
        if verdict is _READY:
            ready.append(child)
        elif verdict is not None:
            skipped[child] = verdict.reason
            if verdict.blocked:
                newly_blocked.add(child)
    return Frontier(tuple(ready), skipped, frozenset(newly_blocked))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is decided about a step: it is ready, or it is skipped for a reason; `blocked` if that is a failure."""

    reason: str = ""
    blocked: bool = False


_READY = _Verdict()


@dataclass(frozen=True, slots=True)
class _Look:
    """The dependencies of a step, in the terms of a trigger rule."""

    graph: Graph
    states: Mapping[str, StepStatus]
    blocked: Collection[str]
    needed: Sequence[str]

    @property
    def done(self) -> bool:
        return all(self.states[path] in STEP_TERMINAL for path in self.needed)

    @property
    def failed(self) -> str | None:
        """The first dependency that failed, was cancelled, or was itself kept from running by a failure."""
        return next((path for path in self.needed if self._has_failed(path)), None)

    @property
    def succeeded(self) -> str | None:
        return next((path for path in self.needed if self._has_succeeded(path)), None)

    def _has_failed(self, path: str) -> bool:
        failed = self.states[path] is StepStatus.FAILED and self.graph.steps[path].on_error == "fail"
        return failed or self.states[path] is StepStatus.CANCELLED or path in self.blocked

    def _has_succeeded(self, path: str) -> bool:
        return self.states[path] in (StepStatus.COMPLETED, StepStatus.FAILED) and not self._has_failed(path)

    def named(self) -> str:
        return f"{', '.join(self.needed[:3])}{', ...' if len(self.needed) > 3 else ''}"


def _verdict(look: _Look, rule: TriggerRule) -> _Verdict | None:
    """What the rule makes of the dependencies; None as long as it is open."""
    if rule is TriggerRule.ONE_SUCCESS and look.succeeded:
        return _READY
    if rule is TriggerRule.ONE_FAILED and look.failed:
        return _READY
    if not look.done:
        return None
    if rule is TriggerRule.ALL_DONE:
        return _READY
    if rule is TriggerRule.ONE_FAILED:
        return _Verdict(f"{look.named()}: none failed")
    failed = look.failed
    if failed is not None:
        return _Verdict(f"{failed} {look.states[failed]}", blocked=True)
    if rule is TriggerRule.NONE_FAILED or look.succeeded:
        return _READY
    # A join after a condition runs when any of its branches did; here none did.
    return _Verdict(f"{look.named()} skipped")


def whole_frontier(graph: Graph, states: Mapping[str, StepStatus], blocked: Collection[str] = frozenset()) -> Frontier:
    """Everything that is decided in an execution, skips followed to their end: what a recovery starts from."""
    known = dict(states)
    known_blocked = set(blocked)
    ready = [root for root in graph.roots if known[root] is StepStatus.PENDING]
    skipped: dict[str, str] = {}
    ended: list[str] = [step_id for step_id, status in known.items() if status in STEP_TERMINAL]
    while ended:
        decided = frontier(graph, known, ended, known_blocked)
        ready += [step_id for step_id in decided.ready if step_id not in ready]
        skipped |= decided.skipped
        known |= dict.fromkeys(decided.skipped, StepStatus.SKIPPED)
        known_blocked |= decided.blocked
        ended = list(decided.skipped)
    return Frontier(tuple(ready), skipped, frozenset(known_blocked.intersection(skipped)))


def plan(graphs: Graphs, execution_id: str, priority: int, ready: Sequence[str], join: str | None = None) -> Plan:
    """The messages for `ready` steps, the highest first: runs, packed where that delays nobody, and a join
    where all meet. `join` is that, if the caller knows; else the graph they stand in may say."""
    ready = sorted(ready, key=lambda path: -graphs.of(path).heights[path])
    branches = [_branch(graphs.of(start), start) for start in ready]
    ends = {start: _end(graphs.of(start), branch) for start, branch in zip(ready, branches, strict=True)}
    packed = _pack(graphs, branches, ends)
    if len(packed) < CHORD_WIDTH:
        joined = None  # the last to finish looks for itself
    elif join is not None:
        joined = _message(graphs.of(join), join)
    else:
        joined = _join(graphs.of(ready[0]), set(ends.values()))
    return Plan(execution_id, priority, tuple(packed), joined)


def _branch(graph: Graph, start: str) -> tuple[Message, ...]:
    """The run from `start`, and the runs on other queues that follow it in a row."""
    links: list[Message] = []
    following: str | None = start
    while following is not None:
        links.append(_message(graph, following))
        *_, last = graph.run(following)
        following = graph.only_child(last)
    return tuple(links)


def _message(graph: Graph, start: str) -> Message:
    return Message(graph.queue_for(start), (start,), graph.steps[start].priority)


def _end(graph: Graph, branch: tuple[Message, ...]) -> str:
    *_, last = graph.run(branch[-1].starts[0])
    return last


def _pack(
    graphs: Graphs, branches: Sequence[tuple[Message, ...]], ends: Mapping[str, str]
) -> list[tuple[Message, ...]]:
    """Put runs into one message whose ends have the same dependents: those wait for all of them anyway, so
    nothing starts later for it. (A worker hands back what it cannot do at once; see workers/runner.py.)"""
    packed: list[tuple[Message, ...]] = []
    alike: dict[tuple[str, int | None, tuple[str, ...]], list[str]] = {}
    for branch in branches:
        if len(branch) > 1:
            packed.append(branch)
        else:
            start = branch[0].starts[0]
            dependents = graphs.of(start).dependents(ends[start])
            alike.setdefault((branch[0].queue, branch[0].priority, dependents), []).append(start)
    for (queue, priority, _), starts in alike.items():
        size = min(PACK_SIZE, ceil(len(starts) / PACKS))
        packed += [(Message(queue, tuple(starts[at : at + size]), priority),) for at in range(0, len(starts), size)]
    return packed


def _join(graph: Graph, ends: set[str]) -> Message | None:
    """The step of this graph in which all ends meet, which waits for all of them and for nothing else."""
    dependents = {graph.children.get(end, ()) for end in ends}
    if len(dependents) != 1 or len(children := dependents.pop()) != 1:
        return None
    join = children[0]
    step = graph.steps[join]
    return _message(graph, join) if step.trigger_rule not in EARLY and set(step.depends_on) <= ends else None


def going_first(planned: Plan) -> Plan:
    """The same, for steps that had their turn and lost it with their worker: they do not wait for another."""
    branches = tuple((replace(first, goes_first=True), *others) for first, *others in planned.branches)
    return replace(planned, branches=branches)
