"""Secrets at rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import VaultSettings
from orchestrator.errors import ConfigurationError
from orchestrator.vault import Sealed, Unreadable, Vault, new_key, open_vault

OLD, NEW = new_key(), new_key()


def vault_of(key: str) -> Vault:
    vault = open_vault(VaultSettings(key=key))
    assert vault is not None
    return vault


def test_what_is_sealed_opens_for_what_it_belongs_to_and_nothing_else():
    vault = vault_of(NEW)
    sealed = vault.seal("höchst geheim", "here")
    assert b"geheim" not in sealed.data
    assert vault.open(sealed, "here") == "höchst geheim"
    with pytest.raises(Unreadable, match="not what was written"):
        vault.open(sealed, "there")


def test_the_same_secret_is_never_sealed_the_same():
    vault = vault_of(NEW)
    assert vault.seal("x", "a").data != vault.seal("x", "a").data


@pytest.mark.parametrize("at", [0, 12, -1])
def test_a_sealed_secret_that_was_changed_does_not_open(at: int):
    sealed = vault_of(NEW).seal("secret", "here")
    changed = bytearray(sealed.data)
    changed[at] ^= 1
    with pytest.raises(Unreadable):
        vault_of(NEW).open(Sealed(sealed.key_id, bytes(changed)), "here")


def test_the_first_key_seals_and_all_open():
    before = vault_of(OLD).seal("secret", "here")
    both = vault_of(f"{NEW}, {OLD}")
    assert both.open(before, "here") == "secret"
    assert both.seal("x", "here").key_id == vault_of(NEW).key_id
    with pytest.raises(Unreadable, match=before.key_id):
        vault_of(NEW).open(before, "here")


def test_a_key_id_tells_nothing_of_the_key():
    assert vault_of(NEW).key_id not in NEW


def test_keys_come_from_a_file_too(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"{NEW}\n{OLD}\n")
    vault = open_vault(VaultSettings(key_file=str(file)))
    assert vault is not None
    assert vault.key_id == vault_of(NEW).key_id


def test_without_a_key_there_is_no_vault():
    assert open_vault(VaultSettings()) is None


@pytest.mark.parametrize("key", ["short", "not base64 !", "A" * 40, "A" * 43 + "=,x"])
def test_what_is_no_key_is_refused_with_what_to_do(key: str):
    with pytest.raises(ConfigurationError, match=r"vault\.key .*new-key"):
        open_vault(VaultSettings(key=key))


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no-such-file"):
        open_vault(VaultSettings(key_file=str(tmp_path / "no-such-file")))
