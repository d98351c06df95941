"""A document that has been read: plain values, and where each was written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from orchestrator.definition import paths
from orchestrator.definition.paths import Key
from orchestrator.errors import DefinitionError, Problem

Json = Any

MAX_DEPTH = 64
MAX_NODES = 500_000
MAX_TEXT = 16 * 1024 * 1024
"""Characters of text in a whole document, aliases written out."""

TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels; make it flatter"
TOO_WIDE = "the integer does not fit in 64 bits; write it as text in quotes"


@dataclass(slots=True)
class Node:
    """A value with where it was written; `children` has the nodes of its items."""

    value: Json
    line: int
    children: dict[Key, Node] = field(default_factory=dict)
    nodes: int = 1
    text: int = 0
    height: int = 1


@dataclass(frozen=True, slots=True)
class Document:
    """A definition's text, read. `data` has only None, bool, int, float, str, list and dict; parts that were
    written once and referred to by alias are the same object, so do not change it in place."""

    data: Json
    root: Node | None = None

    def line_of(self, path: str) -> int | None:
        """The 1-based line where `path` was written, or its nearest parent that was; None without lines."""
        if self.root is None:
            return None
        node = self.root
        for key in paths.split(path):
            child = node.children.get(key)
            if child is None:
                break
            node = child
        return node.line


def check_plain(data: Json) -> list[Problem]:
    """What in `data` could not have come from a document: too deep, too much, or no JSON value at all."""
    problems: list[Problem] = []
    for count, (keys, value) in enumerate(walk(data), 1):
        if count > MAX_NODES:
            return [*problems, Problem("", f"the definition has more than {MAX_NODES:,} values")]
        wrong = _why_not_plain(value)
        if len(keys) >= MAX_DEPTH and isinstance(value, (dict, list)):
            path = paths.join_all(keys[:4])
            return [*problems, Problem(path, TOO_DEEP)]
        if wrong:
            problems.append(Problem(paths.join_all(keys), wrong))
    return problems


def walk(data: Json) -> Iterator[tuple[tuple[Key, ...], Json]]:
    """Every value with its keys, parents first, in document order; without recursion."""
    stack: list[tuple[tuple[Key, ...], Json]] = [((), data)]
    while stack:
        keys, value = stack.pop()
        yield keys, value
        if isinstance(value, dict):
            stack.extend(((*keys, str(key)), value[key]) for key in reversed(value))
        elif isinstance(value, list):
            stack.extend(((*keys, index), value[index]) for index in range(len(value) - 1, -1, -1))


def _why_not_plain(value: Json) -> str | None:
    if value is None or isinstance(value, (bool, str, list)):
        return None
    if isinstance(value, int):
        return why_not_integer(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a JSON number; write it as text in quotes"
    if isinstance(value, dict):
        bad = [key for key in value if not isinstance(key, str)]
        return f"the key {bad[0]!r} is not a text" if bad else None
    return f"a {type(value).__name__} is not a JSON value"


def why_not_integer(value: int) -> str | None:
    # Wider integers lose digits in most JSON readers and are refused by some; text carries them whole.
    if -(2**63) <= value < 2**64:
        return None
    return TOO_WIDE


def fail(message: str, path: str = "", line: int | None = None) -> NoReturn:
    raise DefinitionError([Problem(path, message, line)])


def no_constant(text: str) -> NoReturn:
    fail(f"{text} is not a JSON number; write it as text in quotes")


def integer_of(text: str) -> int:
    # Python refuses to convert very long digit strings, and takes quadratic time for long ones.
    wrong = TOO_WIDE if len(text) > 21 else None
    number = 0 if wrong else int(text)
    wrong = wrong or why_not_integer(number)
    if wrong:
        fail(f"{short(text)}: {wrong}")
    return number


def float_of(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        fail(f"{short(text)} is too large for a number; write it as text in quotes")
    return number


def short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
