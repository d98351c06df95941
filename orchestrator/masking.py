"""What nobody is to read, taken out of what is kept for people to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"
_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|token|authorization|api.?key|private.?key|access.?key|cookie|credential|signature",
    re.IGNORECASE,
)
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+(?=@)")
SHORTEST = 4
"""A shorter secret would turn every text that happens to hold it into stars."""


_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_SCHEMES = frozenset(("", "basic", "bearer", "token"))


def _says_something(text: str) -> bool:
    """Whether there is more to it than templates."""
    return _TEMPLATE.sub("", text).strip().lower() not in _SCHEMES


class Masker:
    """Takes out of a JSON value: texts under a name that secrets have, or one of `names`; passwords in URLs; and each
    of `secrets` wherever it stands. A template that names a secret stays, since it does not say what it is."""

    def __init__(self, secrets: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        # The longest first: a secret that is a part of another one must not leave the rest of it standing.
        self._secrets = sorted((secret for secret in secrets if len(secret) >= SHORTEST), key=len, reverse=True)
        self._names = frozenset(names)

    def __call__(self, value: Any, *, hidden: bool = False) -> Any:
        if isinstance(value, str):
            return MASK if hidden and _says_something(value) else self._without_secrets(value)
        if isinstance(value, Mapping):
            return {key: self(item, hidden=hidden or self._hides(str(key))) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(item, hidden=hidden) for item in value]
        return value

    def _hides(self, name: str) -> bool:
        return name in self._names or _SECRET_NAME.search(name) is not None

    def _without_secrets(self, text: str) -> str:
        text = _PASSWORD_IN_URL.sub(rf"\1:{MASK}", text)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text
