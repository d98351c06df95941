"""How a table of executions is made, read from the database itself: so a migration that changes the present ones has
nothing to do for those that will take their place."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from orchestrator.store.session import run

_CONSTRAINTS = """
    SELECT conname AS name, contype IN ('p', 'u') AS is_key, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE conrelid = %(table)s::regclass AND contype IN ('p', 'u', 'c', 'f') ORDER BY conname
"""
_INDEXES = """
    SELECT c.relname AS name, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %(table)s::regclass AND NOT EXISTS (
        SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid) ORDER BY name
"""
_TRIGGERS = """
    SELECT pg_get_triggerdef(oid) AS definition FROM pg_trigger WHERE tgrelid = %(table)s::regclass AND NOT tgisinternal
    ORDER BY tgname
"""
# What LIKE does not copy.
_SETTINGS = """
    SELECT 'SET (' || array_to_string(reloptions, ', ') || ')' AS setting FROM pg_class
    WHERE oid = %(table)s::regclass AND reloptions IS NOT NULL
    UNION ALL
    SELECT format('ALTER COLUMN %%I SET STATISTICS %%s', attname, attstattarget) FROM pg_attribute
    WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped AND attstattarget IS NOT NULL ORDER BY 1
"""
_GRANTS = """
    SELECT format('%%s TO %%s', string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type),
                  CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS privileges
    FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = %(table)s::regclass AND a.grantee <> c.relowner
    GROUP BY a.grantee ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Design:
    """Of the table `name`, or one like it. Its own name stands as {table} in it, that of the executions beside it as
    {executions}, and that of an index as {name}."""

    name: str
    settings: tuple[str, ...]
    keys: dict[str, str]
    """The constraints that are indexes, by their names."""
    constraints: dict[str, str]
    indexes: dict[str, str]
    triggers: tuple[str, ...]
    grants: tuple[str, ...]

    @classmethod
    def of(cls, connection: Connection, name: str, suffix: str = "") -> Design:
        """That of the table whose name has this `suffix`."""

        def read(sql: str) -> list[Any]:
            return list(run(connection, sql, {"table": f"{name}{suffix}"}))

        foreign = f"REFERENCES executions{suffix}("
        on_it = re.compile(rf" ON \S*\b{name}{suffix} ")
        constraints = read(_CONSTRAINTS)
        return cls(
            name,
            tuple(row.setting for row in read(_SETTINGS)),
            {row.name.removesuffix(suffix): row.definition for row in constraints if row.is_key},
            {
                row.name: row.definition.replace(foreign, "REFERENCES {executions}(")
                for row in constraints
                if not row.is_key
            },
            {
                row.name.removesuffix(suffix): on_it.sub(" ON {table} ", row.definition, count=1).replace(
                    f"INDEX {row.name} ", "INDEX {name} ", 1
                )
                for row in read(_INDEXES)
            },
            tuple(on_it.sub(" ON {table} ", row.definition, count=1) for row in read(_TRIGGERS)),
            tuple(row.privileges for row in read(_GRANTS)),
        )

    def making(self, suffix: str, *, without: Collection[str] = ()) -> str:
        """SQL that makes a table like it, with `suffix` at its name and at those that no two tables may share; not the
        indexes `without`."""
        return "; ".join(self._making(suffix, without))

    def _making(self, suffix: str, without: Collection[str]) -> Iterator[str]:
        table = f"{self.name}{suffix}"
        yield f"CREATE TABLE {table} (LIKE all_{self.name} INCLUDING DEFAULTS INCLUDING COMMENTS)"
        for setting in self.settings:
            yield f"ALTER TABLE {table} {setting}"
        for name, definition in self.keys.items():
            yield f"ALTER TABLE {table} ADD CONSTRAINT {name}{suffix} {definition}"
        for name, definition in self.constraints.items():
            beside = definition.replace("{executions}", f"executions{suffix}")
            yield f"ALTER TABLE {table} ADD CONSTRAINT {name} {beside}"
        for name, definition in self.indexes.items():
            if name not in without:
                yield definition.replace("{name}", f"{name}{suffix}", 1).replace("{table}", table, 1)
        for definition in self.triggers:
            yield definition.replace("{table}", table, 1)
        for grant in self.grants:
            yield f"GRANT {grant.replace(' TO ', f' ON {table} TO ', 1)}"
        yield f"ALTER TABLE {table} INHERIT all_{self.name}"

    def renaming(self, before: str, after: str) -> str:
        """SQL that gives the table, and its indexes, the suffix `after` in the place of `before`."""
        indexes = (f"ALTER INDEX {name}{before} RENAME TO {name}{after}" for name in (*self.keys, *self.indexes))
        return "; ".join((f"ALTER TABLE {self.name}{before} RENAME TO {self.name}{after}", *indexes))
