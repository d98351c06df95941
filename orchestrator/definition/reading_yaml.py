"""Definitions written as YAML.

They are read from the parser's events, not through PyYAML's loaders: those resolve scalars by YAML 1.1 (`on`
is true, `12:30` is 750), keep the last of two equal keys, and recurse in C, where depth costs the process and
not an exception. Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.definition import paths
from orchestrator.definition.document import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    TOO_DEEP,
    TOO_WIDE,
    Document,
    Json,
    Node,
    fail,
    float_of,
    integer_of,
    no_constant,
    short,
    why_not_integer,
)
from orchestrator.definition.paths import Key
from orchestrator.errors import DefinitionError, Problem

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MERGE = "<<"


def read_yaml(source: str) -> Document:
    try:
        return _Reader(source).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "nesting depth" in (error.problem or ""):  # libyaml's own bound, far beyond ours
            fail(TOO_DEEP, line=mark.line + 1 if mark else None)
        message = ", ".join(part for part in (error.context, error.problem) if part)
        where = f" at column {mark.column + 1}" if mark else ""
        fail(f"not valid YAML: {message}{where}", line=mark.line + 1 if mark else None)
    except yaml.YAMLError as error:
        fail(f"not valid YAML: {error}")
    except RecursionError:
        fail(TOO_DEEP)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been reached."""

    node: Node
    anchor: str | None
    key: str | None = None
    """The key whose value comes next."""
    merging: bool = False
    """Whether that key is the merge key."""
    merges: list[Node] = field(default_factory=list)


class _Reader:
    """One pass over the events, with the open collections on a stack of our own."""

    def __init__(self, source: str) -> None:
        self.events = yaml.parse(source, Loader=_LOADER)
        self.open: list[_Open] = []
        self.path: list[Key] = []
        self.anchors: dict[str, Node | None] = {}
        self.problems: list[Problem] = []
        self.nodes = 0
        self.text = 0
        self.root: Node | None = None
        self.documents = 0

    def read(self) -> Document:
        for event in self.events:
            assert event.start_mark is not None
            self._take(event, event.start_mark.line + 1)
        if self.problems:
            raise DefinitionError(self.problems)
        root = self.root or Node(None, 1)
        return Document(root.value, root)

    def _take(self, event: yaml.Event, line: int) -> None:
        if isinstance(event, yaml.ScalarEvent):
            if self._expects_key():
                self._key(event, line)
            else:
                value = self._scalar(event, line)
                node = Node(value, line, text=len(value) if isinstance(value, str) else 0)
                self._define(event.anchor, node)
                self._add(node)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._begin(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, line)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                fail("there is a second document after '---'; keep one definition to a text", line=line)

    def _expects_key(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1].node.value, dict) and self.open[-1].key is None

    def _key(self, event: yaml.ScalarEvent, line: int) -> None:
        top = self.open[-1]
        key = self._scalar(event, line)
        if not isinstance(key, str):
            self._problem(f"the key {event.value!r} is not a text; put it in quotes", line)
            key = str(event.value)
        elif key in top.node.children and not (key == _MERGE and event.implicit[0]):
            self.path.append(key)
            first = top.node.children[key].line
            self._problem(f"the key {key!r} is written twice, first on line {first}; keep one of them", line)
            self.path.pop()
        self._define(event.anchor, Node(key, line, text=len(key)))
        # A quoted "<<" is a key like any other; the merge key is only the plain one.
        top.key = key
        top.merging = key == _MERGE and event.implicit[0]
        self.path.append(key)
        # The line of an item is that of its key, known before its value is.
        top.node.children.setdefault(key, Node(None, line))
        self._count(0, len(key), line)

    def _begin(self, event: yaml.CollectionStartEvent, line: int) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if self._expects_key():
            fail("a mapping or list cannot be a key; use a text", self._where(), line)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            self._problem(f"the tag {event.tag} is not supported; leave it out", line)
        if len(self.open) >= MAX_DEPTH:
            fail(TOO_DEEP, paths.join_all(self.path[:4]), line)
        if event.anchor:
            self.anchors[event.anchor] = None
        self.open.append(_Open(Node({} if mapping else [], line), event.anchor))
        if not mapping:
            self.path.append(0)

    def _end(self) -> None:
        closed = self.open.pop()
        if isinstance(closed.node.value, list):
            self.path.pop()
        for merged in closed.merges:
            for key, value in merged.value.items():
                if key not in closed.node.value:
                    closed.node.value[key] = value
                    closed.node.children[key] = merged.children[key]
        self._define(closed.anchor, closed.node)
        self._add(closed.node)

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        if self._expects_key():
            fail("an alias cannot be a key; write the key out", self._where(), line)
        if event.anchor not in self.anchors:
            fail(f"the alias *{event.anchor} has no anchor &{event.anchor} before it", self._where(), line)
        node = self.anchors[event.anchor]
        if node is None:
            fail(f"the alias *{event.anchor} is inside what it stands for", self._where(), line)
        if len(self.open) + node.height - 1 > MAX_DEPTH:
            fail(TOO_DEEP, self._where(), line)
        self._count(node.nodes - 1, node.text, line)
        self._add(node, counted=True)

    def _define(self, anchor: str | None, node: Node) -> None:
        if anchor:
            self.anchors[anchor] = node

    def _add(self, node: Node, counted: bool = False) -> None:
        """Put a finished node where it belongs: into the innermost open collection, or at the root."""
        scalar = not isinstance(node.value, (dict, list))
        self._count(1, node.text if scalar and not counted else 0, node.line)
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        parent = top.node
        parent.nodes += node.nodes
        parent.text += node.text
        parent.height = max(parent.height, node.height + (not scalar))
        if isinstance(parent.value, list):
            parent.children[len(parent.value)] = node
            parent.value.append(node.value)
            self.path[-1] = len(parent.value)
            return
        key = top.key
        assert key is not None
        top.key = None
        if top.merging and self._merge(top, node):
            del parent.children[_MERGE]
        else:
            line = parent.children[key].line
            parent.children[key] = Node(node.value, line, node.children)
            parent.value[key] = node.value
        self.path.pop()

    def _merge(self, top: _Open, node: Node) -> bool:
        """Take `<<: *base` as YAML 1.1 defines it, because definitions in the field rely on it."""
        items = list(node.children.values()) if isinstance(node.value, list) else [node]
        if not all(isinstance(item.value, dict) for item in items):
            self._problem("'<<' takes a mapping or a list of mappings", node.line)
            return False
        top.merges += items
        return True

    def _count(self, nodes: int, text: int, line: int) -> None:
        self.nodes += nodes
        self.text += text
        if self.nodes > MAX_NODES:
            fail(f"the definition has more than {MAX_NODES:,} values, aliases written out", line=line)
        if self.text > MAX_TEXT:
            fail(f"the definition has more than {MAX_TEXT:,} characters, aliases written out", line=line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Json:
        tag, text = event.tag, str(event.value)
        if tag is None and event.implicit[0]:
            return self._resolved(text, line)
        if tag in (None, "!", _TAG + "str"):
            return text
        kinds: dict[str, Sequence[type]] = {
            "null": (type(None),), "bool": (bool,), "int": (int,), "float": (float, int)
        }  # fmt: skip
        wanted = kinds.get(tag.removeprefix(_TAG)) if tag.startswith(_TAG) else None
        if wanted is None:
            self._problem(f"the tag {tag} is not supported; leave it out", line)
            return text
        value = self._resolved(text, line)
        if type(value) not in wanted:
            self._problem(f"{short(text)!r} is not what its tag !!{tag.removeprefix(_TAG)} says", line)
        return float(value) if wanted[0] is float and type(value) is int else value

    def _resolved(self, text: str, line: int) -> Json:
        """The value of a plain scalar; whatever is no null, bool or number is text (a date, say)."""
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        try:
            if _INT.fullmatch(text):
                return _any_integer(text)
            if _FLOAT.fullmatch(text):
                return float_of(text)
            if _NOT_FINITE.fullmatch(text):
                no_constant(text)
        except DefinitionError as error:
            self._problem(error.problems[0].message, line)
        return text

    def _problem(self, message: str, line: int) -> None:
        self.problems.append(Problem(self._where(), message, line))

    def _where(self) -> str:
        return paths.join_all(self.path)


def _any_integer(text: str) -> int:
    if text.startswith(("0o", "0x")):
        number = int(text[:40], 0)
        if len(text) > 40 or why_not_integer(number):
            fail(f"{short(text)}: {TOO_WIDE}")
        return number
    sign = text[:1] if text[0] in "+-" else ""
    return integer_of(sign.replace("+", "") + (text[len(sign) :].lstrip("0") or "0"))
