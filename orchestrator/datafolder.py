"""The data folder of `orchestrator up`: who holds it, the key, the logs.

lock         held (flock) by the process that runs the folder's servers
up.json      where that process is to be reached; private, for it has the servers' passwords
admin-key    the API's bearer key, if none was configured
vault-key    what secrets are encrypted with, likewise
logs/        one file a process
postgres/, valkey/, sockets/   the embedded servers'
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from orchestrator.errors import ConfigurationError
from orchestrator.vault import new_key


@dataclass(frozen=True, slots=True)
class Running:
    """What up.json says of the process that holds the folder."""

    pid: int
    url: str
    database_url: str
    broker_url: str


class FolderInUse(ConfigurationError):
    """Another process holds the folder; `running` says which, once it is ready."""

    def __init__(self, folder: Path, running: Running | None) -> None:
        who = f"process {running.pid} at {running.url}" if running else "a process that is still starting"
        super().__init__(f"orchestrator runs already on {folder}: {who}")
        self.running = running


class DataFolder:
    """One data folder; making this object does not touch the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self._held: TextIO | None = None

    def acquire(self) -> None:
        """Take the folder for this process until it ends or lets go. FolderInUse if another has it."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            lock = (self.path / "lock").open("a")
        except OSError as error:
            raise ConfigurationError(
                f"cannot use the data folder {self.path}: {error.strerror}. Name another with --data-dir or "
                "ORCHESTRATOR_DATA_DIR."
            ) from error
        if not _locked(lock):
            lock.close()
            raise FolderInUse(self.path, self._read())
        self._held = lock
        self._state.unlink(missing_ok=True)

    def release(self) -> None:
        if self._held is not None:
            self._state.unlink(missing_ok=True)
            self._held.close()
            self._held = None

    def announce(self, running: Running) -> None:
        """Tell other processes of this user where the service is."""
        _write_private(self._state, json.dumps(asdict(running)) + "\n")

    def running(self) -> Running | None:
        """The ready process that holds the folder. None if there is none; a stale up.json is not believed."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._read()
        except FileNotFoundError:
            return None
        return None

    def admin_key(self, configured: str = "", *, create: bool = False) -> str:
        """`configured`, else the folder's key, else (with `create`) a new one. "" if there is none."""
        return configured or self._kept_key(
            self.key_file, "ORCHESTRATOR_ADMIN_KEY", (lambda: secrets.token_urlsafe(32)) if create else None
        )

    def vault_key(self, configured: str = "") -> str:
        """`configured`, else the folder's key for secrets, else a new one."""
        return configured or self._kept_key(self.path / "vault-key", "ORCHESTRATOR_VAULT_KEY", new_key)

    def _kept_key(self, file: Path, variable: str, make: Callable[[], str] | None) -> str:
        try:
            key = file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            key = ""
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the key file {file}: {error.strerror}. Set {variable}, or run as the user that started "
                "the service."
            ) from error
        if not key and make is not None:
            key = make()
            _write_private(file, key + "\n")
        return key

    @property
    def key_file(self) -> Path:
        return self.path / "admin-key"

    @property
    def _state(self) -> Path:
        return self.path / "up.json"

    def _read(self) -> Running | None:
        try:
            return Running(**json.loads(self._state.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _locked(lock: TextIO) -> bool:
    # More than one try, for running() in another process holds the lock while it looks.
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _write_private(file: Path, text: str) -> None:
    """Write so that a reader sees all of it or the file before, and only the owner sees it at all."""
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(text)
    new.replace(file)
