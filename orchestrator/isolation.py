"""What a script sees of the machine: with bubblewrap next to nothing, else whatever the worker itself sees.

Within bubblewrap (https://github.com/containers/bubblewrap) a program has namespaces of its own and no
capabilities. There are the system's programs and libraries and the interpreter, the scripts folder and what
`executor.script_paths` names, all read-only, and its own temporary folder; no other process, no socket of
anybody, no network unless it is asked for, and nothing else of the file system.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.config import Settings

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")

# By name, since settings and private keys are kept in /etc, too.
_ETC = [
    "alternatives",
    "ca-certificates",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "resolv.conf",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
]

_TMP, _VAR_TMP = "/tmp", "/var/tmp"  # noqa: S108  # nosec B108 # as the script sees its own

_PROBE_TIME = 10.0
"""Seconds for the program that shows whether bubblewrap works here."""


@dataclass(frozen=True, slots=True)
class Isolation:
    mode: Literal["bubblewrap", "limits"]
    reason: str = ""
    """Why it is limits alone."""

    def __str__(self) -> str:
        return "by bubblewrap" if self.mode == "bubblewrap" else f"by process limits alone: {self.reason}"


def in_force(settings: Settings) -> Isolation:
    """How this machine's scripts are isolated. With `executor.isolation: bubblewrap`, limits alone are no way to run
    any."""
    if settings.executor.isolation == "limits":
        return Isolation("limits", "executor.isolation asks for no more")
    return _probed()


@functools.cache
def _probed() -> Isolation:
    """Found out by running a program in it, once a process: whether it may be used depends on the kernel, its settings
    and the container around us, each of which says so in a way of its own."""
    if sys.platform != "linux":
        return Isolation("limits", "bubblewrap needs Linux")
    if shutil.which("bwrap") is None:
        return Isolation("limits", "bubblewrap is not installed (the package bubblewrap, the program bwrap)")
    with tempfile.TemporaryDirectory(prefix="orchestrator-probe-") as folder:
        options = enclosure(Settings(), Path(folder), sys.executable, network=False)
        command = ["bwrap", *options, "--", sys.executable, "-S", "-c", ""]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PROBE_TIME, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Isolation("limits", f"bubblewrap does not work here: {error}")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Isolation("limits", f"bubblewrap does not work here, exit code {done.returncode}: {said}")
    return Isolation("bubblewrap")


def enclosure(settings: Settings, folder: Path, interpreter: str, *, network: bool) -> list[str]:
    """The options of bubblewrap for a program that `interpreter`, an absolute path, runs. `folder` is the program's
    own, with `tmp` in it as its /tmp."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    seen = _outermost(
        [
            *_installation(interpreter),
            settings.scripts_path,
            *(Path(path).expanduser().absolute() for path in settings.executor.script_paths),
        ]
    )
    return [
        *("--unshare-all", "--die-with-parent", "--cap-drop", "ALL"),
        *(["--share-net"] if network else []),
        *_system(),
        *("--proc", "/proc", "--dev", "/dev", "--bind", str(temporary), _TMP, "--symlink", "../tmp", _VAR_TMP),
        *(word for path in seen for word in ("--ro-bind-try", str(path), str(path))),
        *_hidden(settings, [*_folders_of_the_system(), *seen]),
        *("--bind", str(folder), str(folder)),
    ]


@functools.cache
def _system() -> tuple[str, ...]:
    words: list[str] = []
    # A link stays a link: where /bin is /usr/bin, programs rely on both being the same.
    for path in filter(os.path.islink, _SYSTEM):
        words += ("--symlink", os.readlink(path), path)
    for path in map(str, _folders_of_the_system()):
        words += ("--ro-bind", path, path)
    for name in _ETC:
        words += ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    return tuple(words)


def _folders_of_the_system() -> list[Path]:
    return [Path(path) for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path)]


@functools.cache
def _installation(program: str) -> tuple[Path, ...]:
    """What a program needs of where it was installed."""
    if program == sys.executable:
        return Path(sys.prefix), Path(sys.base_prefix)
    found = Path(program).resolve()
    return Path(program), found, found.parent.parent / "lib"


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Without what is the system's anyhow, or within another one."""
    shown = [Path(path) for path in _SYSTEM]
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in shown):
            shown.append(path)
    return shown[len(_SYSTEM) :]


def _hidden(settings: Settings, seen: Sequence[Path]) -> Iterator[str]:
    """Our own things, where they lie in a folder that is shown: /usr/local/etc and /usr/src are such places."""
    for own in _ours(settings):
        for folder in seen:
            if own.is_relative_to(folder.resolve()):
                shown = str(folder / own.relative_to(folder.resolve()))
                yield from ("--tmpfs", shown) if own.is_dir() else ("--ro-bind", os.devnull, shown)


def _ours(settings: Settings) -> Iterator[Path]:
    """What no script is to read, as far as it is there."""
    artifacts = settings.artifacts.url
    vault = settings.vault
    for path in (
        settings.data_path,
        os.environ.get("ORCHESTRATOR_CONFIG"),
        vault.key_file,
        vault.folder,
        "" if "://" in artifacts else artifacts,
    ):
        if path and (found := Path(path).expanduser().resolve()).exists():
            yield found
