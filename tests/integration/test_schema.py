"""The JSON Schema of definitions, where editors and programs get it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import Deployment
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
GREET = """
from workers.steps import step


@step("greet")
def greet(name: str) -> str:
    '''Greet `name`.'''
    return name
"""


def orchestrator(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "schema", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


def test_the_service_gives_the_schema_with_the_step_types_of_its_plugins(servers: Deployment) -> None:
    answer = servers.client.get("/api/v1/schema")
    assert answer.status_code == 200
    Draft202012Validator.check_schema(answer.json)
    schema = Draft202012Validator(answer.json)
    assert schema.is_valid({"steps": [{"id": "a", "type": "noop", "config": {"value": "{{ input.x }}"}}]})
    assert not schema.is_valid({"steps": [{"id": "a", "type": "noop", "config": {"valve": 1}}]})
    assert servers.client.get("/api/v1/schema").data == answer.data


def test_the_command_line_prints_it_or_writes_it_to_a_file(tmp_path: Path) -> None:
    printed = orchestrator(folder=tmp_path)
    assert printed.returncode == 0, printed.stderr
    schema = json.loads(printed.stdout)
    Draft202012Validator.check_schema(schema)
    assert {"http", "loop"} <= set(schema["$defs"]["step"]["properties"]["type"]["enum"])
    written = orchestrator("--out", "definition.schema.json", folder=tmp_path)
    assert (written.returncode, written.stdout) == (0, "")
    assert (tmp_path / "definition.schema.json").read_text(encoding="utf-8") == printed.stdout


def test_the_command_line_has_the_plugins_of_the_folder_it_is_called_in(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(GREET)
    done = orchestrator(folder=tmp_path, ORCHESTRATOR_PLUGINS="ours")
    assert done.returncode == 0, done.stderr
    greet = json.loads(done.stdout)["$defs"]["config.greet"]
    assert greet["description"] == "Greet `name`."
    assert greet["required"] == ["name"]


@pytest.mark.parametrize("file", ["missing/schema.json", "."])
def test_a_file_that_cannot_be_written_is_said_in_a_line(tmp_path: Path, file: str) -> None:
    done = orchestrator("--out", file, folder=tmp_path)
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr
