"""Triggers through the API: those that are added, those that a definition brings, and firing one by hand."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment, wait_until

from orchestrator.lifecycle import FireOutcome
from orchestrator.store import triggers
from orchestrator.store.session import run

SCHEDULE = {"cron": "0 2 * * *", "timezone": "Asia/Shanghai"}
DAILY = {"type": "schedule", "name": "每日数据处理", "config": SCHEDULE, "is_enabled": True}
TRIGGER = {
    "id", "workflow_id", "type", "name", "config", "is_enabled", "from_definition", "last_triggered", "trigger_count",
    "created_at", "updated_at",
}  # fmt: skip
FIRE = {
    "id", "trigger_id", "slot", "scheduled_for", "payload", "input", "outcome", "reason", "execution_id", "created_at",
}  # fmt: skip
STEPS = [{"id": "only", "type": "noop", "config": {"value": 1}}]


def definition(*triggers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"steps": STEPS, "triggers": list(triggers), **more}


def active(servers: Deployment, **more: Any) -> str:
    workflow_id = servers.create({"steps": STEPS, **more})
    assert servers.client.post(f"/api/v1/workflows/{workflow_id}/activate").status_code == 200
    return workflow_id


def added(servers: Deployment, workflow_id: str, **given: Any) -> dict[str, Any]:
    answer = servers.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json={"type": "manual", **given})
    assert answer.status_code == 201, answer.text
    return dict(answer.json)


def of(servers: Deployment, workflow_id: str) -> list[dict[str, Any]]:
    answer = servers.client.get(f"/api/v1/workflows/{workflow_id}/triggers")
    assert answer.status_code == 200, answer.text
    return list(answer.json["items"])


# --- added by themselves -------------------------------------------------------------------------------------


def test_a_trigger_is_added_shown_listed_changed_and_removed(servers: Deployment):
    workflow_id = active(servers)
    answer = servers.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json=DAILY)
    assert answer.status_code == 201
    trigger = answer.json
    assert trigger.keys() == TRIGGER
    assert {key: trigger[key] for key in DAILY} == DAILY
    assert (trigger["workflow_id"], trigger["from_definition"]) == (workflow_id, False)
    assert (trigger["last_triggered"], trigger["trigger_count"]) == (None, 0)
    path = answer.headers["Location"]
    assert servers.client.get(path).json == trigger
    assert of(servers, workflow_id) == [trigger]

    changes = {"config": {"cron": "0 3 * * *"}, "is_enabled": False}
    changed = servers.client.put(path, json=changes)
    assert changed.status_code == 200
    assert changed.json["config"] == {**DAILY["config"], "cron": "0 3 * * *"}
    assert changed.json["is_enabled"] is False
    without = servers.client.put(path, json={"config": {"timezone": None}})
    assert without.json["config"] == {"cron": "0 3 * * *"}
    assert changed.json["name"] == DAILY["name"]
    assert changed.json["updated_at"] > trigger["updated_at"]

    assert servers.client.delete(path).status_code == 204
    assert servers.client.get(path).status_code == 404
    assert of(servers, workflow_id) == []


def test_what_is_wrong_with_a_trigger_is_said_at_once_and_nothing_is_added(servers: Deployment):
    workflow_id = active(servers)
    config = {"cron": "61 2 * * *", "timezone": "Asia/Shanghia", "overlap": "never", "colour": "red"}
    answer = servers.client.post(
        f"/api/v1/workflows/{workflow_id}/triggers", json={"type": "schedule", "config": config}
    )
    assert answer.status_code == 422
    assert {error["path"]: error["message"] for error in answer.json["errors"]} == {
        "config.cron": "'61 2 * * *' is no cron expression: Bad minute",
        "config.timezone": "'Asia/Shanghia' is no time zone; write it like Europe/Berlin",
        "config.overlap": "must be one of allow, skip, queue_one, cancel_other, not 'never'",
        "config.colour": "unknown key; known are cron, timezone, interval, start, end, gap, fold, jitter, overlap, "
        "missed, missed_limit, input",
    }
    assert of(servers, workflow_id) == []


@pytest.mark.parametrize(
    ("given", "path", "says"),
    [
        ({}, "type", "Missing data"),
        ({"type": "schedul"}, "type", "there is no trigger type 'schedul'; did you mean 'schedule'?"),
        ({"type": "schedule"}, "config", "needs a cron expression or an interval"),
        ({"type": "schedule", "config": {**SCHEDULE, "interval": "5m"}}, "config", "and not both"),
        ({"type": "schedule", "config": {"interval": "0.5s"}}, "config.interval", "must be from 1s"),
        ({"type": "schedule", "config": {"interval": "5m", "gap": "skip"}}, "config.gap", "knows no clock"),
        ({"type": "schedule", "config": {"interval": "5m", "start": "2026-01-01"}}, "config.start", "with its offset"),
        (
            {
                "type": "schedule",
                "config": {"interval": "5m", "start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
            },
            "config.end",
            "is before start",
        ),
        ({"type": "manual", "config": {"input": 1}}, "config.input", "must be a mapping"),
        ({"type": "manual", "name": ""}, "name", "Length"),
        ({"type": "manual", "is_enabled": "no"}, "is_enabled", "Not a valid boolean"),
        ({"type": "manual", "colour": 1}, "colour", "Unknown field"),
    ],
)
def test_a_wrong_trigger_is_refused(servers: Deployment, given: dict[str, Any], path: str, says: str):
    workflow_id = active(servers)
    answer = servers.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json=given)
    assert answer.status_code == 422
    (error,) = answer.json["errors"]
    assert error["path"] == path
    assert says in error["message"]


def test_a_wrong_config_in_yaml_is_said_with_its_line(servers: Deployment):
    text = "type: schedule\nconfig:\n  timezone: UTC\n  cron: nightly\n"
    path = f"/api/v1/workflows/{active(servers)}/triggers"
    answer = servers.client.post(path, data=text, content_type="application/yaml")
    assert answer.status_code == 422
    assert [(error["path"], error["line"]) for error in answer.json["errors"]] == [("config.cron", 4)]


def test_a_change_that_is_not_valid_changes_nothing(servers: Deployment):
    trigger = added(servers, active(servers), type="schedule", config=SCHEDULE)
    path = f"/api/v1/triggers/{trigger['id']}"
    for changes in ({"config": {"cron": "nightly"}, "is_enabled": False}, {"type": "manual"}, {"name": None}):
        assert servers.client.put(path, json=changes).status_code == 422
    assert servers.client.get(path).json == trigger


def test_a_name_is_taken_once_in_a_workflow(servers: Deployment):
    workflow_id = active(servers)
    added(servers, workflow_id, name="a")
    other = added(servers, workflow_id, name="b")
    again = servers.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json={"type": "manual", "name": "a"})
    renamed = servers.client.put(f"/api/v1/triggers/{other['id']}", json={"name": "a"})
    for answer in (again, renamed):
        assert (answer.status_code, answer.json["state"]) == (409, "taken")
    assert servers.client.put(f"/api/v1/triggers/{other['id']}", json={"name": "b"}).status_code == 200
    added(servers, active(servers), name="a")


def test_triggers_are_listed_in_pages(servers: Deployment):
    workflow_id = active(servers)
    names = [added(servers, workflow_id, name=f"number {number}")["name"] for number in range(5)]
    listed, cursor = [], None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        answer = servers.client.get(f"/api/v1/workflows/{workflow_id}/triggers", query_string=query).json
        listed += [trigger["name"] for trigger in answer["items"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert listed == names


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "workflows/{id}/triggers"),
        ("post", "workflows/{id}/triggers"),
        ("get", "triggers/{id}"),
        ("put", "triggers/{id}"),
        ("delete", "triggers/{id}"),
        ("get", "triggers/{id}/fires"),
        ("post", "triggers/{id}/fire"),
        ("get", "triggers/{id}/preview"),
        ("post", "triggers/{id}/backfill"),
    ],
)
def test_what_is_not_there_is_not_found(servers: Deployment, method: str, path: str):
    given = {"type": "manual"} if path.startswith("workflows") else {}
    if path.endswith("backfill"):
        given = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    answer = servers.client.open(f"/api/v1/{path.format(id=uuid4())}", method=method.upper(), json=given)
    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")


def test_triggers_go_with_their_workflow(servers: Deployment):
    workflow_id = active(servers)
    trigger = added(servers, workflow_id)
    assert servers.client.delete(f"/api/v1/workflows/{workflow_id}").status_code == 204
    assert servers.client.get(f"/api/v1/triggers/{trigger['id']}").status_code == 404


# --- in a definition -----------------------------------------------------------------------------------------


def saved(servers: Deployment, workflow_id: str, *triggers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The workflow's triggers, by name, once a definition with these has been saved."""
    answer = servers.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": definition(*triggers)})
    assert answer.status_code == 200, answer.text
    return {trigger["name"]: trigger for trigger in of(servers, workflow_id)}


def test_a_definition_brings_its_triggers_and_keeps_them_in_step(servers: Deployment):
    manual = {"type": "manual", "name": "by hand"}
    workflow_id = servers.create(definition(DAILY, manual))
    before = {trigger["name"]: trigger for trigger in of(servers, workflow_id)}
    assert before.keys() == {DAILY["name"], "by hand"}
    assert all(trigger["from_definition"] for trigger in before.values())
    own = added(servers, workflow_id, name="my own")

    hourly = {**DAILY, "config": {"cron": "@hourly"}}
    after = saved(servers, workflow_id, hourly, {"type": "schedule", "name": "new", "config": {"interval": "5m"}})

    assert after.keys() == {DAILY["name"], "my own", "new"}
    assert after[DAILY["name"]]["id"] == before[DAILY["name"]]["id"]
    assert after[DAILY["name"]]["config"] == {"cron": "@hourly"}
    assert after["my own"] == own
    assert servers.client.get(f"/api/v1/triggers/{before['by hand']['id']}").status_code == 404


def test_a_definition_that_is_saved_again_touches_no_trigger(servers: Deployment):
    unsaid = {key: value for key, value in DAILY.items() if key != "is_enabled"}
    workflow_id = servers.create(definition(unsaid))
    (trigger,) = of(servers, workflow_id)
    assert trigger["is_enabled"] is True
    disabled = servers.client.put(f"/api/v1/triggers/{trigger['id']}", json={"is_enabled": False}).json
    assert saved(servers, workflow_id, unsaid) == {trigger["name"]: disabled}
    assert saved(servers, workflow_id, DAILY)[trigger["name"]]["is_enabled"] is True
    renamed = servers.client.put(f"/api/v1/workflows/{workflow_id}", json={"name": "other"})
    assert renamed.status_code == 200
    assert len(of(servers, workflow_id)) == 1


def test_triggers_without_a_name_have_that_of_their_type(servers: Deployment):
    every = [{"type": "schedule", "config": {"interval": f"{number}m"}} for number in (1, 2, 3)]
    workflow_id = servers.create(definition(*every, {"type": "manual", "name": "schedule 2"}))
    assert [trigger["name"] for trigger in of(servers, workflow_id)] == [
        "schedule", "schedule 3", "schedule 4", "schedule 2",
    ]  # fmt: skip


def test_all_that_is_wrong_with_a_definitions_triggers_is_said_and_where(servers: Deployment):
    given = definition(
        {"type": "schedul", "name": "a"},
        {"type": "schedule", "name": "b", "config": {"cron": "nightly", "start": "now"}},
        {"type": "manual", "name": "b", "config": {"outputs": {}}},
        {"config": {}},
    )
    answer = servers.client.post("/api/v1/workflows", json={"name": "w", "definition": given})
    assert answer.status_code == 422
    assert [error["path"] for error in answer.json["errors"]] == [
        "definition.triggers[0].type",
        "definition.triggers[1].config.cron",
        "definition.triggers[1].config.start",
        "definition.triggers[2].name",
        "definition.triggers[2].config.outputs",
        "definition.triggers[3].type",
    ]


def test_a_definition_cannot_take_the_name_of_a_trigger_that_was_added(servers: Deployment):
    workflow_id = active(servers)
    added(servers, workflow_id, name=DAILY["name"])
    answer = servers.client.put(f"/api/v1/workflows/{workflow_id}", json={"definition": definition(DAILY)})
    assert (answer.status_code, answer.json["state"]) == (409, "taken")
    shown = servers.client.get(f"/api/v1/workflows/{workflow_id}").json
    assert (shown["version"], "triggers" in shown["definition"]) == (1, False)


# --- by hand -------------------------------------------------------------------------------------------------


def fired(servers: Deployment, trigger_id: str, given: dict[str, Any] | None = None, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return servers.client.post(f"/api/v1/triggers/{trigger_id}/fire", json=given or {}, headers=headers)


def test_a_trigger_is_fired_by_hand_with_the_input_that_is_given_or_ready(servers: Deployment):
    workflow_id = active(servers)
    trigger = added(servers, workflow_id, config={"input": {"ready": True}}, is_enabled=False)
    for given, expected in (({}, {"ready": True}), ({"input": {"mine": 1}}, {"mine": 1}), ({"input": {}}, {})):
        answer = fired(servers, trigger["id"], given)
        assert answer.status_code == 202, answer.text
        assert answer.json.keys() == FIRE
        assert answer.json["outcome"] == "started"
        execution = servers.client.get(f"/api/v1/executions/{answer.json['execution_id']}").json
        assert (execution["trigger_id"], execution["input"]) == (trigger["id"], expected)
    shown = servers.client.get(f"/api/v1/triggers/{trigger['id']}").json
    assert shown["trigger_count"] == 3
    assert shown["last_triggered"] is not None


def test_a_trigger_may_go_while_a_fire_of_it_is_settled(servers: Deployment):
    trigger = added(servers, active(servers))
    fire = fired(servers, trigger["id"]).json
    servers.sql(
        "UPDATE trigger_fires SET outcome = 'pending', execution_id = NULL WHERE id = %(id)s::uuid", id=fire["id"]
    )

    def settle() -> bool:
        with servers.store.single() as connection:
            return triggers.settle(
                connection, fire["id"], FireOutcome.STARTED, execution_id=fire["execution_id"], reason=None
            )

    def one_waits() -> bool:
        return bool(servers.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

    with ThreadPoolExecutor(1) as pool:
        with servers.store.transaction() as connection:
            run(connection, "SELECT FROM triggers WHERE id = %(id)s::uuid FOR UPDATE", {"id": trigger["id"]})
            settled = pool.submit(settle)
            wait_until(one_waits)
            triggers.delete(connection, trigger["id"])
        assert not settled.result()
    assert servers.client.get(f"/api/v1/triggers/{trigger['id']}").status_code == 404


def test_a_fire_with_the_same_key_is_answered_like_the_first_even_in_a_crowd(servers: Deployment):
    trigger = added(servers, active(servers))

    def one(_: int) -> Any:
        return fired(servers, trigger["id"], {"input": {"n": 1}}, key="once")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(16)))
    assert sorted(answer.json["outcome"] for answer in answers) == ["duplicate"] * 15 + ["started"]
    assert len({answer.json["execution_id"] for answer in answers}) == 1
    assert {answer.status_code for answer in answers if answer.json["outcome"] == "duplicate"} == {200}
    assert len(servers.client.get(f"/api/v1/triggers/{trigger['id']}/fires").json["items"]) == 1


@pytest.mark.parametrize(
    ("paused", "more", "given", "outcome", "reason"),
    [
        (True, {}, {}, "skipped", "the workflow is paused"),
        (False, {"inputs": {"required": ["file"]}}, {"input": {}}, "failed", "'file' is a required property"),
    ],
)
def test_a_fire_that_starts_nothing_says_why(
    servers: Deployment, paused: bool, more: dict[str, Any], given: dict[str, Any], outcome: str, reason: str
):
    workflow_id = active(servers, **more)
    trigger = added(servers, workflow_id)
    if paused:
        servers.client.post(f"/api/v1/workflows/{workflow_id}/pause")
    answer = fired(servers, trigger["id"], given)
    assert (answer.status_code, answer.json["outcome"], answer.json["execution_id"]) == (200, outcome, None)
    assert reason in answer.json["reason"]
    assert servers.client.get("/api/v1/executions", query_string={"workflow_id": workflow_id}).json["items"] == []


def test_a_template_is_started_by_no_trigger(servers: Deployment):
    given = {"name": "t", "definition": definition({"type": "manual"}), "is_template": True}
    workflow_id = servers.client.post("/api/v1/workflows", json=given).json["id"]
    (trigger,) = of(servers, workflow_id)
    assert fired(servers, trigger["id"]).json["outcome"] == "skipped"


def test_an_input_that_is_too_large_is_refused_and_leaves_no_record(servers: Deployment):
    trigger = added(servers, active(servers))
    answer = fired(servers, trigger["id"], {"input": {"text": "x" * servers.settings.executor.max_payload}})
    assert answer.status_code == 413
    assert servers.client.get(f"/api/v1/triggers/{trigger['id']}/fires").json["items"] == []


def test_fires_are_listed_newest_first_in_pages(servers: Deployment):
    trigger = added(servers, active(servers))
    ids = [fired(servers, trigger["id"]).json["id"] for _ in range(5)]
    path, listed, cursor = f"/api/v1/triggers/{trigger['id']}/fires", [], None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        answer = servers.client.get(path, query_string=query).json
        listed += [fire["id"] for fire in answer["items"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert listed == ids[::-1]


# --- what is to come -----------------------------------------------------------------------------------------


def test_a_preview_shows_the_slots_to_come_by_the_clocks_of_the_schedule(servers: Deployment):
    config = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    trigger = added(servers, active(servers), type="schedule", config=config, is_enabled=False)
    query = {"count": 3, "from": "2026-03-28T00:00:00Z"}
    answer = servers.client.get(f"/api/v1/triggers/{trigger['id']}/preview", query_string=query)
    assert answer.status_code == 200, answer.text
    assert [(item["slot"], item["local"]) for item in answer.json["items"]] == [
        ("2026-03-28T01:30:00Z", "2026-03-28T02:30:00+01:00"),
        ("2026-03-29T01:00:00Z", "2026-03-29T03:00:00+02:00"),
        ("2026-03-30T00:30:00Z", "2026-03-30T02:30:00+02:00"),
    ]
    upcoming = servers.client.get(f"/api/v1/triggers/{trigger['id']}/preview").json["items"]
    assert len(upcoming) == 10
    assert all(a["slot"] < b["slot"] for a, b in itertools.pairwise(upcoming))


def test_what_is_not_due_by_time_has_no_slots(servers: Deployment):
    trigger = added(servers, active(servers))
    path = f"/api/v1/triggers/{trigger['id']}"
    past = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    for answer in (servers.client.get(f"{path}/preview"), servers.client.post(f"{path}/backfill", json=past)):
        assert answer.status_code == 422
        assert "has no slots" in answer.json["errors"][0]["message"]


@pytest.mark.parametrize("query", [{"count": 0}, {"count": 101}, {"from": "today"}, {"from": "2026-01-01T00:00:00"}])
def test_a_wrong_preview_is_refused(servers: Deployment, query: dict[str, Any]):
    trigger = added(servers, active(servers), type="schedule", config=SCHEDULE)
    answer = servers.client.get(f"/api/v1/triggers/{trigger['id']}/preview", query_string=query)
    assert (answer.status_code, [error["path"] for error in answer.json["errors"]]) == (422, list(query))
