"""From the text of a definition, YAML or JSON, to plain values: no tags, no surprises, nothing unbounded."""

from __future__ import annotations

import json
from typing import Literal

from orchestrator.definition.document import Document, fail
from orchestrator.definition.reading_json import read_json
from orchestrator.definition.reading_yaml import read_yaml
from orchestrator.errors import DefinitionError

Media = Literal["yaml", "json"]

__all__ = ["Document", "Media", "read_definition"]


def read_definition(text: str | bytes, media: Media | None = None) -> Document:
    """Read a document; `media` None tells JSON from YAML by its first character.

    Raises DefinitionError with what is wrong, and where.
    """
    source = _decoded(text)
    if media is None:
        media = "json" if source.lstrip()[:1] in ("{", "[") else "yaml"
        if media == "json" and not _is_json(source):
            return _guess(source)
    return read_json(source) if media == "json" else read_yaml(source)


def _is_json(source: str) -> bool:
    try:
        json.loads(source, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return True


def _guess(source: str) -> Document:
    """Flow-style YAML looks like JSON at first; when it is neither, it was meant as JSON."""
    try:
        return read_yaml(source)
    except DefinitionError:
        return read_json(source)


def _decoded(text: str | bytes) -> str:
    if isinstance(text, bytes):
        try:
            return text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            fail(
                f"not UTF-8 (byte 0x{text[error.start]:02x} at offset {error.start}); save the text as UTF-8",
                line=text.count(b"\n", 0, error.start) + 1,
            )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        fail(
            f"the text has half a surrogate pair (U+{ord(text[error.start]):04X}) at offset {error.start}",
            line=text.count("\n", 0, error.start) + 1,
        )
    return text.removeprefix("\ufeff")
