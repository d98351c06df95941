"""`params` in the texts of a step template, replaced by what the using step gives.

A text that is one whole `{{ params.x }}` becomes the value itself. Anywhere else in an expression the value is
written as an expression: a number or a text literally, a template as what stands between its braces. So nothing of a
value is ever read as more than a value, and `{{ params.x | upper }}` means the same whatever x is.

    "{{ params.url }}"                 url: "{{ input.url }}"      "{{ input.url }}"
    "{{ params.count }}"               count: 3                    3
    "{{ params.count + 1 }}"           count: 3                    4
    "{{ params.host }}/{{ input.id }}" host: "a.b"                 '{{ ("a.b") }}/{{ input.id }}'
    "{{ params.id ~ '!' }}"            id: "no {{ input.id }}"     "{{ (\\"no \\" ~ (input.id)) ~ '!' }}"

What has no names left in it is evaluated at once. There is one limit: a value with `{% if %}` can be a whole text only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from orchestrator.definition.bounds import Budget
from orchestrator.definition.templates import compile_text, contains_template, tokens
from orchestrator.errors import TemplateError

Json = Any
Token = tuple[str, str]

ROOT = "params"
_COMPILING = 5_000
"""What making a program of an expression costs, in the currency of its work."""
_AROUND_NAMES = frozenset(("data", "variable_begin", "whitespace", "variable_end"))


@dataclass(frozen=True, slots=True)
class Reference:
    """`params.x` among the tokens from `start` to `end`; `name` is None for `params` by itself."""

    start: int
    end: int
    name: str | None


class Parameters:
    """The values in one use of a template. `spend` is told the size of each replacement, in characters of JSON;
    `work` is what evaluating may cost."""

    def __init__(self, values: Mapping[str, Json], spend: Callable[[int], None], work: Budget) -> None:
        self.values = values
        self.spend = spend
        self.work = work
        self._expressions: dict[str | None, str] = {}

    def fill(self, text: str, *, expression: bool) -> Json:
        """The text with its parameters replaced; `expression`: it is one, with braces or without.

        Raises TemplateError if it cannot be.
        """
        found, references = read(text, expression=expression)
        if not references:
            return text
        name = None if expression else _whole(found, references)
        if name is not None:
            self.spend(len(orjson.dumps(self.values[name])))
            return self.values[name]
        filled = None if expression else self._joined(found, references)
        if filled is not None:
            self.spend(len(filled))
            return filled
        filled = self._replaced(found, references)
        self.spend(len(filled))
        return filled if expression else self._evaluated(filled)

    def _joined(self, found: Sequence[Token], references: Sequence[Reference]) -> str | None:
        """A text in which nothing but parameters stands between braces, if these are numbers or plain texts: what
        `_evaluated` would make of it, without the compiler."""
        pieces, at = [], 0
        for reference in (*references, None):
            between = found[at : reference.start if reference else None]
            if any(kind not in _AROUND_NAMES for kind, _ in between):
                return None
            pieces += [source for kind, source in between if kind == "data"]
            if reference is not None:
                value = None if reference.name is None else self.values[reference.name]
                if isinstance(value, bool) or not isinstance(value, (str, int)):
                    return None
                pieces.append(str(value))
                at = reference.end
        text = "".join(pieces)
        return None if contains_template(text) else text

    def _replaced(self, found: Sequence[Token], references: Sequence[Reference]) -> str:
        pieces, at = [], 0
        for reference in references:
            pieces += [source for _, source in found[at : reference.start]]
            pieces.append(self._expression(reference.name))
            at = reference.end
        return "".join(pieces + [source for _, source in found[at:]])

    def _expression(self, name: str | None) -> str:
        if name not in self._expressions:
            value = self.values if name is None else self.values[name]
            expression = expression_of(value)
            self._expressions[name] = expression if expression.startswith("(") else f"({expression})"
        self.spend(len(self._expressions[name]))
        return self._expressions[name]

    def _evaluated(self, text: str) -> Json:
        """The value of a text in which no name is left; the text itself if there is one."""
        compiled = compile_text(text)
        if compiled.chains:
            return text
        self.work.spend(_COMPILING)
        value = compiled.render({}, self.work)
        # What only now looks like a template was meant as a text.
        return text if isinstance(value, str) and contains_template(value) else value


@lru_cache(maxsize=512)  # the same few texts for each use of a template
def read(text: str, *, expression: bool) -> tuple[tuple[Token, ...], tuple[Reference, ...]]:
    """The tokens of a text, or of an expression, and the parameters that it names. Raises TemplateError."""
    found = tuple(tokens(text, expression=expression and not text.lstrip().startswith(("{{", "{%"))))
    return found, tuple(_references_in(found))


def _references_in(found: Sequence[Token]) -> Iterator[Reference]:
    end = 0
    for index, token in enumerate(found):
        if index >= end and token == ("name", ROOT) and _is_free(found, index):
            name, end = _key_after(found, index)
            yield Reference(index, end, name)


def expression_of(value: Json) -> str:
    """A value as the source of an expression. Raises TemplateError if a text in it cannot be one."""
    if isinstance(value, str):
        return _expression_of_text(value) if contains_template(value) else _literal(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {expression_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(expression_of(item) for item in value) + "]"
    return "none" if value is None else json.dumps(value)


def _literal(text: str) -> str:
    # Jinja reads JSON's escapes as Python does, which would take the halves of a surrogate pair for two characters.
    return json.dumps(text, ensure_ascii=False)


def _expression_of_text(text: str) -> str:
    parts: list[str] = []
    inside: list[str] | None = None
    blank = True
    for kind, source in tokens(text):
        if kind == "variable_begin":
            inside = []
        elif kind == "variable_end" and inside is not None:
            parts.append(f"({''.join(inside).strip()})")
            inside = None
        elif inside is not None:
            inside.append(source)
        elif kind == "data":
            blank = blank and not source.strip()
            parts.append(_literal(source))
        else:
            raise TemplateError("a value with {% %} can only be a whole text; write it as {{ a if b else c }}")
    expressions = [part for part in parts if part.startswith("(")]
    return expressions[0] if blank and len(expressions) == 1 else f"({' ~ '.join(parts)})"


def _is_free(found: Sequence[Token], index: int) -> bool:
    """Whether the name there is one by itself: no key, filter, test, or keyword of a call."""
    before = next((source for kind, source in reversed(found[:index]) if kind != "whitespace"), "")
    after, _ = _next(found, index + 1)
    return before not in (".", "|", "is") and after != ("operator", "=")


def _key_after(found: Sequence[Token], index: int) -> tuple[str | None, int]:
    """The key that follows the name at `index`, and where what comes after it begins."""
    dot, at = _next(found, index + 1)
    (kind, source), at = _next(found, at)
    if dot == ("operator", ".") and kind == "name":
        called, _ = _next(found, at)
        return (None, index + 1) if called == ("operator", "(") else (source, at)
    if dot == ("operator", "[") and kind == "string" and "\\" not in source:
        bracket, at = _next(found, at)
        if bracket == ("operator", "]"):
            return source[1:-1], at
    return None, index + 1


def _next(found: Sequence[Token], index: int) -> tuple[Token, int]:
    """The token from `index` on that is no white space, and the index after it."""
    while index < len(found) and found[index][0] == "whitespace":
        index += 1
    return (found[index], index + 1) if index < len(found) else (("end", ""), index)


def _whole(found: Sequence[Token], references: Sequence[Reference]) -> str | None:
    """The parameter that is all there is of a text."""
    only = references[0]
    around = [*found[: only.start], *found[only.end :]]
    kinds = [kind for kind, source in around if source.strip()]
    return only.name if len(references) == 1 and kinds == ["variable_begin", "variable_end"] else None
