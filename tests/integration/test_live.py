"""Live streams, as those who listen hear them: through the process that an operator starts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from deployment import KEY, Deployment, wait_until
from streams import Event, Listener, Web, events, web
from test_access import new_key, new_team

from api import create_app
from api.live import hub
from orchestrator.store import Store, feed, new_id
from orchestrator.store.session import run

CHAIN = {
    "steps": [
        {"id": "a", "type": "talk", "config": {"lines": ["hello", "世界"]}},
        {"id": "b", "type": "fail", "depends_on": ["a"], "on_error": "continue"},
        {"id": "c", "type": "noop", "depends_on": ["b"]},
        {"id": "d", "type": "noop", "depends_on": ["a"], "when": "{{ false }}"},
    ]
}
STREAM = "/api/v1/events/stream"


@pytest.fixture(scope="module")
def api(deployment: Deployment) -> Iterator[Web]:
    with web(deployment) as running:
        yield running


@pytest.fixture(scope="module")
def ended(deployment: Deployment) -> str:
    return str(deployment.run(CHAIN)["id"])


def of(execution_id: str) -> str:
    return f"/api/v1/executions/{execution_id}/events"


def lasting(events: list[Event]) -> list[Event]:
    """Without the states that are not told any more once they are over."""
    return [event for event in events if event.told[-1] not in ("queued", "waiting")]


def gated(file: Path, lines: int = 0) -> dict[str, Any]:
    """A definition whose first step says so many lines, and whose second waits for `file`."""
    said = [f"line {number}" for number in range(lines)]
    return {
        "steps": [
            {"id": "a", "type": "talk", "config": {"lines": said}},
            {"id": "gate", "type": "gate", "depends_on": ["a"], "config": {"file": str(file)}},
            {"id": "z", "type": "noop", "depends_on": ["gate"]},
        ]
    }


# --- one execution -------------------------------------------------------------------------------------------


def test_an_execution_that_has_ended_is_told_from_its_beginning_to_its_end(api: Web, ended: str) -> None:
    listener = api.listen(of(ended))
    assert listener.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    events = listener.rest()
    told = [event.told for event in events]
    assert told[-2:] == [("execution", "completed"), ("end", "completed")]
    assert sorted(told[:-2]) == sorted(
        [
            ("execution", "running"),
            ("step", "a", "running"), ("log", "a", "hello"), ("log", "a", "世界"), ("step", "a", "completed"),
            ("step", "b", "running"), ("step", "b", "failed"),
            ("step", "c", "running"), ("step", "c", "completed"),
            ("step", "d", "running"), ("step", "d", "skipped"),
        ]
    )  # fmt: skip
    places = {what: place for place, what in enumerate(told)}
    for earlier, later in (("running", "completed"), ("completed", "completed")):
        assert places["step", "a", earlier] < places["step", "c", later]
    assert places["step", "a", "running"] < places["log", "a", "hello"] < places["log", "a", "世界"]
    assert places["log", "a", "世界"] < places["step", "a", "completed"]
    numbers = [event.id for event in events[:-1]]
    assert numbers == sorted(set(numbers))
    failed = events[places["step", "b", "failed"]].data
    assert (failed["error_message"], failed["attempt"], failed["execution_id"]) == ("asked to fail", 1, ended)


def test_a_stream_goes_on_after_any_event_with_what_came_after_it(api: Web, ended: str) -> None:
    whole = api.listen(of(ended)).rest()
    for place, event in enumerate(whole[:-2]):
        assert api.listen(of(ended), after=event.id).rest() == whole[place + 1 :]
    answer = api.listen(of(ended), after=whole[-1].id).response
    assert (answer.status, answer.read()) == (204, b"")  # a browser would come again after anything else


def test_what_happens_is_told_when_it_happens_and_the_stream_ends_with_the_execution(
    deployment: Deployment, api: Web, tmp_path: Path
) -> None:
    execution_id = deployment.execute(deployment.create(gated(tmp_path / "open", 2)))
    listener = api.listen(of(execution_id))
    heard = listener.until("step", "gate", "running")
    assert ("log", "a", "line 1") in [event.told for event in heard]
    (tmp_path / "open").touch()
    assert [event.told for event in listener.rest()][-2:] == [("execution", "completed"), ("end", "completed")]
    assert listener.response.isclosed()


def test_kinds_leave_out_what_is_not_asked_for_and_the_stream_ends_all_the_same(api: Web, ended: str) -> None:
    assert [event.told for event in api.listen(of(ended), kinds="log").rest()] == [
        ("log", "a", "hello"),
        ("log", "a", "世界"),
        ("end", "completed"),
    ]
    assert {event.kind for event in api.listen(of(ended), kinds="step,log").rest()} == {"step", "log", "end"}


def test_one_that_waits_is_told_as_waiting_and_goes_on_when_it_is_tried_again(deployment: Deployment, api: Web) -> None:
    definition = {"steps": [{"id": "a", "type": "approval"}]}
    execution_id = deployment.execute(deployment.create(definition))
    listener = api.listen(of(execution_id))
    waiting = listener.until("step", "a", "waiting")[-1].data["step_execution_id"]
    decided = deployment.client.post(f"/api/v1/step-executions/{waiting}/decision", json={"approved": False})
    assert decided.status_code == 202, decided.text
    assert listener.rest()[-1].told == ("end", "failed")
    assert deployment.client.post(f"/api/v1/executions/{execution_id}/retry").status_code == 200
    again = api.listen(of(execution_id), after=listener.last_id)
    told = [event.told for event in again.until("step", "a", "waiting")]
    assert ("step", "a", "failed") not in told
    deployment.client.post(f"/api/v1/executions/{execution_id}/cancel")
    assert again.rest()[-1].told == ("end", "cancelled")


# --- resuming ------------------------------------------------------------------------------------------------


def test_nothing_is_lost_and_nothing_told_twice_by_a_web_process_that_was_killed(
    deployment: Deployment, api: Web, tmp_path: Path
) -> None:
    execution_id = deployment.execute(deployment.create(gated(tmp_path / "open", 5)))
    of_all, of_one = api.listen(STREAM), api.listen(of(execution_id))
    of_one.until("log", "a", "line 3")
    fresh = deployment.execute(deployment.create(CHAIN))
    of_all.until("execution", "running")
    api.kill()
    (tmp_path / "open").touch()
    deployment.ended(execution_id)
    deployment.ended(fresh)
    api.start()
    heard = of_one.heard + api.listen(of(execution_id), after=of_one.last_id).rest()
    assert lasting(heard) == api.listen(of(execution_id)).rest()
    resumed = api.listen(STREAM, after=of_all.last_id)
    while {("step", "z", "completed"), ("step", "c", "completed")} - {event.told for event in resumed.heard}:
        next(resumed.events())
    numbers = [event.id for event in of_all.heard + resumed.heard]
    assert numbers == sorted(set(numbers))
    both = lasting(of_all.heard + resumed.heard)
    for id in execution_id, fresh:
        *whole, _ = lasting(api.listen(of(id)).rest())
        told = [event for event in both if event.data["execution_id"] == id]
        assert told == [event for event in whole if both[0].id <= event.id <= both[-1].id]


def test_what_commits_late_is_told_in_the_order_of_the_numbers(servers: Deployment) -> None:
    """A transaction takes a number, another takes the next and commits first."""
    execution_id = servers.execute(servers.create({"steps": [{"id": "a", "type": "noop"}]}))
    (step_id,) = (row[0] for row in servers.sql("SELECT id::text FROM step_executions WHERE execution_id = %(e)s::uuid",
                                                e=execution_id))  # fmt: skip
    insert = (
        "INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at) "
        "VALUES (%(id)s::uuid, %(e)s::uuid, %(s)s::uuid, 'a', 1, 'info', %(line)s, now())"
    )
    late, reader = Store(servers.settings.database), feed.Settled()
    before = feed.settled(servers.store)
    assert before is not None

    def write(connection: Any, line: str) -> None:
        run(connection, insert, {"id": new_id(), "e": execution_id, "s": step_id, "line": line})

    def seen() -> list[str | None]:
        with servers.store.single() as connection:
            upto = reader.look(connection)
            return [line.message for line in feed.entries(connection, before, upto, 10, executions=[execution_id])]

    with late.transaction() as held:
        write(held, "first")
        with servers.store.single() as connection:
            write(connection, "second")
        assert (seen(), reader.is_waiting) == ([], True)
    assert seen() == ["first", "second"]
    late.close()


def test_one_that_is_too_far_behind_everything_is_told_to_begin_anew(api: Web, deployment: Deployment) -> None:
    listener = api.listen(STREAM, after=2**62)
    assert next(listener.events()).kind == "reset"
    execution_id = deployment.execute(deployment.create(CHAIN))
    assert listener.until("execution")[-1].data["execution_id"] == execution_id
    listener.hang_up()


# --- everything that one may see -----------------------------------------------------------------------------


def test_a_stream_of_all_is_of_what_the_caller_may_see_and_asks_for(deployment: Deployment, api: Web) -> None:
    team, others = new_team(deployment), new_team(deployment)
    key = new_key(deployment, {"role": "viewer", "project": team.name})["key"]

    def workflow_of(project: str) -> str:
        made = {"name": "w", "definition": CHAIN, "project": project}
        return str(deployment.client.post("/api/v1/workflows", json=made).json["id"])

    mine, mine_too, theirs = workflow_of(team.name), workflow_of(team.name), workflow_of(others.name)
    all_of_mine, of_one = api.listen(STREAM, key=key), api.listen(STREAM, key=key, workflow_id=mine, kinds="execution")
    everything, of_theirs = api.listen(STREAM, kinds="execution"), api.listen(STREAM, key=key, workflow_id=theirs)
    for workflow_id in theirs, mine, mine_too:
        deployment.ended(deployment.execute(workflow_id))

    def workflows(listener: Listener) -> set[str]:
        heard: set[str] = set()
        for event in listener.events():
            heard.add(event.data["workflow_id"])
            if event.told == ("execution", "completed") and event.data["workflow_id"] == mine_too:
                return heard
        raise AssertionError("the stream ended")

    assert workflows(everything) == {theirs, mine, mine_too}
    assert workflows(all_of_mine) == {mine, mine_too}
    assert {event.kind for event in all_of_mine.heard} == {"execution", "step", "log"}
    assert {(e.kind, e.data["workflow_id"]) for e in of_one.until("execution", "completed")} == {("execution", mine)}
    assert of_theirs.response.readline() + of_theirs.response.readline() == b"retry: 1000\n\n"
    of_theirs.socket.setblocking(False)
    with suppress(BlockingIOError):
        assert b"data:" not in of_theirs.socket.recv(2**16)  # if it is anything, it is a heartbeat
    for listener in everything, all_of_mine, of_one, of_theirs:
        listener.hang_up()


@pytest.mark.parametrize("path", ["one", "all"])
def test_a_key_that_is_revoked_hears_no_more(servers: Deployment, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(hub, "BEAT_EVERY", 0.1)
    team = new_team(servers)
    made = {"name": "w", "definition": CHAIN, "project": team.name}
    execution_id = servers.execute(servers.client.post("/api/v1/workflows", json=made).json["id"])
    key = new_key(servers, {"role": "viewer", "project": team.name})
    app = create_app(replace(servers.settings, api=replace(servers.settings.api, stream_lifetime=3600.0)))
    address = of(execution_id) if path == "one" else STREAM
    answer = app.test_client().get(address, headers={"Authorization": f"Bearer {key['key']}"}, buffered=False)
    parts = iter(answer.response)
    while b"heartbeat" not in next(parts):
        pass
    assert servers.client.delete(f"/api/v1/keys/{key['id']}").status_code == 204
    assert all(b"heartbeat" in part for part in parts)  # and they end


# --- many, slow and gone -------------------------------------------------------------------------------------

MANY = 200


def test_two_hundred_listeners_take_no_thread_and_all_of_them_hear(deployment: Deployment, api: Web) -> None:
    """The server has 16 threads for requests: what is answered while 200 listen shows that they hold none."""
    with ExitStack() as listening:
        workflow_id = deployment.create(CHAIN)
        (worker,) = api.workers()
        assert [api.get("/api/v1/workflows")[0] for _ in range(20)] == [200] * 20
        api.listen(STREAM).hang_up()
        threads, descriptors = worker.num_threads(), worker.num_fds()
        listeners = [api.listen(STREAM, kinds="execution", workflow_id=workflow_id) for _ in range(MANY)]
        for listener in listeners:
            listening.callback(listener.hang_up)
        assert worker.num_threads() <= max(threads, 16 + 4)
        assert [api.get("/api/v1/workflows")[0] for _ in range(40)] == [200] * 40
        execution_id = deployment.execute(workflow_id)
        for listener in listeners:
            (told,) = {event.data["execution_id"] for event in listener.until("execution", "completed")}
            assert told == execution_id
        # Those that go away, politely or not, leave nothing.
        for listener in listeners[: MANY // 2]:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # with a reset
            listener.hang_up()
        wait_until(lambda: worker.num_fds() <= descriptors + MANY // 2 + 5, what="the sockets of those that are gone")
        execution_id = deployment.execute(workflow_id)
        for listener in listeners[MANY // 2 :]:
            assert listener.until("execution", "completed")[-1].data["execution_id"] == execution_id
        listening.close()
        wait_until(lambda: worker.num_fds() <= descriptors + 5, what="all of the sockets")


def test_one_that_does_not_take_what_it_is_told_keeps_nobody_else_and_misses_nothing(
    deployment: Deployment, api: Web, tmp_path: Path
) -> None:
    long = {"steps": [{"id": "a", "type": "talk", "config": {"lines": ["x" * 900] * 900}}]}
    workflow_id = deployment.create(long)
    (worker,) = api.workers()
    slow, quick = api.listen(STREAM, workflow_id=workflow_id), api.listen(STREAM, workflow_id=workflow_id)
    before = worker.memory_info().rss
    ids = [deployment.execute(workflow_id) for _ in range(12)]  # 12 MB in all, more than sockets hold
    for listener in quick, slow:
        ended: set[str] = set()
        for event in listener.events():
            if event.told == ("execution", "completed"):
                ended.add(event.data["execution_id"])
            if ended == set(ids):
                break
        if listener is quick:
            assert worker.memory_info().rss - before < 50 * 1024**2
    assert [e for e in slow.heard if e.kind == "log"] == [e for e in quick.heard if e.kind == "log"]
    assert len([e for e in slow.heard if e.kind == "log"]) == 12 * 900
    slow.hang_up()
    quick.hang_up()


def test_a_stream_is_cut_off_after_its_time_and_goes_on(deployment: Deployment, tmp_path: Path) -> None:
    execution_id = deployment.execute(deployment.create(gated(tmp_path / "open", 1)))
    heard: list[Event] = []
    while not heard or heard[-1].kind != "end":  # in this process, a stream ends soon
        headers = {"Last-Event-ID": str(heard[-1].id)} if heard else {}
        answer = deployment.client.get(of(execution_id), headers=headers)
        heard += events(answer.data.splitlines(keepends=True))
        if any(event.told == ("step", "gate", "running") for event in heard):
            (tmp_path / "open").touch()
    assert lasting(heard) == list(events(deployment.client.get(of(execution_id)).data.splitlines(keepends=True)))


# --- logs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(deployment: Deployment) -> str:
    """An execution with lines of every level, at times a day apart."""
    execution_id = str(deployment.run(CHAIN)["id"])
    deployment.sql("DELETE FROM step_logs WHERE execution_id = %(e)s::uuid", e=execution_id)
    for day, (step, level) in enumerate([("a", "debug"), ("a", "info"), ("b", "warning"), ("b", "error")], start=1):
        deployment.sql(
            "INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at) "
            "SELECT %(id)s::uuid, execution_id, id, step_id, 1, %(level)s, %(level)s || ' ☃', "
            "%(at)s::timestamptz FROM step_executions WHERE execution_id = %(e)s::uuid AND path = %(step)s",
            id=new_id(), e=execution_id, level=level, step=step, at=f"2030-01-0{day}T00:00:00Z",
        )  # fmt: skip
    return execution_id


@pytest.mark.parametrize(
    ("query", "levels"),
    [
        ({}, ["debug", "info", "warning", "error"]),
        ({"level": "warning"}, ["warning", "error"]),
        ({"step_id": "a"}, ["debug", "info"]),
        ({"since": "2030-01-02T00:00:00Z"}, ["info", "warning", "error"]),
        ({"until": "2030-01-02T01:00:00+01:00"}, ["debug"]),
        ({"level": "info", "step_id": "b", "since": "2030-01-04T00:00:00Z"}, ["error"]),
    ],
)
def test_lines_are_chosen_by_level_step_and_time_however_they_are_read(
    api: Web, logged: str, query: dict[str, str], levels: list[str]
) -> None:
    path = f"/api/v1/executions/{logged}/logs"

    def read(**more: str) -> bytes:
        return api.listen(path, **query, **more).response.read()

    assert [line["level"] for line in json.loads(read())["items"]] == levels
    assert [json.loads(line)["level"] for line in read(format="ndjson").splitlines()] == levels
    assert [line.split()[1] for line in read(format="text").decode().splitlines()] == levels
    followed = api.listen(path, **query, follow="true").rest()
    assert [event.data.get("level") for event in followed] == [*levels, None]
    assert followed[-1].told == ("end", "completed")


def test_a_log_is_downloaded_as_text_that_people_read(api: Web, logged: str) -> None:
    answer = api.listen(f"/api/v1/executions/{logged}/logs", format="text", level="error").response
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{logged}.log"'
    assert answer.read().decode() == "2030-01-04T00:00:00.000Z error   b: error ☃\n"


def test_a_log_is_followed_as_it_is_written(deployment: Deployment, api: Web, tmp_path: Path) -> None:
    execution_id = deployment.execute(deployment.create(gated(tmp_path / "open", 1500)))
    path = f"/api/v1/executions/{execution_id}/logs"
    events, text = api.listen(path, follow="true"), api.listen(path, follow="true", format="text")
    events.until("log", "a", "line 1499")
    assert text.response.readline().endswith(b" info    a: line 0\n")
    (tmp_path / "open").touch()
    assert events.rest()[-1].told == ("end", "completed")
    assert len(text.response.read().splitlines()) == 1499
    page = json.loads(api.get(f"{path}?limit=1500")[1])["items"]
    assert [line["seq"] for line in page] == [event.id for event in events.heard[:-1]]
    resumed = api.listen(path, follow="true", after=page[1000]["seq"]).rest()
    assert resumed == events.heard[1001:]


def test_the_pages_of_a_log_are_of_a_page_only(servers: Deployment) -> None:
    execution_id = servers.execute(servers.create(CHAIN))
    for query in {"follow": "true"}, {"format": "text"}:
        answer = servers.client.get(f"/api/v1/executions/{execution_id}/logs", query_string={"cursor": "x", **query})
        assert (answer.status_code, answer.json["errors"][0]["path"]) == (422, "cursor")


def test_what_is_not_there_is_not_streamed(api: Web) -> None:
    nothing = uuid4()
    assert [api.get(f"/api/v1/executions/{nothing}/{part}")[0] for part in ("events", "logs?follow=true")] == [404, 404]
    assert api.get(STREAM, key="wrong")[0] == 401
    assert api.get(f"{STREAM}?kinds=dreams")[0] == 422
    assert api.get(STREAM, key=KEY + "x")[0] == 401
