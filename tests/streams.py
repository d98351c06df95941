"""The API as a process that an operator starts, and those who listen to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from deployment import KEY, PATIENCE, Deployment, kill, own_port, wait_until

from orchestrator.config import environment_of
from orchestrator.supervisor import procfile, read_procfile


class Web:
    """The `web` process of the Procfile, over the servers of a deployment."""

    def __init__(self, deployment: Deployment, port: int, **api: Any) -> None:
        settings = deployment.settings
        self.port = port
        self.log = deployment.folder / f"web-{self.port}.log"
        self._folder = deployment.folder
        self._settings = replace(
            settings, port=self.port, api=replace(settings.api, **({"stream_lifetime": 3600.0} | api))
        )
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        bin = str(Path(sys.executable).parent)
        environment = os.environ | environment_of(self._settings)
        environment["PATH"] = os.pathsep.join([bin, environment.get("PATH", os.defpath)])
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {read_procfile(procfile())['web']}"],
                stdout=log, stderr=log, env=environment, cwd=self._folder, process_group=0,
            )  # fmt: skip
        wait_until(self._answers, what="the web process")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/openapi.json")[0] == 200
        except OSError:
            return False

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def kill(self) -> None:
        """Nobody says goodbye."""
        kill([*self.workers(), psutil.Process(self.process.pid)])
        self.process.wait()

    def get(self, path: str, key: str = KEY) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def listen(self, path: str, *, after: int | None = None, key: str = KEY, **query: str) -> Listener:
        headers = {"Authorization": f"Bearer {key}"} | ({} if after is None else {"Last-Event-ID": str(after)})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", f"{path}?{urlencode(query)}" if query else path, headers=headers)
        return Listener(connection, connection.getresponse())


@contextmanager
def web(deployment: Deployment, **api: Any) -> Iterator[Web]:
    """With these settings of `api`."""
    with own_port() as port:
        running = Web(deployment, port, **api)
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.kill()


@dataclass(frozen=True)
class Event:
    """As the standard has a client dispatch it."""

    id: int
    kind: str
    data: Any

    @property
    def told(self) -> tuple[str, ...]:
        """`execution completed`, `step a running`, `log a hello`, `end completed`."""
        data = self.data
        what = data["message"] if self.kind == "log" else data["status"]
        return (self.kind, *([data["path"]] if "path" in data else []), what)


def events(lines: Iterable[bytes]) -> Iterator[Event]:
    """What a client that reads these lines dispatches."""
    id, kind, data = -1, "", ""
    for raw in lines:
        name, _, value = raw.decode().rstrip("\n").partition(": ")
        if name == "id":
            id = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            data = value
        elif not name and data:
            yield Event(id, kind, json.loads(data))
            kind, data = "", ""


@dataclass
class Listener:
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    last_id: int = -1
    heard: list[Event] = field(default_factory=list)

    @property
    def socket(self) -> socket.socket:
        taken = self.connection.sock
        assert taken is not None
        return taken

    def events(self) -> Iterator[Event]:
        """Until the stream ends."""
        for event in events(self._lines()):
            self.heard.append(event)
            yield event

    def _lines(self) -> Iterator[bytes]:
        for line in self.response:
            if line.startswith(b"id: "):
                self.last_id = int(line[4:])
            yield line

    def until(self, *told: str) -> list[Event]:
        """All that has been heard when this was told."""
        for event in self.events():
            if event.told[: len(told)] == told:
                return self.heard
        raise AssertionError(f"the stream ended without {told}: {[event.told for event in self.heard]}")

    def rest(self) -> list[Event]:
        return list(self.events())

    def hang_up(self) -> None:
        self.response.close()
        self.connection.close()
