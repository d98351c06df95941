"""What each endpoint asks of its caller: the one place, looked at before any view runs.

RULES has an entry for every route and method, and what has none is closed to everybody; a test compares the two. An
entry says the least role, and where it must be held:

- `at(role)`: in the project that the object in the URL belongs to (`workflow_id`, `execution_id`, ...). An object of a
  project in which the caller holds no role is answered like one that is not there.
- `somewhere(role)`: in one project at least; the view restricts itself to those in which it is held (`allowed`,
  `project_for`). An object in the URL must be visible.
- `everywhere(role)`: in all projects, for what belongs to none of them.
- `ANYONE` who has proved who they are; `OPEN`: nothing is asked.

What changes something names it, and is then in the audit log: what it `creates` or `changes` with the state of that
before and after, what it `does` otherwise with what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import cast

from flask import g, request

from api.service import service
from orchestrator.access import Principal, Role
from orchestrator.errors import Forbidden, InputError, NotFound, Problem
from orchestrator.store import access

VIEWER, OPERATOR, EDITOR, ADMIN = Role.VIEWER, Role.OPERATOR, Role.EDITOR, Role.ADMIN


class Where(Enum):
    OBJECT = "in the object's project"
    SOMEWHERE = "in a project"
    EVERYWHERE = "in all projects"


@dataclass(frozen=True, slots=True)
class Rule:
    """`role` None: whoever has proved who they are, or with `is_open` anybody."""

    role: Role | None
    where: Where = Where.OBJECT
    creates: str = ""
    changes: str = ""
    does: str = ""
    is_open: bool = False

    @property
    def action(self) -> str:
        return self.creates or self.changes or self.does


at = partial(Rule, where=Where.OBJECT)
somewhere = partial(Rule, where=Where.SOMEWHERE)
everywhere = partial(Rule, where=Where.EVERYWHERE)
OPEN = Rule(None, is_open=True)
ANYONE = Rule(None)


def version_number(name: str) -> str:
    """What stands in a route for the number of a version."""
    return f"<int(min=1, max={2**31 - 1}):{name}>"


_WORKFLOW = "/api/v1/workflows/<uuid:workflow_id>"
_EXECUTION = "/api/v1/executions/<uuid:execution_id>"
_STEP = "/api/v1/step-executions/<uuid:step_execution_id>"
_TEMPLATE = "/api/v1/step-templates/<uuid:step_template_id>"
_TRIGGER = "/api/v1/triggers/<uuid:trigger_id>"
_PROJECT = "/api/v1/projects/<uuid:project_id>"
_KEY = "/api/v1/keys/<uuid:key_id>"
_GRANT = "/api/v1/grants/<uuid:grant_id>"
_SECRET = "/api/v1/secrets/<uuid:secret_id>"  # noqa: S105  (where it is, not what it is)

RULES: Mapping[str, Rule] = {
    "GET /health": OPEN,
    "GET /docs": OPEN,
    "GET /docs/": OPEN,
    "GET /docs/assets/<path:name>": OPEN,
    "GET /openapi.json": OPEN,
    # Webhooks have secrets of their own.
    **{f"{method} /webhook/<path:path>": OPEN for method in ("GET", "POST", "PUT", "PATCH", "DELETE")},
    "GET /api/v1/schema": ANYONE,
    "GET /api/v1/me": ANYONE,
    # Workflows
    "GET /api/v1/workflows": somewhere(VIEWER),
    "POST /api/v1/workflows": somewhere(EDITOR, creates="workflow.create"),
    f"GET {_WORKFLOW}": at(VIEWER),
    f"PUT {_WORKFLOW}": at(EDITOR, changes="workflow.update"),
    f"DELETE {_WORKFLOW}": at(EDITOR, changes="workflow.delete"),
    f"GET {_WORKFLOW}/status": at(VIEWER),
    f"POST {_WORKFLOW}/activate": at(OPERATOR, changes="workflow.activate"),
    f"POST {_WORKFLOW}/pause": at(OPERATOR, changes="workflow.pause"),
    f"POST {_WORKFLOW}/resume": at(OPERATOR, changes="workflow.resume"),
    f"POST {_WORKFLOW}/cancel": at(EDITOR, changes="workflow.cancel"),
    f"POST {_WORKFLOW}/execute": at(OPERATOR, does="workflow.execute"),
    f"POST {_WORKFLOW}/execute/bulk": at(OPERATOR, does="workflow.execute_many"),
    f"POST {_WORKFLOW}/instantiate": somewhere(EDITOR, creates="workflow.instantiate"),
    # With the secrets of its triggers, which who may only look is not to carry elsewhere.
    f"POST {_WORKFLOW}/clone": at(EDITOR, creates="workflow.clone"),
    f"GET {_WORKFLOW}/export": at(VIEWER),
    "POST /api/v1/workflows/import": somewhere(EDITOR, creates="workflow.import"),
    f"GET {_WORKFLOW}/versions": at(VIEWER),
    f"GET {_WORKFLOW}/versions/{version_number('version')}": at(VIEWER),
    f"GET {_WORKFLOW}/versions/{version_number('old')}/diff/{version_number('new')}": at(VIEWER),
    f"POST {_WORKFLOW}/versions/{version_number('version')}/restore": at(EDITOR, changes="workflow.restore"),
    # Step templates, which the workflows of all projects use
    "GET /api/v1/step-templates": somewhere(VIEWER),
    "POST /api/v1/step-templates": everywhere(EDITOR, creates="step_template.create"),
    f"GET {_TEMPLATE}": somewhere(VIEWER),
    f"PUT {_TEMPLATE}": everywhere(EDITOR, changes="step_template.update"),
    f"DELETE {_TEMPLATE}": everywhere(EDITOR, changes="step_template.delete"),
    "POST /api/v1/steps/test": somewhere(EDITOR, does="step.test"),
    # Executions
    "GET /api/v1/executions": somewhere(VIEWER),
    "POST /api/v1/executions/bulk": somewhere(OPERATOR, does="execution.bulk"),
    f"GET {_EXECUTION}": at(VIEWER),
    f"DELETE {_EXECUTION}": at(EDITOR, changes="execution.delete"),
    f"GET {_EXECUTION}/logs": at(VIEWER),
    f"GET {_EXECUTION}/steps/<string:path>/output": at(VIEWER),
    f"GET {_EXECUTION}/events": at(VIEWER),
    "GET /api/v1/events/stream": somewhere(VIEWER),
    f"GET {_EXECUTION}/why": at(VIEWER),
    f"POST {_EXECUTION}/pause": at(OPERATOR, changes="execution.pause"),
    f"POST {_EXECUTION}/resume": at(OPERATOR, changes="execution.resume"),
    f"POST {_EXECUTION}/cancel": at(OPERATOR, changes="execution.cancel"),
    f"POST {_EXECUTION}/retry": at(OPERATOR, changes="execution.retry"),
    f"POST {_EXECUTION}/rerun": at(OPERATOR, does="execution.rerun"),
    f"POST {_EXECUTION}/signals": at(OPERATOR, does="execution.signal"),
    f"GET {_STEP}": at(VIEWER),
    f"GET {_STEP}/output": at(VIEWER),
    f"GET {_STEP}/why": at(VIEWER),
    f"POST {_STEP}/retry": at(OPERATOR, changes="step_execution.retry"),
    f"POST {_STEP}/decision": at(OPERATOR, changes="step_execution.decide"),
    # Triggers
    f"GET {_WORKFLOW}/triggers": at(VIEWER),
    f"POST {_WORKFLOW}/triggers": at(EDITOR, creates="trigger.create"),
    f"GET {_TRIGGER}": at(VIEWER),
    f"PUT {_TRIGGER}": at(EDITOR, changes="trigger.update"),
    f"DELETE {_TRIGGER}": at(EDITOR, changes="trigger.delete"),
    f"GET {_TRIGGER}/fires": at(VIEWER),
    f"GET {_TRIGGER}/preview": at(VIEWER),
    f"POST {_TRIGGER}/fire": at(OPERATOR, does="trigger.fire"),
    f"POST {_TRIGGER}/backfill": at(OPERATOR, does="trigger.backfill"),
    "POST /api/v1/events": somewhere(OPERATOR, does="event.send"),
    f"GET {_WORKFLOW}/stats": at(VIEWER),
    "GET /api/v1/stats": somewhere(VIEWER),
    "GET /metrics": everywhere(VIEWER),
    # The service as a whole shows what all projects do.
    "GET /api/v1/scheduler/status": everywhere(VIEWER),
    # Access
    "GET /api/v1/projects": somewhere(VIEWER),
    "POST /api/v1/projects": everywhere(ADMIN, creates="project.create"),
    f"GET {_PROJECT}": at(VIEWER),
    f"PUT {_PROJECT}": at(ADMIN, changes="project.update"),
    f"DELETE {_PROJECT}": everywhere(ADMIN, changes="project.delete"),
    "GET /api/v1/keys": somewhere(ADMIN),
    "POST /api/v1/keys": somewhere(ADMIN, creates="key.create"),
    f"GET {_KEY}": somewhere(ADMIN),
    f"PUT {_KEY}": somewhere(ADMIN, changes="key.update"),
    f"DELETE {_KEY}": somewhere(ADMIN, changes="key.revoke"),
    "GET /api/v1/grants": somewhere(ADMIN),
    "POST /api/v1/grants": somewhere(ADMIN, creates="grant.create"),
    f"GET {_GRANT}": somewhere(ADMIN),
    f"DELETE {_GRANT}": somewhere(ADMIN, changes="grant.delete"),
    "GET /api/v1/secrets": somewhere(EDITOR),
    "POST /api/v1/secrets": somewhere(EDITOR, creates="secret.create"),
    f"GET {_SECRET}": at(EDITOR),
    f"PUT {_SECRET}": at(EDITOR, changes="secret.update"),
    f"DELETE {_SECRET}": at(EDITOR, changes="secret.delete"),
    "GET /api/v1/audit": somewhere(ADMIN),
    "GET /api/v1/audit/export": somewhere(ADMIN),
}


def rule_of_request() -> Rule | None:
    if request.url_rule is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return RULES.get(f"{method} {request.url_rule.rule}")


def check(principal: Principal, rule: Rule | None) -> None:
    """Raises NotFound, Forbidden."""
    if rule is None:
        raise Forbidden("", f"{request.method} {request.path} has no entry in api/access.py, and so is closed to all")
    if rule.role is None:
        return
    if rule.where is Where.EVERYWHERE:
        principal.check(rule.role, None)
    kind, id = object_in_url()
    # With the role in all projects it does not matter whose it is, and the view finds out whether it is there.
    if kind in access.PROJECT_OF and not principal.may(rule.role, None):
        project_id = service().project_of(kind, id)
        if project_id is None or not principal.may(VIEWER, project_id):
            g.is_foreign = project_id is not None
            raise NotFound(kind, id)
        if rule.where is Where.OBJECT:
            principal.check(rule.role, project_id)
    if rule.where is Where.SOMEWHERE:
        principal.check_somewhere(rule.role)


def object_in_url() -> tuple[str, str]:
    """(kind, id) of what the URL is about; ("", "") if that is no one object."""
    for name, value in (request.view_args or {}).items():
        if name.endswith("_id"):
            return name.removesuffix("_id").replace("_", " "), str(value)
    return "", ""


def caller() -> Principal:
    """Whose request this is; for views that are not open."""
    return cast(Principal, g.principal)


def allowed(role: Role = VIEWER) -> frozenset[str] | None:
    """The ids of the projects in which the caller holds it; None: in all. Raises Forbidden if there is none."""
    caller().check_somewhere(role)
    return caller().projects_with(role)


def project_for(name: str | None, role: Role = EDITOR) -> str:
    """The id of the project with this name, in which the caller wants to do what takes `role`; without a name it is
    the only one where they may, or else `default`. Raises InputError, Forbidden."""
    mine = caller().projects_with(role)
    if name is None and mine is not None and len(mine) == 1:
        return next(iter(mine))
    return project_named(name or "default", role, "project")


def project_named(name: str, role: Role, path: str) -> str:
    """Its id. Raises Forbidden; InputError, at `path` of the body, if there is none that the caller may see."""
    with service().store.single() as connection:
        id = access.project_ids(connection, [name]).get(name)
    if id is None or not caller().may(VIEWER, id):
        raise InputError([Problem(path, f"there is no project '{name}' that you may see; name another")])
    caller().check(role, id)
    return id
