"""Bad input, type by type: what is wrong is said with the step, its type and the cause; nothing is leaked, and no
worker stays behind with it.

`WRONG` has what a workflow with such a step is refused for, `TABLE` what can only go wrong when it runs. A cell is a
Case, or says why there is none.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployment import TERMINAL, Deployment, wait_until
from faulty_servers import Crooked, crooked

from orchestrator.config import (
    AgentSettings,
    ConnectionSettings,
    EmailSettings,
    LlmSettings,
    McpServerSettings,
    McpSettings,
    Settings,
)
from orchestrator.engine.programs import Programs
from orchestrator.engine.reconcile import Reconciler
from orchestrator.store import new_id
from workers.process import WorkerProcess
from workers.steps.builtin import orchestrator_step_types

SECRET = "s3cr3t-of-the-table"
TOKEN = "{{ secrets.token }}"
MCP_SERVER = str(Path(__file__).parents[2] / "mcp_server.py")
IN_A_MOMENT = "500ms"
ONLY_ONCE = {"max_attempts": 1}


def step(id: str, type: str, **config: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "config": config}


# --- wrong config ------------------------------------------------------------------------------------------------

WRONG: Mapping[str, tuple[dict[str, Any], set[str]]] = {
    "http": (
        {"method": "FETCH", "url": "nowhere", "json": 1, "body": "x", "auth": {"type": "basic"}, "expected_status": 7},
        {"method", "url", "body", "auth.username", "expected_status"},
    ),
    "webhook": ({"url": 5, "method": "GET", "headers": {"webhook-id": "1"}, "timeout": "soon"},
                {"url", "method", "headers.webhook-id", "timeout"}),
    "script": ({"script": "a.py", "source": "1", "runtime": "perl", "args": "x", "network": "perhaps"},
               {"source", "runtime", "args", "network"}),
    "email": ({"to": "nobody", "cc": ["a b"],
               "attachments": [{"filename": "a/b", "content": "!", "encoding": "base64"}]},
              {"to", "cc[0]", "attachments[0].filename", "attachments[0].content", "text", "subject"}),
    "database": ({"operation": "query", "table": "t", "sql": "SELECT :x", "max_rows": 0, "timeout": []},
                 {"connection", "table", "sql", "max_rows", "timeout"}),
    "agent": ({"agent_id": "", "timeout": 0, "tsk": "x"}, {"agent_id", "task", "timeout", "tsk"}),
    "llm": (
        {"prompt": "x", "messages": [{"role": "king"}], "temperature": 9, "max_tokens": 0,
         "response_schema": {"type": 5}},
        {"messages", "messages[0].role", "messages[0].content", "temperature", "max_tokens", "response_schema"},
    ),
    "mcp": ({"server": [], "user": 1, "arguments": {"user": 2}, "timeout": "x"},
            {"server", "action", "user", "timeout"}),
    "condition": ({"cases": [{"then": 5}], "expression": "true", "then": ["x"], "else": {}},
                  {"cases", "cases[0].when", "cases[0].then", "then", "then[0]", "else"}),
    "loop": ({"items": [1], "while": "true", "concurrency": 0, "on_item_error": "ignore", "steps": []},
             {"while", "concurrency", "on_item_error", "steps"}),
    "parallel": ({"branches": {"a b": [], "c": [{"type": "noop"}]}, "fail_fast": "perhaps"},
                 {'branches["a b"]', "branches.c[0].id", "fail_fast"}),
    "set": ({"value": {}}, {"value", "values"}),
    "wait": ({"duration": "4000d", "until": "tomorrow", "for": 1}, {"duration", "until", "for"}),
    "approval": ({"timeout": "x", "default": "maybe", "on_reject": "weep", "message": 5},
                 {"timeout", "default", "on_reject", "message"}),
    "workflow": ({"workflow": "", "wait": "perhaps", "inputs": {}}, {"workflow", "wait", "inputs"}),
    "signal": ({"name": "", "timeout": "-1s", "payload": 1}, {"name", "timeout", "payload"}),
    "misbehave": ({"what": 5, "whatever": 1}, {"what", "whatever"}),
}  # fmt: skip


@pytest.mark.parametrize("type", WRONG)
def test_all_that_is_wrong_with_a_config_is_said_when_it_is_saved(servers: Deployment, type: str) -> None:
    config, wrong = WRONG[type]
    before = servers.sql("SELECT count(*) FROM workflows")
    answer = servers.client.post(
        "/api/v1/workflows", json={"name": "x", "definition": {"steps": [step("x", type, **config)]}}
    )
    assert answer.status_code == 422, answer.text
    found = {error["path"].removeprefix("definition.steps[0].config.") for error in answer.json["errors"]}
    assert found == wrong, answer.json["errors"]
    assert all(error["message"] for error in answer.json["errors"])
    assert servers.sql("SELECT count(*) FROM workflows") == before


# --- what goes wrong when it runs ----------------------------------------------------------------------------------

KINDS = ("unreachable", "timeout", "malformed", "too large", "secret", "not storable")


@dataclass(frozen=True)
class Case:
    kind: str
    """The error's kind, and a part of its message."""
    says: str
    config: dict[str, Any] = field(default_factory=dict)
    type: str = ""
    """The step's, if it is not the row's."""
    timeout: str = ""
    """The step's own, beside that of its config."""
    others: str = "there"
    """Or `nowhere`: those that the settings name."""


Cell = Case | str
ASKS_NOBODY = "it asks nobody"
IS_ANSWERED_BY_US = "what answers it is checked where it comes from: by the API, or as another step's output"
OVERSLEPT = "the step's time was up while it waited (timeout)"
LIMIT = "executor.max_payload"
LABORIOUS = "{{ ([0] * 1000000) | map('string') | length }}"

MAIL = {"subject": "x", "text": "x"}
SLOW = "SELECT pg_sleep(61.5)%"
QUERY = {"connection": "here", "operation": "query"}
TELLING = {"id": "in", "type": "fail", "config": {"message": f"no to {TOKEN}"}, "retry_policy": ONLY_ONCE}
LARGE = {"id": "in", "type": "large", "config": {"size": 9_000}}
RESTING = {"id": "in", "type": "wait", "config": {"duration": "1h"}}


def web_row(type: str) -> dict[str, Cell]:
    return {
        "unreachable": Case("connection", "Connection refused", {"url": "{closed}/x"}),
        "timeout": Case("timeout", "did not end within 0.5 s", {"url": "{web}/silent", "timeout": IN_A_MOMENT}),
        "malformed": Case("connection", "/noise: the answer is not HTTP", {"url": "{web}/noise"}),
        "too large": Case("response_too_large", "executor.max_response", {"url": "{web}/flood"}),
        "secret": Case("http_status", "answered 400", {"url": "{web}/echo", "headers": {"X-Token": TOKEN}}),
        "not storable": Case("output", "NUL character", {"url": "{web}/nul"}),
    }


def agent_row(protocol: str) -> dict[str, Cell]:
    def case(kind: str, says: str, how: str, **config: Any) -> Case:
        return Case(kind, says, {"agent_id": f"{protocol}-{how}", "task": f"x {TOKEN}", **config})

    return {
        "unreachable": case("connection", "Connection refused", "closed"),
        "timeout": case("timeout", "did not end within 0.5 s", "silent", request_timeout=IN_A_MOMENT),
        "malformed": case("agent_protocol", "cannot be understood", "html"),
        "too large": case("response_too_large", "executor.max_response", "flood"),
        "secret": case("http_status", "answered 400", "echo"),
        "not storable": case("output", "NUL character", "nul"),
    }


TABLE: Mapping[str, Mapping[str, Cell]] = {
    "http": web_row("http"),
    "webhook": web_row("webhook"),
    "script": {
        "unreachable": Case("config", "there is no script 'nobody.py'", {"script": "nobody.py"}),
        "timeout": Case("timeout", "did not end within 0.5 s",
                        {"source": "import time; time.sleep(60)", "timeout": IN_A_MOMENT}),
        "malformed": "what it prints is JSON, or else a text",
        "too large": Case("output_too_large", LIMIT, {"source": "print('x' * 30_000)"}),
        "secret": Case("script", "no to ", {"source": "import os, sys; sys.exit('no to ' + os.environ['X'])",
                                            "env": {"X": TOKEN}}),
        "not storable": Case("output", "NUL character", {"source": "print(r'\"\\u0000\"')"}),
    },
    "email": {
        "unreachable": Case("connection", "Connection refused", {**MAIL, "to": "a@example.com"}, others="nowhere"),
        "timeout": Case("timeout", "did not take the email", {**MAIL, "to": "silent@example.com"}, timeout="1s"),
        "malformed": Case("smtp", "with what is not SMTP: ", {**MAIL, "to": "noise@example.com"}),
        "too large": Case("response_too_large", "sent a reply of more than", {**MAIL, "to": "flood@example.com"}),
        "secret": Case("smtp", "550 there is no ", {**MAIL, "to": f"{TOKEN}@example.com"}),
        "not storable": "of a reply, what cannot be stored is left out",
    },
    "database": {
        "unreachable": Case("connection", "Connection refused", {**QUERY, "connection": "closed", "sql": "SELECT 1"}),
        "timeout": Case("timeout", "not done within 0.5 s",
                        {**QUERY, "sql": "SELECT pg_sleep(61.5)", "timeout": IN_A_MOMENT}),
        "malformed": Case("connection", "invalid response", {**QUERY, "connection": "noise", "sql": "SELECT 1"}),
        "too large": Case("output_too_large", LIMIT, {**QUERY, "sql": "SELECT repeat('x', 30000) AS x"}),
        "secret": Case("sql", 'invalid input syntax for type integer: "',
                       {**QUERY, "sql": "SELECT CAST(:x AS integer)", "params": {"x": TOKEN}}),
        "not storable": Case("output", "NUL character", {**QUERY, "connection": "file", "sql": "SELECT char(0) AS x"}),
    },
    "agent, A2A": agent_row("a2a"),
    "agent, HTTP": agent_row("http"),
    "llm": {
        "unreachable": Case("connection", "Connection refused", {"prompt": "x", "model": "m"}, others="nowhere"),
        "timeout": Case("timeout", "did not answer within 0.5 s",
                        {"prompt": "x", "model": "silent", "timeout": IN_A_MOMENT}),
        "malformed": Case("output", "is not JSON: <html>", {"prompt": "x", "model": "html"}),
        "too large": Case("response_too_large", "executor.max_response", {"prompt": "x", "model": "flood"}),
        "secret": Case("http_status", "answered 400: no to ", {"prompt": TOKEN, "model": "echo"}),
        "not storable": Case("output", "NUL character", {"prompt": "x", "model": "nul"}),
    },
    "mcp, HTTP": {
        "unreachable": Case("connection", "Connection refused", {"server": "closed", "action": "x"}),
        "timeout": Case("timeout", "did not answer within 0.5 s",
                        {"server": "silent", "action": "x", "timeout": IN_A_MOMENT}),
        "malformed": Case("mcp", "Unexpected content type: text/html", {"server": "html", "action": "x"}),
        "too large": Case("response_too_large", "executor.max_response", {"server": "flood", "action": "x"}),
        "secret": Case("mcp", "status 400", {"server": "echo", "action": TOKEN}),
        "not storable": "as over stdio: its output is made in the same place",
    },
    "mcp, stdio": {
        "unreachable": Case("config", "cannot be started as '/nowhere'", {"server": "nowhere", "action": "x"}),
        "timeout": Case("timeout", "did not answer within 0.5 s",
                        {"server": "asleep", "action": "x", "timeout": IN_A_MOMENT}),
        "malformed": Case("connection", "went away before it answered", {"server": "noise", "action": "x"}),
        "too large": Case("response_too_large", "executor.max_response", {"server": "endless", "action": "x"}),
        "secret": Case("tool", "failed: no to ", {"server": "real", "action": "fail", "message": f"no to {TOKEN}"}),
        "not storable": Case("output", "NUL character", {"server": "real", "action": "nul"}),
    },
    "condition": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("template", "works on too much data", {"expression": LABORIOUS}),
        "malformed": ASKS_NOBODY,
        "too large": Case("template", "at most 1,000,000", {"expression": "{{ 'x' * 2000000 }}"}),
        "secret": Case("template", "not JSON", {"expression": "{{ secrets.token | fromjson }}"}),
        "not storable": "its output is a number and ids",
    },
    "set": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("template", "works on too much data", {"values": {"x": LABORIOUS}}),
        "malformed": ASKS_NOBODY,
        "too large": Case("output", LIMIT, {"values": {"x": "{{ 'x' * 30000 }}"}}),
        "secret": Case("template", "not JSON", {"values": {"x": "{{ secrets.token | fromjson }}"}}),
        "not storable": Case("template", "U+0000", {"values": {"x": "{{ '\\u0000' }}"}}),
    },
    "loop": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("timeout", OVERSLEPT, {"items": [1], "steps": [RESTING]}, timeout="300ms"),
        "malformed": Case("config", "must be a list or a mapping, not int", {"items": "{{ 5 }}", "steps": [LARGE]}),
        "too large": Case("output", LIMIT, {"items": [1, 2, 3], "steps": [LARGE]}),
        "secret": Case("body", "item 0: step in (fail) failed: no to ", {"items": [1], "steps": [TELLING]}),
        "not storable": IS_ANSWERED_BY_US,
    },
    "parallel": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("timeout", OVERSLEPT, {"branches": {"a": [RESTING]}}, timeout="300ms"),
        "malformed": ASKS_NOBODY,
        "too large": Case("output", LIMIT, {"branches": {name: [LARGE | {"id": name}] for name in "abc"}}),
        "secret": Case("body", "branch a: step in (fail) failed: no to ", {"branches": {"a": [TELLING]}}),
        "not storable": IS_ANSWERED_BY_US,
    },
    "wait": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("timeout", OVERSLEPT, {"duration": "1h"}, timeout="300ms"),
        "malformed": ASKS_NOBODY,
        "too large": Case("config", "duration: must be from 0s to 3650d", {"duration": "{{ '4000d' }}"}),
        "secret": Case("config", "duration: '", {"duration": TOKEN}),
        "not storable": "its output is a time",
    },
    "approval": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("timeout", "nobody decided in time", {"timeout": "200ms"}),
        "malformed": IS_ANSWERED_BY_US,
        "too large": IS_ANSWERED_BY_US,
        "secret": Case("config", "timeout: '", {"timeout": TOKEN}),
        "not storable": IS_ANSWERED_BY_US,
    },
    "workflow": {
        "unreachable": Case("workflow", "there is no workflow", {"workflow": "nobody made this"}),
        "timeout": Case("timeout", OVERSLEPT, {"workflow": "one that rests"}, timeout="300ms"),
        "malformed": IS_ANSWERED_BY_US,
        "too large": Case("output", LIMIT, {"workflow": "one that says much"}),
        "secret": Case("workflow", "there is no workflow ", {"workflow": TOKEN}),
        "not storable": IS_ANSWERED_BY_US,
    },
    "signal": {
        "unreachable": ASKS_NOBODY,
        "timeout": Case("timeout", "no signal 'paid' came in time", {"name": "paid", "timeout": "200ms"}),
        "malformed": IS_ANSWERED_BY_US,
        "too large": IS_ANSWERED_BY_US,
        "secret": Case("timeout", "no signal '", {"name": TOKEN, "timeout": "200ms"}),
        "not storable": IS_ANSWERED_BY_US,
    },
    "a plugin's": {
        "unreachable": "whom it asks is its own affair",
        "timeout": Case("timeout", "the step's time is up", {"seconds": 60}, type="nap", timeout="300ms"),
        "malformed": Case("error", "perform() returned a dict", {}, type="no_outcome"),
        "too large": Case("output", LIMIT, {"size": 30_000}, type="large"),
        "secret": Case("error", "ValueError: no to ", {"what": "an error", "text": TOKEN}, type="misbehave"),
        "not storable": Case("output", "not JSON serializable: object", {"what": "an object"}, type="misbehave"),
    },
}  # fmt: skip
CELLS = [(row, kind) for row, cells in TABLE.items() for kind, cell in cells.items() if isinstance(cell, Case)]


def test_the_tables_have_every_type_and_everything_that_can_go_wrong() -> None:
    types = {known.type for known in orchestrator_step_types()}
    assert types == {row.partition(",")[0] for row in TABLE} - {"a plugin's"} == WRONG.keys() - {"misbehave"}
    for row, cells in TABLE.items():
        assert tuple(cells) == KINDS, row


@pytest.fixture(scope="module")
def sides() -> Iterator[Crooked]:
    with crooked() as those:
        yield those


class OneWorker:
    """This process as the only worker, and what reconciles: whatever hangs would hold up the test itself."""

    def __init__(self, servers: Deployment, settings: Settings) -> None:
        self.servers = servers
        self.process = WorkerProcess(settings, "in@process")
        self.reconciler = Reconciler(
            servers.store, Programs(self.process.programs.catalogue, settings), settings, None, lambda plan: None,
            holder=new_id(), host="here",
        )  # fmt: skip

    def run(self, step: dict[str, Any]) -> dict[str, Any]:
        """The execution of this step alone, with its rows, when it has ended."""
        execution_id = self.servers.execute(self.servers.create({"steps": [step]}))
        wait_until(lambda: self._goes_on(execution_id), what="its end")
        return self.servers.execution(execution_id)

    def _goes_on(self, execution_id: str) -> bool:
        """Perform what is queued of it, and of what its step has started; whether it has ended."""
        queued = self.servers.sql(
            "SELECT s.execution_id::text, s.path FROM step_executions s JOIN executions e ON e.id = s.execution_id "
            "LEFT JOIN step_executions its ON its.id = e.parent_step_id "
            "WHERE %(id)s::uuid IN (e.id, its.execution_id) AND s.status = 'queued'",
            id=execution_id,
        )
        for its, path in queued:
            self.process.run_steps(its, [path], ())
        # As if the time of what rests under a `timeout` were up.
        self.servers.sql(
            "UPDATE step_executions SET deadline = now() - interval '1 minute' WHERE execution_id = %(id)s::uuid "
            "AND status = 'waiting' AND deadline IS NOT NULL",
            id=execution_id,
        )
        self.reconciler.end_expired()
        self.reconciler.fire_timers()
        return self.servers.execution(execution_id)["status"] in TERMINAL


@pytest.fixture(scope="module")
def worker(servers: Deployment, sides: Crooked) -> Iterator[Callable[[str], OneWorker]]:
    """A worker with the settings that have the others `there`, or `nowhere`."""
    _ = servers.client  # points the app at these servers
    there = adjusted(servers.settings, sides)
    nowhere = replace(
        there,
        email=replace(there.email, port=sides.closed_port),
        llm=replace(there.llm, base_url=f"http://127.0.0.1:{sides.closed_port}"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_SECRET_TOKEN", SECRET)
        workers = {"there": OneWorker(servers, there), "nowhere": OneWorker(servers, nowhere)}
        servers.create({"steps": [RESTING]}, name="one that rests")
        servers.create({"steps": [step("a", "large", size=19_930)]}, name="one that says much")
        yield workers.__getitem__
    for one in workers.values():
        one.process.close()


def adjusted(settings: Settings, sides: Crooked) -> Settings:
    closed = f"http://127.0.0.1:{sides.closed_port}"
    ways = {"closed": closed} | {how: f"{sides.web}/{how}" for how in ("silent", "html", "flood", "echo", "nul")}
    headers = {"X-Token": TOKEN}
    programs = {
        "nowhere": ("/nowhere",),
        "asleep": ("sleep", "60"),
        "noise": ("echo", "what do you mean?"),
        "endless": ("yes",),
        "real": (sys.executable, MCP_SERVER, "stdio"),
    }
    return replace(
        settings,
        executor=replace(settings.executor, max_response=50_000, max_payload=20_000),
        email=EmailSettings(host="127.0.0.1", port=sides.mail_port, security="none", sender="us@example.com"),
        connections={
            "here": ConnectionSettings(settings.database.url),
            "file": ConnectionSettings("sqlite://"),
            "closed": ConnectionSettings(f"postgresql://me:pass-word@127.0.0.1:{sides.closed_port}/x"),
            "noise": ConnectionSettings(f"postgresql://me:pass-word@127.0.0.1:{sides.noisy_port}/x"),
        },
        agents={
            f"{protocol}-{how}": AgentSettings(url, protocol, headers)
            for protocol in ("a2a", "http")
            for how, url in ways.items()
        },
        llm=LlmSettings(base_url=sides.web),
        mcp=McpSettings(
            servers={how: McpServerSettings(url, headers) for how, url in ways.items()}
            | {name: McpServerSettings(command=command) for name, command in programs.items()}
        ),
    )


@pytest.mark.parametrize(("row", "kind"), CELLS)
def test_what_goes_wrong_is_said_and_leaves_nothing(
    worker: Callable[[str], OneWorker], servers: Deployment, sides: Crooked, row: str, kind: str
) -> None:
    case = TABLE[row][kind]
    assert isinstance(case, Case)
    type = case.type or row.partition(",")[0]
    places = {"{web}": sides.web, "{closed}": f"http://127.0.0.1:{sides.closed_port}"}
    one = step("x", type, **filled(case.config, places)) | {"retry_policy": ONLY_ONCE}
    programs = set(psutil.Process().children())
    execution = worker(case.others).run(one | ({"timeout": case.timeout} if case.timeout else {}))
    failed = next(row for row in execution["step_executions"] if row["path"] == "x")
    assert (failed["status"], failed["type"], failed["error_kind"]) == ("failed", type, case.kind), failed
    assert filled(case.says, places) in failed["error_message"]
    assert execution["error_message"] == f"step x ({type}) failed: {failed['error_message']}"
    if kind == "secret" and case.kind != "template":  # which quotes what is written, and no value
        assert "***" in failed["error_message"]
    path = f"/api/v1/executions/{execution['id']}"
    shown = [servers.client.get(f"{path}{more}").text for more in ("", "/logs", "/why")]
    assert not any(hidden in text for text in shown for hidden in (SECRET, "pass-word"))
    wait_until(lambda: not sides.holds, what="the other side to be left")
    wait_until(lambda: not calls(), what="the end of the calls")
    assert set(psutil.Process().children()) <= programs
    assert servers.sql("SELECT query FROM pg_stat_activity WHERE query LIKE %(q)s AND state = 'active'", q=SLOW) == []


def calls() -> list[str]:
    """Threads in which steps ask others."""
    return [thread.name for thread in threading.enumerate() if thread.name.endswith(("-call", "-cancel"))]


def filled(value: Any, places: Mapping[str, str]) -> Any:
    """`value` with the addresses of the servers."""
    text = json.dumps(value)
    for place, address in places.items():
        text = text.replace(place, address)
    return json.loads(text)
