"""Texts as the terms that they are found by, and questions as what asks for these.

PostgreSQL's own parser is not used: it depends on the locale of the server, takes a path or an address for one word,
and what has no spaces between its words, such as Chinese, too. Here a word is a run of letters and digits, found by
its beginning; a run of Chinese, Japanese or Korean is found by any part, through the pairs of characters in it (as
Lucene's CJKAnalyzer has them).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

_UNSPACED = r"\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003fffd"
_RUN = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W_{_UNSPACED}]+")
_LONGEST = 200
"""Characters of a word that count; PostgreSQL takes 2,046 bytes."""


def terms(texts: Iterable[str]) -> list[str]:
    """What the texts are found by, each once."""
    found: dict[str, None] = {}
    for run, unspaced in _runs(" ".join(texts)):
        # The last one is a single character: it is found by itself too.
        parts = [run[at : at + 2] for at in range(len(run))] if unspaced else [run]
        found.update(dict.fromkeys(parts))
    return list(found)


def question(text: str) -> str | None:
    """The tsquery for texts that have all of these words; None if there is no word in it."""
    asked = []
    for run, unspaced in _runs(text):
        if unspaced and len(run) > 1:
            asked += [f"'{run[at : at + 2]}'" for at in range(len(run) - 1)]
        else:
            asked.append(f"'{run}':*")
    return " & ".join(asked) or None


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Runs, and whether they are of a script without spaces."""
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        unspaced = match["unspaced"] is not None
        yield match[0] if unspaced else match[0][:_LONGEST], unspaced
