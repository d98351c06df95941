"""How secrets are encrypted at rest: AES-256-GCM (NIST SP 800-38D) under a key that the database never sees.

`vault.key` (or the file that `vault.key_file` names) holds one key or several, separated by commas or white space, each
32 bytes in URL-safe base64, as `orchestrator secrets new-key` prints them. The first one encrypts; all decrypt, so that
keys can be changed while the service runs: put the new one first, `orchestrator secrets rotate`, remove the old one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.config import VaultSettings
from orchestrator.errors import ConfigurationError, OrchestratorError

KEY_BYTES = 32
_NONCE_BYTES = 12


class Unreadable(OrchestratorError):
    """A secret that cannot be decrypted: its key is not among ours, or it is not what was written."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted secret. `key_id` says which key it takes, and nothing about that key."""

    key_id: str
    data: bytes


class Vault:
    """Seals and opens secrets. `bound_to` is what a sealed secret belongs to: it opens for nothing else, so that
    whoever can write the database cannot put one secret in the place of another."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        """The first of `keys` seals."""
        self._keys = {_id(key): AESGCM(key) for key in keys}
        if not self._keys:
            raise ValueError("there is no key")

    @property
    def key_id(self) -> str:
        """Of the key that seals."""
        return next(iter(self._keys))

    def seal(self, secret: str, bound_to: str) -> Sealed:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._keys[self.key_id].encrypt(nonce, secret.encode(), bound_to.encode())
        return Sealed(self.key_id, nonce + sealed)

    def open(self, sealed: Sealed, bound_to: str) -> str:
        """Raises Unreadable."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise Unreadable(
                f"it was encrypted with the key {sealed.key_id}, which is not among those of vault.key; add that key"
            )
        nonce, data = sealed.data[:_NONCE_BYTES], sealed.data[_NONCE_BYTES:]
        try:
            return key.decrypt(nonce, data, bound_to.encode()).decode()
        except InvalidTag:
            raise Unreadable("its row in the database is not what was written there; set it anew") from None


def open_vault(settings: VaultSettings) -> Vault | None:
    """The vault that the settings have keys for; None if they have none. Raises ConfigurationError."""
    text, where = settings.key, "vault.key"
    if not text and settings.key_file:
        where = f"the file {settings.key_file} (vault.key_file)"
        try:
            text = Path(settings.key_file).expanduser().read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{where} cannot be read: {error}") from error
    words = text.replace(",", " ").split()
    return Vault(_key(word, where) for word in words) if words else None


def new_key() -> str:
    """A new key, as `vault.key` takes it."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def _key(word: str, where: str) -> bytes:
    try:
        key = base64.urlsafe_b64decode(word)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{where} does not hold {KEY_BYTES} bytes in URL-safe base64; make a key with "
            "`orchestrator secrets new-key`"
        )
    return key


def _id(key: bytes) -> str:
    return hashlib.sha256(b"orchestrator key id" + key).hexdigest()[:16]
