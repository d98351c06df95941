"""The API as Python objects.

    from orchestrator.client import Client

    client = Client("http://127.0.0.1:8084", key)      # or ORCHESTRATOR_URL and ORCHESTRATOR_KEY
    workflow = client.workflows.save({"name": "greeting", "definition": definition})
    execution = client.executions.wait(client.workflows.execute(workflow["id"], {"name": "Ada"})["id"])

Answers are dictionaries, typed in `shapes`; errors are in `errors`, one class for each status that matters. See
docs/client.md.
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.client.access import Audit, Grants, Keys, Projects, Secrets
from orchestrator.client.errors import (
    ClientError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Outdated,
    Refused,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from orchestrator.client.events import Events
from orchestrator.client.executions import TERMINAL, Executions, Steps
from orchestrator.client.shapes import Health, Json, Me, Stats
from orchestrator.client.step_templates import StepTemplates
from orchestrator.client.transport import Transport
from orchestrator.client.triggers import Triggers
from orchestrator.client.workflows import Workflows

__all__ = [
    "TERMINAL",
    "Client",
    "ClientError",
    "Conflict",
    "Forbidden",
    "Invalid",
    "NotFound",
    "Outdated",
    "Refused",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
]


class Client:
    """One service. Threads may share it; its connections are kept and used again.

    `url` and `key` come from ORCHESTRATOR_URL and ORCHESTRATOR_KEY if they are not given. A try waits for `timeout`
    seconds. What may safely be repeated is tried `retries` times more after a connection that broke: calls that read,
    control, or start something. Every method raises ClientError.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout: float = 30.0, retries: int = 3
    ) -> None:
        self._api = Transport(url, key, timeout, retries)
        self.workflows = Workflows(self._api)
        self.executions = Executions(self._api)
        self.steps = Steps(self._api)
        self.triggers = Triggers(self._api)
        self.step_templates = StepTemplates(self._api)
        self.events = Events(self._api)
        self.projects = Projects(self._api)
        self.secrets = Secrets(self._api)
        self.keys = Keys(self._api)
        self.grants = Grants(self._api)
        self.audit = Audit(self._api)

    @property
    def url(self) -> str:
        return self._api.url

    def health(self) -> Health:
        """What the service can do now; `status` is `healthy` or `unhealthy`. It takes no key."""
        health: Health = json.loads(self._api.send("GET", "/health", repeated=True, accepted=(200, 503)))
        return health

    def me(self) -> Me:
        """Whose the key is, and which roles it has."""
        return self._api.get(Me, "/api/v1/me")

    def stats(self, window: str = "24h") -> Stats:
        """What ended within the window, of 1h to 90d, in all that the key may see."""
        return self._api.get(Stats, "/api/v1/stats", window=window)

    def scheduler_status(self) -> Json:
        """Queues, workers and what they do, and what is late."""
        return self._api.get(dict[str, Any], "/api/v1/scheduler/status")
