"""Large outputs of steps: files in a folder or a bucket, by fsspec (https://filesystem-spec.readthedocs.io).

A row holds a reference in place of such an output. It names a file in the folder of its own execution, and nothing
outside of that: so whoever may read an execution may read these, and what a step returns that looks like a reference
opens nobody else's. A file is written before the row that refers to it is committed, once, and never changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import fsspec
import orjson
from fsspec.implementations.local import LocalFileSystem

from orchestrator.config import ArtifactSettings
from orchestrator.errors import ArtifactGone, ArtifactsAway, StepFailed
from orchestrator.store.session import new_id

Json = Any

MARK = "$artifact"
_CACHED = 16 * 1024**2
"""Bytes, as JSON, of what a process keeps of what it has read: the rounds of a loop read the same again and again."""
_CHUNK = 256 * 1024
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a row says of an output that is elsewhere: its file, `size` in bytes, and `sha256` of these."""

    key: str
    size: int
    sha256: str
    media_type: str = "application/json"

    @staticmethod
    def of(value: Json) -> Reference | None:
        """None if `value` is an output like any other."""
        found = value.get(MARK) if isinstance(value, dict) and len(value) == 1 else None
        if not isinstance(found, dict) or found.keys() != _FIELDS:
            return None
        is_sound = isinstance(found["size"], int) and isinstance(found["key"], str) and _ID.fullmatch(found["key"])
        return Reference(**found) if is_sound else None

    @property
    def marker(self) -> dict[str, Json]:
        return {MARK: asdict(self)}


_FIELDS = {"key", "size", "sha256", "media_type"}


class Artifacts:
    """The files below `settings.url`, a folder for each execution; without a url there is no store."""

    def __init__(self, settings: ArtifactSettings) -> None:
        self._settings = settings
        self._read: OrderedDict[tuple[str, Reference], Json] = OrderedDict()
        self._lock = Lock()

    @staticmethod
    def of(settings: ArtifactSettings) -> Artifacts:
        """The one of this process for these settings."""
        return _shared(orjson.dumps(asdict(settings), option=orjson.OPT_SORT_KEYS))

    @property
    def is_there(self) -> bool:
        return bool(self._settings.url)

    def takes(self, size: int) -> bool:
        """Whether an output of so many bytes is to be kept here."""
        return self.is_there and size > self._settings.threshold

    def put(self, execution_id: str, encoded: bytes) -> dict[str, Json]:
        """Write an output; what the row is to have in its place. Raises ArtifactsAway."""
        reference = Reference(new_id(), len(encoded), hashlib.sha256(encoded).hexdigest())
        with self._files(execution_id) as (files, folder):
            if isinstance(files, LocalFileSystem):
                files.makedirs(folder, exist_ok=True)
            with files.open(f"{folder}/{reference.key}", "wb") as file:
                file.write(encoded)
                _flush(file)
        return reference.marker

    def load(self, execution_id: str, reference: Reference) -> Json:
        """The output itself; nobody is to change it. Raises ArtifactGone, ArtifactsAway."""
        # By all of it: a reference that somebody made up is not to find what another one has brought here.
        whole = (execution_id, reference)
        with self._lock:
            if whole in self._read:
                self._read.move_to_end(whole)
                return self._read[whole]
        with self._files(execution_id) as (files, folder):
            encoded: bytes = files.cat_file(f"{folder}/{reference.key}")
        if (len(encoded), hashlib.sha256(encoded).hexdigest()) != (reference.size, reference.sha256):
            raise ArtifactGone(f"the artifact {execution_id}/{reference.key} is damaged; have its step tried again")
        value = orjson.loads(encoded)
        with self._lock:
            self._read[whole] = value
            while len(self._read) > 1 and sum(known.size for _, known in self._read) > _CACHED:
                self._read.popitem(last=False)
        return value

    def chunks(self, execution_id: str, reference: Reference) -> Iterator[bytes]:
        """The bytes of an output, some at a time. Raises ArtifactGone, ArtifactsAway."""
        with self._files(execution_id) as (files, folder), files.open(f"{folder}/{reference.key}", "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def expand(self, execution_id: str, value: Json, limit: int) -> Json:
        """`value` with each output in it that a reference stands for. Raises ArtifactGone, ArtifactsAway; StepFailed if
        they have more than `limit` bytes together, before any is read."""
        found: list[Reference] = []
        _replaced(value, lambda reference: found.append(reference))
        size = sum(reference.size for reference in found)
        if size > limit:
            raise StepFailed(
                f"it would hold {len(found)} outputs of {size:,} bytes together; the limit (executor.max_output) is "
                f"{limit:,}: raise it, or let the steps in it return less (a loop with `collect: false` needs none)",
                kind="output",
                retryable=False,
            )
        return _replaced(value, lambda reference: self.load(execution_id, reference)) if found else value

    def lazily(self, execution_id: str, seen: Mapping[str, Json]) -> Mapping[str, Json]:
        """`seen` with the outputs that its values refer to, read when somebody asks for them, and once."""
        return _Lazily(seen, lambda reference: self.load(execution_id, reference)) if _refers(seen) else seen

    def copy(self, execution_id: str, to: str) -> None:
        """Have the artifacts of an execution for another one, too. Raises ArtifactsAway."""
        with suppress(ArtifactGone), self._files(execution_id) as (files, folder):
            files.copy(folder, f"{folder.removesuffix(execution_id)}{to}", recursive=True)

    def executions(self) -> list[str]:
        """The ids of the executions that have any. Raises ArtifactsAway."""
        with suppress(ArtifactGone), self._files("") as (files, root):
            return [name for path in files.ls(root, detail=False) if _ID.fullmatch(name := _name(path))]
        return []

    def remove(self, execution_id: str) -> None:
        """Remove those of an execution. Raises ArtifactsAway."""
        with suppress(ArtifactGone), self._files(execution_id) as (files, folder):
            files.rm(folder, recursive=True)

    def remove_others(self, execution_id: str, keys: Collection[str]) -> None:
        """Remove those of an execution that are not among `keys`. Raises ArtifactsAway."""
        with suppress(ArtifactGone), self._files(execution_id) as (files, folder):
            others = [path for path in files.ls(folder, detail=False) if _name(path) not in keys]
            if others:
                files.rm(others)

    @contextmanager
    def _files(self, folder: str) -> Iterator[tuple[Any, str]]:
        """The file system, and where `folder` is in it."""
        if not self.is_there:
            raise ArtifactGone("an output is in an artifact store, and there is none here: set artifacts.url as it was")
        try:
            given = {**(self._settings.options or {}), **(self._settings.credentials or {})}
            # Not kept: fsspec has one for each process and thread that may use it.
            files, root = fsspec.url_to_fs(self._settings.url, use_listings_cache=False, **given)
            yield files, f"{root.rstrip('/')}/{folder}".rstrip("/")
        except StepFailed:
            raise
        except FileNotFoundError:
            raise ArtifactGone(
                f"an artifact of execution {folder} is not in {self._settings.url}: all workers and the API need the "
                "same artifacts.url, on a disk that they share or in a bucket"
            ) from None
        except Exception as error:  # of whichever library reaches it
            raise ArtifactsAway(f"the artifact store {self._settings.url} failed: {error}") from error


@lru_cache
def _shared(settings: bytes) -> Artifacts:
    return Artifacts(ArtifactSettings(**orjson.loads(settings)))


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _flush(file: Any) -> None:
    """A row that is committed is there after a power cut, and so is what it refers to."""
    file.flush()
    with suppress(OSError, AttributeError):  # what is no file of this machine has no number
        os.fsync(file.fileno())


def _refers(seen: Mapping[str, Json]) -> bool:
    return any(isinstance(value, dict) and MARK in value for value in seen.values()) or (
        isinstance(seen.get("parent"), dict) and _refers(seen["parent"])  # of a loop in another one
    )


class _Lazily(Mapping[str, Json]):
    def __init__(self, seen: Mapping[str, Json], load: Callable[[Reference], Json]) -> None:
        self._seen = seen
        self._load = load
        self._found: dict[str, Json] = {}

    def __getitem__(self, key: str) -> Json:
        if key not in self._found:
            value = self._seen[key]
            reference = Reference.of(value)
            if reference is not None:
                value = self._load(reference)
            elif key == "parent" and isinstance(value, dict):
                value = _Lazily(value, self._load)
            self._found[key] = value
        return self._found[key]

    def __contains__(self, key: object) -> bool:
        return key in self._seen

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)


def _replaced(value: Json, replace: Callable[[Reference], Json]) -> Json:
    if isinstance(value, dict):
        reference = Reference.of(value)
        return replace(reference) if reference else {key: _replaced(item, replace) for key, item in value.items()}
    return [_replaced(item, replace) for item in value] if isinstance(value, list) else value
