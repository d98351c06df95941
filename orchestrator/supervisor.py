"""`orchestrator up`: the embedded servers and the Procfile's processes, kept running until told to stop.

This process imports none of the packages that its children work with: it is there for as long as they are, so
it has to be small, and it sleeps until a signal arrives (one short look a second apart).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from orchestrator.config import Settings, environment_of
from orchestrator.datafolder import DataFolder, Running
from orchestrator.embedded import Embedded, free_port
from orchestrator.errors import ConfigurationError
from orchestrator.exposure import check_exposure, netloc
from orchestrator.processes import Child, adopt_orphans, end_orphans, rotate, stop_all

_TICK = 1.0
_READY_WITHIN = 90.0
_FIRST_DELAY, _LONGEST_DELAY, _STEADY_AFTER = 0.2, 5.0, 10.0  # seconds, of starting a dead child again
# Together less than the 10 seconds that `docker stop` and systemd users commonly give.
_SERVICES_STOP_WITHIN, _SERVERS_STOP_WITHIN = 5.5, 3.0
_STOP_ORDER = ("web", "beat")  # first no new requests, then no new ticks, then the workers


@dataclass(frozen=True, slots=True)
class Options:
    """How `up` was asked to run, beside the settings."""

    port_is_fixed: bool = False
    """Whether the user named the port: then a busy one is an error instead of a reason to take another."""
    verbose: bool = False
    until_eof: bool = False
    """Stop when stdin ends: how a program that needs the service for a while is sure to leave none behind."""
    demo: Path | None = None


class Stopping(Exception):
    """A signal asked for the end while the service was starting or being supervised."""


@dataclass(slots=True)
class _Kept:
    """A child that is started again whenever it ends, after a delay that grows while it does not last."""

    child: Child
    delay: float = _FIRST_DELAY
    started_at: float = field(default_factory=time.monotonic)
    restart_at: float | None = None


class Supervisor:
    """Starts, watches and ends everything; run() is all there is to call, in the main thread."""

    def __init__(self, settings: Settings, options: Options, guardian: int) -> None:
        self._settings = settings
        self._options = options
        self._guardian = guardian
        self._folder = DataFolder(settings.data_path)
        self._embedded: Embedded | None = None
        self._kept: list[_Kept] = []
        self._helpers: list[Child] = []
        self._stops_wanted = 0
        self._stops_seen = 0
        self._followed: dict[Path, int] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """The exit code, once everything has ended. ConfigurationError if it cannot start like this."""
        check_exposure(self._settings)
        with self._signals():
            self._folder.acquire()
            adopt_orphans()
            try:
                self._start_servers()
                self._start_services()
                self._wait_healthy()
                self._announce()
                while True:
                    self._pause(_TICK)
            except Stopping:
                return 0
            finally:
                self._end()

    # Starting

    def _start_servers(self) -> None:
        settings = self._settings
        key = self._folder.admin_key(settings.admin_key, create=True)
        settings = replace(settings, admin_key=key, port=self._choose_port(), data_dir=str(settings.data_path))
        if not settings.vault.key_file:
            vault = replace(settings.vault, key=self._folder.vault_key(settings.vault.key))
            settings = replace(settings, vault=vault)
        # The children run in the data folder, so what was relative to this process's folder is made absolute.
        executor = replace(settings.executor, scripts_dir=str(settings.scripts_path))
        self._settings = settings = replace(settings, executor=executor)
        own_database, own_broker = not settings.database.url, not settings.broker.url
        if own_database or own_broker:
            self._embedded = Embedded(
                self._folder.path, postgres=own_database, valkey=own_broker, logs=self._folder.logs
            )
        database = settings.database.url or (self._embedded.database_url if self._embedded else "")
        broker = settings.broker.url or (self._embedded.broker_url if self._embedded else "")
        self._settings = settings = replace(
            settings,
            database=replace(settings.database, url=database),
            broker=replace(settings.broker, url=broker),
            artifacts=replace(settings.artifacts, url=self._artifacts_url(own_database)),
        )
        # It loads its packages while the server starts: that halves the time to the first migration.
        migrate = self._python("migrate", ["migrate", "--wait", "60"], self._folder.logs / "migrate.log")
        migrate.start()
        if self._embedded:
            self._embedded.begin()
            self._embedded.wait(self._pause)
            self._kept += [_Kept(child) for child in self._embedded.children]
        while migrate.alive:
            self._pause(0.1)
        if migrate.exit_code != 0:
            raise ConfigurationError(f"the database could not be migrated:\n{migrate.last_lines()}")

    def _start_services(self) -> None:
        environment = self._environment()
        for name, command in read_procfile(procfile()).items():
            log = self._folder.logs / f"{name}.log"
            rotate(log)
            # `exec`, so that signals reach the program and not a shell around it.
            child = Child(
                name,
                ["/bin/sh", "-c", f"exec {command}"],
                log=log,
                environment=environment,
                folder=self._folder.path,
            )
            child.start()
            self._kept.append(_Kept(child))

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not self._healthy():
            if time.monotonic() > deadline:
                ends = "".join(f"\n{kept.child.log}:\n{kept.child.last_lines(8)}" for kept in self._kept)
                raise ConfigurationError(
                    f"the service was not healthy after {_READY_WITHIN:g} s. The ends of the logs:{ends}"
                )
            self._pause(0.05)

    def _healthy(self) -> bool:
        connection = HTTPConnection(_reachable(self._settings.host), self._settings.port, timeout=2)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            return response.status == 200 and json.loads(response.read()).get("status") == "healthy"
        except (OSError, HTTPException, ValueError, AttributeError):
            return False
        finally:
            connection.close()

    def _announce(self) -> None:
        settings = self._settings
        url = service_url(settings.host, settings.port)
        self._folder.announce(Running(os.getpid(), url, settings.database.url, settings.broker.url))
        _say(f"ready: {url}")
        if self._options.demo:
            demo = self._python("demo", ["demo", str(self._options.demo), "--server", url], log=None)
            demo.start()

    def _choose_port(self) -> int:
        host, port = self._settings.host, self._settings.port
        if port == 0:
            return free_port()
        reason = _why_not(host, port)
        if reason is None:
            return port
        if self._options.port_is_fixed or reason.errno != errno.EADDRINUSE:
            raise ConfigurationError(
                f"cannot listen on {host} port {port}: {reason.strerror}. Name another with --port or "
                "ORCHESTRATOR_PORT (0 takes a free one)."
            )
        other = free_port()
        _say(f"port {port} is in use; taking {other} instead")
        return other

    def _python(self, name: str, arguments: list[str], log: Path | None) -> Child:
        """One of our own commands in a process of its own, which we do not want to become as large as."""
        if log:
            log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        child = Child(name, command, log=log, environment=self._environment())
        self._helpers.append(child)
        return child

    def _artifacts_url(self, own_database: bool) -> str:
        """Whoever has the database elsewhere may have workers there as well, which would not find our folder."""
        url = self._settings.artifacts.url
        if not url:
            return str(self._folder.path / "artifacts") if own_database else ""
        return url if "://" in url else str(Path(url).expanduser().absolute())

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "ORCHESTRATOR_CONFIG"}
        ours = environment_of(self._settings)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        tuned = {
            "PYTHONUNBUFFERED": "1",
            "MALLOC_ARENA_MAX": "2",  # a heap for each thread is what most of an idle worker's memory was
            "WORKER_IO_CONCURRENCY": str(self._settings.scheduler.workers),
        }
        environment = {**tuned, **inherited, **ours, "PATH": path}
        if self._settings.plugins:
            # A plugin may be a file in the user's folder. Only then: a folder there that happens to be called
            # `api` or `workers` must not be taken for ours.
            known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
            environment["PYTHONPATH"] = os.pathsep.join([*known, str(Path.cwd())])
        return environment

    # Watching

    def _pause(self, seconds: float) -> None:
        """Sleep until a signal or for `seconds`, then look after the children. Raises Stopping."""
        due = [kept.restart_at - time.monotonic() for kept in self._kept if kept.restart_at is not None]
        seconds = max(0.0, min([seconds, *due, 0.2 if self._options.verbose else seconds]))
        for key, _ in self._selector.select(seconds):
            data = os.read(key.fd, 4096)
            if key.fd == 0 and not data:
                self._stops_wanted += 1
        if os.getppid() != self._guardian:
            self._stops_wanted += 1
        if self._options.verbose:
            self._follow_logs()
        if self._stops_wanted:
            raise Stopping
        self._helpers = [helper for helper in self._helpers if helper.alive]  # asking collects the dead
        children = [*(kept.child for kept in self._kept), *self._helpers]
        children += self._embedded.children if self._embedded else []
        end_orphans({child.pid for child in children if child.started})
        for kept in self._kept:
            self._look_after(kept)

    def _look_after(self, kept: _Kept) -> None:
        now = time.monotonic()
        if kept.child.alive:
            if now - kept.started_at > _STEADY_AFTER:
                kept.delay = _FIRST_DELAY
        elif kept.restart_at is None:
            kept.child.kill()  # what is left of its group holds its port, or goes on beside its successor
            _say(f"{kept.child.name} ended ({_outcome(kept.child)}); starting it again in {kept.delay:g} s")
            kept.restart_at = now + kept.delay
            kept.delay = min(kept.delay * 2, _LONGEST_DELAY)
        elif now >= kept.restart_at:
            kept.restart_at = None
            kept.started_at = now
            try:
                kept.child.start()
            except (OSError, ConfigurationError) as error:
                _say(f"{kept.child.name} cannot be started again: {error}")

    def _follow_logs(self) -> None:
        for kept in self._kept:
            child = kept.child
            assert child.log is not None
            with child.log.open("rb") as log:
                log.seek(self._followed.get(child.log, log.seek(0, os.SEEK_END)))
                lines = log.read(1024**2).splitlines(keepends=True)
            done = sum(len(line) for line in lines if line.endswith(b"\n"))
            with contextlib.suppress(OSError):
                self._followed[child.log] = child.log.stat().st_size - sum(map(len, lines)) + done
            for line in lines:
                if line.endswith(b"\n"):
                    _say(f"{child.name:<9} | {line.decode('utf-8', 'replace').rstrip()}")

    # Ending

    def _end(self) -> None:
        """Services first, the database last. One more signal, and the next step of each comes at once."""
        self._stops_seen = self._stops_wanted
        servers = self._embedded.children if self._embedded else []
        services = [kept.child for kept in self._kept if kept.child not in servers] + self._helpers
        order = {name: place for place, name in enumerate(_STOP_ORDER)}
        services.sort(key=lambda child: order.get(child.name, len(order)))
        stop_all(services, _SERVICES_STOP_WITHIN, self._hurried)
        if self._embedded:
            self._embedded.stop(_SERVERS_STOP_WITHIN)
        while end_orphans():
            time.sleep(0.01)
        self._folder.release()

    def _hurried(self) -> bool:
        seen, self._stops_seen = self._stops_seen, self._stops_wanted
        return self._stops_wanted > seen

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals are counted, and wake the selector; the rest happens outside of handlers."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # not ignored, so that it wakes us
        self._selector.register(ours, selectors.EVENT_READ)
        if self._options.until_eof:
            self._selector.register(0, selectors.EVENT_READ)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            self._selector.close()
            ours.close()
            theirs.close()

    def _on_stop(self, *_: object) -> None:
        self._stops_wanted += 1


def procfile() -> Path:
    """The Procfile in use: `ORCHESTRATOR_PROCFILE`, the one in the wheel, or the one of the checkout."""
    named = os.environ.get("ORCHESTRATOR_PROCFILE")
    if named:
        return Path(named)
    here = Path(__file__).parent
    packaged = here / "Procfile"
    return packaged if packaged.exists() else here.parent / "Procfile"


def read_procfile(file: Path) -> Mapping[str, str]:
    """{process name: shell command}, in the file's order. ConfigurationError if it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"cannot read the Procfile {file}: {error.strerror}") from error
    processes = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, command = line.partition(":")
        if not separator or not command.strip():
            raise ConfigurationError(f"{file}:{number}: expected `name: command`")
        processes[name.strip()] = command.strip()
    return processes


def service_url(host: str, port: int) -> str:
    """Where a program on this machine reaches a service that listens on `host`."""
    return f"http://{netloc(_reachable(host), port)}"


def _reachable(host: str) -> str:
    return {_ALL_IPV4: "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


_ALL_IPV4 = "0.0.0.0"  # noqa: S104  # nosec B104 # what it is called, not where anything listens


def _why_not(host: str, port: int) -> OSError | None:
    """What keeps us from listening there, if anything does."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the web server does: an address that only lingers from an earlier run is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


def _outcome(child: Child) -> str:
    code = child.exit_code
    if code is None or code >= 0:
        return f"exit code {code}, see {child.log}"
    return f"by {signal.Signals(-code).name}"


def _say(line: str) -> None:
    # Whoever read our output may be gone; that is no reason to end the service.
    with contextlib.suppress(OSError):
        print(line, flush=True)
