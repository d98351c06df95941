"""Definitions written as JSON."""

from __future__ import annotations

import json

from orchestrator.definition import paths
from orchestrator.definition.document import (
    TOO_DEEP,
    Document,
    Json,
    check_plain,
    fail,
    float_of,
    integer_of,
    no_constant,
    walk,
)
from orchestrator.errors import DefinitionError, Problem


class _Duplicated(dict[str, Json]):
    """An object that was written with the same key twice; `key` is the first such."""

    key: str


def read_json(source: str) -> Document:
    try:
        data = json.loads(
            source,
            object_pairs_hook=_object,
            parse_constant=no_constant,
            parse_int=integer_of,
            parse_float=float_of,
        )
    except json.JSONDecodeError as error:
        fail(f"not valid JSON: {error.msg} at column {error.colno}", line=error.lineno)
    except RecursionError:
        fail(TOO_DEEP)
    problems = check_plain(data) or _duplicates(data)
    if problems:
        raise DefinitionError(problems)
    return Document(data)


def _duplicates(data: Json) -> list[Problem]:
    return [
        Problem(paths.join_all((*keys, value.key)), f"the key {value.key!r} is written twice; keep one of them")
        for keys, value in walk(data)
        if isinstance(value, _Duplicated)
    ]


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    twice = _Duplicated(made)
    twice.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return twice
