"""Schedules: each slot fires once, whoever looks, dies, or comes late. Rows are aged instead of waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, deployed, wait_until

from beat.triggers import TriggerType
from orchestrator.engine import triggers
from orchestrator.engine.programs import Programs
from orchestrator.engine.slots import Every, Timetable
from orchestrator.engine.triggers import Fired
from orchestrator.plugins import Overlap, load_catalogue, load_trigger_types
from orchestrator.store import executions
from orchestrator.store import triggers as rows
from orchestrator.store.keyset import Window
from orchestrator.store.session import new_id
from orchestrator.store.triggers import Fire

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": "{{ trigger.scheduled_for }}"}}]}
HOUR = timedelta(hours=1)


class Clock:
    """Schedules of a workflow without a worker, and what a reconciler does about them."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.store = deployment.store
        self.programs = Programs(load_catalogue("sample_steps"), deployment.settings)
        self.workflow_id = self.workflow(NOOP)
        self.since = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10, minutes=30)
        """Hourly slots that are counted from then are half an hour away: none comes by itself while a test runs."""

    def workflow(self, definition: dict[str, Any]) -> str:
        workflow_id = self.deployment.create(definition)
        assert self.deployment.client.post(f"/api/v1/workflows/{workflow_id}/activate").status_code == 200
        return workflow_id

    def schedule(self, workflow_id: str | None = None, **config: Any) -> str:
        config = {"interval": "1h", "start": self.since.isoformat(), **config}
        given = {"type": "schedule", "name": new_id(), "config": config}
        path = f"/api/v1/workflows/{workflow_id or self.workflow_id}/triggers"
        answer = self.deployment.client.post(path, json=given)
        assert answer.status_code == 201, answer.text
        return str(answer.json["id"])

    def make_due(self, trigger_id: str, late: timedelta = timedelta()) -> datetime:
        """As if the slot before the next one, and what is `late` before it, had not been looked at; that slot."""
        slot: datetime = self.next_slot(trigger_id)
        at = slot - self.step(trigger_id) - late
        self.deployment.sql("UPDATE triggers SET next_slot = %(at)s WHERE id = %(id)s::uuid", at=at, id=trigger_id)
        return at + late

    def step(self, trigger_id: str) -> timedelta:
        with self.store.single() as connection:
            trigger = rows.find(connection, trigger_id)
        first, second = triggers.timetable_of(self.programs, trigger).first(datetime.now(UTC), 2)
        return second - first

    def next_slot(self, trigger_id: str) -> Any:
        return self.deployment.sql("SELECT next_slot FROM triggers WHERE id = %(id)s::uuid", id=trigger_id)[0][0]

    def tick(self) -> list[Fired]:
        fired = [one for one in triggers.fire_due(self.store, self.programs) if isinstance(one, Fired)]
        return [*fired, *triggers.carry_out_unsettled(self.store, self.programs)]

    def fires(self, trigger_id: str) -> list[dict[str, Any]]:
        """The oldest first."""
        with self.store.single() as connection:
            return rows.fires(connection, Window(rows.FIRE_ORDERS["created_at"], 2000), trigger_id)

    def outcomes(self, trigger_id: str) -> list[str]:
        return [fire["outcome"] for fire in self.fires(trigger_id)]

    def executions_of(self, trigger_id: str) -> int:
        sql = "SELECT count(*) FROM executions WHERE trigger_id = %(id)s::uuid"
        return int(self.deployment.sql(sql, id=trigger_id)[0][0])

    def end(self, execution_id: str) -> None:
        with self.store.single() as connection:
            assert executions.fail(connection, execution_id, "ended by the test")


@pytest.fixture
def clock(servers: Deployment) -> Iterator[Clock]:
    servers.sql("UPDATE triggers SET is_enabled = false")
    yield Clock(servers)
    servers.sql("DELETE FROM triggers")


# --- one slot, one execution ---------------------------------------------------------------------------------


def test_a_slot_starts_one_execution_that_knows_what_started_it(clock: Clock):
    trigger_id = clock.schedule(input={"from": "the schedule"})
    slot = clock.make_due(trigger_id, late=timedelta())
    clock.deployment.sql("UPDATE triggers SET name = 'hourly' WHERE id = %(id)s::uuid", id=trigger_id)
    late = datetime.now(UTC) - slot

    (fired,) = clock.tick()

    assert fired.outcome == "started"
    assert [plan.execution_id for plan in fired.plans] == [fired.execution_id]
    execution = clock.deployment.execution(str(fired.execution_id))
    assert (execution["trigger_id"], execution["input"]) == (trigger_id, {"from": "the schedule"})
    with clock.store.single() as connection:
        seen = executions.trigger_data(connection, str(fired.execution_id))
    text = slot.astimezone(UTC).isoformat().replace("+00:00", "Z")
    assert seen == {
        "id": trigger_id,
        "type": "schedule",
        "name": "hourly",
        "slot": text,
        "scheduled_for": text,
        "payload": None,
    }
    (fire,) = clock.fires(trigger_id)
    assert (fire["slot"], fire["scheduled_for"], fire["execution_id"]) == (text, slot, fired.execution_id)
    shown = clock.deployment.client.get(f"/api/v1/triggers/{trigger_id}").json
    assert shown["trigger_count"] == 1
    assert datetime.fromisoformat(shown["last_triggered"]) - slot >= late
    assert clock.next_slot(trigger_id) == slot + HOUR
    assert clock.tick() == []


def test_nothing_fires_before_it_is_due_or_while_it_is_disabled(clock: Clock):
    early, disabled = clock.schedule(), clock.schedule()
    clock.make_due(disabled)
    clock.deployment.sql("UPDATE triggers SET is_enabled = false WHERE id = %(id)s::uuid", id=disabled)
    assert clock.tick() == []
    assert clock.fires(early) == clock.fires(disabled) == []


def test_a_crowd_of_reconcilers_makes_no_slot_fire_twice(clock: Clock):
    ids = [clock.schedule() for _ in range(30)]
    for trigger_id in ids:
        clock.make_due(trigger_id)
    with ThreadPoolExecutor(8) as pool:
        fired = [one for several in pool.map(lambda _: clock.tick(), range(8)) for one in several]
    assert sorted(one.outcome for one in fired) == ["started"] * 30
    assert [clock.executions_of(trigger_id) for trigger_id in ids] == [1] * 30


def test_a_slot_that_has_fired_fires_no_more_even_if_the_trigger_is_moved_back(clock: Clock):
    trigger_id = clock.schedule()
    clock.make_due(trigger_id)
    clock.tick()
    slot = clock.make_due(trigger_id)
    assert clock.tick() == []
    assert clock.executions_of(trigger_id) == 1
    assert clock.next_slot(trigger_id) == slot + HOUR


def test_a_trigger_that_is_moved_is_due_by_its_new_time_only(clock: Clock):
    trigger_id = clock.schedule()
    clock.make_due(trigger_id)
    changed = {"config": {"interval": None, "cron": "0 2 29 2 *", "timezone": "Asia/Shanghai"}}
    assert clock.deployment.client.put(f"/api/v1/triggers/{trigger_id}", json=changed).status_code == 200
    assert clock.tick() == []
    assert clock.next_slot(trigger_id).astimezone(UTC).strftime("%m-%dT%H:%M") == "02-28T18:00"


def test_a_schedule_that_is_over_is_due_no_more(clock: Clock):
    trigger_id = clock.schedule(end=(clock.since + HOUR).isoformat())
    assert clock.next_slot(trigger_id) is None
    assert clock.deployment.client.get(f"/api/v1/triggers/{trigger_id}/preview").json == {"items": []}


def test_jitter_puts_off_the_fire_and_not_the_slot(clock: Clock):
    trigger_id = clock.schedule(jitter="20m")
    slot = clock.make_due(trigger_id)
    clock.tick()
    (fire,) = clock.fires(trigger_id)
    assert (fire["scheduled_for"] - clock.since) % HOUR == timedelta()
    assert timedelta() < slot - fire["scheduled_for"] < timedelta(minutes=20)


# --- what was missed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "outcomes"),
    [
        ({"missed": "skip"}, ["skipped"]),
        ({"missed": "run_last"}, ["started"]),
        ({}, ["started"]),
        ({"missed": "run_all"}, ["started"] * 25),
        ({"missed": "run_all", "missed_limit": 3}, ["started"] * 3),
    ],
)
def test_slots_that_were_missed_are_made_up_for_as_the_schedule_says(
    clock: Clock, config: dict[str, Any], outcomes: list[str]
):
    # From the start of a day on, so that the last slot is hours ago, whenever the test runs.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
    trigger_id = clock.schedule(start=today.isoformat(), end=(today + 24 * HOUR).isoformat(), **config)
    assert clock.next_slot(trigger_id) is None
    clock.deployment.sql("UPDATE triggers SET next_slot = %(at)s WHERE id = %(id)s::uuid", at=today, id=trigger_id)

    clock.tick()

    fires = clock.fires(trigger_id)
    assert [fire["outcome"] for fire in fires] == outcomes
    assert [fire["scheduled_for"] for fire in fires] == [
        today + (25 - len(outcomes) + number) * HOUR for number in range(len(outcomes))
    ]
    if config.get("missed") == "skip":
        assert "nothing could fire it for" in fires[0]["reason"]
    assert clock.next_slot(trigger_id) is None


def test_a_slot_that_is_a_little_late_is_not_missed(clock: Clock):
    trigger_id = clock.schedule(interval="1s", missed="skip")
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=4)
    clock.deployment.sql("UPDATE triggers SET next_slot = %(at)s WHERE id = %(id)s::uuid", at=at, id=trigger_id)
    clock.tick()
    assert set(clock.outcomes(trigger_id)) == {"started"}
    assert len(clock.fires(trigger_id)) >= 5


def test_what_passed_while_a_schedule_was_disabled_is_not_made_up_for(clock: Clock):
    trigger_id = clock.schedule()
    clock.make_due(trigger_id)
    path = f"/api/v1/triggers/{trigger_id}"
    assert clock.deployment.client.put(path, json={"is_enabled": False}).json["is_enabled"] is False
    assert clock.next_slot(trigger_id) is None
    assert clock.deployment.client.put(path, json={"is_enabled": True}).json["is_enabled"] is True
    assert clock.tick() == []
    assert clock.next_slot(trigger_id) > datetime.now(UTC)


# --- overlapping ---------------------------------------------------------------------------------------------


def fire_twice(clock: Clock, trigger_id: str) -> tuple[str, Fired]:
    """The execution of a slot, and what came of a fire while it was there."""
    clock.make_due(trigger_id)
    (first,) = clock.tick()
    return str(first.execution_id), fire_by_hand(clock, trigger_id)


def fire_by_hand(clock: Clock, trigger_id: str) -> Fired:
    with clock.store.single() as connection:
        trigger = rows.find(connection, trigger_id)
    return triggers.fire(clock.store, clock.programs, trigger, slot=new_id())


def test_executions_of_a_schedule_may_overlap_unless_it_says_otherwise(clock: Clock):
    trigger_id = clock.schedule()
    _, second = fire_twice(clock, trigger_id)
    assert second.outcome == "started"
    assert clock.executions_of(trigger_id) == 2


def test_a_schedule_that_skips_starts_nothing_while_its_execution_runs(clock: Clock):
    trigger_id = clock.schedule(overlap="skip")
    first, second = fire_twice(clock, trigger_id)
    assert (second.outcome, second.reason) == ("skipped", f"execution {first} has not ended")
    clock.end(first)
    assert fire_by_hand(clock, trigger_id).outcome == "started"


def test_of_a_schedule_that_queues_one_one_waits_for_the_end_of_its_execution(clock: Clock):
    trigger_id = clock.schedule(overlap="queue_one")
    first, second = fire_twice(clock, trigger_id)
    third = fire_by_hand(clock, trigger_id)
    assert (second.outcome, third.outcome) == ("queued", "skipped")
    assert str(third.reason).startswith("another one waits for the end of execution")
    assert clock.tick() == []

    clock.end(first)

    (fired,) = clock.tick()
    assert (fired.fire_id, fired.outcome) == (second.fire_id, "started")
    assert clock.outcomes(trigger_id) == ["started", "started", "skipped"]
    assert fire_by_hand(clock, trigger_id).outcome == "queued"


def test_a_schedule_that_cancels_ends_its_execution_for_the_new_one(clock: Clock):
    trigger_id = clock.schedule(overlap="cancel_other")
    first, second = fire_twice(clock, trigger_id)
    assert second.outcome == "started"
    ended = clock.deployment.execution(first)
    assert (ended["status"], ended["error_message"]) == ("cancelled", "its trigger fired again")


def test_a_crowd_at_a_schedule_that_skips_starts_one_execution(clock: Clock):
    trigger_id = clock.schedule(overlap="skip")
    with ThreadPoolExecutor(8) as pool:
        fired = list(pool.map(lambda _: fire_by_hand(clock, trigger_id), range(16)))
    assert sorted(one.outcome for one in fired) == ["skipped"] * 15 + ["started"]
    assert clock.executions_of(trigger_id) == 1


# --- what does not start -------------------------------------------------------------------------------------


def test_a_paused_workflow_is_not_started_and_the_fire_says_so(clock: Clock):
    workflow_id = clock.workflow(NOOP)
    trigger_id = clock.schedule(workflow_id)
    clock.deployment.client.post(f"/api/v1/workflows/{workflow_id}/pause")
    clock.make_due(trigger_id)
    clock.tick()
    (fire,) = clock.fires(trigger_id)
    assert (fire["outcome"], fire["reason"], fire["execution_id"]) == ("skipped", "the workflow is paused", None)
    shown = clock.deployment.client.get(f"/api/v1/triggers/{trigger_id}").json
    assert (shown["trigger_count"], shown["last_triggered"]) == (0, None)


def test_an_input_that_does_not_fit_the_workflow_fails_the_fire_with_what_is_wrong(clock: Clock):
    demanding = {**NOOP, "inputs": {"type": "object", "required": ["file"]}}
    trigger_id = clock.schedule(clock.workflow(demanding), input={"folder": "x"})
    clock.make_due(trigger_id)
    clock.tick()
    (fire,) = clock.fires(trigger_id)
    assert fire["outcome"] == "failed"
    assert "'file' is a required property" in fire["reason"]


def test_a_trigger_of_a_type_that_is_not_here_is_put_off_and_stops_no_other(clock: Clock):
    lost, known = clock.schedule(), clock.schedule()
    clock.make_due(lost)
    clock.make_due(known)
    clock.deployment.sql("UPDATE triggers SET type = 'of a plugin' WHERE id = %(id)s::uuid", id=lost)
    clock.tick()
    assert (clock.outcomes(lost), clock.outcomes(known)) == ([], ["started"])
    assert clock.next_slot(lost) > datetime.now(UTC)


class Odd(TriggerType):
    """A plugin's type that does not keep what it promised."""

    type = "odd"

    def timetable(self, config: Any, trigger_id: str) -> Timetable | None:
        if config.get("in") == "timetable":
            raise RuntimeError("odd")
        return Timetable(Every(3600, datetime.fromisoformat(config["start"])))

    def overlap(self, config: Any) -> Overlap:
        raise RuntimeError("odd")


def test_a_type_that_raises_stops_no_other(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    here = {**load_trigger_types("sample_steps"), "odd": Odd()}
    monkeypatch.setattr(triggers, "load_trigger_types", lambda _: here)
    early, late, sound = clock.schedule(), clock.schedule(), clock.schedule()
    for trigger_id in (early, late, sound):
        clock.make_due(trigger_id)
    odd = "type = 'odd', config = config || jsonb_build_object('in', %(where)s)"
    sql = f"UPDATE triggers SET {odd} WHERE id = %(id)s::uuid"
    clock.deployment.sql(sql, where="timetable", id=early)
    clock.deployment.sql(sql, where="overlap", id=late)
    clock.tick()
    assert (clock.outcomes(early), clock.outcomes(late), clock.outcomes(sound)) == ([], ["failed"], ["started"])
    assert clock.fires(late)[0]["reason"] == "RuntimeError: odd"
    assert clock.next_slot(early) > datetime.now(UTC)


# --- who died ------------------------------------------------------------------------------------------------


def recorded(clock: Clock, trigger_id: str, seconds_ago: float) -> Fire:
    """A fire of which nothing but the record was made."""
    with clock.store.single() as connection:
        trigger = rows.find(connection, trigger_id)
        (fire,) = rows.record(connection, [Fire(new_id(), trigger, "a slot", None, None, {})])
    clock.deployment.sql(
        "UPDATE trigger_fires SET created_at = now() - %(age)s * interval '1 second' WHERE id = %(id)s::uuid",
        age=seconds_ago,
        id=fire.id,
    )
    return fire


@pytest.mark.parametrize("overlap", ["allow", "skip"])
def test_a_fire_that_somebody_died_over_is_carried_out(clock: Clock, overlap: str):
    trigger_id = clock.schedule(overlap=overlap)
    recorded(clock, trigger_id, 11)
    (fired,) = clock.tick()
    assert fired.outcome == "started"
    assert len(fired.plans) == 1
    assert clock.executions_of(trigger_id) == 1


def test_a_fire_that_somebody_is_still_at_is_left_to_them(clock: Clock):
    trigger_id = clock.schedule()
    recorded(clock, trigger_id, 0)
    assert clock.tick() == []
    assert clock.outcomes(trigger_id) == ["pending"]


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue_one", "cancel_other"])
def test_an_execution_whose_start_nobody_noted_is_found_again(clock: Clock, overlap: str):
    trigger_id = clock.schedule(overlap=overlap)
    fire = recorded(clock, trigger_id, 11)
    (started,) = [triggers.carry_out(clock.store, clock.programs, fire)]
    clock.deployment.sql(
        "UPDATE trigger_fires SET outcome = 'pending', execution_id = NULL WHERE id = %(id)s::uuid", id=fire.id
    )
    (found,) = clock.tick()
    assert (found.outcome, found.execution_id) == ("started", started.execution_id)
    assert clock.executions_of(trigger_id) == 1


def test_who_comes_second_in_a_slot_has_the_answer_of_who_came_first_and_died(clock: Clock):
    trigger_id = clock.schedule()
    first = recorded(clock, trigger_id, 1)
    with clock.store.single() as connection:
        trigger = rows.find(connection, trigger_id)
    second = triggers.fire(clock.store, clock.programs, trigger, slot="a slot")
    assert (second.fire_id, second.outcome) == (first.id, "duplicate")
    assert second.execution_id is not None
    assert len(second.plans) == 1
    assert clock.outcomes(trigger_id) == ["started"]


# --- slots of the past ---------------------------------------------------------------------------------------


def backfill(clock: Clock, trigger_id: str, first: datetime, last: datetime) -> Any:
    given = {"from": first.isoformat(), "to": last.isoformat()}
    return clock.deployment.client.post(f"/api/v1/triggers/{trigger_id}/backfill", json=given)


def test_a_backfill_fires_the_slots_of_a_past_time_once_however_often_it_is_said(clock: Clock):
    trigger_id = clock.schedule(overlap="skip")
    last = clock.next_slot(trigger_id) - 4.5 * HOUR
    answer = backfill(clock, trigger_id, last - 4 * HOUR, last)
    assert answer.status_code == 200, answer.text
    assert answer.json["slots"] == 4
    assert [fire["outcome"] for fire in answer.json["fired"]] == ["started"] * 4
    assert len({fire["execution_id"] for fire in answer.json["fired"]}) == 4
    again = backfill(clock, trigger_id, last - 5 * HOUR, last).json
    assert (again["slots"], len(again["fired"])) == (5, 1)
    assert clock.executions_of(trigger_id) == 5


def test_a_backfill_fires_what_was_skipped(clock: Clock):
    workflow_id = clock.workflow(NOOP)
    trigger_id = clock.schedule(workflow_id)
    clock.deployment.client.post(f"/api/v1/workflows/{workflow_id}/pause")
    slot = clock.make_due(trigger_id)
    clock.tick()
    clock.deployment.client.post(f"/api/v1/workflows/{workflow_id}/resume")
    answer = backfill(clock, trigger_id, slot, slot).json
    assert [fire["outcome"] for fire in answer["fired"]] == ["started"]
    assert clock.outcomes(trigger_id) == ["started"]


def test_a_backfill_of_too_much_or_of_the_future_is_refused(clock: Clock):
    trigger_id = clock.schedule(interval="1m")
    now = datetime.now(UTC)
    for first, last, says in [
        (now - 24 * HOUR, now, "there are more than 1,000 slots until then; take a part"),
        (now, now + HOUR, "is in the future; the schedule will fire then by itself"),
        (now, now - HOUR, "is before from"),
    ]:
        answer = backfill(clock, trigger_id, first, last)
        assert (answer.status_code, answer.json["errors"]) == (422, [{"path": "to", "message": says}])
    assert clock.fires(trigger_id) == []


# --- real workers --------------------------------------------------------------------------------------------


def test_workers_fire_a_schedule_in_time_and_its_steps_see_the_slot(deployment: Deployment):
    workflow_id = deployment.create(
        {**NOOP, "outputs": {"at": "{{ trigger.scheduled_for }}", "step": "{{ steps.only.output.result }}"}}
    )
    deployment.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    given = {"type": "schedule", "name": "often", "config": {"interval": "1s"}}
    path = f"/api/v1/workflows/{workflow_id}/triggers"
    trigger_id = deployment.client.post(path, json=given).json["id"]
    started = (
        "SELECT f.execution_id::text, f.scheduled_for FROM trigger_fires f "
        "WHERE f.trigger_id = %(id)s::uuid AND f.execution_id IS NOT NULL ORDER BY f.id"
    )
    found = wait_until(lambda: deployment.sql(started, id=trigger_id)[1:], what="two fires")
    deployment.client.delete(f"/api/v1/triggers/{trigger_id}")
    execution_id, slot = found[0]
    execution = deployment.ended(execution_id)
    text = slot.astimezone(UTC).isoformat().replace("+00:00", "Z")
    assert execution["output"] == {"at": text, "step": text}
    assert execution["created_at"] >= slot


def test_a_killed_worker_costs_no_slot_and_doubles_none(tmp_path: Path):
    with deployed(tmp_path) as own:
        workflow_id = own.create(NOOP)
        own.client.post(f"/api/v1/workflows/{workflow_id}/activate")
        config = {"interval": "1s", "missed": "run_all"}
        trigger_id = own.client.post(
            f"/api/v1/workflows/{workflow_id}/triggers", json={"type": "schedule", "config": config}
        ).json["id"]

        def slots(where: str = "e.status = 'completed'") -> list[datetime]:
            sql = (
                "SELECT f.scheduled_for FROM trigger_fires f LEFT JOIN executions e ON e.id = f.execution_id "
                f"WHERE f.trigger_id = %(id)s::uuid AND {where} ORDER BY f.scheduled_for"
            )
            return [slot for (slot,) in own.sql(sql, id=trigger_id)]

        def more(than: int) -> Callable[[], bool]:
            return lambda: len(slots()) > than

        worker = own.start_worker("control,cpu,io", concurrency=1)
        wait_until(more(1), what="the first slots")
        own.kill_worker(worker)
        before = len(slots())
        own.start_worker("control,cpu,io", concurrency=1)
        wait_until(more(before + 5), what="the slots after it")
        assert own.client.put(f"/api/v1/triggers/{trigger_id}", json={"is_enabled": False}).status_code == 200
        wait_until(lambda: slots() == slots("true"), what="the end of all that was started")
        found = slots()
        assert found == [found[0] + timedelta(seconds=number) for number in range(len(found))]
        assert own.sql("SELECT count(*) FROM executions") == [(len(found),)]
