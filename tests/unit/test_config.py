"""Settings: where they come from, which of two wins, and what is said about wrong ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import (
    BrokerSettings,
    DatabaseSettings,
    ExecutorSettings,
    SchedulerSettings,
    Settings,
    environment_of,
    load_settings,
)
from orchestrator.errors import ConfigurationError

SPECIFIED = """
services:
  orchestrator:
    port: 8084
    database:
      url: "postgres://user:password@localhost/noah_loop?sslmode=disable"

    scheduler:
      enabled: true
      workers: 10
      max_concurrent: 100
      retry_attempts: 3
      retry_delay: 30s

    executor:
      timeout: 30m
      max_memory: "1GB"
      log_retention: "7d"
"""

SCHEDULER_ALONE = """
scheduler:
  enabled: true
  workers: 12
  max_concurrent: 100
  poll_interval: 5s
  priority_queue: true
  retry:
    max_attempts: 4
    initial_delay: 20s
    max_delay: 300s
    backoff_factor: 1.5
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(environ: dict[str, str], file: Path | None = None) -> list[str]:
    """The lines of the error that these settings raise, without its headline."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ, file)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_without_file_and_environment_the_defaults_hold() -> None:
    assert load_settings({}) == Settings()


def test_the_specified_file_is_read_with_its_units(tmp_path: Path) -> None:
    settings = load_settings({}, written(tmp_path, SPECIFIED))
    assert settings.port == 8084
    assert settings.database.url == "postgres://user:password@localhost/noah_loop?sslmode=disable"
    assert settings.executor.timeout == 1800
    assert settings.executor.max_memory == 1024**3
    assert settings.executor.log_retention == 7 * 86400
    assert settings.scheduler.max_concurrent == 100


def test_the_flat_retry_settings_mean_the_nested_ones(tmp_path: Path) -> None:
    retry = load_settings({}, written(tmp_path, SPECIFIED)).scheduler.retry
    assert (retry.max_attempts, retry.initial_delay) == (3, 30)


def test_a_scheduler_at_the_top_is_read_with_its_nested_retry(tmp_path: Path) -> None:
    scheduler = load_settings({}, written(tmp_path, SCHEDULER_ALONE)).scheduler
    assert (scheduler.workers, scheduler.poll_interval) == (12, 5)
    retry = scheduler.retry
    assert (retry.max_attempts, retry.initial_delay) == (4, 20)
    assert (retry.max_delay, retry.backoff_factor) == (300, 1.5)


def test_a_scheduler_at_the_top_goes_together_with_a_service_section(tmp_path: Path) -> None:
    settings = load_settings({}, written(tmp_path, "services: {orchestrator: {port: 9000}}\n" + SCHEDULER_ALONE))
    assert (settings.port, settings.scheduler.workers) == (9000, 12)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = {"ORCHESTRATOR_PORT": "9999", "ORCHESTRATOR_EXECUTOR_MAX_MEMORY": "64MB"}
    settings = load_settings(environ, written(tmp_path, SPECIFIED))
    assert (settings.port, settings.executor.max_memory) == (9999, 64 * 1024**2)
    assert settings.executor.timeout == 1800


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "services: {orchestrator: {port: 9001}}")
    assert load_settings({"ORCHESTRATOR_CONFIG": str(file)}).port == 9001


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "2", 2.0),
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "0.25", 0.25),
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "250ms", 0.25),
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "1m30s", 90.0),
    ],
)
def test_a_duration_in_the_environment_has_a_unit_or_is_in_seconds(name: str, text: str, value: float) -> None:
    assert load_settings({name: text}).scheduler.poll_interval == value


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_a_switch_is_on_in_each_of_the_usual_words(text: str) -> None:
    assert load_settings({"ORCHESTRATOR_SCHEDULER_PRIORITY_QUEUE": text}).scheduler.priority_queue is True


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "no", "off"])
def test_a_switch_is_off_in_each_of_the_usual_words(text: str) -> None:
    assert load_settings({"ORCHESTRATOR_SCHEDULER_PRIORITY_QUEUE": text}).scheduler.priority_queue is False


def test_all_that_is_wrong_is_said_at_once_with_where_it_was_written(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "services:\n  orchestrator:\n    port: many\n    executor: {timeout: soon, max_memory: 1XB}\n    colour: red\n",
    )
    lines = refusal({"ORCHESTRATOR_SCHEDULER_WORKERS": "0", "ORCHESTRATOR_SCHEDULER_ENABLED": "perhaps"}, file)
    wheres = [
        f"{file}: port",
        f"{file}: executor.timeout",
        f"{file}: executor.max_memory",
        f"{file}: colour",
        "ORCHESTRATOR_SCHEDULER_WORKERS",
        "ORCHESTRATOR_SCHEDULER_ENABLED",
    ]
    assert len(lines) == len(wheres)
    for where in wheres:
        assert any(line.startswith(f"{where}: ") for line in lines), (where, lines)


def test_a_wrong_value_is_shown_with_what_the_setting_is_for() -> None:
    (line,) = refusal({"ORCHESTRATOR_PORT": "many"})
    assert "'many'" in line
    assert "port the API listens on" in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "nan"),
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "inf"),
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", "-1"),
        ("ORCHESTRATOR_SCHEDULER_POLL_INTERVAL", ""),
        ("ORCHESTRATOR_SCHEDULER_RETRY_BACKOFF_FACTOR", "nan"),
        ("ORCHESTRATOR_SCHEDULER_RETRY_BACKOFF_FACTOR", "inf"),
        ("ORCHESTRATOR_EXECUTOR_MAX_PAYLOAD", "1.5"),
        ("ORCHESTRATOR_EXECUTOR_MAX_PAYLOAD", "-1"),
        ("ORCHESTRATOR_PORT", "-1"),
        ("ORCHESTRATOR_PORT", "65536"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(name: str, text: str) -> None:
    (line,) = refusal({name: text})
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize("value", ["[1]", "{a: 1}", "null", "true"])
def test_a_value_of_another_kind_in_the_file_is_refused(tmp_path: Path, value: str) -> None:
    file = written(tmp_path, f"services: {{orchestrator: {{host: {value}, port: {value}}}}}")
    lines = refusal({}, file)
    assert len(lines) == 2, lines


def test_a_section_that_is_a_value_is_refused(tmp_path: Path) -> None:
    (line,) = refusal({}, written(tmp_path, "services: {orchestrator: {scheduler: 3}}"))
    assert line.endswith("there is no setting scheduler")


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "services: [1]", "services: {orchestrator: 3}"])
def test_a_file_of_another_shape_is_refused_with_the_shape_it_needs(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"services: \{orchestrator: "):
        load_settings({}, written(tmp_path, text))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_settings({}, written(tmp_path, "# nothing yet\n")) == Settings()


def test_sections_of_other_services_are_left_alone(tmp_path: Path) -> None:
    file = written(tmp_path, "services: {other: {port: 1}}\nlogging: {level: debug}\n")
    assert load_settings({}, file) == Settings()


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "services: [")
    with pytest.raises(ConfigurationError, match=r"config\.yaml is not YAML"):
        load_settings({}, file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the settings file .*missing\.yaml"):
        load_settings({}, tmp_path / "missing.yaml")


def test_a_child_process_gets_the_same_settings_through_its_environment() -> None:
    settings = Settings(
        host="0.0.0.0",
        port=0,
        data_dir="/tmp/a folder with spaces",
        admin_key="ключ",
        plugins="one,two",
        database=DatabaseSettings(url="postgresql://u:p%40ss@h/d", pool_size=7),
        broker=BrokerSettings(url="redis+socket:///tmp/s"),
        scheduler=replace(SchedulerSettings(), enabled=False, poll_interval=0.2),
        executor=ExecutorSettings(timeout=0.5, max_payload=4096),
    )
    assert load_settings(environment_of(settings)) == settings


def test_the_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]
