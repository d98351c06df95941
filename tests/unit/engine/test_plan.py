"""From states to messages: which steps form a run, what is ready, and what is sent for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.definition.graph import Graph
from orchestrator.definition.model import Step, TriggerRule
from orchestrator.engine.plan import (
    CHORD_WIDTH,
    PACK_SIZE,
    PACKS,
    Message,
    Plan,
    frontier,
    plan,
    whole_frontier,
)
from orchestrator.lifecycle import STEP_TERMINAL, StepStatus

PENDING, QUEUED, RUNNING = StepStatus.PENDING, StepStatus.QUEUED, StepStatus.RUNNING
COMPLETED, FAILED, SKIPPED = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.SKIPPED


def graph(*lines: str, **options: str) -> Graph:
    """A graph of lines such as `c:io < a b` (without a queue, cpu); `options` are on_error by id."""
    steps = []
    for line in lines:
        head, _, needed = line.partition("<")
        id, _, queue = head.strip().partition(":")
        on_error = options.get(id, "fail")
        steps.append(Step(id, "noop", queue or "cpu", depends_on=tuple(needed.split()), on_error=on_error))
    return Graph(steps)


def planned(graph: Graph, *ready: str) -> Plan:
    return plan(graph, "the-execution", 5, ready)


def states(graph: Graph, **known: StepStatus) -> dict[str, StepStatus]:
    return dict.fromkeys(graph.steps, PENDING) | known


CHAIN = graph("a", "b < a", "c < b")
DIAMOND = graph("a", "b < a", "c < a", "d < b c")
N_SHAPE = graph("a", "b", "c < a", "d < a b")


def test_a_step_with_a_priority_of_its_own_shares_no_message_with_others():
    steps = [
        Step("a", "noop", "cpu"),
        Step("b", "noop", "cpu", priority=9),
        *(Step(f"c{n}", "noop", "cpu") for n in range(20)),
    ]
    messages = [branch[0] for branch in planned(Graph(steps), *(step.id for step in steps)).branches]
    assert Message("cpu", ("b",), 9) in messages
    assert all(message.priority is None for message in messages if "b" not in message.starts)


# --- runs --------------------------------------------------------------------------------------------------


def test_steps_in_a_row_are_one_run():
    assert list(CHAIN.run("a")) == ["a", "b", "c"]
    assert CHAIN.is_one_run


def test_a_run_ends_before_a_fork_and_before_a_join():
    assert list(DIAMOND.run("a")) == ["a"]
    assert list(DIAMOND.run("b")) == ["b"]
    assert not DIAMOND.is_one_run


def test_a_run_ends_where_the_queue_changes():
    mixed = graph("a", "b:io < a", "c:io < b", "d < c")
    assert [list(mixed.run(start)) for start in ("a", "b", "d")] == [["a"], ["b", "c"], ["d"]]
    assert not mixed.is_one_run


def test_control_steps_go_along_with_any_queue():
    mixed = graph("a:control", "b:io < a", "c:control < b", "d:io < c", "e:control < d")
    assert mixed.queue_for("a") == "io"
    assert list(mixed.run("a")) == ["a", "b", "c", "d", "e"]
    assert mixed.is_one_run


def test_a_graph_of_control_steps_alone_is_served_by_the_control_queue():
    alone = graph("a:control", "b:control < a")
    assert alone.queue_for("a") == "control"
    assert alone.is_one_run


def test_two_roots_are_never_one_run():
    assert not graph("a", "b").is_one_run


def test_a_dependency_named_twice_counts_once():
    doubled = graph("a", "b < a a")
    assert doubled.children["a"] == ("b",)
    assert list(doubled.run("a")) == ["a", "b"]


def test_roots_and_sinks_are_in_the_order_of_the_definition():
    assert N_SHAPE.roots == ("a", "b")
    assert N_SHAPE.sinks == ("c", "d")


# --- the frontier ------------------------------------------------------------------------------------------


def test_a_step_is_ready_when_all_it_waits_for_is_done():
    assert frontier(DIAMOND, states(DIAMOND, a=COMPLETED), ["a"]).ready == ("b", "c")
    half = states(DIAMOND, a=COMPLETED, b=COMPLETED, c=RUNNING)
    assert frontier(DIAMOND, half, ["b"]).ready == ()
    assert frontier(DIAMOND, half | {"c": COMPLETED}, ["c"]).ready == ("d",)


def test_a_step_waits_for_its_own_dependencies_and_for_no_level():
    assert frontier(N_SHAPE, states(N_SHAPE, a=COMPLETED, b=RUNNING), ["a"]).ready == ("c",)


def test_a_step_that_has_been_queued_is_not_ready_a_second_time():
    assert frontier(CHAIN, states(CHAIN, a=COMPLETED, b=QUEUED), ["a"]).ready == ()


def test_a_failure_skips_its_dependents_with_the_reason():
    decided = frontier(CHAIN, states(CHAIN, a=FAILED), ["a"])
    assert decided.ready == ()
    assert decided.skipped == {"b": "a failed"}


def test_a_failure_that_is_to_be_continued_lets_its_dependents_run():
    tolerant = graph("a", "b < a", a="continue")
    assert frontier(tolerant, states(tolerant, a=FAILED), ["a"]).ready == ("b",)


def test_a_join_after_a_condition_runs_when_one_branch_did():
    one = states(DIAMOND, a=COMPLETED, b=COMPLETED, c=SKIPPED)
    assert frontier(DIAMOND, one, ["b"]).ready == ("d",)


def test_a_join_of_nothing_but_skipped_branches_is_skipped():
    none = states(DIAMOND, a=COMPLETED, b=SKIPPED, c=SKIPPED)
    assert frontier(DIAMOND, none, ["b", "c"]).skipped == {"d": "b, c skipped"}


def test_a_join_of_a_failure_and_a_completed_branch_is_skipped():
    mixed = states(DIAMOND, a=COMPLETED, b=COMPLETED, c=FAILED)
    assert frontier(DIAMOND, mixed, ["c"]).skipped == {"d": "c failed"}


def test_a_step_whose_dependency_was_cancelled_is_skipped():
    assert frontier(CHAIN, states(CHAIN, a=StepStatus.CANCELLED), ["a"]).skipped == {"b": "a cancelled"}


def test_recovery_follows_skips_to_their_end():
    decided = whole_frontier(CHAIN, states(CHAIN, a=FAILED))
    assert decided.skipped == {"b": "a failed", "c": "b skipped"}


def test_a_join_of_a_branch_that_a_failure_has_skipped_is_skipped_too():
    branches = graph("a", "b < a", "c", "d < b c")
    decided = whole_frontier(branches, states(branches, a=FAILED, c=COMPLETED))
    assert decided.skipped == {"b": "a failed", "d": "b skipped"}
    assert decided.blocked == {"b", "d"}
    remembered = states(branches, a=FAILED, b=SKIPPED, c=COMPLETED)
    assert frontier(branches, remembered, ["c"], blocked={"b"}).skipped == {"d": "b skipped"}


def test_recovery_begins_with_the_roots_when_nothing_has_begun():
    assert whole_frontier(N_SHAPE, states(N_SHAPE)).ready == ("a", "b")


def test_recovery_leaves_alone_what_is_queued_or_running():
    assert whole_frontier(N_SHAPE, states(N_SHAPE, a=RUNNING, b=QUEUED)).ready == ()


# --- plans -------------------------------------------------------------------------------------------------


def test_a_run_is_one_message():
    assert planned(CHAIN, "a").branches == ((Message("cpu", ("a",)),),)
    assert planned(CHAIN, "a").join is None


def test_runs_on_different_queues_are_a_chain_of_messages():
    mixed = graph("a", "b:io < a", "c < b")
    assert planned(mixed, "a").branches == ((Message("cpu", ("a",)), Message("io", ("b",)), Message("cpu", ("c",))),)


def test_a_chain_ends_at_a_join():
    mixed = graph("a", "b:io < a", "x", "c < b x")
    assert planned(mixed, "a").branches == ((Message("cpu", ("a",)), Message("io", ("b",))),)


def test_a_fork_is_a_group_of_branches():
    forked = planned(DIAMOND, "b", "c")
    assert forked.branches == ((Message("cpu", ("b",)),), (Message("cpu", ("c",)),))
    assert forked.join is None, "two branches are too few for a chord to pay"


def fork(width: int, queue: str = "cpu", *more: str) -> Graph:
    middle = [f"s{n}:{queue} < a" for n in range(width)]
    names = " ".join(f"s{n}" for n in range(width))
    return graph("a", *middle, f"z < {names}", *more)


def middle(width: int) -> list[str]:
    return [f"s{n}" for n in range(width)]


def test_a_fork_whose_branches_meet_in_one_join_is_a_chord():
    chord = planned(fork(CHORD_WIDTH), *middle(CHORD_WIDTH))
    assert len(chord.branches) == CHORD_WIDTH
    assert chord.join == Message("cpu", ("z",))


def test_a_join_that_waits_for_something_else_is_left_to_the_rows():
    also = graph("a", "o", *(f"s{n} < a" for n in range(4)), "z < s0 s1 s2 s3 o")
    assert planned(also, *middle(4)).join is None


def test_branches_that_meet_in_two_joins_are_left_to_the_rows():
    names = " ".join(middle(4))
    two = graph("a", *(f"s{n} < a" for n in range(4)), f"y < {names}", f"z < {names}")
    assert planned(two, *middle(4)).join is None


@pytest.mark.parametrize("rule", [TriggerRule.ONE_SUCCESS, TriggerRule.ONE_FAILED])
def test_a_join_that_need_not_wait_for_all_branches_is_left_to_the_rows(rule: TriggerRule):
    *others, join = fork(4).steps.values()
    assert planned(Graph([*others, replace(join, trigger_rule=rule)]), *middle(4)).join is None


def test_a_wide_fork_shares_messages():
    wide = planned(fork(100), *middle(100))
    assert len(wide.branches) == PACKS
    assert Counter(start for (message,) in wide.branches for start in message.starts) == Counter(middle(100))
    assert wide.join == Message("cpu", ("z",))


def test_a_pack_has_a_size_at_most():
    starts = [message.starts for (message,) in planned(fork(1000), *middle(1000)).branches]
    assert max(map(len, starts)) == PACK_SIZE
    assert sum(map(len, starts)) == 1000


def test_branches_that_meet_in_different_joins_do_not_share_a_message():
    even, odd = (" ".join(f"s{n}" for n in range(at, 20, 2)) for at in (0, 1))
    apart = graph("a", *(f"s{n} < a" for n in range(20)), f"y < {even}", f"z < {odd}")
    for (message,) in planned(apart, *middle(20)).branches:
        assert len({apart.children[start] for start in message.starts}) == 1


def test_branches_on_different_queues_do_not_share_a_message():
    mixed = graph("a", *(f"s{n}:{'io' if n % 2 else 'cpu'} < a" for n in range(40)))
    for (message,) in planned(mixed, *middle(40)).branches:
        assert {mixed.queue_for(start) for start in message.starts} == {message.queue}


def test_a_few_go_out_one_by_one_each_to_its_own_queue_and_with_its_own_priority():
    mixed = Graph([Step("a", "noop", "io"), Step("b", "noop", "control"), Step("c", "noop", "io", priority=9)])
    messages = (Message("io", ("a",)), Message("control", ("b",)), Message("io", ("c",), 9))
    assert plan(mixed, "the-execution", 5, "abc") == Plan("the-execution", 5, tuple((one,) for one in messages))


def test_what_is_handed_back_of_a_wide_fork_is_packed_again_and_joins_nothing():
    """Its join waits for what the pack has begun as well."""
    wide = graph("a", *(f"s{n} < a" for n in range(50)), f"z < {' '.join(f's{n}' for n in range(50))}")
    handed_back = planned(wide, *(f"s{n}" for n in range(1, 50)))
    assert [len(message.starts) for (message,) in handed_back.branches] == [7] * 7
    assert handed_back.join is None


# --- any graph ---------------------------------------------------------------------------------------------


@st.composite
def any_graph(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 25))
    steps = []
    for n in range(size):
        needed = draw(st.sets(st.integers(0, n - 1), max_size=4)) if n else set()
        steps.append(
            Step(
                f"s{n}",
                "noop",
                draw(st.sampled_from(["cpu", "io", "control"])),
                depends_on=tuple(f"s{at}" for at in sorted(needed)),
                on_error=draw(st.sampled_from(["fail", "continue"])),
            )
        )
    return Graph(steps)


class Simulation:
    """Perform plans as workers do, message by message, in any order that `choose` makes."""

    def __init__(self, graph: Graph, failing: frozenset[str], choose) -> None:
        self.graph = graph
        self.failing = failing
        self.choose = choose
        self.states = dict.fromkeys(graph.steps, PENDING)
        self.performed: Counter[str] = Counter()
        self.waiting: list[tuple[Message, ...]] = []

    def run(self) -> None:
        self.send(list(self.graph.roots))
        while self.waiting:
            branch = self.waiting.pop(self.choose(len(self.waiting)))
            self.perform(branch[0])

    def send(self, ready: list[str]) -> None:
        if not ready:
            return
        self.states |= dict.fromkeys(ready, QUEUED)
        branches = plan(self.graph, "e", 5, ready).branches
        assert all(branch and all(message.starts for message in branch) for branch in branches)
        sent = Counter(start for branch in branches for start in branch[0].starts)
        assert sent == Counter(ready), "each ready step begins exactly one message"
        self.waiting += branches

    def perform(self, message: Message) -> None:
        for start in message.starts:
            step_id: str | None = start
            while step_id is not None:
                assert self.states[step_id] in (PENDING, QUEUED)
                needed = self.graph.steps[step_id].depends_on
                assert all(self.states[dependency] in STEP_TERMINAL for dependency in needed)
                assert self.graph.steps[step_id].queue in (message.queue, "control")
                self.performed[step_id] += 1
                self.states[step_id] = FAILED if step_id in self.failing else COMPLETED
                following = self.graph.next_in_run(step_id, message.queue)
                if following is None or step_id in self.failing:
                    self.settle(step_id)
                    following = None
                step_id = following

    def settle(self, step_id: str) -> None:
        decided = whole_frontier(self.graph, self.states)
        self.states |= dict.fromkeys(decided.skipped, SKIPPED)
        self.send(list(decided.ready))


@settings(max_examples=200)
@given(any_graph(), st.data())
def test_plans_reach_every_step_exactly_once(graph: Graph, data: st.DataObject):
    simulation = Simulation(graph, frozenset(), lambda size: data.draw(st.integers(0, size - 1)))
    simulation.run()
    assert simulation.performed == Counter(dict.fromkeys(graph.steps, 1))


@settings(max_examples=200)
@given(any_graph(), st.data())
def test_under_failures_every_step_is_performed_once_or_skipped(graph: Graph, data: st.DataObject):
    failing = data.draw(st.sets(st.sampled_from(sorted(graph.steps))))
    simulation = Simulation(graph, frozenset(failing), lambda size: data.draw(st.integers(0, size - 1)))
    simulation.run()
    assert set(simulation.states.values()) <= {COMPLETED, FAILED, SKIPPED}
    done = {step_id for step_id, status in simulation.states.items() if status is not SKIPPED}
    assert simulation.performed == Counter(dict.fromkeys(done, 1))


@settings(max_examples=200)
@given(any_graph())
def test_the_run_from_a_step_is_served_by_the_queue_of_the_step(graph: Graph):
    for start in graph.steps:
        run = list(graph.run(start))
        assert len(run) == len(set(run))
        assert {graph.steps[step_id].queue for step_id in run} <= {graph.queue_for(start), "control"}
        assert all(graph.only_child(one) == following for one, following in pairwise(run))


@pytest.mark.parametrize("queue", ["cpu", "io", "control"])
def test_the_branch_of_a_chord_begins_where_its_step_is_ready(queue: str):
    chord = planned(fork(6, queue), *middle(6))
    assert sorted(branch[0].starts[0] for branch in chord.branches) == middle(6)
