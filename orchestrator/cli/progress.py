"""Showing an execution: its steps while they run on stderr, its result on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.output import STATUS_COLOURS
from orchestrator.errors import Problem

if TYPE_CHECKING:
    from orchestrator.client import Client


def show_progress(client: Client, execution_id: str) -> Any:
    """The execution at its end, having shown each step as it moved."""
    if not sys.stderr.isatty():
        return client.executions.follow(execution_id, lambda step: click.echo(step_line(step), err=True))
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def show(step: Any) -> None:
            if step["status"] in ("queued", "running", "waiting"):
                status.update(f"{step['path']} {step['status']}")
            else:
                click.echo(click.style(step_line(step), fg=STATUS_COLOURS.get(step["status"])), err=True)

        return client.executions.follow(execution_id, show)


def watch(client: Client, execution_id: str, as_json: bool) -> int:
    """Show an execution's progress and its result. The exit code: 0 only if it has completed, 130 after Ctrl-C."""
    try:
        execution = show_progress(client, execution_id)
    except KeyboardInterrupt:
        click.echo(f"\nexecution {execution_id} goes on: orchestrator executions wait {execution_id}", err=True)
        return 130
    print_result(execution, as_json)
    return 0 if execution["status"] == "completed" else 1


def step_line(step: Any) -> str:
    """`step_id  completed  0.12s`, with the attempt if it is not the first, and the error if there is one."""
    parts = [step["path"], step["status"]]
    if step.get("attempt", 0) > 1:
        parts.append(f"attempt {step['attempt']}")
    if step.get("duration") is not None and step["status"] not in ("queued", "running", "waiting"):
        parts.append(f"{step['duration']:.2f}s")
    if step.get("error_message"):
        parts.append(step["error_message"])
    return "  ".join(parts)


def print_result(execution: Any, as_json: bool) -> None:
    """The execution on stdout: as the API gives it, or for a person."""
    if as_json:
        click.echo(json.dumps(execution, ensure_ascii=False))
        return
    duration = execution.get("duration")
    took = f" in {duration:.2f} s" if duration is not None else ""
    click.echo(f"execution {execution['id']} {execution['status']}{took}")
    if execution.get("error_message"):
        click.echo(f"error: {execution['error_message']}")
    if execution.get("output") is not None:
        click.echo(json.dumps(execution["output"], indent=2, ensure_ascii=False))


def print_problems(file: Path, problems: Iterable[Problem]) -> None:
    """`FILE:LINE: path: message` of each on stderr, as editors and CI read it."""
    for problem in problems:
        click.echo(f"{file}:{problem.line or 1}: {problem.path or 'definition'}: {problem.message}", err=True)
