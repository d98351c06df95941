"""Step templates, by id and by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.definition.step_templates import StepTemplate
from orchestrator.errors import Conflict, NotFound
from orchestrator.store import models as tables
from orchestrator.store.keyset import Window, both_ways
from orchestrator.store.session import Store, as_dicts, new_id, run

_t = tables.step_templates
_LISTED = (_t.c.id, _t.c.name, _t.c.description, _t.c.created_at, _t.c.updated_at)


class StoredTemplates(Mapping[str, StepTemplate]):
    """All of them by name, as they are when first asked for: their names all at once, each by itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, StepTemplate] = {}

    @cached_property
    def _names(self) -> dict[str, None]:
        with self._store.single() as connection:
            return dict.fromkeys(run(connection, "SELECT name FROM step_templates ORDER BY name").scalars())

    def __getitem__(self, name: str) -> StepTemplate:
        if name not in self._kept:
            if name not in self._names:
                raise KeyError(name)  # thousands of names that are not there ask nothing
            with self._store.single() as connection:
                row = connection.execute(sa.select(_t.c.step, _t.c.parameters).where(_t.c.name == name)).first()
            if row is None:
                raise KeyError(name)
            self._kept[name] = StepTemplate(name, row.step, row.parameters)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def insert(
    connection: Connection,
    *,
    name: str,
    description: str,
    parameters: Mapping[str, Any] | None,
    step: Mapping[str, Any],
) -> str:
    """A new template; its id. Raises Conflict if the name is taken."""
    id = new_id()
    values = {"id": id, "name": name, "description": description, "parameters": parameters, "step": step}
    _write(connection, _t.insert().values(values), name)
    return id


def update(connection: Connection, id: str, changes: Mapping[str, Any]) -> None:
    """Raises NotFound; Conflict if the name is taken."""
    statement = _t.update().where(_t.c.id == id).values(**changes, updated_at=sa.func.clock_timestamp())
    if _write(connection, statement, changes.get("name")) == 0:
        raise NotFound("step template", id)


def _write(connection: Connection, statement: sa.Insert | sa.Update, name: str | None) -> int:
    try:
        return connection.execute(statement).rowcount
    except sa.exc.IntegrityError:
        # The one constraint that what the API has checked can still violate.
        raise Conflict(
            f"there is a step template '{name}' already; change that, or take another name", "taken"
        ) from None


def delete(connection: Connection, id: str) -> None:
    """Versions that have been saved keep what they took of it. Raises NotFound."""
    if run(connection, "DELETE FROM step_templates WHERE id = %(id)s::uuid", {"id": id}).rowcount == 0:
        raise NotFound("step template", id)


def get(connection: Connection, id: str) -> dict[str, Any]:
    """Raises NotFound."""
    row = connection.execute(sa.select(*_LISTED, _t.c.parameters, _t.c.step).where(_t.c.id == id)).first()
    if row is None:
        raise NotFound("step template", id)
    return row._asdict()


ORDERS = both_ways(created_at=(_t.c.id,), name=(_t.c.name,))


def listing(connection: Connection, window: Window, *, name: str | None = None) -> list[dict[str, Any]]:
    """Step templates without their steps."""
    query = window.of(sa.select(*_LISTED))
    if name is not None:
        query = query.where(_t.c.name == name)
    return as_dicts(connection.execute(query).all())
