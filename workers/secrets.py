"""Secrets, resolved in the worker alone and masked in everything it stores.

They come from the backends that `vault.backends` names; of two that know the same name, the one that stands first in
that list has the word:

- `database`: written through the API, encrypted, in a scope; the narrowest scope has the word.
- `files`: one file a secret in `vault.folder`, as Kubernetes mounts them.
- `environment`: `secrets.api_token` is ORCHESTRATOR_SECRET_API_TOKEN of the worker.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.config import Settings
from orchestrator.errors import TemplateError
from orchestrator.masking import MASK, SHORTEST
from orchestrator.store import Store
from orchestrator.store import secrets as stored_secrets
from orchestrator.store.secrets import Scope
from orchestrator.vault import Unreadable, Vault, open_vault

logger = logging.getLogger(__name__)

_PREFIX = "ORCHESTRATOR_SECRET_"
FRESH = 5.0
"""Seconds after which what was read is read anew: as long a secret that was changed may still be used."""
_KEPT = 1000
"""Scopes whose secrets a process has at hand."""


class Secrets(Mapping[str, str]):
    """What the templates of one workflow see as `secrets`; names are in lower case."""

    def __init__(
        self, values: Mapping[str, str], also: Iterable[str] = (), unreadable: Mapping[str, str] | None = None
    ) -> None:
        """`also` are texts that are no one's to name, but are masked as well: the secrets of the settings. `unreadable`
        says of others why they cannot be had."""
        self._values = dict(values)
        self._unreadable = unreadable or {}
        # The longest first: a secret that is a part of another one must not leave the rest of it standing.
        masked = sorted({text for text in (*values.values(), *also) if len(text) >= SHORTEST}, key=len)
        self._pattern = re.compile("|".join(re.escape(text) for text in reversed(masked))) if masked else None

    def __getitem__(self, name: str) -> str:
        name = name.lower()
        if name in self._unreadable:
            raise TemplateError(f"the secret {name!r} cannot be read: {self._unreadable[name]}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def mask(self, value: Any) -> Any:
        """`value` with every secret in its texts (keys included) replaced; the same object if there are none."""
        return value if self._pattern is None else _masked(value, self._pattern)


def _masked(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(MASK, value)
    if value is None or isinstance(value, (bool, int, float)):  # to find out that these are no mapping takes longer
        return value
    if isinstance(value, Mapping):
        return {_masked(key, pattern): _masked(item, pattern) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(item, pattern) for item in value]
    return value


class SecretSource:
    """Where a process has secrets from."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._settings = settings.vault
        self._vault = open_vault(settings.vault)
        self._also = settings.secrets()
        self._kept: dict[Scope, tuple[float, Secrets]] = {}
        self._lock = threading.Lock()

    def of(self, workflow_id: str) -> Secrets:
        """What the steps of a workflow may name. Raises what the database raises when it is away."""
        return self._fresh(Scope(workflow_id=workflow_id))

    def of_project(self, project_id: str) -> Secrets:
        """What all workflows of a project may name. Raises the same."""
        return self._fresh(Scope(project_id=project_id))

    def _fresh(self, scope: Scope) -> Secrets:
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(scope)
        if kept is not None and now < kept[0]:
            return kept[1]
        read = self._read(scope)
        with self._lock:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[scope] = (now + FRESH, read)
        return read

    def _read(self, scope: Scope) -> Secrets:
        values: dict[str, str] = {}
        unreadable: dict[str, str] = {}
        for backend in reversed(self._settings.backends):
            if backend == "database":
                self._from_database(scope, values, unreadable)
            else:
                found = _from_files(self._settings.folder) if backend == "files" else from_environment(os.environ)
                values |= found
                unreadable = {name: why for name, why in unreadable.items() if name not in found}
        return Secrets(values, self._also, unreadable)

    def _from_database(self, scope: Scope, values: dict[str, str], unreadable: dict[str, str]) -> None:
        with self._store.single() as connection:
            for stored in stored_secrets.seen_in(connection, scope):
                try:
                    values[stored.name] = _opened(self._vault, stored)
                    unreadable.pop(stored.name, None)
                except Unreadable as error:
                    values.pop(stored.name, None)
                    unreadable[stored.name] = str(error)
                    logger.warning("the secret %s (%s) cannot be read: %s", stored.name, stored.id, error)


def _opened(vault: Vault | None, stored: stored_secrets.Stored) -> str:
    if vault is None:
        raise Unreadable("this worker has no key; set ORCHESTRATOR_VAULT_KEY, or vault.key_file")
    return vault.open(stored.sealed, stored.bound_to)


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(_PREFIX).lower(): value for name, value in environ.items() if name.startswith(_PREFIX)}


def _from_files(folder: str) -> dict[str, str]:
    """Kubernetes keeps what it mounts in folders whose names begin with a dot, and links to them."""
    if not folder:
        return {}
    found = {}
    try:
        for file in Path(folder).expanduser().iterdir():
            if not file.name.startswith(".") and file.is_file():
                found[file.name.lower()] = file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("the secrets in %s (vault.folder) cannot be read: %s", folder, error)
    return found
