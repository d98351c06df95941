"""Beat: its entries follow the triggers, and its ring alone is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from deployment import PATIENCE, Deployment, deployed, wait_until

from beat.entries import Entries, Entry, SlotSchedule
from orchestrator.config import environment_of
from orchestrator.embedded import wait_ready

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": 1}}]}
BERLIN = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}


class _Celery:
    """An app as RedBeat sees it, over a broker of its own."""

    def __init__(self, url: str) -> None:
        from celery import Celery
        from redbeat.schedulers import ensure_conf

        self.app = Celery("beat-test", broker=url)
        self.app.conf.update(redbeat_redis_url=url, redbeat_redis_options={"socket_timeout": 5})
        ensure_conf(self.app)


@pytest.fixture
def broker(servers: Deployment) -> Iterator[Any]:
    app = _Celery(servers.settings.broker.url).app
    client = redis.Redis.from_url(servers.settings.broker.url, decode_responses=True)
    yield app, client
    client.delete(*client.keys("redbeat:*"), "nothing")
    client.close()


def source(trigger_id: str, **config: Any) -> dict[str, Any]:
    return {"trigger_id": trigger_id, "type": "schedule", "config": config or BERLIN}


def written(client: Any) -> dict[str, float]:
    return dict(client.zrange("redbeat::schedule", 0, -1, withscores=True))


# --- entries -------------------------------------------------------------------------------------------------


def test_a_schedule_comes_back_from_redis_with_its_time_zone(broker: Any):
    app, client = broker
    Entries(app).keep_in_step({"a": source("a")})
    entry = Entry.from_key("redbeat:trigger:a", app=app)
    assert entry.schedule == SlotSchedule(**source("a"))
    gap = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
    assert entry.schedule.due_after(gap) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert entry.schedule.remaining_estimate(gap) == timedelta(minutes=30)
    assert (entry.task, entry.options) == ("ring_triggers", {"queue": "control", "expires": 60})
    assert written(client)["redbeat:trigger:a"] == entry.schedule.due_after(datetime.now(UTC)).timestamp()


def test_entries_follow_what_is_wanted_whatever_redis_kept_or_forgot(broker: Any):
    app, client = broker
    client.zadd("redbeat::schedule", {"redbeat:somebody-elses": 1, "redbeat:trigger:of-an-earlier-run": 1})
    entries = Entries(app)
    entries.keep_in_step({"a": source("a"), "b": source("b")})
    assert written(client).keys() == {"redbeat:somebody-elses", "redbeat:trigger:a", "redbeat:trigger:b"}

    before = written(client)["redbeat:trigger:a"]
    entries.keep_in_step({"a": source("a", interval="1h"), "c": source("c")})
    assert written(client).keys() == {"redbeat:somebody-elses", "redbeat:trigger:a", "redbeat:trigger:c"}
    assert written(client)["redbeat:trigger:a"] != before

    client.delete("redbeat::schedule", "redbeat:trigger:a")
    entries.keep_in_step({"a": source("a", interval="1h"), "c": source("c")})
    assert written(client).keys() == {"redbeat:trigger:a", "redbeat:trigger:c"}


def test_a_new_entry_rings_with_its_next_slot_and_not_at_once(broker: Any):
    app, _ = broker
    Entries(app).keep_in_step({"a": source("a", interval="1h")})
    due, seconds = Entry.from_key("redbeat:trigger:a", app=app).is_due()
    assert due is False
    assert 0 < seconds <= 3600


def test_what_is_overdue_rings_and_what_is_over_rings_no_more(broker: Any):
    long_ago = datetime.now(UTC) - timedelta(days=3)
    due, seconds = SlotSchedule(**source("a", interval="1h")).is_due(long_ago)
    assert due is True
    assert 0 < seconds <= 3600
    over = SlotSchedule(**source("a", interval="1h", end="2026-01-01T00:00:00Z"))
    assert over.is_due(long_ago) == (False, 86_400.0)
    assert over.remaining_estimate(long_ago) is None


def test_a_trigger_of_a_type_that_is_not_here_rings_for_nothing(broker: Any):
    assert SlotSchedule("a", "of a plugin", {}).due_after(datetime.now(UTC)) is None


# --- beat itself ---------------------------------------------------------------------------------------------


@contextmanager
def beating(deployment: Deployment) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-m", "celery", "-A", "beat", "beat", "-S", "beat.scheduler.Scheduler", "--pidfile=",
    ]  # fmt: skip
    environment = os.environ | environment_of(deployment.settings) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (deployment.folder / "beat.log").open("ab") as log:
        beat = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=deployment.folder)
    try:
        yield beat
    finally:
        beat.terminate()
        beat.wait(PATIENCE)


def test_the_ring_of_beat_alone_fires_a_schedule_and_the_entry_goes_with_its_trigger(tmp_path: Path):
    with deployed(tmp_path) as own:
        trigger_id = often_by_beat_alone(own)
        client = redis.Redis.from_url(own.settings.broker.url, decode_responses=True)
        with beating(own):
            wait_until(lambda: len(fires(own, trigger_id)) > 3, what="rings")
            assert own.client.delete(f"/api/v1/triggers/{trigger_id}").status_code == 204
            wait_until(lambda: not client.keys("redbeat:trigger:*"), what="the end of the entry")
        client.close()


def test_beat_lives_on_and_makes_its_entries_anew_when_the_broker_forgets_everything_or_dies(tmp_path: Path):
    with deployed(tmp_path) as own:
        trigger_id = often_by_beat_alone(own)
        valkey = own.servers.valkey
        assert valkey is not None

        def rings() -> None:
            there = len(fires(own, trigger_id))
            wait_until(lambda: len(fires(own, trigger_id)) > there + 1, what="rings")

        with beating(own) as beat:
            rings()
            client = redis.Redis.from_url(own.settings.broker.url)
            client.flushall()
            client.close()
            rings()
            valkey.kill()
            log = own.folder / "beat.log"
            wait_until(lambda: "the broker is away" in log.read_text(), what="beat to notice")
            valkey.start()
            wait_ready(valkey)
            rings()
            assert beat.poll() is None


def often_by_beat_alone(own: Deployment) -> str:
    """A trigger that is due each second."""
    workflow_id = own.create(NOOP)
    own.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    # Somebody who never ticks has the duty: no reconciler looks at what is due.
    own.sql("INSERT INTO duties (name, holder, at) VALUES ('reconcile', gen_random_uuid(), 'infinity')")
    own.start_worker("control,cpu,io", concurrency=1)
    given = {"type": "schedule", "config": {"interval": "1s"}}
    return str(own.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json=given).json["id"])


def fires(own: Deployment, trigger_id: str) -> list[Any]:
    return own.sql(
        "SELECT scheduled_for FROM trigger_fires WHERE trigger_id = %(id)s::uuid AND outcome = 'started'",
        id=trigger_id,
    )
