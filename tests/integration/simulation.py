"""Workers, a broker and a clock that a test moves by hand, over the real store and the real engine.

Each simulated worker runs the real workers/runner.py, in a thread that stands still at every point where a process may
die or be overtaken: before each access to the store, in the middle of each step, before each message. The test lets one
go on at a time, so that what happens is in the test's order, and only there.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from celery.canvas import Signature
from sqlalchemy.exc import OperationalError

from orchestrator.config import Settings
from orchestrator.engine.advance import plans_of
from orchestrator.engine.overview import BrokerState
from orchestrator.engine.plan import Plan
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Listed
from orchestrator.errors import StepFailed
from orchestrator.store import Store, new_id, recovery, workers
from orchestrator.store.claims import Claim
from orchestrator.store.routines import Routine
from orchestrator.store.session import Call
from workers.canvas import canvas
from workers.runner import run_steps
from workers.secrets import Secrets
from workers.steps import StepContext, step
from workers.steps.contract import Wait

_RECORDS = ("complete_and_follow", "complete_and_go_on")
STUCK = 120.0
"""Seconds after which a lane that does not come to its next point is taken to wait for a lock that nobody lets go."""


class Order(Enum):
    GO_ON = "go on"
    DIE = "die"
    LOSE_DATABASE = "lose the database once the statement has been executed"


class Outcome(Enum):
    """What a step is made to return."""

    COMPLETED = "completed"
    FAILED = "failed"
    FAILED_FOR_GOOD = "failed for good"
    RESTED = "rested"


class Died(BaseException):
    """The process is gone: nothing of it is to be cleaned up but the thread."""


class DatabaseLost(OperationalError):
    def __init__(self) -> None:
        super().__init__("a statement", {}, Exception("the server went away, as the test wants it"))


_here = threading.local()


def _task() -> Task | None:
    """The task whose thread this is."""
    return getattr(_here, "task", None)


# --- the broker ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Chord:
    left: int
    body: Message


@dataclass(eq=False)
class Message:
    execution_id: str
    starts: tuple[str, ...]
    rung: tuple[str, ...]
    queue: str
    then: tuple[Message, ...] = ()
    chord: Chord | None = None


def messages_of(signature: Signature) -> Iterator[Message]:
    """What Celery would send now for a canvas; the rest of it hangs on these."""
    kind = signature.get("subtask_type")
    if kind == "chord":
        header = list(signature.tasks)
        chord = Chord(len(header), next(messages_of(signature.body)))
        for one in header:
            yield from _each(one, chord)
    elif kind == "group":
        for one in signature.tasks:
            yield from messages_of(one)
    else:
        yield from _each(signature, None)


def _each(signature: Signature, chord: Chord | None) -> Iterator[Message]:
    """A task or a chain of them, which counts for the chord that it stands in."""
    links = signature.tasks if signature.get("subtask_type") == "chain" else [signature]
    first, *then = (_message(link, chord) for link in links)
    first.then = tuple(then)
    yield first


def _message(signature: Signature, chord: Chord | None) -> Message:
    execution_id, starts, *rung = signature.args
    return Message(execution_id, tuple(starts), tuple(rung[0]) if rung else (), signature.options["queue"], chord=chord)


@dataclass
class Broker:
    """A list of messages that may be emptied. It is what reconcile asks, too."""

    messages: list[Message] = field(default_factory=list)
    is_away: bool = False

    def send(self, plan: Plan | None) -> None:
        """As workers and the API do: what the broker does not take, reconcile rings for later."""
        if plan is not None and not self.is_away:
            self.dispatch(plan)

    def dispatch(self, plan: Plan) -> None:
        self._ask()
        self.messages += messages_of(canvas(plan))

    def has_returned(self, message: Message) -> None:
        """The task of a message has ended: the canvas goes on."""
        if self.is_away:
            return
        if message.then:
            first, *then = message.then
            self.messages.append(
                Message(first.execution_id, first.starts, first.rung, first.queue, tuple(then), message.chord)
            )
        elif message.chord is not None:
            message.chord.left -= 1
            if message.chord.left == 0:
                self.messages.append(message.chord.body)

    def listed(self, queue: str, most: int | None) -> Listed:
        self._ask()
        waiting = [message for message in self.messages if message.queue == queue]
        steps = {(message.execution_id, start) for message in waiting for start in message.starts}
        return Listed(frozenset(steps), is_all=True)

    def look(self, queues: Sequence[str]) -> BrokerState:
        """What operators are told of it."""
        self._ask()
        waiting = Counter(message.queue for message in self.messages)
        return BrokerState({queue: [waiting[queue]] for queue in queues}, None)

    def _ask(self) -> None:
        if self.is_away:
            raise OSError("the broker is away")


# --- workers ---------------------------------------------------------------------------------------------------


class HaltingStore(Store):
    """The lanes of simulated workers stand still before each access, unless they are within a transaction."""

    def call(self, routine: Routine, params: Mapping[str, Any], first: Sequence[Call] = ()) -> list[tuple[Any, ...]]:
        with _halted(routine.name):
            return super().call(routine, params, first)

    @contextmanager
    def transaction_from(self, first: str, params: Mapping[str, Any], before: Sequence[Call] = ()) -> Iterator[Any]:
        with _halted("transaction"), super().transaction_from(first, params, before) as opened:
            yield opened

    @contextmanager
    def single(self) -> Iterator[Any]:
        with _halted("single"), super().single() as connection:
            yield connection


@contextmanager
def _halted(doing: str) -> Iterator[None]:
    task = _task()
    if task is None or task.is_in_store:
        yield
        return
    order = task.halt("between" if task.has_recorded and doing == "transaction" else "store")
    task.is_in_store = True
    try:
        yield
    finally:
        task.is_in_store = False
    task.has_recorded = doing.startswith(_RECORDS)
    if order is Order.LOSE_DATABASE:
        raise DatabaseLost


class Task:
    """A message that a worker has taken. Its thread runs only while somebody is in `go`."""

    def __init__(self, worker: Worker, message: Message) -> None:
        self.worker = worker
        self.message = message
        self.at = "begin"
        self.has_recorded = False
        """It has just recorded a step; if that did not settle what follows, it is `between` that and another look."""
        self.is_over = False
        self.is_in_store = False
        self.claim: Claim | None = None
        """Of the claim under which it performs."""
        self.outcome = Outcome.COMPLETED
        self._order: Order = Order.GO_ON
        self._turn = threading.Semaphore(0)
        self._halts = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go(self, order: Order = Order.GO_ON) -> None:
        """To the next point."""
        self._order = order
        self._turn.release()
        assert self._halts.acquire(timeout=STUCK), f"a lane is stuck after {self.at}: {self.message}"

    def halt(self, at: str) -> Order:
        """Called in the lane's thread."""
        self.at, self.has_recorded = at, False
        self._halts.release()
        self._turn.acquire()
        if self._order is Order.DIE:
            raise Died
        return self._order

    def _run(self) -> None:
        _here.task = self
        self._turn.acquire()
        try:
            if self._order is not Order.DIE:
                message = self.message
                run_steps(self.worker, message.execution_id, message.starts, message.rung)  # type: ignore[arg-type]
                self.worker.world.broker.has_returned(message)
        except Died:
            pass
        except BaseException as error:
            self.worker.world.surprises.append(error)
        finally:
            self.is_over = True
            self._halts.release()


class Worker:
    """What workers/process.py is to the runner, with one task at a time."""

    hooks = None

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.store
        self.settings = world.settings
        self.programs = world.programs
        self.secrets = NoSecrets()
        self.lease = Lease(world)
        self.watch = Watch()
        self.doorbell = Bell(world)
        self.task: Task | None = None

    def take(self, message: Message) -> None:
        self.task = Task(self, message)

    def go(self, order: Order = Order.GO_ON) -> None:
        assert self.task is not None
        self.task.go(order)
        if self.task.is_over:
            self.task = None

    def go_to(self, *points: str) -> None:
        """On to one of these points, or to the end of the task."""
        self.go()
        while self.task is not None and self.task.at not in points:
            self.go()

    def die(self) -> None:
        """And with it all that it had not sent yet."""
        if self.task is not None:
            self.go(Order.DIE)
        self.doorbell.later.clear()

    def stop(self) -> None:
        """As for a deploy: nothing is begun any more, and what is performed is handed on."""
        self.watch.is_stopping = True
        if self.task is not None and self.task.at == "perform" and self.task.claim is not None:
            with self.store.single() as connection:
                rings = recovery.hand_on(connection, [self.task.claim])
            for ring in rings:
                for plan in plans_of(ring):
                    self.world.broker.send(plan)


class NoSecrets:
    def of(self, _workflow_id: str) -> Secrets:
        return Secrets({})


class Lease:
    def __init__(self, world: World) -> None:
        self._world = world
        self.id = self._register()

    def _register(self) -> str:
        id = new_id()
        with self._world.store.single() as connection:
            workers.register(connection, id, node="simulated", host="elsewhere", pid=1, born=0.0)
        return id

    def current(self) -> str:
        """It may be none any more: the worst case, in which the process does not know that it stood still."""
        return self.id

    def beat(self) -> None:
        with self._world.store.single() as connection:
            kept = workers.beat(connection, self.id)
        if not kept:
            self.id = self._register()

    def disown(self, execution_id: str) -> None:
        """Until the database takes it. The runner comes here with whatever went wrong; only one thing is to."""
        error = sys.exception()
        assert error is not None
        if not isinstance(error, DatabaseLost) and not isinstance(error.__cause__, DatabaseLost):
            self._world.surprises.append(error)
        while True:
            with suppress(DatabaseLost), self._world.store.single() as connection:
                recovery.disown(connection, execution_id, self.id)
                return


class Watch:
    is_stopping = False

    @contextmanager
    def over(self, claim: Claim) -> Iterator[None]:
        task = _task()
        assert task is not None
        task.claim = claim
        try:
            yield
        finally:
            task.claim = None


class Bell:
    def __init__(self, world: World) -> None:
        self._world = world
        self.later: list[Callable[[], Plan | None]] = []

    def ring(self, plan: Plan | None) -> None:
        task = _task()
        if task is not None and not task.is_in_store:
            task.halt("ring")
        self._world.broker.send(plan)

    def ring_all(self, plans: Iterable[Plan]) -> None:
        for plan in plans:
            self.ring(plan)

    def ring_later(self, seconds: float, plan: Callable[[], Plan | None]) -> None:
        self.later.append(plan)

    def lose_patience(self) -> None:
        later, self.later = self.later, []
        for plan in later:
            self._world.broker.send(plan())


class OneAfterTheOther(Executor):
    """In the place of a pool of threads, which would not be in the test's hand."""

    def __init__(self, _threads: int) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@dataclass
class World:
    """What the simulated workers share."""

    settings: Settings
    store: HaltingStore
    programs: Programs
    broker: Broker = field(default_factory=Broker)
    given: dict[str, Outcome] = field(default_factory=dict)
    """What was performed under each claim token was made to return."""
    surprises: list[BaseException] = field(default_factory=list)


# --- step types ------------------------------------------------------------------------------------------------


@step("act", queue="cpu")
def act(context: StepContext) -> Any:
    return _perform(context)


@step("io_act", queue="io")
def io_act(context: StepContext) -> Any:
    return _perform(context)


def _perform(context: StepContext) -> Any:
    """As the test wants it. The output says under which claim that was."""
    task = _task()
    assert task is not None
    assert task.claim is not None
    token = task.claim.token
    task.halt("perform")
    outcome = task.outcome
    task.worker.world.given[token] = outcome
    if outcome is Outcome.RESTED:
        return Wait(datetime.now(UTC) + timedelta(hours=1), {"rested": (context.state or {}).get("rested", 0) + 1})
    if outcome is not Outcome.COMPLETED:
        raise StepFailed("asked to fail", kind="asked", retryable=outcome is Outcome.FAILED)
    return {"token": token}
