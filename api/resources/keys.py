"""API keys, what tokens' subjects are granted, and who one is oneself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from flask import Response, jsonify, url_for
from flask.views import MethodView

from api.access import allowed, caller, project_named
from api.access_schemas import (
    GrantIn,
    GrantOut,
    GrantPage,
    GrantQuery,
    KeyChange,
    KeyIn,
    KeyOut,
    KeyPage,
    KeyQuery,
    MeOut,
    NewKeyOut,
)
from api.body import Blueprint
from api.resources.paging import page
from api.service import service
from orchestrator.access import Role
from orchestrator.store import access
from orchestrator.store.access import Grant

blueprint = Blueprint("keys", __name__, url_prefix="/api/v1", description="Keys and grants")


@blueprint.route("/me")
@blueprint.response(200, MeOut)
def me() -> Response:
    """Who you are to the service, and which roles you hold."""
    you = caller()
    with service().store.single() as connection:
        names = access.project_names(connection, you.projects)
    grants = [{"role": you.everywhere.word, "project": None}] if you.everywhere else []
    grants += [{"role": you.projects[id].word, "project": name} for id, name in names.items()]
    return jsonify({"kind": you.kind, "id": you.id, "name": you.name, "grants": grants})


@blueprint.route("/keys")
class Keys(MethodView):
    @blueprint.arguments(KeyQuery(), location="query")
    @blueprint.response(200, KeyPage)
    def get(self, query: dict[str, Any]) -> Response:
        """List the keys that open nothing outside of the projects that you administer, newest first."""
        administered = allowed(Role.ADMIN)
        with service().store.single() as connection:
            return page(query, access.KEY_ORDERS, lambda window: access.list_keys(connection, window, administered))

    @blueprint.arguments(KeyIn())
    @blueprint.response(201, NewKeyOut)
    def post(self, given: dict[str, Any]) -> Response:
        """Create a key. This answer is the only one that has it."""
        grants = list(_grants(given.pop("grants")))
        with service().store.transaction() as connection:
            id, key = access.insert_key(connection, grants=grants, created_by=caller().name, **given)
            shown = access.get_key(connection, id, None)
        response = jsonify({**shown, "key": key})
        response.status_code = 201
        response.headers["Location"] = url_for("keys.Key", key_id=id)
        return response


@blueprint.route("/keys/<uuid:key_id>")
class Key(MethodView):
    @blueprint.response(200, KeyOut)
    def get(self, key_id: UUID) -> Response:
        """A key's name, what it opens, and when it was last used."""
        return _key_shown(str(key_id))

    @blueprint.arguments(KeyChange())
    @blueprint.response(200, KeyOut)
    def put(self, given: dict[str, Any], key_id: UUID) -> Response:
        """Change what is given; `grants` as a whole. It holds everywhere within seconds."""
        with service().store.single() as connection:
            access.get_key(connection, str(key_id), allowed(Role.ADMIN))
        written = given.pop("grants", None)
        grants = None if written is None else list(_grants(written))
        with service().store.transaction() as connection:
            access.update_key(connection, str(key_id), given, grants)
        return _key_shown(str(key_id))

    @blueprint.response(204)
    def delete(self, key_id: UUID) -> None:
        """Revoke a key for good: within seconds it opens nothing. It stays in the list."""
        with service().store.transaction() as connection:
            access.get_key(connection, str(key_id), allowed(Role.ADMIN))
            access.revoke_key(connection, str(key_id))


@blueprint.route("/grants")
class Grants(MethodView):
    @blueprint.arguments(GrantQuery(), location="query")
    @blueprint.response(200, GrantPage)
    def get(self, query: dict[str, Any]) -> Response:
        """List what the subjects of bearer tokens have been granted, besides what their tokens say."""
        administered = allowed(Role.ADMIN)
        with service().store.single() as connection:
            return page(query, access.GRANT_ORDERS, lambda window: access.list_grants(connection, window, administered))

    @blueprint.arguments(GrantIn())
    @blueprint.response(201, GrantOut)
    def post(self, given: dict[str, Any]) -> Response:
        """Grant a role to a subject."""
        (grant,) = _grants([given], "")
        with service().store.transaction() as connection:
            id = access.grant_to_subject(connection, given["subject"], grant)
            shown = access.get_grant(connection, id, None)
        response = jsonify(shown)
        response.status_code = 201
        response.headers["Location"] = url_for("keys.OneGrant", grant_id=id)
        return response


@blueprint.route("/grants/<uuid:grant_id>")
class OneGrant(MethodView):
    @blueprint.response(200, GrantOut)
    def get(self, grant_id: UUID) -> Response:
        """A grant."""
        with service().store.single() as connection:
            return jsonify(access.get_grant(connection, str(grant_id), allowed(Role.ADMIN)))

    @blueprint.response(204)
    def delete(self, grant_id: UUID) -> None:
        """Take it back."""
        with service().store.transaction() as connection:
            access.get_grant(connection, str(grant_id), allowed(Role.ADMIN))
            access.delete_grant(connection, str(grant_id))


def _grants(written: Iterable[Mapping[str, Any]], path: str = "grants") -> Iterable[Grant]:
    """Nobody gives more than they have: a role in a project takes admin there, one in all takes admin in all. Raises
    Forbidden, InputError."""
    for index, one in enumerate(written):
        project = one["project"]
        if project is None:
            caller().check(Role.ADMIN, None)
            yield Grant(Role.of(one["role"]), None)
        else:
            at = f"{path}[{index}].project" if path else "project"
            yield Grant(Role.of(one["role"]), project_named(project, Role.ADMIN, at))


def _key_shown(id: str) -> Response:
    with service().store.single() as connection:
        return jsonify(access.get_key(connection, id, allowed(Role.ADMIN)))
