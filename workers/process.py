"""What one worker process holds: its store, its step types, its lease; and when these come and go.

With the prefork pool each child is such a process; with the threads pool it is the worker itself. The worker's
main process also runs the reconciler, of which one in the whole deployment is active at a time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
from celery import bootsteps, signals

from orchestrator.config import Settings, load_settings
from orchestrator.engine.programs import Programs
from orchestrator.isolation import in_force
from orchestrator.plugins import load_catalogue
from orchestrator.processes import conceal
from orchestrator.store import Store, counters, new_id, recovery, workers
from workers.app import app
from workers.dispatch import Doorbell
from workers.hooks import announcer
from workers.runner import run_steps
from workers.secrets import SecretSource
from workers.stopping import Watch

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds for which a lane whose store failed, or that is to begin without a lease, waits for it."""

LAST_WORDS = 10.0
"""Seconds for which a worker that stops waits for what it still performs."""


def host_identity() -> str:
    """The host and the process namespace in it: within one of these a pid means something."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: one namespace a host
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


class WorkerProcess:
    """The state of a process that performs steps."""

    def __init__(self, settings: Settings, node: str, *, slots: int = 1) -> None:
        self.settings = settings
        self.node = node
        self.store = Store(settings.database)
        self.programs = Programs(load_catalogue(settings.plugins), settings)
        self.secrets = SecretSource(settings, self.store)
        self.doorbell = Doorbell()
        self.hooks = announcer(settings, self.store, self.secrets)
        self.watch = Watch(self.store, self.doorbell.ring)
        self.lease = Lease(self.store, node, settings.scheduler.lease / 4, slots, in_force(settings).mode)

    def run_steps(self, execution_id: str, starts: Sequence[str], rung: Sequence[str]) -> None:
        if self.lease.is_taken():
            run_steps(self, execution_id, starts, rung)
        else:
            logger.warning("execution %s is left to others: this process has no lease", execution_id)

    def close(self) -> None:
        self.watch.close()
        self.doorbell.close()
        if self.hooks is not None:
            self.hooks.close()
        self.lease.give_up()
        self.store.close()


class Lease:
    """A row that says this process lives, kept by a thread of its own.

    A process that was held up for longer than its lease has lost the row, and with it its claims; it goes on
    under a new id. One that is started while the database is away has its lease when that is there.
    """

    id: str

    def __init__(self, store: Store, node: str, interval: float, slots: int, script_isolation: str) -> None:
        self._store = store
        self._node = node
        self._slots = slots
        self._script_isolation = script_isolation
        self._stop = threading.Event()
        self._interval = interval
        self._disowned: set[str] = set()
        self._taken = threading.Event()
        self._kept_at = 0.0
        self._beating = threading.Lock()
        try:
            self._beat()
        except Exception:  # whoever starts this process has other things to do as well
            logger.warning("a lease could not be taken; that is tried again every second", exc_info=True)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def is_taken(self) -> bool:
        """Once it is; False if that takes too long. What is claimed without a lease has lost its worker."""
        return self._taken.wait(PATIENCE)

    def current(self) -> str:
        """Its id, under which a step may be claimed. A process that stood still for so long that others may have taken
        its lease finds out here: until its next beat it would take messages, and could claim nothing.
        """
        if time.monotonic() - self._kept_at > 2 * self._interval:
            self._beat()
        return self.id

    def _register(self) -> None:
        id = new_id()
        with self._store.single() as connection:
            workers.register(
                connection,
                id,
                node=self._node,
                host=host_identity(),
                pid=os.getpid(),
                born=psutil.Process().create_time(),
                queues=app.amqp.queues.consume_from,
                slots=self._slots,
                script_isolation=self._script_isolation,
            )
        self.id = id
        self._taken.set()

    def _keep(self) -> None:
        while not self._stop.wait(self._interval if self._taken.is_set() else 1.0):
            try:
                self._beat()
                self._disown()
                with self._store.single() as connection:
                    counters.flush(connection)
            except Exception:  # the database is away: the next beat tries again
                logger.warning("the lease could not be kept", exc_info=True)

    def _beat(self) -> None:
        with self._beating:
            now = time.monotonic()
            if not self._taken.is_set():
                self._register()
            else:
                with self._store.single() as connection:
                    kept = workers.beat(connection, self.id)
                if not kept:
                    logger.warning("the lease of %s lapsed; its steps were given to others", self.id)
                    self._register()
            self._kept_at = now

    def disown(self, execution_id: str) -> None:
        """Leave to reconcile whatever this process holds of an execution, as soon as the database is there.

        For a lane that was thrown off its way: the statement that failed may have claimed a step or not. It
        waits a while for the database, since taking the next message meanwhile would only lose that one, too.
        """
        self._disowned.add(execution_id)
        patient_until = time.monotonic() + PATIENCE
        while True:
            try:
                return self._disown()
            except Exception:  # still away
                if time.monotonic() > patient_until or self._stop.wait(0.2):
                    logger.warning("execution %s is given up with a later beat", execution_id, exc_info=True)
                    return None

    def _disown(self) -> None:
        for execution_id in tuple(self._disowned):
            with self._store.single() as connection:
                recovery.disown(connection, execution_id, self.id)
            self._disowned.discard(execution_id)

    def give_up(self) -> None:
        self._stop.set()
        if not self._taken.is_set():
            return
        try:
            with self._store.single() as connection:
                counters.flush(connection)
                workers.remove(connection, [self.id])
        except Exception:
            logger.warning("the lease of %s could not be given up; it will lapse", self.id, exc_info=True)


class Exit(bootsteps.StartStopStep):
    """A worker that stops, asked to or because its consumer died of something unexpected, is gone soon.

    Celery would have it wait for all its tasks, however long they take, while it takes no message. So each process is
    told, and hands its steps on. What cannot be ended even so is left behind.
    """

    def close(self, worker: Any) -> None:
        if _current is not None:
            _current.watch.stop_soon()
        for child in _children_of(worker.pool):
            with suppress(ProcessLookupError):
                os.kill(child, _STOP_SOON)
        timer = threading.Timer(LAST_WORDS, os._exit, [worker.exitcode or 0])
        timer.daemon = True
        timer.start()


_STOP_SOON = signal.SIGUSR2


def _children_of(pool: Any) -> list[int]:
    """The process ids of a prefork pool."""
    processes = getattr(getattr(pool, "_pool", None), "_pool", None)
    return [process.pid for process in processes or () if hasattr(process, "pid")]


_current: WorkerProcess | None = None
_starting = threading.Lock()


def process(node: str | None = None, slots: int = 1) -> WorkerProcess:
    """The state of this process, which performs `slots` tasks at a time, made on first use."""
    global _current
    with _starting:
        if _current is None:
            _current = WorkerProcess(load_settings(), node or f"worker@{socket.gethostname()}", slots=slots)
        return _current


def _end() -> None:
    global _current
    if _current is not None:
        _current.close()
        _current = None


@signals.worker_init.connect
def _worker_starts(**_: Any) -> None:
    # Before the pool forks: a script that is not in bubblewrap has nothing but this between it and our environment.
    conceal()
    # And so that the children need not find it out, nor import the step types, each for itself.
    settings = load_settings()
    in_force(settings)
    load_catalogue(settings.plugins)


@signals.worker_process_init.connect
def _child_starts(sender: Any = None, **_: Any) -> None:
    # What interrupts a step sends SIGALRM, which by default ends a process: a late one is to do nothing.
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    watch = process(str(sender)).watch
    signal.signal(_STOP_SOON, lambda *_: watch.stop_soon())


@signals.worker_process_shutdown.connect
def _child_stops(**_: Any) -> None:
    _end()


@signals.worker_ready.connect
def _worker_ready(sender: Any, **_: Any) -> None:
    """`sender` is the consumer. Pools without child processes perform steps in this very process."""
    from workers.housekeeping import Housekeeper

    if not sender.pool.is_green and "prefork" not in type(sender.pool).__module__:
        process(sender.hostname, sender.pool.limit or 1)
    settings = load_settings()
    _say_isolation(settings)
    if settings.scheduler.enabled:
        Housekeeper.start(settings, sender.hostname)


def _say_isolation(settings: Settings) -> None:
    found, wanted = in_force(settings), settings.executor.isolation
    if found.mode == "bubblewrap" or wanted == "limits":
        logger.info("scripts are isolated %s", found)
    elif wanted == "auto":
        logger.warning("scripts are isolated %s", found)
    else:
        logger.error("no script will run here, for executor.isolation asks for bubblewrap: %s", found.reason)


@signals.worker_shutdown.connect
def _worker_stops(**_: Any) -> None:
    from workers.housekeeping import Housekeeper

    Housekeeper.stop()
    _end()
