"""What the views work with: the store, the programs, the step types. One for each process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from flask import current_app

from api.believed import Believed
from orchestrator.config import Settings
from orchestrator.engine.programs import Programs
from orchestrator.errors import ConfigurationError
from orchestrator.plugins import load_catalogue, load_trigger_types
from orchestrator.store import Store, access
from orchestrator.vault import open_vault

if TYPE_CHECKING:
    from orchestrator.engine.plan import Plan


class Service:
    def __init__(self, settings: Settings) -> None:
        if not settings.database.url:
            raise ConfigurationError(
                "database.url is not set; start everything with `orchestrator up`, or set "
                "ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL"
            )
        self.settings = settings
        self.catalogue = load_catalogue(settings.plugins)
        self.trigger_types = load_trigger_types(settings.plugins)
        self.programs = Programs(self.catalogue, settings)
        self.store = Store(settings.database)
        self.vault = open_vault(settings.vault)
        self.projects: Believed[tuple[str, str], str] = Believed()

    def project_of(self, kind: str, id: str) -> str | None:
        """The id of the project that a thing belongs to; None if it is not there. What was given to another project is
        where it was for as long as a process believes it."""
        project_id = self.projects.get((kind, id))
        if project_id is None:
            with self.store.single() as connection:
                project_id = access.project_of(connection, kind, id)
            if project_id is not None:
                self.projects.keep((kind, id), project_id)
        return project_id

    def send(self, plan: Plan | None) -> None:
        """Ring for what has been committed. A broker that is away is no error: reconcile rings later."""
        from workers.dispatch import send

        send(plan)

    def send_all(self, plans: Sequence[Plan]) -> None:
        """The same for many."""
        from workers.dispatch import send_all

        send_all(plans)

    def try_step(self, id: str, queue: str) -> bool:
        """Have a worker try out a step; False if the broker is away, and then nobody will."""
        from workers.dispatch import send_trial

        return send_trial(id, queue)


def service() -> Service:
    return cast(Service, current_app.extensions["orchestrator"])
