"""`orchestrator secrets`: the keys that secrets are encrypted with."""

from __future__ import annotations

import click


@click.group()
def secrets() -> None:
    """The keys that secrets are encrypted with; secrets themselves are written through the API."""


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
