"""Secrets, resolved in the worker alone and masked in everything it stores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_PREFIX = "ORCHESTRATOR_SECRET_"
MASK = "***"
# A secret this short would turn every text that happens to hold it into stars.
_SHORTEST_MASKED = 4


class Secrets(Mapping[str, str]):
    """`secrets.api_token` is the environment variable ORCHESTRATOR_SECRET_API_TOKEN of the worker."""

    def __init__(self, environ: Mapping[str, str] | None = None, also: Iterable[str] = ()) -> None:
        """`also` are texts that are no one's to name, but are masked as well: the secrets of the settings."""
        environ = os.environ if environ is None else environ
        self._values = {
            name.removeprefix(_PREFIX).lower(): value for name, value in environ.items() if name.startswith(_PREFIX)
        }
        # The longest first: a secret that is a part of another one must not leave the rest of it standing.
        self._masked = sorted(
            {value for value in (*self._values.values(), *also) if len(value) >= _SHORTEST_MASKED},
            key=len,
            reverse=True,
        )

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def mask(self, value: Any) -> Any:
        """`value` with every secret in its texts (keys included) replaced; the same object if there are none."""
        if not self._masked:
            return value
        if isinstance(value, str):
            for secret in self._masked:
                value = value.replace(secret, MASK)
            return value
        if isinstance(value, Mapping):
            return {self.mask(key): self.mask(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mask(item) for item in value]
        return value
