"""Settings: defaults, then a YAML file, then the environment; checked once, frozen afterwards.

The file has the shape `services: {orchestrator: {...}}` (see deploy/config.yaml); `ORCHESTRATOR_CONFIG` names
it. Every setting has an environment variable made from its path: `executor.max_memory` is
`ORCHESTRATOR_EXECUTOR_MAX_MEMORY`; what is given by name (connections, agents, ...) is JSON there, as in
`ORCHESTRATOR_CONNECTIONS='{"main_db": {"url": "..."}}'`. A top-level `scheduler:` beside `services:` is read too.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

from orchestrator.access import Role
from orchestrator.definition.durations import parse_duration, parse_size
from orchestrator.egress import Egress, rule_text
from orchestrator.errors import ConfigurationError

_PREFIX = "ORCHESTRATOR"
_DAY = 86400.0


def _setting(default: Any, parse: Any, help: str, minimum: float | None = None, *, secret: bool = False) -> Any:
    """`secret`: masked wherever a worker stores or logs a text."""
    return field(default=default, metadata={"parse": parse, "help": help, "minimum": minimum, "secret": secret})


def _named(kind: type, help: str) -> Any:
    """A mapping from names, which the user chooses, to settings of one kind."""
    return field(default_factory=dict, metadata={"named": kind, "help": help})


def _text(value: object) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"expected a text, not {value!r}")
    return str(value)


def _whole(value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError(f"expected a whole number, not {value!r}") from None
    return number


def _number(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a number, not {value!r}")
    return number


def _port(value: object) -> int:
    number = _whole(value)
    if number > 65535:
        raise ValueError(f"a port is at most 65535, not {number}")
    return number


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "yes", "on"):
        return True
    if str(value).lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"expected true or false, not {value!r}")


def _choice(*words: str) -> Any:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"expected {' or '.join(words)}, not {value!r}")
        return str(value)

    return parse


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list of texts, not {value!r}")
    return tuple(_text(item) for item in value)


def _rules(value: object) -> tuple[str, ...]:
    return tuple(rule_text(text) for text in _texts(value))


def _backends(value: object) -> tuple[str, ...]:
    known = ("database", "files", "environment")
    words = _texts(value)
    if len(set(words)) < len(words) or not set(words) <= set(known):
        raise ValueError(f"expected some of {', '.join(known)}, each once, not {value!r}")
    return words


def _table(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping of texts, not {value!r}")
    return {str(key): _text(item) for key, item in value.items()}


def _duration(value: object) -> float:
    return parse_duration(_plain(value))


def _size(value: object) -> int:
    return parse_size(_plain(value))


def _plain(value: Any) -> Any:
    """A number written as text is one: the environment has nothing but texts (seconds, bytes)."""
    for number in (int, float) if isinstance(value, str) else ():
        try:
            return number(value)
        except ValueError:
            continue
    return value


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    url: str = _setting("", _text, "PostgreSQL URL; empty starts the embedded server", secret=True)
    pool_size: int = _setting(16, _whole, "connections kept per process, of those it needed at once", minimum=1)


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    url: str = _setting("", _text, "Redis-protocol URL; empty starts the embedded server", secret=True)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    behind_tls: bool = _setting(
        False, _flag, "a reverse proxy with TLS is in front; what it says of the caller's address is believed"
    )
    insecure: bool = _setting(False, _flag, "listen beyond loopback without TLS all the same")
    cors_origins: tuple[str, ...] = _setting((), _texts, "sites whose pages may call, as https://ops.example; *: all")
    rate_limit: int = _setting(0, _whole, "requests a minute of one caller; 0: as many as come", minimum=0)
    stream_lifetime: float = _setting(
        3600.0, _duration, "seconds after which a live stream is cut off, for its listener to come again", minimum=0.1
    )


def _roles(value: object) -> dict[str, str] | None:
    table = _table(value)
    for word in (table or {}).values():
        Role.of(word.partition("@")[0])
    return table


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """An issuer of bearer tokens by OpenID Connect."""

    issuer: str = _setting("", _text, "its address, as its tokens have it in iss")
    audience: str = _setting("", _text, "what its tokens must be for, as they have it in aud")
    roles_claim: str = _setting("roles", _text, "the claim with a caller's roles or groups; dots lead into objects")
    roles: Mapping[str, str] | None = _setting(
        None, _roles, "what the values of that claim stand for: a role, or role@project"
    )


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """What a step without a `retry_policy` of its own gets."""

    max_attempts: int = _setting(1, _whole, "attempts in all", minimum=1)
    initial_delay: float = _setting(30.0, _duration, "seconds before the second attempt", minimum=0)
    max_delay: float = _setting(300.0, _duration, "seconds between attempts at most", minimum=0)
    backoff_factor: float = _setting(2.0, _number, "each delay is this many times the one before", minimum=1)


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    enabled: bool = _setting(True, _flag, "whether this deployment's workers reconcile and fire timers")
    workers: int = _setting(10, _whole, "threads of the io worker that `orchestrator up` starts", minimum=1)
    max_concurrent: int = _setting(100, _whole, "executions running at a time", minimum=1)
    poll_interval: float = _setting(1.0, _duration, "seconds between reconciliations", minimum=0.05)
    priority_queue: bool = _setting(True, _flag, "whether priority orders queued work")
    lease: float = _setting(10.0, _duration, "seconds without a beat after which a worker is gone", minimum=1)
    max_losses: int = _setting(3, _whole, "a step that lost its worker this often fails", minimum=1)
    retry: RetrySettings = field(default_factory=RetrySettings)


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    timeout: float = _setting(1800.0, _duration, "seconds an execution may take", minimum=0.001)
    max_memory: int = _setting(1024**3, _size, "bytes of memory a script may use", minimum=1)
    log_retention: float = _setting(7 * _DAY, _duration, "seconds that logs are kept; 0: for ever", minimum=0)
    scripts_dir: str = _setting("scripts", _text, "folder that `script:` names files in")
    isolation: str = _setting(
        "auto", _choice("auto", "bubblewrap", "limits"), "how scripts are isolated; auto: by bubblewrap where it works"
    )
    script_paths: tuple[str, ...] = _setting((), _texts, "further files and folders that isolated scripts may read")
    templates_dir: str = _setting("templates", _text, "folder that the `template` of an email names files in")
    max_payload: int = _setting(1024**2, _size, "bytes of an input, and of what a row has, at most", minimum=1024)
    max_output: int = _setting(
        10 * 1024**2, _size, "bytes of a step's output at most, where there is an artifact store", minimum=1024
    )
    max_log: int = _setting(1024**2, _size, "bytes of log lines kept per attempt", minimum=0)
    max_response: int = _setting(10 * 1024**2, _size, "bytes of an HTTP response read at most", minimum=0)


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long is kept what grows with time; for logs, executor.log_retention says it. A workflow's own `retention`
    goes before these."""

    executions: float = _setting(
        180 * _DAY, _duration, "seconds that executions are kept after their end; 0: for ever", minimum=0
    )
    fires: float = _setting(
        30 * _DAY, _duration, "seconds that is kept what triggers have fired; 0: for ever", minimum=0
    )
    audit: float = _setting(365 * _DAY, _duration, "seconds that the audit log is kept; 0: for ever", minimum=0)


@dataclass(frozen=True, slots=True)
class ArtifactSettings:
    """Where large outputs of steps are kept; see orchestrator/artifacts.py."""

    url: str = _setting(
        "", _text, "a folder that all processes share, or an fsspec URL as s3://bucket/path; empty: outputs are in rows"
    )
    options: Mapping[str, str] | None = _setting(
        None, _table, "what fsspec's file system is made with, as endpoint_url"
    )
    credentials: Mapping[str, str] | None = _setting(
        None, _table, "what else it is made with, which is masked wherever it appears, as key and secret", secret=True
    )
    threshold: int = _setting(256 * 1024, _size, "bytes of a step's output from which on it is kept there", minimum=1)


@dataclass(frozen=True, slots=True)
class EgressSettings:
    """Where the calls of steps may go; see orchestrator/egress.py for what a rule is."""

    allow: tuple[str, ...] = _setting((), _rules, "networks and names that may be called, though a wider rule denies")
    deny: tuple[str, ...] = _setting((), _rules, "networks and names that may not be called; *: what is not allowed")

    @property
    def rules(self) -> Egress:
        return Egress.of(self.allow, self.deny)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`limit` steps that use a connection begin in any window of `per` seconds."""

    limit: int
    per: float


def _rate_limit(value: object) -> RateLimit | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {"limit", "per"}:
        raise ValueError(f"expected a limit and a per, as in {{limit: 10, per: 1m}}, not {value!r}")
    limit, per = _whole(value["limit"]), _duration(value["per"])
    if not 1 <= limit <= 100_000:
        raise ValueError(f"the limit is from 1 to 100000, not {limit}")
    if not 0.1 <= per <= 86400:
        raise ValueError(f"the per is from 100ms to 1d, not {value['per']!r}")
    return RateLimit(limit, per)


_RATED = {
    "parse": _rate_limit,
    "help": "how many steps may use it in any window of time, as in {limit: 10, per: 1m}",
    "minimum": None,
    "secret": False,
}


# Texts of the following may hold {{ secrets.name }}; a worker fills them in when a step needs them.


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What a `database` step names as its connection."""

    url: str = _setting("", _text, "SQLAlchemy URL of the database", secret=True)
    pool_size: int = _setting(5, _whole, "connections kept per worker process", minimum=1)
    rate_limit: RateLimit | None = field(default=None, metadata=_RATED)


@dataclass(frozen=True, slots=True)
class EmailSettings:
    """The SMTP server of `email` steps."""

    host: str = _setting("", _text, "the server's name; empty: email steps are refused")
    port: int = _setting(587, _port, "the server's port", minimum=1)
    security: str = _setting("starttls", _choice("starttls", "tls", "none"), "how the connection is encrypted")
    verify: bool = _setting(True, _flag, "whether the server's certificate is checked")
    ca_file: str = _setting("", _text, "certificates to check it against, instead of the system's")
    username: str = _setting("", _text, "the login's name; empty: no login")
    password: str = _setting("", _text, "the login's password", secret=True)
    sender: str = _setting("", _text, "the From address of emails that name none")
    timeout: float = _setting(30.0, _duration, "seconds an email may take", minimum=0.001)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an `agent` step names as its agent_id."""

    url: str = _setting("", _text, "where the agent is")
    protocol: str = _setting("a2a", _choice("a2a", "http"), "what it speaks")
    headers: Mapping[str, str] | None = _setting(None, _table, "sent with every request", secret=True)
    poll_interval: float = _setting(2.0, _duration, "seconds between looks at a long task", minimum=0.05)
    rate_limit: RateLimit | None = field(default=None, metadata=_RATED)


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """The OpenAI-compatible service of `llm` steps."""

    base_url: str = _setting("", _text, "its address, such as https://api.openai.com/v1")
    api_key: str = _setting("", _text, "its key", secret=True)
    model: str = _setting("", _text, "the model of steps that name none")
    rate_limit: RateLimit | None = field(default=None, metadata=_RATED)


@dataclass(frozen=True, slots=True)
class McpServerSettings:
    """What an `mcp` step names as its server: one with a url (streamable HTTP), or a command (stdio)."""

    url: str = _setting("", _text, "its address")
    headers: Mapping[str, str] | None = _setting(None, _table, "sent with every request", secret=True)
    command: tuple[str, ...] = _setting((), _texts, "the program that is the server, with its arguments")
    env: Mapping[str, str] | None = _setting(None, _table, "added to the program's environment", secret=True)
    rate_limit: RateLimit | None = field(default=None, metadata=_RATED)


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What holds for the `http` and `webhook` steps that call a host."""

    rate_limit: RateLimit | None = field(default=None, metadata=_RATED)


@dataclass(frozen=True, slots=True)
class McpSettings:
    default_server: str = _setting("", _text, "the server of steps that name none; may be empty if there is just one")
    servers: Mapping[str, McpServerSettings] = _named(McpServerSettings, "MCP servers by name")


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Where secrets come from, and what those in the database are encrypted with; see orchestrator/vault.py."""

    key: str = _setting("", _text, "keys in URL-safe base64; the first encrypts, all decrypt", secret=True)
    key_file: str = _setting("", _text, "file with the keys, if they are not given themselves")
    backends: tuple[str, ...] = _setting(
        ("database", "files", "environment"), _backends, "where secrets come from, those that have the word first"
    )
    folder: str = _setting("", _text, "folder with a file a secret, as Kubernetes mounts them; empty: none")


@dataclass(frozen=True, slots=True)
class EventsSettings:
    """A Redis stream, on the broker's server, whose entries are events (see docs/definition.md)."""

    stream: str = _setting("", _text, "its key; empty: none is read")
    group: str = _setting("orchestrator", _text, "the consumer group that reads it")


class OutputLimit(NamedTuple):
    bytes: int
    setting: str
    """The one that says so."""


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = _setting("127.0.0.1", _text, "address the API listens on")
    port: int = _setting(8084, _port, "port the API listens on", minimum=0)
    data_dir: str = _setting("~/.orchestrator", _text, "folder of the embedded servers and the generated key")
    admin_key: str = _setting(
        "", _text, "bearer key of the API; generated into the data folder when empty", secret=True
    )
    plugins: str = _setting("", _text, "comma-separated modules that register step types")
    api: ApiSettings = field(default_factory=ApiSettings)
    oidc: Mapping[str, OidcSettings] = _named(OidcSettings, "issuers of bearer tokens by name")
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings)
    egress: EgressSettings = field(default_factory=EgressSettings)
    events: EventsSettings = field(default_factory=EventsSettings)
    connections: Mapping[str, ConnectionSettings] = _named(ConnectionSettings, "databases by name")
    hosts: Mapping[str, HostSettings] = _named(
        HostSettings, "hosts by the name or address that URLs have, in lower case"
    )
    email: EmailSettings = field(default_factory=EmailSettings)
    agents: Mapping[str, AgentSettings] = _named(AgentSettings, "agents by their id")
    llm: LlmSettings = field(default_factory=LlmSettings)
    mcp: McpSettings = field(default_factory=McpSettings)
    vault: VaultSettings = field(default_factory=VaultSettings)

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().absolute()

    @property
    def scripts_path(self) -> Path:
        return Path(self.executor.scripts_dir).expanduser().absolute()

    @property
    def templates_path(self) -> Path:
        return Path(self.executor.templates_dir).expanduser().absolute()

    @property
    def output_limit(self) -> OutputLimit:
        """What a step may return at most: what a row may have, unless there is an artifact store for it."""
        name = "max_output" if self.artifacts.url else "max_payload"
        return OutputLimit(getattr(self.executor, name), f"executor.{name}")

    def secrets(self) -> frozenset[str]:
        """Every text in here that nobody is to read in a log or a result."""
        return frozenset(_secrets_in(self))


# The spec writes two of the retry settings flat under `scheduler`; they mean the same.
_ALIASES = {
    "scheduler.retry_attempts": "scheduler.retry.max_attempts",
    "scheduler.retry_delay": "scheduler.retry.initial_delay",
}


def load_settings(environ: Mapping[str, str] | None = None, file: str | Path | None = None) -> Settings:
    """The settings of this process.

    `environ` defaults to os.environ, `file` to the one `ORCHESTRATOR_CONFIG` names, if it does. Raises
    ConfigurationError that lists everything wrong, each with where it was written.
    """
    environ = os.environ if environ is None else environ
    file = file or environ.get(f"{_PREFIX}_CONFIG") or None
    written = _from_file(Path(file)) if file else {}
    written |= _from_environment(environ)
    wrong: list[str] = []
    settings: Settings = _build(Settings, "", written, wrong)
    wrong += [f"{where}: there is no setting {path}" for path, (_, where) in written.items()]
    if wrong:
        raise ConfigurationError("the settings are not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return settings


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment variables that make load_settings() return `settings` in a child process."""
    return {_variable(path): _as_text(value) for path, value in _leaves(settings) if value is not None}


def _from_file(file: Path) -> dict[str, tuple[object, str]]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings file {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the settings file {file} is not YAML: {error}") from error
    if document is None:
        return {}
    sections: list[object] = []
    if isinstance(document, dict):
        services = document.get("services") or {}
        sections.append(services.get("orchestrator") or {} if isinstance(services, dict) else services)
        sections.append({key: value for key, value in document.items() if key in ("scheduler", "executor")})
    if not sections or not all(isinstance(section, dict) for section in sections):
        raise ConfigurationError(f"the settings file {file} must have the shape services: {{orchestrator: {{...}}}}")
    written: dict[str, tuple[object, str]] = {}
    for section in sections:
        for path, value in _flatten(section, ""):
            written[_ALIASES.get(path, path)] = (value, f"{file}: {path}")
    return written


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    written: dict[str, tuple[object, str]] = {}
    for path, default in _leaves(Settings()):
        name = _variable(path)
        if name in environ:
            written[path] = (environ[name] if isinstance(default, (str, int, float)) else _parsed(environ[name]), name)
    return written


def _build(kind: Any, prefix: str, written: dict[str, tuple[object, str]], wrong: list[str]) -> Any:
    values: dict[str, Any] = {}
    for item in fields(kind):
        path = prefix + item.name
        if "named" in item.metadata:
            values[item.name] = _build_named(item.metadata["named"], path, written, wrong)
        elif item.default is MISSING:
            assert item.default_factory is not MISSING
            values[item.name] = _build(type(item.default_factory()), f"{path}.", written, wrong)
        elif path in written:
            value, where = written.pop(path)
            try:
                values[item.name] = item.metadata["parse"](value)
                minimum = item.metadata["minimum"]
                if minimum is not None and values[item.name] < minimum:
                    raise ValueError(f"{value!r} is less than {minimum}")
            except ValueError as error:
                values[item.name] = item.default
                wrong.append(f"{where}: {error} ({item.metadata['help']})")
    return kind(**values)


def _build_named(kind: Any, path: str, written: dict[str, tuple[object, str]], wrong: list[str]) -> dict[str, Any]:
    if path not in written:
        return {}
    given, where = written.pop(path)
    if not isinstance(given, dict):
        wrong.append(f"{where}: expected a mapping of names to settings")
        return {}
    built: dict[str, Any] = {}
    for name, values in given.items():
        if not _NAME.fullmatch(str(name)) or not isinstance(values, dict):
            wrong.append(f"{where}.{name}: expected a name (letters, digits, '.', _ and -) with a mapping of settings")
            continue
        inner: dict[str, tuple[object, str]] = {key: (value, f"{where}.{name}.{key}") for key, value in values.items()}
        built[name] = _build(kind, "", inner, wrong)
        wrong += [f"{at}: there is no setting {key}" for key, (_, at) in inner.items()]
    return built


_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_WHOLE = frozenset(
    (
        "connections", "hosts", "agents", "mcp.servers", "oidc", "llm.rate_limit",
        "artifacts.options", "artifacts.credentials",
    )
)  # fmt: skip
"""Settings that are read as one value, since what is below them is named by the user."""


def _flatten(section: object, prefix: str) -> list[tuple[str, object]]:
    if not isinstance(section, dict) or prefix.rstrip(".") in _WHOLE:
        return [(prefix.rstrip("."), section)]
    return [leaf for key, value in section.items() for leaf in _flatten(value, f"{prefix}{key}.")]


def _leaves(settings: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        nested = is_dataclass(value) and item.default is MISSING
        found += _leaves(value, f"{prefix}{item.name}.") if nested else [(prefix + item.name, value)]
    return found


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # what it is not is said by the setting's own check


def _as_text(value: Any) -> str:
    """What `_from_environment` reads back."""
    if is_dataclass(value) and not isinstance(value, type):
        return json.dumps(asdict(value))
    if isinstance(value, (Mapping, tuple)):
        return json.dumps(value, default=asdict)
    return str(value)


def _secrets_in(settings: Any) -> Iterator[str]:
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value) and item.default is MISSING:
            yield from _secrets_in(value)
        elif "named" in item.metadata:
            for one in value.values():
                yield from _secrets_in(one)
        elif item.metadata["secret"] and value:
            for text in value.values() if isinstance(value, Mapping) else [value]:
                yield text
                yield from _password_in(text)


def _password_in(text: str) -> Iterator[str]:
    """The password of a URL, as it is written there and as it is meant."""
    try:
        password = urlsplit(text).password if "://" in text else None
    except ValueError:
        password = None
    if password:
        yield password
        yield unquote(password)


def _variable(path: str) -> str:
    return f"{_PREFIX}_{path.replace('.', '_').upper()}"
