"""`orchestrator audit`: who did what."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.connection import at_most, connected
from orchestrator.cli.output import Output, field, moment

if TYPE_CHECKING:
    from orchestrator.client import Client

_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command()
@click.option("--actor", "actor_id", metavar="ID", help="By whom: a key's id, ISSUER:SUB, or admin.")
@click.option("--action", metavar="ACTION", help="What was done or tried, such as workflow.update.")
@click.option("--kind", "object_kind", metavar="KIND", help="To which kind of object, such as workflow.")
@click.option("--object", "object_id", metavar="ID", help="To which object.")
@click.option("--project", metavar="NAME", help="In which project.")
@click.option("--denied/--done", default=None, help="Only what was refused, or only what was done.")
@click.option("--since", type=_MOMENT, help="From then on, by the clock here.")
@click.option("--until", type=_MOMENT, help="Before then.")
@at_most
@connected
def audit(
    client: Client, output: Output, limit: int, since: datetime | None, until: datetime | None, **filters: Any
) -> None:
    """List who did what to which object, newest first."""
    found = client.audit.list(since=_here(since), until=_here(until), limit=min(limit, 200), **filters)
    output.rows(
        islice(found, limit),
        {
            "WHEN": field("at", moment),
            "WHO": lambda entry: entry["actor_name"] or entry["actor_id"] or entry["actor_kind"],
            "ACTION": field("action"),
            "OBJECT": field("object_id"),
            "ANSWER": field("status"),
            "FROM": field("address"),
            "DETAIL": field("detail"),
        },
    )


def _here(given: datetime | None) -> datetime | None:
    return None if given is None else given.astimezone()
