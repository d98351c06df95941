"""The commands that call a service, with the real processes behind them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from select import select
from typing import Any

import pytest
from click.testing import CliRunner, Result
from deployment import wait_until
from test_cli_run import ADD, FAILS, WRONG
from test_cli_up import Up

from orchestrator.cli import main

TALKS = """
steps:
  - id: first
    type: script
    config: {runtime: bash, source: "echo one >&2"}
  - id: rest
    type: signal
    depends_on: [first]
    config: {name: go on}
"""

ASKS = """
triggers:
  - type: event
    config: {type: people.asked, mapping: {who: "{{ event.data.who }}"}}
steps:
  - {id: ask, type: approval}
  - {id: rest, type: signal, depends_on: [ask], config: {name: go on}}
outputs:
  who: "{{ input.who }}"
  got: "{{ steps.rest.output.payload }}"
"""


class Calls:
    """The command line, in this process, with the service of one data folder."""

    def __init__(self, up: Up) -> None:
        up.wait_ready()
        self.environment = {"ORCHESTRATOR_DATA_DIR": str(up.folder)}

    def __call__(self, *arguments: object, code: int = 0, input: str = "", **environment: str) -> Result:
        done = CliRunner().invoke(main, list(map(str, arguments)), input, self.environment | environment)
        assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
        return done

    def json(self, *arguments: object, code: int = 0, input: str = "") -> Any:
        return json.loads(self(*arguments, "--json", code=code, input=input).stdout)

    def table(self, *arguments: object) -> list[list[str]]:
        """Its lines by columns, the headings first: columns are two spaces apart."""
        lines = self(*arguments).stdout.splitlines()
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


@pytest.fixture(scope="module")
def call(up: Up) -> Calls:
    return Calls(up)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str, name: str) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


def test_a_workflow_is_created_listed_shown_changed_and_removed(call: Calls, written: Any, tmp_path: Path) -> None:
    file = written(ADD, "by hand")
    made = call.json("workflows", "create", "-f", file)
    assert (made["name"], made["status"]) == ("by hand", "draft")
    heading, *rows = call.table("workflows", "list", "by hand")
    assert heading == ["ID", "NAME", "STATUS", "VERSION", "PROJECT", "CHANGED"]
    assert [row[:5] for row in rows] == [[made["id"], "by hand", "draft", "1", "default"]]
    assert [one["id"] for one in call.json("workflows", "list", "by", "hand", "--status", "draft")] == [made["id"]]
    assert ["steps", "first, second"] in call.table("workflows", "show", "by hand")

    file.write_text(ADD.replace("a + 1", "a + 2"))
    file = file.rename(tmp_path / "another name.yaml")  # which changes no name
    assert "'by hand' has version 2" in call("workflows", "update", "by hand", "-f", file, "--version", 1).stdout
    assert "412" in call("workflows", "update", "by hand", "-f", file, "--version", 1, code=2).stderr
    assert [row[0] for row in call.table("workflows", "versions", "by hand")] == ["VERSION", "2", "1"]
    assert call.json("workflows", "activate", made["id"])["status"] == "active"

    exported = tmp_path / "exported.yaml"
    call("workflows", "export", "by hand", "-o", exported)
    assert "name: by hand" in exported.read_text()
    copy = call.json("workflows", "import", exported)
    assert copy["definition"] == call.json("workflows", "show", made["id"])["definition"]
    for id in made["id"], copy["id"]:
        assert "is removed" in call("workflows", "delete", id, "--yes").stdout
    call("workflows", "show", made["id"], code=3)


def test_a_removal_is_asked_for_twice(call: Calls, written: Any) -> None:
    made = call.json("workflows", "create", "-f", written(ADD, "kept"))
    call("workflows", "delete", made["id"], input="n\n", code=1)
    assert call.json("workflows", "show", made["id"])["id"] == made["id"]


def test_what_is_wrong_with_a_file_is_said_with_its_lines(call: Calls, written: Any) -> None:
    file = written(WRONG, "wrong")
    done = call("workflows", "create", "-f", file, code=2)
    assert any(line.startswith(f"{file}:5: steps[1].id: ") for line in done.stderr.splitlines()), done.stderr
    file.write_text("steps: [")
    assert call("workflows", "create", "-f", file, code=2).stderr.startswith(f"{file}:")


def test_an_execution_is_waited_for_listed_shown_and_done_again(call: Calls, written: Any) -> None:
    call("workflows", "create", "-f", written(ADD, "waited for"), "--activate")
    done = call("workflows", "execute", "waited for", "--input", "a=41", "--input", "b=it is", "--wait")
    assert "second  completed" in done.stderr
    assert '"text": "it is 42"' in done.stdout
    (execution,) = call.json("executions", "list", "--workflow", "waited for")
    rows = call.table("executions", "list", "--workflow", "waited for", "--status", "completed")
    assert [row[:2] for row in rows] == [["ID", "WORKFLOW"], [execution["id"], "waited for"]]
    shown = call.table("executions", "show", execution["id"])
    assert ["status", "completed"] in shown
    assert [row[:3] for row in shown[-2:]] == [["first", "set", "completed"], ["second", "set", "completed"]]
    assert ["reason", "completed"] in call.table("executions", "why", execution["id"])
    again = call.json("executions", "rerun", execution["id"], "--from-step", "second")
    assert again["rerun_of"] == execution["id"]
    assert call.json("executions", "wait", again["id"])["output"]["text"] == "it is 42"
    other = call.json("executions", "rerun", execution["id"], "--version", "1", "--input", "a=1", "--input", "b=now")
    assert call.json("executions", "wait", other["id"])["output"]["text"] == "now 2"
    call("executions", "delete", again["id"], "-y")


def test_an_execution_that_fails_exits_1_and_can_be_retried(call: Calls, written: Any) -> None:
    call("workflows", "create", "-f", written(FAILS, "failing"), "--activate")
    failed = call.json("workflows", "execute", "failing", "--input", "zero=0", "--wait", code=1)
    assert failed["status"] == "failed"
    assert call.json("executions", "retry", failed["id"])["id"] == failed["id"]
    call("executions", "wait", failed["id"], code=1)


def test_logs_are_followed_until_the_end(call: Calls, written: Any) -> None:
    call("workflows", "create", "-f", written(TALKS, "talking"), "--activate")
    id = call.json("workflows", "execute", "talking")["id"]
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "executions", "logs", "-f", id]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | call.environment)
    assert following.stdout is not None
    assert following.stdout.readline().split()[-3:] == ["first", "warning", "one"]
    assert call.json("executions", "pause", id)["status"] == "paused"
    assert call.json("executions", "resume", id)["status"] == "running"
    assert following.poll() is None
    assert call.json("executions", "cancel", id)["status"] == "cancelled"
    assert following.wait(20) == 0
    assert call.json("executions", "logs", id, "--step", "first", "--level", "warning")["message"] == "one"
    assert call("executions", "logs", id, "--level", "error").stdout == ""


def at_a_terminal(call: Calls, *words: str) -> subprocess.Popen[str]:
    """Started as its shell does: whoever runs the tests in the background has them, and all below, ignore SIGINT."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | call.environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_ends_the_watching_and_not_the_execution(call: Calls, written: Any) -> None:
    call("workflows", "create", "-f", written(TALKS, "left alone"), "--activate")
    watching = at_a_terminal(call, "workflows", "execute", "left alone", "--wait")
    (execution,) = wait_until(lambda: call.json("executions", "list", "--workflow", "left alone"))
    assert watching.stderr is not None
    watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "goes on" in told
    reading = at_a_terminal(call, "executions", "logs", "-f", execution["id"])
    assert reading.stdout is not None
    reading.stdout.readline()
    reading.send_signal(signal.SIGINT)
    _, told = reading.communicate(timeout=20)
    assert (reading.returncode, told) == (130, "")
    assert call.json("executions", "cancel", execution["id"])["status"] == "cancelled"


def test_a_trigger_is_made_fired_and_removed(call: Calls, written: Any) -> None:
    call("workflows", "create", "-f", written(ADD, "triggered"), "--activate")
    made = call.json(
        "triggers", "create", "triggered", "schedule", "--name", "nightly", "--config", "cron=0 3 * * *", "--disabled"
    )
    assert (made["config"]["cron"], made["is_enabled"]) == ("0 3 * * *", False)
    assert call.table("triggers", "list", "triggered")[1] == [made["id"], "nightly", "schedule", "no", "0"]
    fired = call.json("triggers", "fire", made["id"], "--input", "a=1", "--input", "b=x")
    call("executions", "wait", fired["execution_id"])
    assert call.table("triggers", "fires", made["id"])[1][-2:] == ["started", fired["execution_id"]]
    assert call.json("triggers", "enable", made["id"])["is_enabled"] is True
    assert call.json("triggers", "disable", made["id"])["is_enabled"] is False
    assert ["enabled", "no"] in call.table("triggers", "show", made["id"])
    call("triggers", "delete", made["id"], "--yes")
    call("triggers", "show", made["id"], code=3)


def test_a_secret_is_written_from_stdin_and_never_shown(call: Calls) -> None:
    def write(value: str) -> Any:
        done = call("secrets", "set", "of_the_cli", "--description", "x", "--json", input=f"{value}\n")
        assert value not in done.output
        return json.loads(done.stdout)

    first, second = write("hush"), write("hush hush")
    assert first["id"] == second["id"]
    assert first["updated_at"] < second["updated_at"]
    assert [first["id"], "of_the_cli", "all"] in [row[:3] for row in call.table("secrets", "list")]
    call("secrets", "delete", first["id"], "-y")


def test_a_key_opens_what_its_role_may(call: Calls, up: Up) -> None:
    key = call("keys", "create", "of the command line", "--role", "viewer", "--expires", "1h").stdout.strip()
    own = {"ORCHESTRATOR_URL": up.wait_ready(), "ORCHESTRATOR_KEY": key}
    call("workflows", "list", **own)
    assert "403" in call("keys", "list", code=2, **own).stderr
    (id,) = [one["id"] for one in call.json("keys", "list") if one["name"] == "of the command line"]
    call("keys", "revoke", id, "--yes")
    wait_until(lambda: "401" in CliRunner().invoke(main, ["workflows", "list"], env=own).stderr)


def test_a_step_template_is_made_changed_and_removed(call: Calls, written: Any) -> None:
    file = written("step: {type: set, config: {values: {}}}", "of nothing")
    made = call.json("step-templates", "create", "-f", file)
    assert [made["id"], "of nothing"] in [row[:2] for row in call.table("step-templates", "list")]
    file.write_text("description: does nothing\nstep: {type: set, config: {values: {x: 1}}}")
    changed = call.json("step-templates", "update", "of nothing", "-f", file)
    assert (changed["name"], changed["step"]["type"]) == ("of nothing", "set")
    assert ["description", "does nothing"] in call.table("step-templates", "show", made["id"])
    file.write_text("step: {type: no such type}")
    assert f"{file}:1: step.type: " in call("step-templates", "update", "of nothing", "-f", file, code=2).stderr
    file.write_text("type: noop")
    assert "must be an object with `step`" in call("step-templates", "create", "-f", file, code=2).stderr
    call("step-templates", "delete", "of nothing", "--yes")
    call("step-templates", "show", "of nothing", code=3)


def test_who_may_do_what_in_a_project_and_who_made_it(call: Calls) -> None:
    made = call.json("projects", "create", "of-the-cli", "--description", "for a test")
    assert [made["id"], "of-the-cli"] in [row[:2] for row in call.table("projects", "list")]
    grant = call.json("grants", "create", "company:2", "--role", "editor", "--project", "of-the-cli")
    assert [grant["id"], "company:2", "editor", "of-the-cli"] in [row[:4] for row in call.table("grants", "list")]
    call("grants", "delete", grant["id"], "--yes")
    call("projects", "delete", "of-the-cli", "--yes")
    call("projects", "delete", "of-the-cli", "--yes", code=3)
    rows = call.table("audit", "--object", made["id"], "--done", "--since", "2020-01-01")
    assert [row[2:5] for row in rows[1:]] == [
        ["project.delete", made["id"], "204"],
        ["project.create", made["id"], "201"],
    ]
    assert call.json("audit", "--object", made["id"], "--denied") == []


def test_an_event_starts_what_waits_for_people(call: Calls, written: Any) -> None:
    call("workflows", "create", "-f", written(ASKS, "asking"), "--activate")
    following = at_a_terminal(call, "events", "follow", "--workflow", "asking", "--json", "--kind", "step")
    assert following.stdout is not None

    def sent() -> Any:
        """A stream of all is of what happens from then on: is there one yet?"""
        (fired,) = call.json("events", "send", "people.asked", "--data", "who=Ada")
        return fired["execution_id"] if select([following.stdout], [], [], 1)[0] else None

    id = wait_until(sent)
    assert json.loads(following.stdout.readline())["path"] == "ask"
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=60)
    assert following.returncode == 130
    wait_until(lambda: ["ask", "approval", "waiting"] in [row[:3] for row in call.table("executions", "show", id)])
    call("executions", "decide", id, "nobody", "--approve", code=3)
    assert "approved" in call("executions", "decide", id, "ask", "--approve", "--comment", "why not").stdout
    call("executions", "signal", id, "go on", "--payload", "[1]")
    ended = call.json("executions", "wait", id)
    assert (ended["status"], ended["output"]) == ("completed", {"who": "Ada", "got": [1]})


def test_exit_codes_tell_what_is_not_there_from_what_is_not_there_now(call: Calls, tmp_path: Path) -> None:
    assert "orchestrator workflows list" in call("workflows", "show", "no such name", code=3).stderr
    assert "not a valid UUID" in call("executions", "show", "no-id", code=2).stderr
    nowhere = call("workflows", "list", "--server", "http://127.0.0.1:1", code=4)
    assert nowhere.stdout == ""
    assert "Connection refused" in nowhere.stderr
    assert "orchestrator up" in call("workflows", "list", "--data-dir", tmp_path / "nobody's", code=2).stderr
