"""The command line where it needs no service."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.cli.service import connect
from orchestrator.errors import ConfigurationError

EXPORTED = """\
name: exported
tags: []
definition:
  steps:
  - id: a
    type: set
    config: {values: {x: 1}}
  - id: b
    type: wait
    config: {duration: 1s}
    timeout: soon
"""


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCHESTRATOR_KEY", "ORCHESTRATOR_ADMIN_KEY", "ORCHESTRATOR_URL", "ORCHESTRATOR_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_the_key_of_the_data_folder_is_for_services_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "admin-key").write_text("the-key-of-the-folder")
    for here in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
        assert connect(here, str(tmp_path)).url == here
    for elsewhere in ("https://orchestrator.example", "http://10.0.0.1:8084", "http://127.0.0.1.example:8084"):
        with pytest.raises(ConfigurationError, match=f"no key for {elsewhere}"):
            connect(elsewhere, str(tmp_path))
    monkeypatch.setenv("ORCHESTRATOR_KEY", "a-key-for-there")
    assert connect("https://orchestrator.example", str(tmp_path)).url == "https://orchestrator.example"


def test_an_exported_workflow_is_checked_as_it_stands_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "exported.yaml"
    file.write_text(EXPORTED)
    done = CliRunner().invoke(main, ["validate", str(file)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{file}:11: definition.steps[1].timeout: ")
    file.write_text(EXPORTED.replace("    timeout: soon\n", ""))
    done = CliRunner().invoke(main, ["validate", str(file)])
    assert (done.exit_code, done.stdout) == (0, f"{file}: valid (2 steps)\n"), done.stderr
