"""Finding a service to talk to, or bringing one up for as long as it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.cli.shared import load
from orchestrator.client import Client
from orchestrator.config import Settings
from orchestrator.datafolder import DataFolder
from orchestrator.errors import ConfigurationError
from orchestrator.exposure import is_loopback

_STOPS_WITHIN = 15.0


@dataclass(frozen=True, slots=True)
class Service:
    """`lasting`: it goes on when this command has ended."""

    client: Client
    lasting: bool


def connect(server: str | None, data_dir: str | None) -> Client:
    """The service at `server`, else the one that runs on the data folder. Raises ConfigurationError if there is none,
    or no key for it."""
    settings = load(data_dir=data_dir)
    folder = DataFolder(settings.data_path)
    running = folder.running()
    if not server and running is None:
        raise ConfigurationError(
            f"no service runs on the data folder {folder.path}: start it with `orchestrator up`, or say where one is "
            "with --server URL or ORCHESTRATOR_URL"
        )
    url = server or (running.url if running else "")
    return Client(url, _key(folder, settings, url))


@contextmanager
def service(settings: Settings, server: str | None) -> Iterator[Service]:
    """The service at `server`, else the data folder's, else one of our own that ends with the block.

    Raises ConfigurationError if it cannot be started or there is no key for it.
    """
    folder = DataFolder(settings.data_path)
    running = folder.running()
    if server or running:
        url = server or (running.url if running else "")
        yield Service(Client(url, _key(folder, settings, url)), lasting=True)
        return
    with _own(folder) as url:
        yield Service(Client(url, _key(folder, settings, url)), lasting=False)


def _key(folder: DataFolder, settings: Settings, url: str) -> str:
    key = os.environ.get("ORCHESTRATOR_KEY") or settings.admin_key
    if key:
        return key
    # Whoever answers at another address is not handed the key that opens everything here.
    if not is_loopback(urlsplit(url).hostname or "") and url != _url_of(folder):
        raise ConfigurationError(f"there is no key for {url}: set ORCHESTRATOR_KEY to one that is valid there")
    if key := folder.admin_key():
        return key
    raise ConfigurationError(
        f"there is no key: set ORCHESTRATOR_KEY, or name the service's data folder with --data-dir "
        f"({folder.key_file} does not exist)"
    )


def _url_of(folder: DataFolder) -> str | None:
    running = folder.running()
    return running.url if running else None


@contextmanager
def _own(folder: DataFolder) -> Iterator[str]:
    command = [sys.executable, "-m", "orchestrator.cli", "up", "--port", "0", "--until-eof"]
    command += ["--data-dir", str(folder.path)]
    with tempfile.TemporaryFile() as said:
        # In a group of its own: Ctrl-C is for us, and we tell it when we are done. If we are killed, its
        # stdin ends and so does it.
        up = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, process_group=0)
        try:
            while (running := folder.running()) is None:
                if up.poll() is not None:
                    said.seek(0)
                    words = said.read().decode("utf-8", "replace").strip().removeprefix("Error: ")
                    raise ConfigurationError(words or f"`orchestrator up` ended with exit code {up.returncode}")
                time.sleep(0.05)
            yield running.url
        finally:
            assert up.stdin is not None
            up.stdin.close()
            try:
                up.wait(_STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()
