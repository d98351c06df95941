"""`orchestrator secrets`: what templates know as secrets.NAME, and the keys that it is encrypted with."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_argument
from orchestrator.cli.output import Output, field, moment
from orchestrator.cli.workflows import workflow_id

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.client.shapes import Secret


@click.group()
def secrets() -> None:
    """Secrets of a service, which are written and never read back, and the keys that they are encrypted with."""


@secrets.command("list")
@at_most
@connected
def list_secrets(client: Client, output: Output, limit: int) -> None:
    """List secrets by name, without what they are."""
    output.rows(
        islice(client.secrets.list(limit=min(limit, 200)), limit),
        {
            "ID": field("id"),
            "NAME": field("name"),
            "FOR": _scope,
            "CHANGED": field("updated_at", moment),
            "DESCRIPTION": field("description"),
        },
    )


def _scope(secret: Secret) -> str:
    if secret["workflow_id"]:
        return f"workflow {secret['workflow_id']}"
    return f"project {secret['project_id']}" if secret["project_id"] else "all"


@secrets.command("set")
@click.argument("name")
@click.option("--workflow", metavar="ID|NAME", help="The only workflow that sees it.")
@click.option("--project", metavar="NAME", help="The project whose workflows see it.  [default: all]")
@click.option("--description", metavar="TEXT", help="What it is for.")
@connected
def set_secret(
    client: Client, output: Output, name: str, workflow: str | None, project: str | None, description: str | None
) -> None:
    """Write a secret, or another value for it: the first line of stdin, or what is typed unseen."""
    from orchestrator.client import Conflict

    value = click.prompt("Value", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    scope = _given_scope(client, workflow, project)
    more: dict[str, Any] = {} if description is None else {"description": description}
    try:
        written = client.secrets.create(name, value, **more, **scope)
    except Conflict:
        there = _there(client, name, scope)
        if there is None:
            raise
        written = client.secrets.update(there["id"], value=value, **more)
    output.done(written, f"secret {written['name']} ({written['id']}) is written for {_scope(written)}")


def _given_scope(client: Client, workflow: str | None, project: str | None) -> dict[str, str]:
    if workflow is not None and project is not None:
        raise click.UsageError("--workflow and --project exclude each other: a workflow belongs to a project")
    if workflow is not None:
        return {"workflow_id": workflow_id(client, workflow)}
    return {} if project is None else {"project": project}


def _there(client: Client, name: str, scope: dict[str, str]) -> Secret | None:
    """The secret that has this name and is for just those."""
    ids = {found["name"]: found["id"] for found in client.projects.list()}
    wanted = (name.lower(), ids.get(scope.get("project", "")), scope.get("workflow_id"))
    all_there = client.secrets.list(limit=200)
    return next((one for one in all_there if (one["name"], one["project_id"], one["workflow_id"]) == wanted), None)


@secrets.command()
@id_argument("secret")
@asked_before("Remove the secret? Steps that name it fail from then on.")
@connected
def delete(client: Client, output: Output, secret: str) -> None:
    """Remove a secret."""
    client.secrets.delete(secret)
    output.done({"id": secret}, f"secret {secret} is removed")


@secrets.command("new-key")
def make_key() -> None:
    """Print a new key, as ORCHESTRATOR_VAULT_KEY takes it."""
    from orchestrator.vault import new_key

    click.echo(new_key())


@secrets.command()
def rotate() -> None:
    """Encrypt every secret with the first key.

    Set ORCHESTRATOR_VAULT_KEY to the new key, a comma and the old one, everywhere; run this; then remove the old one.
    """
    from orchestrator.cli.shared import load
    from orchestrator.errors import ConfigurationError
    from orchestrator.store import Store
    from orchestrator.store import secrets as stored_secrets
    from orchestrator.vault import Unreadable, open_vault

    settings = load()
    vault = open_vault(settings.vault)
    if vault is None:
        raise ConfigurationError("there is no key; set ORCHESTRATOR_VAULT_KEY, or vault.key_file")
    if not settings.database.url:
        raise ConfigurationError("database.url is not set; set ORCHESTRATOR_DATABASE_URL to that of the service")
    store = Store(settings.database)
    rotated, after = 0, None
    unreadable = []
    with store.single() as connection:
        while batch := stored_secrets.sealed_otherwise(connection, vault.key_id, after=after):
            after = batch[-1].id
            for stored in batch:
                try:
                    sealed = vault.seal(vault.open(stored.sealed, stored.bound_to), stored.bound_to)
                except Unreadable as error:
                    unreadable.append(f"{stored.name} ({stored.id}): {error}")
                else:
                    rotated += stored_secrets.reseal(connection, stored, sealed)
    store.close()
    click.echo(f"{rotated} secrets are encrypted anew, with the key {vault.key_id}")
    if unreadable:
        raise ConfigurationError("these could not be read:\n" + "\n".join(f"  {line}" for line in unreadable))
