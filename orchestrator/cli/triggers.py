"""`orchestrator triggers`: what starts workflows at a service."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_argument
from orchestrator.cli.inputs import input_options, read_inputs
from orchestrator.cli.output import Output, field, moment
from orchestrator.cli.workflows import workflow_id

if TYPE_CHECKING:
    from orchestrator.client import Client

_TRIGGER = id_argument("trigger")
_WORKFLOW = click.argument("workflow", metavar="ID|NAME")
_SHOWN = {
    "id": field("id"),
    "workflow": field("workflow_id"),
    "name": field("name"),
    "type": field("type"),
    "enabled": field("is_enabled"),
    "config": field("config"),
    "in the definition": field("from_definition"),
    "executions": field("trigger_count"),
    "last": field("last_triggered", moment),
    "created": field("created_at", moment),
}


@click.group()
def triggers() -> None:
    """Triggers of a service's workflows."""


@triggers.command("list")
@_WORKFLOW
@connected
def list_triggers(client: Client, output: Output, workflow: str) -> None:
    """List a workflow's triggers."""
    output.rows(
        client.triggers.list(workflow_id(client, workflow)),
        {
            "ID": field("id"),
            "NAME": field("name"),
            "TYPE": field("type"),
            "ENABLED": field("is_enabled"),
            "EXECUTIONS": field("trigger_count"),
            "LAST": field("last_triggered", moment),
        },
    )


@triggers.command()
@_TRIGGER
@connected
def show(client: Client, output: Output, trigger: str) -> None:
    """Show a trigger; its secrets are ***."""
    output.record(client.triggers.get(trigger), _SHOWN)


@triggers.command()
@_WORKFLOW
@click.argument("type")
@click.option("--name", metavar="NAME", help="Unique in the workflow.  [default: the type]")
@click.option("--config", "pairs", multiple=True, metavar="K=V", help="One field of its config; V is JSON, else text.")
@click.option("--disabled", is_flag=True, help="Do not let it start anything yet.")
@connected
def create(
    client: Client, output: Output, workflow: str, type: str, name: str | None, pairs: tuple[str, ...], disabled: bool
) -> None:
    """Add a trigger of a TYPE such as schedule, webhook or event to a workflow."""
    named: dict[str, Any] = {} if name is None else {"name": name}
    config = read_inputs(pairs, None, option="--config")
    made = client.triggers.create(workflow_id(client, workflow), type, config, is_enabled=not disabled, **named)
    output.done(made, f"trigger {made['id']} {made['name']!r} is created")


@triggers.command()
@_TRIGGER
@connected
def enable(client: Client, output: Output, trigger: str) -> None:
    """Let a trigger start its workflow."""
    output.done(client.triggers.update(trigger, is_enabled=True), f"trigger {trigger} is enabled")


@triggers.command()
@_TRIGGER
@connected
def disable(client: Client, output: Output, trigger: str) -> None:
    """Let a trigger start nothing until it is enabled again."""
    output.done(client.triggers.update(trigger, is_enabled=False), f"trigger {trigger} is disabled")


@triggers.command()
@_TRIGGER
@asked_before("Remove the trigger with the record of its fires?")
@connected
def delete(client: Client, output: Output, trigger: str) -> None:
    """Remove a trigger; its executions stay."""
    client.triggers.delete(trigger)
    output.done({"id": trigger}, f"trigger {trigger} is removed")


@triggers.command()
@_TRIGGER
@input_options
@connected
def fire(client: Client, output: Output, trigger: str, pairs: tuple[str, ...], input_file: Path | None) -> None:
    """Fire a trigger by hand, even if it is disabled."""
    fired = client.triggers.fire(trigger, read_inputs(pairs, input_file) if pairs or input_file else None)
    came = f"execution {fired['execution_id']}" if fired["execution_id"] else fired["reason"]
    output.done(fired, f"{fired['outcome']}: {came}")


@triggers.command()
@_TRIGGER
@at_most
@connected
def fires(client: Client, output: Output, trigger: str, limit: int) -> None:
    """List what fired a trigger, newest first, and what that started or why it did not."""
    output.rows(
        islice(client.triggers.fires(trigger), limit),
        {
            "WHEN": field("created_at", moment),
            "SLOT": field("scheduled_for", moment),
            "OUTCOME": field("outcome"),
            "EXECUTION": field("execution_id"),
            "REASON": field("reason"),
        },
    )
