"""What has to be true when a soak is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from deployment import wait_until
from soak import Figures
from soak_work import MOST_LIMITED, ROUNDS_AT_A_TIME, Load
from stack import Stack

SECOND = timedelta(seconds=1)

_AUDIT = """
    CREATE TABLE soak_ends (of text, id uuid, at timestamptz, change jsonb);
    CREATE TABLE soak_handed_on (execution_id uuid, path text, attempt int);
    CREATE FUNCTION soak_ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO soak_ends SELECT TG_TABLE_NAME, NEW.id, clock_timestamp(), jsonb_object_agg(key, value)
        FROM jsonb_each(to_jsonb(NEW)) WHERE value IS DISTINCT FROM to_jsonb(OLD) -> key OR key = 'attempt';
        RETURN NULL;
    END $$;
    CREATE TRIGGER soak AFTER UPDATE ON step_executions FOR EACH ROW WHEN (NEW.finished_at IS NOT NULL)
        EXECUTE FUNCTION soak_ended();
    CREATE TRIGGER soak AFTER UPDATE ON executions FOR EACH ROW WHEN (NEW.finished_at IS NOT NULL)
        EXECUTE FUNCTION soak_ended();
    CREATE FUNCTION soak_handed_on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO soak_handed_on VALUES (NEW.execution_id, NEW.path, NEW.attempt);
        RETURN NULL;
    END $$;
    CREATE TRIGGER soak_handed_on AFTER UPDATE ON step_executions FOR EACH ROW
        WHEN (OLD.status = 'running' AND NEW.status = 'queued' AND NEW.losses = OLD.losses)
        EXECUTE FUNCTION soak_handed_on();
"""


def keep_account(stack: Stack) -> None:
    """From now on PostgreSQL notes whatever is written to a step or an execution that has ended, its end included, and
    which attempts were handed on."""
    stack.deployment.sql(_AUDIT)


def check_all(stack: Stack, load: Load, marks: Path, trigger_id: str, samples: Iterable[tuple[int, int, int]]) -> None:
    check_ends(stack, load)
    check_step_states(stack, load)
    check_recorded_once(stack)
    check_order(stack, load)
    check_attempts(stack)
    check_performed(stack, marks)
    check_limits(stack, load, marks, samples)
    check_rounds(stack)
    check_slots(stack, trigger_id)
    check_nothing_is_left(stack)


def check_ends(stack: Stack, load: Load) -> None:
    """Each execution that was asked for is there once, and ended as its shape says; those that others started, too."""
    rows = stack.deployment.sql(
        "SELECT id::text, status, error_message FROM all_executions WHERE idempotency_key LIKE 'soak-%%'"
    )
    assert {id for id, *_ in rows} == load.started.keys()
    wrong = [
        (load.started[id], id, status, message)
        for id, status, message in rows
        if status not in load.shapes[load.started[id]].ends
    ]
    _none(wrong, "executions that ended otherwise than their shape says")
    others = stack.deployment.sql(
        "SELECT id::text, status, error_message FROM all_executions WHERE idempotency_key NOT LIKE 'soak-%%' "
        "AND status <> 'completed'"
    )
    _none(others, "executions that others started and that failed")


def check_step_states(stack: Stack, load: Load) -> None:
    rows = stack.deployment.sql("SELECT execution_id::text, path, step_id, status, losses FROM all_step_executions")
    wrong = []
    for execution_id, path, step_id, status, losses in rows:
        name = load.started.get(execution_id)
        expected = load.shapes[name].steps if name is not None else {}
        if status != expected.get(step_id, "completed"):
            wrong.append((name, execution_id, path, status, losses))
    _none(wrong, "steps in another state than their shape says")


def check_recorded_once(stack: Stack) -> None:
    twice = stack.deployment.sql(
        "SELECT of, id::text, jsonb_agg(change ORDER BY at) FROM soak_ends GROUP BY of, id HAVING count(*) > 1 LIMIT 10"
    )
    _none(twice, "written to after their end")
    unseen = stack.deployment.sql(
        "SELECT s.id::text FROM all_step_executions s LEFT JOIN soak_ends a ON a.id = s.id "
        "WHERE s.status IN ('completed', 'failed') AND (a.id IS NULL OR a.change ->> 'attempt' <> s.attempt::text)"
    )
    _none(unseen, "steps of which nothing, or another attempt, was recorded")


def check_order(stack: Stack, load: Load) -> None:
    """No step began before the end of those that it depends on."""
    rows = stack.deployment.sql(
        "SELECT execution_id::text, step_id, started_at, finished_at FROM all_step_executions WHERE path = step_id"
    )
    times = {(execution_id, step): (begun, ended) for execution_id, step, begun, ended in rows}
    early = [
        (name, execution_id, needed, step["id"])
        for execution_id, name in load.started.items()
        for step in load.shapes[name].definition["steps"]
        for needed in step["depends_on"]
        if (begun := times[execution_id, step["id"]][0]) is not None and begun < times[execution_id, needed][1]
    ]
    _none(early, "steps that began before the end of another that they depend on")


def check_attempts(stack: Stack) -> None:
    """An attempt follows another only if that failed, or lost its worker; the last of those that may is the last."""
    rows = stack.deployment.sql(
        "SELECT execution_id::text, path, attempt, losses FROM all_step_executions "
        "WHERE status = 'completed' AND type <> 'fail' AND attempt <> losses + 1"
    )
    _none(rows, "attempts without a reason")
    rows = stack.deployment.sql(
        "SELECT execution_id::text, path, attempt, error_kind, error_message FROM all_step_executions "
        "WHERE type = 'die' AND (attempt <> %(most)s OR error_kind <> 'lost')",
        most=stack.settings.scheduler.max_losses,
    )
    _none(rows, "steps that kill their workers and failed otherwise than for that")


def check_performed(stack: Stack, marks: Path) -> None:
    """Each attempt was performed once for each worker that it was handed on to, none followed the one that was
    recorded, and that one was performed."""
    performed = Counter(_marks(marks))
    handed_on = Counter(
        map(tuple, stack.deployment.sql("SELECT execution_id::text, path, attempt FROM soak_handed_on"))
    )
    again = [one for one, times in performed.items() if times > 1 + handed_on[one]]
    _none(again, "attempts that were performed again though nobody had handed them on")
    rows = stack.deployment.sql(
        "SELECT execution_id::text, path, attempt, status FROM all_step_executions WHERE type = 'mark'"
    )
    recorded = {(execution_id, path): attempt for execution_id, path, attempt, _ in rows}
    _none([one for one in performed if one[2] > recorded[one[:2]]], "attempts after the one that was recorded")
    done = {(execution_id, path, attempt) for execution_id, path, attempt, status in rows if status == "completed"}
    _none(sorted(done - performed.keys()), "recorded, and not performed")


def check_limits(stack: Stack, load: Load, marks: Path, samples: Iterable[tuple[int, int, int]]) -> None:
    places = stack.settings.scheduler.max_concurrent
    for admitted, under_one_key, without_a_reason in samples:
        assert admitted <= places
        assert under_one_key <= MOST_LIMITED
        assert without_a_reason == 0
    spans = stack.deployment.sql(
        "SELECT admitted_at, finished_at FROM all_executions WHERE parent_step_id IS NULL AND admitted_at IS NOT NULL"
    )
    assert most_at_a_time(spans) <= places
    by_key: dict[str, list[tuple[Any, Any]]] = {}
    for key, begin, end in stack.deployment.sql(
        "SELECT key, admitted_at, finished_at FROM all_executions, unnest(limit_keys) AS key "
        "WHERE admitted_at IS NOT NULL"
    ):
        by_key.setdefault(key, []).append((begin, end))
    assert len(by_key) >= 2
    exceeded = [(key, most) for key, spans in by_key.items() if (most := most_at_a_time(spans)) > MOST_LIMITED]
    _none(exceeded, "limits that were exceeded")
    # The same by what was really performed: the lines of the file are in the order of time.
    recorded = stack.deployment.sql(
        "SELECT execution_id::text, path, attempt FROM all_step_executions WHERE type = 'mark'"
    )
    at = {one: number for number, one in enumerate(_marks(marks))}
    line = {(execution_id, path): at.get((execution_id, path, attempt)) for execution_id, path, attempt in recorded}
    limited = [id for id, name in load.started.items() if name == "limited"]
    assert 0 < most_at_a_time([(line[id, "a"], line[id, "z"]) for id in limited]) <= MOST_LIMITED


def check_rounds(stack: Stack) -> None:
    """No more of the rounds of the limited loop run at a time than its definition lets."""
    loops: dict[str, list[tuple[Any, Any]]] = {}
    for execution_id, begin, end in stack.deployment.sql(
        "SELECT execution_id::text, min(started_at), max(finished_at) FROM all_step_executions "
        "WHERE container = 'few' GROUP BY execution_id, scope"
    ):
        loops.setdefault(execution_id, []).append((begin, end))
    assert loops
    exceeded = [(id, most) for id, spans in loops.items() if (most := most_at_a_time(spans)) > ROUNDS_AT_A_TIME]
    _none(exceeded, "loops that had more rounds at a time than they may")


def most_at_a_time(spans: Iterable[Any]) -> int:
    """How many of the (begin, end) overlap, at most."""
    moments = sorted((moment, change) for begin, end in spans for moment, change in ((begin, 1), (end, -1)))
    most = running = 0
    for _, change in moments:
        running += change
        most = max(most, running)
    return most


def check_slots(stack: Stack, trigger_id: str) -> None:
    """Every second from the first slot to the last has one fire, and that one execution, which ended."""
    rows = stack.deployment.sql(
        "SELECT f.scheduled_for, f.outcome, f.reason, e.status FROM trigger_fires f LEFT JOIN all_executions e "
        "ON e.id = f.execution_id AND e.trigger_id = f.trigger_id "
        "WHERE f.trigger_id = %(id)s::uuid ORDER BY f.scheduled_for",
        id=trigger_id,
    )
    _none([row for row in rows if row[1] != "started" or row[3] != "completed"], "slots that started nothing")
    slots = [row[0] for row in rows]
    gaps = [(one, following) for one, following in pairwise(slots) if following - one != SECOND]
    _none(gaps, "slots that are not a second apart")
    ((begun, stopped, executions),) = stack.deployment.sql(
        "SELECT created_at, updated_at, (SELECT count(*) FROM all_executions WHERE trigger_id = t.id) "
        "FROM triggers t WHERE id = %(id)s::uuid",
        id=trigger_id,
    )
    assert executions == len(slots)
    assert slots[0] - begun <= 10 * SECOND  # what is due next was worked out a moment before or after
    assert stopped - slots[-1] <= SECOND


def check_nothing_is_left(stack: Stack) -> None:
    """No step that has not ended, no lease of a process that is gone, no message that nobody takes."""
    left = stack.deployment.sql(
        "SELECT execution_id::text, path, status FROM all_step_executions "
        "WHERE status NOT IN ('completed', 'failed', 'skipped', 'cancelled')"
    )
    _none(left, "steps that have not ended")
    wait_until(lambda: not _dead_leases(stack), what="the leases of dead processes to lapse")
    wait_until(lambda: stack.messages() == 0, what="the queues to be empty")


def _dead_leases(stack: Stack) -> list[int]:
    pids = [pid for (pid,) in stack.deployment.sql("SELECT pid FROM worker_processes")]
    return [pid for pid in pids if not psutil.pid_exists(pid)]


def _none(found: Sequence[Any], what: str) -> None:
    assert not found, f"{len(found)} {what}: {found[:10]}"


def _marks(marks: Path) -> list[tuple[str, str, int]]:
    """(execution, path, attempt), in the order in which they were performed."""
    lines = [line.split() for line in marks.read_text().splitlines()]
    return [(execution_id, path, int(attempt)) for execution_id, path, attempt in lines]


def complete(figures: Figures, stack: Stack) -> None:
    """With what the database knows."""
    ((figures.executions, figures.steps, figures.lost),) = stack.deployment.sql(
        "SELECT (SELECT count(*) FROM all_executions), count(*), sum(losses) FROM all_step_executions"
    )
    ((figures.longest_stall,),) = stack.deployment.sql(
        "SELECT extract(epoch FROM max(pause))::float8 FROM "
        "(SELECT at - lag(at) OVER (ORDER BY at) AS pause FROM soak_ends WHERE of = 'step_executions') AS pauses"
    )
