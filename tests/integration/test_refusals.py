"""Whatever is wrong with a request to any endpoint: one shape of error, nothing changed, nothing told, and in the audit
log where it is an attempt to get in.

The requests are made of /openapi.json: each part of each body's example is replaced by what does not belong there, and
the document's own schema says whether that must be refused. So a new endpoint is in these tests as soon as it is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from test_access import GUARDED, Team, body_for, new_key, new_team, with_key, world
from test_openapi import operations
from werkzeug.test import TestResponse

from api import audit, create_app
from orchestrator.store.models import metadata

JSON, PROBLEM = "application/json", "application/problem+json"
SECRET = f"hush-{uuid4()}"
NOBODY = "0192f3c4-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def document(servers: Deployment) -> Any:
    return servers.client.get("/openapi.json").json


@pytest.fixture(scope="module")
def team(servers: Deployment) -> Team:
    return new_team(servers)


class Unchanged:
    """Sees whether anything is stored other than before. Where the server has begun no writing transaction, nothing
    can be; only else is everything compared."""

    _LIVING = ("audit_log", "worker_processes", "duties", "counters")

    def __init__(self, servers: Deployment) -> None:
        self._servers = servers
        self.again()

    def again(self) -> None:
        """Take what is stored now for what is to stay."""
        self._rows, self._writes = self._digests(), self._begun()

    def check(self, said: object) -> None:
        begun = self._begun()
        if begun != self._writes:
            assert self._digests() == self._rows, said
            self._writes = begun

    def _begun(self) -> Any:
        return self._servers.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")

    def _digests(self) -> dict[str, Any]:
        digest = "SELECT '{0}', count(*), md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))) FROM {0} t"
        tables = sorted(set(metadata.tables) - set(self._LIVING))
        rows = self._servers.sql(" UNION ALL ".join(digest.format(table) for table in tables))
        return {row[0]: tuple(row[1:]) for row in rows}


def refused(answer: TestResponse, *statuses: int) -> dict[str, Any]:
    """The error's body, known to have the one shape and to tell nothing that it should not."""
    assert answer.status_code in statuses, answer.text[:500]
    assert answer.mimetype == PROBLEM
    body: dict[str, Any] = answer.json
    assert body.keys() - {"errors", "state", "role"} == {"type", "title", "status", "detail"}
    assert body["status"] == answer.status_code
    assert body["detail"]
    assert all(error["message"] and error.keys() - {"line"} == {"path", "message"} for error in body.get("errors", ()))
    for inner in (SECRET, "Traceback", "psycopg2", "sqlalchemy", "SELECT ", "/site-packages/"):
        assert inner not in answer.text
    return body


# --- bodies -----------------------------------------------------------------------------------------------------

_TEXTS = ("", "x" * 20_001, "a\0b", "\ud800", "2030-13-01T00:00:00Z")
_ODD: tuple[Any, ...] = (None, True, -1, 1.5, 2**53, *_TEXTS, [], {}, [[]], {"x": {}})
"""In the place of each part of a body. What belongs there is among them for no part, what may stand there for some."""
_FREE = frozenset(("definition", "step", "config", "input", "payload", "context", "variables", "parameters"))
"""Fields in which there is no end of parts: tests of definitions look into these."""
_TAKES_A_WORKER = "/api/v1/steps/test"


def bodies(document: Any) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """(method, path, schema, example) of each body of ours; events are CloudEvents, with rules of their own."""
    for name, operation in operations(document):
        media = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
        if "$ref" in media.get("schema", {}):
            yield (*name.split(), media["schema"], media["example"])  # type: ignore[misc]


def altered(example: Any) -> Iterator[tuple[str, Any]]:
    """(field, body) for each part that is another, lacks, or is too many; "" for the body as a whole."""
    for odd in _ODD:
        if not isinstance(odd, dict):
            yield "", odd
    yield "no_such_field", {**example, "no_such_field": 1}
    yield from ((field, {key: value for key, value in example.items() if key != field}) for field in example)
    for field, keys in parts(example):
        for odd in _ODD:
            body = deepcopy(example)
            holder = body
            for key in keys[:-1]:
                holder = holder[key]
            holder[keys[-1]] = odd
            yield field, body


def parts(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The places in a body, each with the name of the field that it is part of."""
    if keys:
        yield keys[0], keys
    if not _FREE.isdisjoint(map(str, keys)):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from parts(item, (*keys, key))


def must_be_refused(schema: dict[str, Any], body: Any) -> bool:
    """By the schema, or because no column of text takes it."""
    unstorable = any(mark in json.dumps(body) for mark in ("\\u0000", "\\ud800"))
    return unstorable or not Draft202012Validator(schema).is_valid(body)


def test_every_part_of_every_body_that_is_wrong_is_refused_and_changes_nothing(
    servers: Deployment, document: Any
) -> None:
    asked: Counter[bool] = Counter()
    for method, path, schema, example in bodies(document):
        things, unchanged = world(servers, new_team(servers)), Unchanged(servers)
        checked = {**schema, "components": document["components"]}
        for field, body in altered(example):
            wrong = must_be_refused(checked, body)
            asked[wrong] += 1
            if path == _TAKES_A_WORKER and not wrong:
                continue
            said = f"{method} {path} {json.dumps(body)[:300]}"
            answer = servers.client.open(path.format(**things), method=method, data=json.dumps(body), content_type=JSON)
            assert answer.status_code < 500, f"{said}: {answer.text[:500]}"
            if answer.status_code < 400:
                assert not wrong, f"{said} was taken: {answer.text[:300]}"
                unchanged.again()
                continue
            errors = refused(answer, *((422, 413) if wrong else (400, 404, 409, 412, 413, 422))).get("errors", ())
            assert not wrong or any(error["path"].startswith(field) for error in errors), f"{said}: {errors}"
            unchanged.check(said)
    assert asked[True] > 1000


_DEEP = b"[" * 5000 + b"]" * 5000
_UNREADABLE = {
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "no JSON": b"{",
    "a key twice": b'{"name": "a", "name": "b"}',
    "too deep": b'{"name": ' + _DEEP + b"}",
    "no number": b'{"name": NaN}',
    "an integer of 5,000 digits": b'{"name": ' + b"9" * 5000 + b"}",
}


def test_every_body_that_cannot_be_read_is_refused_and_changes_nothing(
    servers: Deployment, team: Team, document: Any
) -> None:
    things, unchanged = world(servers, team), Unchanged(servers)
    for method, path, *_ in bodies(document):
        address = path.format(**things)
        for why, body in _UNREADABLE.items():
            said = f"{method} {path}: {why}"
            refused(servers.client.open(address, method=method, data=body, content_type=JSON), 400)
            unchanged.check(said)
        refused(servers.client.open(address, method=method, data=b"<a/>", content_type="text/xml"), 415)
    unchanged.check("a body of another type")


# --- what others deliver, in whatever form --------------------------------------------------------------------------

_EVENT = {"specversion": "1.0", "id": "1", "source": "/tests", "type": "delivered"}
_DELIVERED = [
    *_UNREADABLE.values(),
    b"", b"\0", b"[]", b"null", b'{"a": "\\u0000"}', b'{"a": "\\ud800"}', b"a=%00&b=%ff", b"--x\r\n",
    *(json.dumps(odd).encode() for odd in (
        _EVENT, [_EVENT] * 3, {**_EVENT, "id": "\0"}, {**_EVENT, "id": 5, "source": [], "type": {}},
        {**_EVENT, "data_base64": "###", "time": "never"}, {**_EVENT, "id": "1" * 20_000, "source": "/x" * 20_000},
        {**_EVENT, "datacontenttype": "application/xml", "data": {"a": 1}, "other": {"a": 1}, "subject": 5},
    )),
]  # fmt: skip
_TYPES = (
    JSON, "application/json; charset=utf-16", "text/plain; charset=rot13", ";;;", "", "multipart/form-data; boundary=x",
    "application/cloudevents+json", "application/cloudevents-batch+json; charset=latin-1",
    "application/x-www-form-urlencoded",
)  # fmt: skip


def test_whatever_is_delivered_is_taken_or_refused(servers: Deployment) -> None:
    paths = ["/api/v1/events"]
    for more in ({"mapping": {"all": "{{ body }}", "query": "{{ query }}"}}, {"secret": SECRET}):
        paths.append(f"/webhook/{uuid4()}")
        hook = {"type": "webhook", "config": {"path": paths[-1], **more}}
        workflow_id = servers.create({"steps": [{"id": "a", "type": "noop"}], "triggers": [hook]})
        servers.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    unchanged = Unchanged(servers)
    for path, body, media in product(paths, _DELIVERED, _TYPES):
        answer = servers.client.post(f"{path}?a=%00&b=%ff&b=2", data=body, content_type=media)
        if answer.status_code == 202:
            unchanged.again()
        else:
            refused(answer, 400, 401, 413, 415, 422)
            if answer.status_code != 422:  # an input that does not fit is kept with its fire
                unchanged.check(f"{path} {media} {body[:100]!r}")


# --- what stands in an address ------------------------------------------------------------------------------------


def test_every_parameter_that_is_wrong_is_named(servers: Deployment, team: Team, document: Any) -> None:
    things, unchanged, asked = world(servers, team), Unchanged(servers), 0
    for name, operation in operations(document):
        method, path = name.split()
        if operation.get("security") == []:
            continue
        given = {one["name"]: one["schema"] for one in operation.get("parameters", ()) if one.get("in") == "query"}
        address, body = path.format(**things), None if method == "GET" else {}
        queries = [(parameter, odd) for parameter in given for odd in ("\0", "x" * 20_001, "-1", "")]
        for parameter, odd in [*queries, ("no_such_parameter", "1")] if given else ():
            answer = servers.client.open(address, method=method, query_string={parameter: odd}, json=body)
            said = f"{name} {parameter}={odd[:20]!r}"
            assert answer.status_code < 500, f"{said}: {answer.text[:500]}"
            if parameter == "no_such_parameter" or "\0" in odd:
                errors = refused(answer, 422)["errors"]
                # One of a list is named with its place in that.
                assert parameter in [error["path"].partition("[")[0] for error in errors], f"{said}: {errors}"
                asked += 1
            elif answer.status_code >= 400:
                refused(answer, 404, 409, 422)
            if answer.status_code >= 400:
                unchanged.check(said)
    assert asked > 40


@pytest.mark.parametrize("id", ["not-a-uuid", "%00", "%FF%FE", "%F0%9F%98%80", "..%2f..%2fetc", "0" * 5000, NOBODY])
def test_an_id_that_is_none_or_of_nothing_is_404_everywhere(
    servers: Deployment, team: Team, document: Any, id: str
) -> None:
    things, unchanged = world(servers, team), Unchanged(servers)
    for name, _ in operations(document):
        method, path = name.split()
        if "_id}" in path:
            body = None if method == "GET" else body_for(method, path, team)
            address = path.format(**{key: id if key.endswith("_id") else value for key, value in things.items()})
            refused(servers.client.open(address, method=method, json=body), 404, 422)
    unchanged.check(id)


# --- who asks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(servers: Deployment, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """A process whose audit log has every refusal: that it is bounded is shown elsewhere."""
    monkeypatch.setattr(audit.Flood, "admit", lambda *_: 0)
    return create_app(servers.settings).test_client()


def kept(servers: Deployment, since: str) -> list[tuple[str, str, str | None]]:
    """(action, object, actor) of what was refused since the entry with this id."""
    rows = servers.sql(
        "SELECT action, status, actor_id FROM audit_log WHERE id > %(since)s::uuid AND status >= 400 ORDER BY id",
        since=since,
    )
    return [tuple(row) for row in rows]


def newest_entry(servers: Deployment) -> str:
    ((id,),) = servers.sql("SELECT max(id::text) FROM audit_log")
    return str(id)


def test_no_endpoint_opens_to_a_credential_that_is_none(servers: Deployment, team: Team, guarded: FlaskClient) -> None:
    revoked, expired = (new_key(servers, {"role": "admin"}) for _ in range(2))
    servers.client.delete(f"/api/v1/keys/{revoked['id']}")
    servers.sql("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = %(id)s::uuid", id=expired["id"])
    credentials = [
        None, "", "Bearer", "Bearer ", f"Basic {SECRET}", f"Bearer {SECRET}", "Bearer \xff\xfe", "Bearer a.b.c",
        f"Bearer {'x' * 20_000}", f"Bearer {revoked['key'][:-1]}", f"Bearer {revoked['key']}",
        f"Bearer {expired['key']}", f"Bearer {revoked['key']} {expired['key']}",
    ]  # fmt: skip
    things, since, unchanged = world(servers, team), newest_entry(servers), Unchanged(servers)
    for method, path, *_ in GUARDED:
        for credential in credentials:
            headers = {"If-Match": "*"} | ({} if credential is None else {"Authorization": credential})
            answer = guarded.open(
                path.format(**things), method=method, json=body_for(method, path, team), headers=headers
            )
            assert "key" in refused(answer, 401)["detail"]
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    unchanged.check("a credential that is none")
    entries = kept(servers, since)
    assert len(entries) == len(GUARDED) * len(credentials)
    assert {entry[1:] for entry in entries} == {(401, None)}


def test_what_is_not_theirs_to_do_or_to_see_is_refused_and_kept(
    servers: Deployment, team: Team, guarded: FlaskClient
) -> None:
    stranger = used_key(servers, {"role": "admin", "project": new_team(servers).name})
    viewer = used_key(servers, {"role": "viewer", "project": team.name})
    things, since, unchanged = world(servers, team), newest_entry(servers), Unchanged(servers)
    expected = []
    for method, path, least, where in GUARDED:
        calls = []
        if least not in ("viewer", "nobody"):
            calls.append((viewer, 403))
        if "_id}" in path and "step_template_id" not in path and where != "all":
            calls.append((stranger, 404))
        for key, status in calls:
            headers = {"If-Match": "*", "Authorization": f"Bearer {key['key']}"}
            answer = guarded.open(
                path.format(**things), method=method, json=body_for(method, path, team), headers=headers
            )
            assert team.name not in refused(answer, status)["detail"]
            expected.append((status, key["id"]))
    unchanged.check("what is not theirs")
    assert [entry[1:] for entry in kept(servers, since)] == expected
    assert len(expected) > 60


def test_what_a_body_names_of_others_is_told_of_like_what_nobody_has(servers: Deployment, team: Team) -> None:
    stranger = with_key(servers, used_key(servers, {"role": "admin", "project": new_team(servers).name})["key"])
    things, nowhere = world(servers, team), f"team-{uuid4()}"
    unchanged = Unchanged(servers)
    new = {"name": "mine", "definition": {"steps": [{"id": "a", "type": "noop"}]}}
    grant = {"role": "viewer", "project": team.name}
    for path, body in (
        ("workflows", {**new, "project": team.name}),
        ("workflows/import", {**new, "project": team.name}),
        ("keys", {"name": "mine", "grants": [grant]}),
        ("grants", {"subject": "x:y", **grant}),
        ("secrets", {"name": "mine", "value": "x", "project": team.name}),
        ("secrets", {"name": "mine", "value": "x", "workflow_id": things["workflow_id"]}),
        ("steps/test", {"type": "noop", "project": team.name}),
    ):

        def of_nobody(text: str) -> str:
            return text.replace(team.name, nowhere).replace(things["workflow_id"], NOBODY)

        theirs = stranger.post(f"/api/v1/{path}", json=body)
        nobodys = stranger.post(f"/api/v1/{path}", json=json.loads(of_nobody(json.dumps(body))))
        refused(theirs, 404, 422)
        assert of_nobody(theirs.text) == nobodys.text
    unchanged.check("what is named of others")


def test_a_delivery_that_is_not_signed_is_kept_for_the_trigger_s_project(
    servers: Deployment, team: Team, guarded: FlaskClient
) -> None:
    hook = {"type": "webhook", "config": {"path": f"/webhook/{uuid4()}", "secret": SECRET}}
    new = {"name": "hooked", "definition": {"steps": [{"id": "a", "type": "noop"}], "triggers": [hook]}}
    workflow_id = servers.client.post("/api/v1/workflows", json={**new, "project": team.name}).json["id"]
    (trigger,) = servers.client.get(f"/api/v1/workflows/{workflow_id}/triggers").json["items"]
    unchanged = Unchanged(servers)
    signed_by_others = {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": f"v1,{'A' * 43}="}
    for headers in ({}, signed_by_others):
        refused(guarded.post(hook["config"]["path"], json={"a": 1}, headers=headers), 401)
    unchanged.check("a delivery that is not signed")
    seen = team.keys["admin"].get(f"/api/v1/audit?object_id={trigger['id']}&denied=true").json["items"]
    assert [(entry["status"], entry["actor_kind"], entry["object_kind"]) for entry in seen] == [
        (401, "anonymous", "trigger")
    ] * 2


def used_key(servers: Deployment, *grants: dict[str, Any]) -> dict[str, Any]:
    """A key whose last use has been written down, and will not be again."""
    made = new_key(servers, *grants)
    assert with_key(servers, made["key"]).get("/api/v1/me").status_code == 200
    servers.sql("UPDATE api_keys SET last_used_at = 'infinity' WHERE id = %(id)s::uuid", id=made["id"])
    return made
