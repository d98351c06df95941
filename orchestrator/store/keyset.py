"""Keyset pages: a page begins where the one before ended, in the order of an index.

An index finds that place as fast on the ten-thousandth page as on the first, and rows that are inserted meanwhile
shift nothing, which counting rows (OFFSET) would not keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

Place = tuple[Any, ...]
"""A row's values in the columns of an order."""
LIMIT = sa.bindparam("limit", type_=sa.Integer)
_LATER: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Order:
    """By these columns, none of which is NULL; the last is one of a kind, so that every row has a place of its own."""

    columns: tuple[sa.Column[Any], ...]
    descending: bool = False

    def place(self, row: Mapping[str, Any]) -> Place:
        return tuple(row[column.name] for column in self.columns)

    def read_place(self, values: object) -> Place:
        """A place that has gone through JSON. Raises ValueError if these are not values of the columns."""
        if not isinstance(values, list) or len(values) != len(self.columns):
            raise ValueError("not as many values as columns")
        return tuple(_read(value, column) for value, column in zip(values, self.columns, strict=True))


@dataclass(frozen=True, slots=True)
class Window:
    """As many rows as `limit`, those that come `after` a place or else the first."""

    order: Order
    limit: int
    after: Place | None = None

    @property
    def params(self) -> dict[str, Any]:
        """What a query has that was made `of` a `pattern` of this window."""
        return {"limit": self.limit, **_named(self.after or ())}

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.order, self.after is not None)

    def of(self, query: sa.Select[Any]) -> sa.Select[Any]:
        return self.pattern.of(query, sa.literal(self.limit), self.params)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Any window of an order, the first or one that `goes_on` after a place: queries made of it can be kept."""

    order: Order
    goes_on: bool = False

    def of(
        self, query: sa.Select[Any], limit: sa.ColumnElement[int] = LIMIT, params: Mapping[str, Any] = _LATER
    ) -> sa.Select[Any]:
        columns, descending = self.order.columns, self.order.descending
        if self.goes_on:
            place = [sa.bindparam(name, params.get(name), column.type) for name, column in _named(columns).items()]
            here, there = sa.tuple_(*columns), sa.tuple_(*place)
            query = query.where(here < there if descending else here > there)
        return query.order_by(*(column.desc() if descending else column for column in columns)).limit(limit)


def _named(values: Iterable[Any]) -> dict[str, Any]:
    return {f"after_{number}": value for number, value in enumerate(values)}


def both_ways(**columns: tuple[sa.Column[Any], ...]) -> dict[str, Order]:
    """Orders by the names that callers give them: `name` ascending, `-name` descending."""
    return {
        f"{sign}{name}": Order(chosen, descending=bool(sign)) for name, chosen in columns.items() for sign in ("", "-")
    }


def _read(value: object, column: sa.Column[Any]) -> object:
    if isinstance(column.type, sa.Integer):
        if type(value) is int and abs(value) < 2 ** (63 if isinstance(column.type, sa.BigInteger) else 31):
            return value
    elif isinstance(value, str):
        if isinstance(column.type, sa.UUID):
            return str(UUID(value))
        if isinstance(column.type, sa.DateTime):
            return datetime.fromisoformat(value).astimezone(UTC)
        if "\0" not in value:
            return value
    raise ValueError(f"no value of {column.name}")
