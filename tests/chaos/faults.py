"""What is done to a deployment in a soak. Each fault says whether there was something to break."""

from __future__ import annotations

from collections.abc import Callable, Collection

from soak import Fault, Soak
from stack import BEATS, WORKERS, family


def kill_worker(soak: Soak) -> bool:
    return _broken_worker(soak, "kill_worker", soak.stack.kill)


def kill_child(soak: Soak) -> bool:
    """One of a worker's processes that perform steps; its parent starts another."""
    name = soak.pick([name for name, kind in WORKERS.items() if kind.pool == "prefork"])
    if name is None:
        return False
    leases = soak.stack.leases_of(soak.stack.running[name])
    soak.stack.kill_one(name, lambda processes: soak.random.choice(processes[1:] or processes))
    _expect_held(soak, "kill_child", leases)
    return True


def kill_parent(soak: Soak) -> bool:
    """Only a worker's first process: what it has started goes on for as long as it can."""
    return _broken_worker(soak, "kill_parent", lambda name: soak.stack.kill_one(name, lambda processes: processes[0]))


def _broken_worker(soak: Soak, fault: str, kill: Callable[[str], None]) -> bool:
    name = soak.pick(WORKERS)
    if name is None:
        return False
    leases = soak.stack.leases_of(soak.stack.running[name])
    kill(name)
    soak.breaks(name, lambda: soak.stack.start_process(name), lambda: soak.stack.is_there(name))
    _expect_held(soak, fault, leases)
    return True


def freeze_worker(soak: Soak) -> bool:
    """For longer than its lease; then it wakes up and knows nothing of that."""
    name = soak.pick(WORKERS)
    if name is None:
        return False
    leases = soak.stack.leases_of(soak.stack.running[name])
    soak.stack.freeze(name)
    lease = soak.stack.settings.scheduler.lease
    frozen = soak.random.uniform(1.5, 3) * lease
    soak.breaks(name, lambda: soak.stack.thaw(name), lambda: soak.stack.is_there(name), frozen)
    _expect_held(soak, "freeze_worker", leases)
    return True


def _expect_held(soak: Soak, fault: str, leases: list[str]) -> None:
    soak.expect_steps(fault, "s.status = 'running' AND s.worker_id = ANY(%(leases)s::uuid[])", leases=leases)


def roll_worker(soak: Soak) -> bool:
    """There again when the old one is gone."""
    name = soak.pick(WORKERS)
    if name is None:
        return False
    leases = soak.stack.leases_of(soak.stack.running[name])
    old = soak.stack.roll(name)

    def has_left() -> bool:
        return old.exit_code is not None and not family(old)

    soak.breaks(name, lambda: None, lambda: soak.stack.is_there(name), 0)
    soak.expect("roll_worker", has_left)
    _expect_held(soak, "roll_worker", leases)
    return True


def kill_api(soak: Soak) -> bool:
    return _broken_process(soak, "kill_api", ["api"], soak.stack.api_answers)


def kill_beat(soak: Soak) -> bool:
    return _broken_process(soak, "kill_beat", BEATS, lambda: True)


def _broken_process(soak: Soak, fault: str, names: Collection[str], there: Callable[[], bool]) -> bool:
    name = soak.pick(names)
    if name is None:
        return False
    soak.stack.kill(name)
    soak.breaks(name, lambda: soak.stack.start_process(name), there)
    soak.expect(fault, there)
    return True


def flush_valkey(soak: Soak) -> bool:
    if soak.pick(["valkey"]) is None:
        return False
    soak.stack.forget()
    soak.expect_steps("flush_valkey", "s.status = 'queued'")
    return True


def kill_valkey(soak: Soak) -> bool:
    if soak.pick(["valkey"]) is None:
        return False
    soak.stack.kill_valkey()

    def mend() -> None:
        soak.stack.start_valkey()
        soak.expect_steps("kill_valkey", "s.status = 'queued'")

    soak.breaks("valkey", mend)
    return True


def kill_postgres(soak: Soak) -> bool:
    """It recovers from its log; there again when a step has ended since."""
    if soak.pick(["postgres"]) is None:
        return False
    soak.stack.kill_postgres()

    def mend() -> None:
        soak.stack.start_postgres()
        since = soak.stack.sql("SELECT clock_timestamp()")
        assert since is not None
        soak.expect("kill_postgres", lambda: bool(_ended_since(soak, since[0][0])))

    soak.breaks("postgres", mend)
    return True


def lay_aside(soak: Soak) -> bool:
    """What has ended so far, while everybody waits: it keeps nobody from anything."""
    if soak.pick(["postgres"]) is None:
        return False
    soak.stack.deployment.lay_aside()
    return True


def _ended_since(soak: Soak, moment: object) -> bool:
    return bool(
        soak.stack.sql(
            "SELECT FROM all_step_executions WHERE finished_at > %(at)s UNION ALL (SELECT WHERE NOT EXISTS ("
            "SELECT FROM all_step_executions WHERE status IN ('queued', 'running', 'waiting'))) LIMIT 1",
            at=moment,
        )
    )


FAULTS: tuple[Fault, ...] = (
    kill_worker,
    kill_child,
    kill_parent,
    freeze_worker,
    roll_worker,
    kill_api,
    kill_beat,
    flush_valkey,
    kill_valkey,
    kill_postgres,
    lay_aside,
)
