"""`orchestrator run`, `validate` and the rest of the command line, with the real processes behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_cli_up import Up

ADD = """
steps:
  - id: first
    type: set
    config:
      values: {sum: "{{ input.a + 1 }}"}
  - id: second
    type: set
    depends_on: [first]
    config:
      values: {text: "{{ input.b }} {{ steps.first.output.sum }}"}
outputs:
  sum: "{{ steps.first.output.sum }}"
  text: "{{ steps.second.output.text }}"
"""
FAILS = """
steps:
  - id: broken
    type: set
    config: {values: {x: "{{ 1 / input.zero }}"}}
"""
WRONG = """steps:
  - id: a
    type: set
    config: {values: {}}
  - id: a
    type: nosuchtype
    depends_on: [b]
"""


def orchestrator(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture
def add(tmp_path: Path) -> Path:
    file = tmp_path / "add up.yaml"
    file.write_text(ADD)
    return file


def test_run_executes_to_the_end_and_shows_each_step(up: Up, add: Path) -> None:
    done = orchestrator("run", add, "--input", "a=41", "--input", "b=is it", "--data-dir", up.folder)
    assert done.returncode == 0, done.stderr
    assert "first  completed" in done.stderr
    assert "second  completed" in done.stderr
    assert '"sum": 42' in done.stdout
    assert '"text": "is it 42"' in done.stdout


def test_run_json_is_the_execution_as_the_api_gives_it(up: Up, add: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"a": 1, "b": "from the file"}')
    inputs = ["--input-file", tmp_path / "in.json", "--input", "a=2"]
    done = orchestrator("run", add, *inputs, "--json", "--data-dir", up.folder)
    execution: dict[str, Any] = json.loads(done.stdout)
    assert execution["status"] == "completed"
    assert execution["input"] == {"a": 2, "b": "from the file"}
    assert execution["output"] == {"sum": 3, "text": "from the file 3"}
    assert {step["path"] for step in execution["step_executions"]} == {"first", "second"}


def test_running_a_file_again_makes_no_second_workflow(up: Up, tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text(ADD)
    first, second = (
        json.loads(
            orchestrator("run", file, "--input", "a=1", "--input", "b=", "--json", "--data-dir", up.folder).stdout
        )
        for _ in range(2)
    )
    assert first["workflow_id"] == second["workflow_id"]
    assert first["version"] == second["version"]


def test_a_failed_execution_exits_1_and_says_why(up: Up, tmp_path: Path) -> None:
    (tmp_path / "fails.yaml").write_text(FAILS)
    done = orchestrator("run", tmp_path / "fails.yaml", "--input", "zero=0", "--data-dir", up.folder)
    assert done.returncode == 1
    assert "broken  failed" in done.stderr
    assert "failed" in done.stdout
    assert "error: " in done.stdout


def test_a_definition_that_is_not_valid_exits_2_with_file_and_line(up: Up, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    done = orchestrator("run", file, "--data-dir", up.folder)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any(line.startswith(f"{file}:5: steps[1].id: ") for line in lines), done.stderr
    assert any(line.startswith(f"{file}:6: steps[1].type: ") for line in lines), done.stderr
    assert done.stdout == ""


def test_a_server_that_is_not_there_exits_4_and_names_it(add: Path) -> None:
    done = orchestrator("run", add, "--server", "http://127.0.0.1:1", ORCHESTRATOR_ADMIN_KEY="k")
    assert done.returncode == 4
    assert "http://127.0.0.1:1: Connection refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_key_exits_2_and_says_where_the_right_one_is(up: Up, add: Path) -> None:
    done = orchestrator("run", add, "--server", up.wait_ready(), ORCHESTRATOR_ADMIN_KEY="wrong")
    assert done.returncode == 2
    assert "ORCHESTRATOR_ADMIN_KEY" in done.stderr
    assert "admin-key" in done.stderr


def test_an_input_without_a_value_is_a_usage_error(up: Up, add: Path) -> None:
    done = orchestrator("run", add, "--input", "a", "--data-dir", up.folder)
    assert done.returncode == 2
    assert "NAME=VALUE" in done.stderr


def test_without_a_service_run_brings_one_up_and_takes_it_down(add: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    inputs = ["--input", "a=1", "--input", "b=x"]
    done = orchestrator("run", add, *inputs, "--json", "--data-dir", folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"]["sum"] == 2
    left = [p.info for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    assert left == []


def test_validate_prints_every_problem_of_every_file(add: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WRONG)
    done = orchestrator("validate", add, wrong)
    assert done.returncode == 1
    assert done.stdout == f"{add}: valid (2 steps)\n"
    assert done.stderr.count(f"{wrong}:") >= 3
    assert orchestrator("validate", add).returncode == 0


@pytest.mark.parametrize("text", ["", "steps: [", "[1, 2]", "{'a': ", "\x00", "&a [*a]"])
def test_validate_says_what_is_wrong_with_any_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    done = orchestrator("validate", file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{file}:")
    assert "Traceback" not in done.stderr


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.cli; heavy = {'sqlalchemy', 'requests', 'urllib3', 'yaml', 'rich', 'flask', "
        "'celery', 'marshmallow', 'psycopg2'} & set(sys.modules); print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert orchestrator("--version").stdout.startswith("orchestrator ")
    assert "validate" in orchestrator("--help").stdout
