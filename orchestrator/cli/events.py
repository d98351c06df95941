"""`orchestrator events`: what starts workflows is sent, and what becomes of them is followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from orchestrator.cli.connection import connected
from orchestrator.cli.inputs import read_inputs
from orchestrator.cli.output import Output, field, moment
from orchestrator.cli.workflows import workflow_id

if TYPE_CHECKING:
    from orchestrator.client import Client

_KINDS = ("execution", "step", "log")


@click.group()
def events() -> None:
    """Events that start workflows, and those of what becomes of executions."""


@events.command()
@click.argument("type")
@click.option("--source", default="orchestrator-cli", show_default=True, help="What it happened in.")
@click.option("--id", metavar="ID", help="Sent again with the same, it starts nothing.  [default: one of its own]")
@click.option("--subject", metavar="TEXT", help="Which part of the source it happened to.")
@click.option("--data", "pairs", multiple=True, metavar="K=V", help="One field of its data; V is JSON, else text.")
@connected
def send(
    client: Client, output: Output, type: str, source: str, id: str | None, subject: str | None, pairs: tuple[str, ...]
) -> None:
    """Send a CloudEvent of a TYPE, and list the triggers that it fired."""
    event = {"id": id or str(uuid4()), "source": source, "type": type, "subject": subject}
    data = {"data": read_inputs(pairs, None, option="--data")} if pairs else {}
    output.rows(
        client.events.send(event | data),
        {
            "TRIGGER": field("trigger_id"),
            "OUTCOME": field("outcome"),
            "EXECUTION": field("execution_id"),
            "REASON": field("reason"),
        },
    )


@events.command()
@click.option("--workflow", metavar="ID|NAME", help="Only of this workflow's executions.")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(_KINDS), default=_KINDS[:2], show_default=True, help="Of what."
)
@connected
def follow(client: Client, output: Output, workflow: str | None, kinds: tuple[str, ...]) -> None:
    """Print what becomes of executions from now on, until Ctrl-C; with --json, an object a line."""
    of = None if workflow is None else workflow_id(client, workflow)
    output.lines(_told(client, kinds, of), _line)


def _told(client: Client, kinds: tuple[str, ...], workflow_id: str | None) -> Iterator[dict[str, Any]]:
    for event in client.events.follow(kinds=kinds, workflow_id=workflow_id):
        if event.kind == "reset":
            click.echo(event.data["reason"], err=True)
        else:
            yield {"kind": event.kind, **event.data}


def _line(told: dict[str, Any]) -> str:
    says = told["message"].rstrip() if told["kind"] == "log" else told["error_message"]
    what = (told.get("path"), told.get("status") or told.get("level"), says)
    return "  ".join(filter(None, (moment(told["at"]), told["execution_id"], *what)))
