"""Keyset pages: ids are sorted by time, so the last one of a page is where the next begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, jsonify


def page(query: dict[str, Any], fetch: Callable[[str | None, int], list[dict[str, Any]]]) -> Response:
    """`fetch(cursor, limit)` is asked for one row more than the page has: is there another?"""
    limit: int = query["limit"]
    cursor = query.get("cursor")
    rows = fetch(None if cursor is None else str(cursor), limit + 1)
    return jsonify({"items": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None})
