"""From the states of an execution's steps to the messages that move it on: pure functions.

Start, advance, retry and recovery all ask the same two questions here: what has become ready (`frontier`), and
which messages does that take (`plan`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from orchestrator.definition.graph import Graph
from orchestrator.lifecycle import STEP_TERMINAL, StepStatus

PACKS = 8
"""A wide fork is spread over about this many messages; each costs as much as several small steps."""
PACK_SIZE = 50
"""Runs in one message at most, so that a very wide fork still spreads over many workers."""
CHORD_WIDTH = 3
"""Messages from which on a fork is worth a chord's counting; below, the last to finish looks for itself."""


@dataclass(frozen=True, slots=True)
class Message:
    """One `run_steps` task: the first steps of one or more runs, all served by `queue`."""

    queue: str
    starts: tuple[str, ...]


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
    """The pending dependents of `ended` whose fate is decided; `states` must cover graph.outlook(ended), and
    `blocked` name the skipped ones in it that have a failure upstream."""
    ready: list[str] = []
    skipped: dict[str, str] = {}
    newly_blocked: set[str] = set()
    for child in dict.fromkeys(child for step_id in ended for child in graph.children[step_id]):
        if states[child] is not StepStatus.PENDING:
            continue
        needed = graph.steps[child].depends_on
        if not all(states[dependency] in STEP_TERMINAL for dependency in needed):
            continue
        obstacle = _obstacle(graph, states, needed, blocked)
        if obstacle is not None:
            skipped[child] = f"{obstacle} {states[obstacle]}"
            newly_blocked.add(child)
        elif all(states[dependency] is StepStatus.SKIPPED for dependency in needed):
            # A join after a condition runs when any of its branches did; here none did.
            skipped[child] = f"{', '.join(needed[:3])}{', ...' if len(needed) > 3 else ''} skipped"
        else:
            ready.append(child)
    return Frontier(tuple(ready), skipped, frozenset(newly_blocked))


def _obstacle(
    graph: Graph, states: Mapping[str, StepStatus], needed: Sequence[str], blocked: Collection[str]
) -> str | None:
    """The dependency whose failure keeps a step from running, or which a failure has kept from it."""
    for dependency in needed:
        failed = states[dependency] is StepStatus.FAILED and graph.steps[dependency].on_error == "fail"
        if failed or states[dependency] is StepStatus.CANCELLED or dependency in blocked:
            return dependency
    return None


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


def plan(graph: Graph, execution_id: str, priority: int, ready: Sequence[str]) -> Plan:
    """The messages for `ready` steps, the highest first: runs, packed where that delays nobody, and a join
    where all meet."""
    ready = sorted(ready, key=lambda step_id: -graph.heights[step_id])
    branches = [_branch(graph, start) for start in ready]
    ends = {start: _end(graph, branch) for start, branch in zip(ready, branches, strict=True)}
    packed = _pack(graph, branches, ends)
    return Plan(execution_id, priority, tuple(packed), _join(graph, packed, set(ends.values())))


def _branch(graph: Graph, start: str) -> tuple[Message, ...]:
    """The run from `start`, and the runs on other queues that follow it in a row."""
    links: list[Message] = []
    following: str | None = start
    while following is not None:
        links.append(Message(graph.queue_for(following), (following,)))
        *_, last = graph.run(following)
        following = graph.only_child(last)
    return tuple(links)


def _end(graph: Graph, branch: tuple[Message, ...]) -> str:
    *_, last = graph.run(branch[-1].starts[0])
    return last


def _pack(graph: Graph, branches: Sequence[tuple[Message, ...]], ends: Mapping[str, str]) -> list[tuple[Message, ...]]:
    """Put runs into one message whose ends have the same dependents: those wait for all of them anyway, so
    nothing starts later for it. (A worker hands back what it cannot do at once; see workers/runner.py.)"""
    packed: list[tuple[Message, ...]] = []
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for branch in branches:
        if len(branch) > 1:
            packed.append(branch)
        else:
            start = branch[0].starts[0]
            alike.setdefault((branch[0].queue, graph.children[ends[start]]), []).append(start)
    for (queue, _), starts in alike.items():
        size = min(PACK_SIZE, ceil(len(starts) / PACKS))
        packed += [(Message(queue, tuple(starts[at : at + size])),) for at in range(0, len(starts), size)]
    return packed


def _join(graph: Graph, branches: Sequence[tuple[Message, ...]], ends: set[str]) -> Message | None:
    """The step in which all branches meet and which waits for nothing else, if a chord pays."""
    if len(branches) < CHORD_WIDTH:
        return None
    dependents = {graph.children[end] for end in ends}
    if len(dependents) != 1 or len(children := dependents.pop()) != 1:
        return None
    join = children[0]
    if not set(graph.steps[join].depends_on) <= ends:
        return None
    return Message(graph.queue_for(join), (join,))


def split(message: Message) -> tuple[tuple[Message, ...], ...]:
    """The same runs with a message for each."""
    return tuple((Message(message.queue, (start,)),) for start in message.starts)
