"""Who may do what: the four roles, and which of them a caller holds in which project.

Roles are a ladder, since whoever may change a workflow may see it: a rung has all that stands below it. They are held
in one project or in all; what belongs to no project (step templates, the scheduler) asks for a role in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from orchestrator.errors import Forbidden

DEFAULT_PROJECT = "00000000-0000-7000-8000-000000000000"
"""The id of the project `default`, which is always there; migration 0011 inserts it."""


class Role(IntEnum):
    VIEWER = 1
    """Sees definitions, executions, logs."""
    OPERATOR = 2
    """Starts, pauses, cancels and retries what others have written."""
    EDITOR = 3
    """Writes workflows and triggers, and removes them with their history."""
    ADMIN = 4
    """Gives and takes access, and reads the audit log."""

    @property
    def word(self) -> str:
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> Role:
        """Raises ValueError."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(f"there is no role {word!r}; the roles are {', '.join(ROLES)}") from None


ROLES = tuple(role.word for role in Role)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who has proved who they are, with the roles that they hold."""

    kind: Literal["admin_key", "key", "subject"]
    id: str
    """Of a key its id; of a subject `ISSUER:SUB`, with the issuer's name in the settings."""
    name: str
    everywhere: Role | None = None
    projects: Mapping[str, Role] = field(default_factory=dict)
    """By project id, besides `everywhere`."""
    owner_id: str | None = None
    """What is theirs has this as its owner_id."""
    rate_limit: int | None = None
    """Requests a minute, if other than the settings say."""
    max_body: int | None = None
    """Bytes, if less than the settings allow."""

    def may(self, role: Role, project_id: str | None) -> bool:
        """Whether they hold `role` or more in the project; None: in all of them."""
        held = max(self.everywhere or 0, self.projects.get(project_id, 0) if project_id else 0)
        return held >= role

    def projects_with(self, role: Role) -> frozenset[str] | None:
        """Where they hold `role` or more; None: everywhere."""
        if self.may(role, None):
            return None
        return frozenset(project for project, held in self.projects.items() if held >= role)

    def check(self, role: Role, project_id: str | None) -> None:
        """Raises Forbidden."""
        if not self.may(role, project_id):
            where = "in all projects" if project_id is None else "in this project"
            raise Forbidden(role.word, f"this needs the role {role.word} {where}")

    def check_somewhere(self, role: Role) -> None:
        """Raises Forbidden."""
        if self.projects_with(role) == frozenset():
            raise Forbidden(role.word, f"this needs the role {role.word} in a project")
