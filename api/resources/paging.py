"""Pages of lists. What a caller gets as `next` is theirs to hand back, not to read: it names the order and the place
in it where the page ended."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import orjson
from flask import Response, jsonify

from orchestrator.errors import InputError, Problem
from orchestrator.store.keyset import Order, Place, Window


def page(
    query: Mapping[str, Any], orders: Mapping[str, Order], fetch: Callable[[Window], list[dict[str, Any]]]
) -> Response:
    """The page that `query` asks for by `limit`, `cursor` and `sort`, which is one of `orders` or else the first.

    `fetch` is asked for one row more than the page has: is there another? Raises InputError for a cursor that is none.
    """
    sort: str = query.get("sort") or next(iter(orders))
    order, limit = orders[sort], query["limit"]
    cursor = query.get("cursor")
    rows = fetch(Window(order, limit + 1, None if cursor is None else _place(cursor, sort, order)))
    more = len(rows) > limit
    return jsonify({"items": rows[:limit], "next": cursor_of(sort, order.place(rows[limit - 1])) if more else None})


def cursor_of(sort: str, place: Place) -> str:
    """The cursor of the page that follows this place."""
    # As text to the last digit: the JSON of our answers has times in UTC, which is the same moment.
    values = [value.isoformat() if isinstance(value, datetime) else value for value in place]
    return urlsafe_b64encode(orjson.dumps([sort, *values])).decode().rstrip("=")


def _place(cursor: str, sort: str, order: Order) -> Place:
    try:
        was, *values = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        place = order.read_place(values) if was == sort else None
    except (ValueError, TypeError, OverflowError):
        raise InputError([Problem("cursor", "is not the `next` of a page; leave it out for the first page")]) from None
    if place is None:
        raise InputError([Problem("cursor", f"is of a page sorted by {was}; ask for the same sort, or begin anew")])
    return place
