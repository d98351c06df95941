"""`orchestrator keys`: API keys of a service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_argument
from orchestrator.cli.output import Output, field, moment

if TYPE_CHECKING:
    from orchestrator.client import Client

ROLES = ("viewer", "operator", "editor", "admin")


@click.group()
def keys() -> None:
    """API keys, and what they open."""


@keys.command("list")
@at_most
@connected
def list_keys(client: Client, output: Output, limit: int) -> None:
    """List keys, newest first; never the keys themselves."""
    output.rows(
        islice(client.keys.list(limit=min(limit, 200)), limit),
        {
            "ID": field("id"),
            "NAME": field("name"),
            "BEGINS": field("prefix"),
            "ROLES": field("grants", _roles),
            "EXPIRES": field("expires_at", moment),
            "LAST USED": field("last_used_at", moment),
            "REVOKED": field("revoked_at", moment),
        },
    )


def _roles(grants: list[Any]) -> list[str]:
    return [f"{grant['role']} in {grant['project'] or 'all projects'}" for grant in grants]


@keys.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may do.")
@click.option("--project", "projects", multiple=True, metavar="NAME", help="Where.  [default: in all projects]")
@click.option("--expires", metavar="DURATION", help="When it stops, as 30d or 12h from now.  [default: never]")
@connected
def create(
    client: Client, output: Output, name: str, role: str, projects: tuple[str, ...], expires: str | None
) -> None:
    """Create a key and print it: it is shown this once, on stdout and alone."""
    grants = [{"role": role, "project": project} for project in projects or (None,)]
    made = client.keys.create(name, grants, **({} if expires is None else {"expires_at": _from_now(expires)}))
    if not output.as_json:
        click.echo(f"key {made['id']} {made['name']!r} is created; keep it, it is not shown again:", err=True)
    output.done(made, made["key"])


def _from_now(duration: str) -> datetime:
    from orchestrator.definition.durations import parse_duration

    try:
        return datetime.now(UTC) + timedelta(seconds=parse_duration(duration))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None


@keys.command()
@id_argument("key")
@asked_before("Revoke the key for good?")
@connected
def revoke(client: Client, output: Output, key: str) -> None:
    """Revoke a key for good: within seconds it opens nothing."""
    client.keys.revoke(key)
    output.done({"id": key}, f"key {key} is revoked")
