"""`orchestrator executions`: what runs and ran at a service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_argument
from orchestrator.cli.inputs import input_options, read_inputs
from orchestrator.cli.output import Output, field, moment, seconds

if TYPE_CHECKING:
    from orchestrator.client import Client

_EXECUTION = id_argument("execution")
_SHOWN = {
    "id": field("id"),
    "workflow": field("workflow_id"),
    "version": field("version"),
    "status": field("status"),
    "error": field("error_message"),
    "priority": field("priority"),
    "does again": field("rerun_of"),
    "created": field("created_at", moment),
    "started": field("start_time", moment),
    "ended": field("end_time", moment),
    "duration": field("duration", seconds),
    "input": field("input"),
    "output": field("output", lambda value: "" if value is None else json.dumps(value, ensure_ascii=False)),
}
_STEPS = {
    "STEP": field("path"),
    "TYPE": field("type"),
    "STATUS": field("status"),
    "ATTEMPT": field("attempt"),
    "DURATION": field("duration", seconds),
    "ERROR": field("error_message"),
}


@click.group()
def executions() -> None:
    """Executions of a service's workflows."""


@executions.command("list")
@click.option("--workflow", metavar="ID|NAME", help="Only those of this workflow.")
@click.option("--status", metavar="STATUS", help="Only those that have it.")
@at_most
@connected
def list_executions(client: Client, output: Output, workflow: str | None, status: str | None, limit: int) -> None:
    """List executions, newest first."""
    from orchestrator.cli.workflows import workflow_id

    names = cache(lambda id: client.workflows.get(id)["name"])

    of = None if workflow is None else workflow_id(client, workflow)
    output.rows(
        islice(client.executions.list(workflow_id=of, status=status, limit=min(limit, 200)), limit),
        {
            "ID": field("id"),
            "WORKFLOW": field("workflow_id", names),
            "VERSION": field("version"),
            "STATUS": field("status"),
            "CREATED": field("created_at", moment),
            "DURATION": field("duration", seconds),
            "ERROR": field("error_message"),
        },
    )


@executions.command()
@_EXECUTION
@connected
def show(client: Client, output: Output, execution: str) -> None:
    """Show an execution with its steps."""
    found = client.executions.get(execution)
    output.record(found, _SHOWN)
    if not output.as_json:
        click.echo()
        output.rows(found["step_executions"], _STEPS)


@executions.command()
@_EXECUTION
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended.")
@click.option("--step", metavar="ID", help="Only lines of this step.")
@click.option("--level", metavar="LEVEL", help="Only lines of this level, such as warning, and of more severe ones.")
@connected
def logs(client: Client, output: Output, execution: str, follow: bool, step: str | None, level: str | None) -> None:
    """Print what its steps wrote; with --json, an object a line."""
    read = client.executions.follow_logs if follow else client.executions.logs
    lines: Iterator[Any] = read(execution, step_id=step, level=level)
    output.lines(
        lines,
        lambda line: "  ".join(
            (moment(line["at"]), line.get("path") or line["step_id"], line["level"], line["message"].rstrip())
        ),
    )


@executions.command()
@_EXECUTION
@connected
def why(client: Client, output: Output, execution: str) -> None:
    """Say why an execution is not running now."""
    reason = client.executions.why(execution)
    fields = {"reason": field("reason"), "since": field("since", moment), "detail": field("detail")}
    output.record(reason, {**fields, **{name: _fact(name) for name in reason["facts"]}})


def _fact(name: str) -> Any:
    return lambda reason: reason["facts"][name]


@executions.command()
@_EXECUTION
@connected
def wait(client: Client, output: Output, execution: str) -> None:
    """Show its progress until it has ended; exit with 1 unless it completes."""
    from orchestrator.cli.progress import watch

    click.get_current_context().exit(watch(client, execution, output.as_json))


@executions.command()
@_EXECUTION
@click.option("--from-step", metavar="ID", help="The first step that is done again; what stands before it is kept.")
@click.option("--version", type=click.IntRange(1), help="Of the workflow; else that of the original.")
@input_options
@connected
def rerun(
    client: Client,
    output: Output,
    execution: str,
    from_step: str | None,
    version: int | None,
    pairs: tuple[str, ...],
    input_file: Path | None,
) -> None:
    """Start a new execution that does this one again. Inputs, if there are any, are all that it gets."""
    given = read_inputs(pairs, input_file) if pairs or input_file is not None else None
    wanted = {"from_step": from_step, "version": version, "input": given}
    changes: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    started = client.executions.rerun(execution, **changes)
    output.done(started, f"execution {started['id']} {started['status']}")


@executions.command()
@_EXECUTION
@click.argument("name")
@click.option("--payload", metavar="VALUE", help="What it brings; JSON, else text.")
@connected
def signal(client: Client, output: Output, execution: str, name: str, payload: str | None) -> None:
    """Send a message to the step that waits for it by its NAME, now or when it comes to it."""
    from orchestrator.cli.inputs import read_value

    sent = client.executions.signal(execution, name, None if payload is None else read_value(payload))
    output.done(sent, f"signal {name!r} is sent to execution {execution}")


@executions.command()
@_EXECUTION
@click.argument("path", metavar="STEP")
@click.option("--approve/--reject", "approved", required=True, default=None, help="What you decide.")
@click.option("--comment", metavar="TEXT", help="Why.")
@connected
def decide(client: Client, output: Output, execution: str, path: str, approved: bool, comment: str | None) -> None:
    """Approve or reject what an approval step waits for."""
    from orchestrator.errors import NotFound

    steps = {step["path"]: step["id"] for step in client.executions.get(execution)["step_executions"]}
    if path not in steps:
        raise NotFound("step", f"{path!r} in execution {execution}")
    decided = client.steps.decide(steps[path], approved=approved, comment=comment)
    output.done(decided, f"step {path} is {'approved' if approved else 'rejected'}")


@executions.command()
@_EXECUTION
@asked_before("Remove the execution with its steps and logs?")
@connected
def delete(client: Client, output: Output, execution: str) -> None:
    """Remove an execution that has ended."""
    client.executions.delete(execution)
    output.done({"id": execution}, f"execution {execution} is removed")


def _control(name: str, told: str) -> None:
    @executions.command(name, help=told)
    @_EXECUTION
    @connected
    def command(client: Client, output: Output, execution: str) -> None:
        moved: Any = getattr(client.executions, name)(execution)
        output.done(moved, f"execution {moved['id']} is {moved['status']}")


_control("cancel", "End it within seconds; what undoes its steps still runs.")
_control("pause", "Let no step of it begin any more; those that run come to their end.")
_control("resume", "Undo a pause.")
_control("retry", "Do again what failed or was cancelled; what completed is kept.")
