"""examples/plugin as a third party ships it: a wheel, installed beside the orchestrator, found by its entry points."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from deployment import PATIENCE, wait_until
from test_cli_run import orchestrator
from test_cli_up import Up

PACKAGE = Path(__file__).parents[2] / "examples" / "plugin"

# Beside the package, in the folder where `orchestrator up` is started: everything that it does goes wrong.
MISCHIEF = """
import sys
from orchestrator.plugins import hookimpl
from workers.steps import step

@step("mischief", queue="cpu")
def mischief(message: str):
    raise RuntimeError(message)

@hookimpl
def workflow_started(execution):
    sys.exit("no")

@hookimpl
def step_completed(step):
    step.output["spoilt"] = 1 / 0
"""
FAILS = """
steps:
  - {id: broken, type: mischief, config: {message: "as it always does"}, retry_policy: {max_attempts: 1}}
"""
WRONG = """
steps:
  - id: greet
    type: acme_greet
    config: {name: "", language: la}
"""


def pip(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in it, from its wheel."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    # Where the backend is not at hand, pip gets it as it does to install the orchestrator itself.
    at_hand = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip("wheel", "--quiet", "--no-deps", *at_hand, "--wheel-dir", wheels, PACKAGE)
    (wheel,) = wheels.glob("acme_orchestrator-*.whl")
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    return site


class Service(Up):
    """`orchestrator up` with the package and the mischief."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.events_file = folder / "events.jsonl"
        (folder / "mischief.py").write_text(MISCHIEF)
        environment = {
            "PYTHONPATH": os.fspath(site),
            "ORCHESTRATOR_PLUGINS": "mischief",
            "ACME_EVENT_LOG": os.fspath(self.events_file),
            "ORCHESTRATOR_SECRET_CITY": "Carthago",
        }
        super().__init__(folder / "data", "--port", "0", environment=environment)

    def run(self, file: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
        """The exit code, and the execution as the API shows it."""
        done = orchestrator("run", file, "--json", "--data-dir", self.folder, *arguments)
        return done.returncode, json.loads(done.stdout)

    def asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The API's answer."""
        key = (self.folder / "admin-key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        answer = requests.request(
            method, f"{self.wait_ready()}/api/v1/{path}", json=body, headers=headers, timeout=PATIENCE
        )
        assert answer.ok, answer.text
        return answer.json()

    def events(self, execution_id: str, count: int) -> list[dict[str, Any]]:
        """What the hooks told of an execution, once that is so much: its end may be told before what another process
        has to tell."""

        def told() -> list[dict[str, Any]]:
            lines = map(json.loads, self.events_file.read_text().splitlines() if self.events_file.exists() else ())
            mine = [line for line in lines if execution_id in (line.get("id"), line.get("execution_id"))]
            return mine if len(mine) >= count else []

        return wait_until(told, what=f"the events of execution {execution_id}")

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def service(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("plugin"), site)
    try:
        service.wait_ready()
        yield service
    finally:
        service.end()


def described(event: dict[str, Any]) -> str:
    return f"{event['hook']} {event.get('path', '')}".strip()


def test_an_installed_package_brings_its_step_types(service: Service):
    code, execution = service.run(PACKAGE / "welcome.yaml", "--input", "name=Ada Lovelace")
    assert code == 0
    assert execution["output"] == {"text": "Bonjour, Ada Lovelace!", "slug": "bonjour-ada-lovelace"}
    assert {step["type"] for step in execution["step_executions"]} == {"acme_greet", "acme_slugify"}


def test_the_config_of_an_installed_type_is_checked_when_it_is_saved(service: Service, tmp_path: Path):
    (tmp_path / "wrong.yaml").write_text(WRONG)
    done = orchestrator("run", tmp_path / "wrong.yaml", "--data-dir", service.folder)
    assert done.returncode == 2
    assert "steps[0].config.name" in done.stderr
    assert "steps[0].config.language" in done.stderr


def test_the_hooks_of_an_installed_package_are_told_of_everything_once(service: Service):
    _, execution = service.run(PACKAGE / "welcome.yaml", "--input", "name=Grace")
    events = service.events(execution["id"], 6)
    assert Counter(map(described, events)) == dict.fromkeys(
        [
            "workflow_started",
            "step_started greet",
            "step_completed greet",
            "step_started slug",
            "step_completed slug",
            "workflow_completed",
        ],
        1,
    )
    # The two steps are on different queues: what one process tells comes in its order, beside what the other tells.
    told_by = {
        tuple(described(event) for event in events if event["pid"] == pid) for pid in {event["pid"] for event in events}
    }
    assert told_by == {
        ("workflow_started", "step_started greet", "step_completed greet"),
        ("step_started slug", "step_completed slug", "workflow_completed"),
    }


def test_events_say_what_became_of_it(service: Service):
    _, execution = service.run(PACKAGE / "welcome.yaml", "--input", "name=Dido of Carthago")
    events = {described(event): event for event in service.events(execution["id"], 6)}
    ended, step = events["workflow_completed"], events["step_completed greet"]
    assert (ended["status"], ended["workflow_id"]) == ("completed", execution["workflow_id"])
    assert ended["output"]["slug"] == "bonjour-dido-of"
    assert (step["status"], step["type"], step["attempt"], step["retries"]) == ("completed", "acme_greet", 1, False)
    assert step["output"] == {"text": "Bonjour, Dido of ***!"}
    assert step["duration"] >= 0
    assert events["workflow_started"]["input"] == {"name": "Dido of ***"}


def test_a_trigger_type_of_an_installed_package_starts_an_execution_for_each_file(service: Service, tmp_path: Path):
    workflow = service.asked("POST", "workflows", {"name": "files", "definition": watching(tmp_path)})
    path = f"workflows/{workflow['id']}"
    assert service.asked("POST", f"{path}/activate")["status"] == "active"

    def files() -> list[str]:
        items = service.asked("GET", f"executions?workflow_id={workflow['id']}")["items"]
        return [execution["input"]["file"] for execution in items][::-1]

    for number, name in enumerate(["first.csv", "second.csv"], 1):
        (tmp_path / name).touch()
        wait_until(lambda number=number: len(files()) == number, what=f"the execution for {name}")
    assert files() == ["first.csv", "second.csv"]
    (trigger,) = service.asked("GET", f"{path}/triggers")["items"]
    assert (trigger["type"], trigger["trigger_count"]) == ("acme_folder", 2)


def watching(folder: Path) -> dict[str, Any]:
    return {
        "triggers": [{"type": "acme_folder", "config": {"path": str(folder), "interval": 1}}],
        "steps": [{"id": "slug", "type": "acme_slugify", "config": {"text": "{{ input.file }}"}}],
    }


def test_a_plugin_that_raises_in_all_it_does_harms_no_other(service: Service, tmp_path: Path):
    (tmp_path / "fails.yaml").write_text(FAILS)
    code, failed = service.run(tmp_path / "fails.yaml")
    assert code == 1
    assert failed["error_message"] == "step broken (mischief) failed: RuntimeError: as it always does"
    events = {described(event): event for event in service.events(failed["id"], 4)}
    assert events["step_completed broken"]["error_message"] == "RuntimeError: as it always does"
    assert events["workflow_completed"]["status"] == "failed"

    code, execution = service.run(PACKAGE / "welcome.yaml", "--input", "name=Ada")
    assert (code, execution["output"]["text"]) == (0, "Bonjour, Ada!")
    assert len(service.events(execution["id"], 6)) == 6
    raised = "the hook workflow_started of the plugin mischief raised", "the hook step_completed of the plugin mischief"
    wait_until(lambda: all(words in service.log("worker") for words in raised), what="the log of what hooks raised")
