"""Bearer tokens of an OpenID Connect issuer: which are taken, and what they open."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from deployment import Deployment
from flask.testing import FlaskClient

from api import create_app, oidc
from orchestrator.config import OidcSettings
from orchestrator.errors import ConfigurationError

_FIRST = rsa.generate_private_key(65537, 2048)


class Issuer:
    """A small OpenID provider on loopback: discovery, keys, and tokens signed with them."""

    def __init__(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                document = issuer.documents().get(self.path)
                self.send_response(200 if document and not issuer.away else 503)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.says_it_is = self.url
        self.asked: list[str] = []
        self.away = False
        self.keys: dict[str, Any] = {"one": _FIRST}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def documents(self) -> dict[str, Any]:
        return {
            "/.well-known/openid-configuration": {"issuer": self.says_it_is, "jwks_uri": f"{self.url}/keys"},
            "/keys": {"keys": [self.public(kid) for kid in self.keys]},
        }

    def public(self, kid: str) -> dict[str, Any]:
        key = self.keys[kid]
        algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}

    def claims(self, **more: Any) -> dict[str, Any]:
        now = int(time.time())
        return {"iss": self.url, "aud": "orchestrator", "sub": "u1", "iat": now, "exp": now + 300, **more}

    def token(self, kid: str | None = "one", alg: str = "RS256", **more: Any) -> str:
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(self.claims(**more), self.keys[kid or "one"], alg, headers=headers)


@contextmanager
def running() -> Iterator[Issuer]:
    issuer = Issuer()
    try:
        yield issuer
    finally:
        issuer.server.shutdown()
        issuer.server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running() as issuer:
        yield issuer


@pytest.fixture
def client(servers: Deployment, issuer: Issuer, project: str) -> FlaskClient:
    assert servers.client
    roles = {"admins": "admin", "readers": "viewer", "team": f"editor@{project}"}
    settings = OidcSettings(issuer=issuer.url, audience="orchestrator", roles_claim="realm.groups", roles=roles)
    return create_app(replace(servers.settings, oidc={"company": settings})).test_client()


@pytest.fixture(scope="module")
def project(servers: Deployment) -> str:
    name: str = servers.client.post("/api/v1/projects", json={"name": f"team-{uuid4()}"}).json["name"]
    return name


def me(client: FlaskClient, token: str) -> Any:
    return client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})


def refusal(answer: Any, status: int = 401) -> str:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    return str(answer.json["detail"])


def test_a_token_opens_what_its_claim_stands_for(client: FlaskClient, issuer: Issuer, project: str) -> None:
    token = issuer.token(realm={"groups": ["readers", "team", "strangers"]}, preferred_username="ann")
    answer = me(client, token)
    assert answer.status_code == 200, answer.text
    assert (answer.json["kind"], answer.json["id"], answer.json["name"]) == ("subject", "company:u1", "ann")
    assert answer.json["grants"] == [{"role": "viewer", "project": None}, {"role": "editor", "project": project}]
    body = {"name": "w", "definition": {"steps": [{"id": "a", "type": "noop"}]}}
    headers = {"Authorization": f"Bearer {token}"}
    made = client.post("/api/v1/workflows", json=body, headers=headers)
    assert made.json["project"] == project
    assert UUID(made.json["owner_id"])
    refused = client.post("/api/v1/workflows", json={**body, "project": "default"}, headers=headers)
    assert "role editor" in refusal(refused, 403)


@pytest.mark.parametrize("chosen", ["a\0b", "\ud800", "", 5, None, ["ann"]])
def test_a_name_that_cannot_be_kept_is_no_name(client: FlaskClient, issuer: Issuer, chosen: object) -> None:
    token = issuer.token(realm={"groups": ["team"]}, preferred_username=chosen)
    body = {"name": "w", "definition": {"steps": [{"id": "a", "type": "noop"}]}}
    made = client.post("/api/v1/workflows", json=body, headers={"Authorization": f"Bearer {token}"})
    assert made.status_code == 201, made.text
    assert me(client, token).json["name"] == "u1"


def test_a_token_without_a_known_role_sees_nothing(client: FlaskClient, issuer: Issuer) -> None:
    headers = {"Authorization": f"Bearer {issuer.token(realm={'groups': 'strangers'})}"}
    assert client.get("/api/v1/me", headers=headers).json["grants"] == []
    assert "role viewer" in refusal(client.get("/api/v1/workflows", headers=headers), 403)


def test_a_subject_holds_what_it_is_granted_here(
    servers: Deployment, client: FlaskClient, issuer: Issuer, project: str
) -> None:
    subject = str(uuid4())
    grant = {"subject": f"company:{subject}", "role": "operator", "project": project}
    assert servers.client.post("/api/v1/grants", json=grant).status_code == 201
    answer = me(client, issuer.token(sub=subject))
    assert answer.json["grants"] == [{"role": "operator", "project": project}]
    assert servers.client.post("/api/v1/grants", json={**grant, "role": "viewer"}).status_code == 409


def test_a_token_for_somebody_else_is_not_taken(client: FlaskClient, issuer: Issuer) -> None:
    assert "udience" in refusal(me(client, issuer.token(aud="another-service")))
    assert "no issuer" in refusal(me(client, issuer.token(iss="https://elsewhere.example")))
    assert '"aud"' in refusal(me(client, jwt.encode(
        {key: value for key, value in issuer.claims().items() if key != "aud"}, issuer.keys["one"], "RS256",
        headers={"kid": "one"},
    )))  # fmt: skip


@pytest.mark.parametrize("missing", ["exp", "sub"])
def test_a_token_says_whose_it_is_and_until_when(client: FlaskClient, issuer: Issuer, missing: str) -> None:
    claims = {key: value for key, value in issuer.claims().items() if key != missing}
    token = jwt.encode(claims, issuer.keys["one"], "RS256", headers={"kid": "one"})
    assert f'"{missing}"' in refusal(me(client, token))


def test_a_token_is_good_in_its_time_only(client: FlaskClient, issuer: Issuer) -> None:
    now = int(time.time())
    assert "expired" in refusal(me(client, issuer.token(exp=now - 60)))
    assert "not yet valid" in refusal(me(client, issuer.token(nbf=now + 300)))


def test_a_token_that_nobody_signed_is_not_taken(client: FlaskClient, issuer: Issuer) -> None:
    unsigned = jwt.encode(issuer.claims(), None, "none", headers={"kid": "one"})
    refusal(me(client, unsigned))
    signed = issuer.token()
    refusal(me(client, signed.rpartition(".")[0] + "."))
    head, body, signature = signed.split(".")
    payload = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**payload, "sub": "root"}).encode()).decode().rstrip("=")
    refusal(me(client, f"{head}.{other}.{signature}"))
    assert me(client, signed).status_code == 200


def test_a_public_key_signs_nothing(client: FlaskClient, issuer: Issuer) -> None:
    """HS256 with the text of the public key: whoever lets the token choose the algorithm takes it."""
    public = issuer.keys["one"].public_key()
    form = serialization.PublicFormat
    texts = [
        public.public_bytes(serialization.Encoding.PEM, form.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.PEM, form.PKCS1),
        json.dumps(issuer.public("one")).encode(),
    ]
    for text in texts:
        assert "alg" in refusal(me(client, _hs256(issuer.claims(), text)))


def _hs256(claims: dict[str, Any], secret: bytes) -> str:
    import hashlib
    import hmac

    def encoded(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    head = encoded(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode())
    signed = f"{head}.{encoded(json.dumps(claims).encode())}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def test_a_key_of_another_kid_is_not_taken_and_does_not_make_us_ask_again_and_again(
    client: FlaskClient, issuer: Issuer
) -> None:
    assert me(client, issuer.token()).status_code == 200
    stranger = rsa.generate_private_key(65537, 2048)
    asked = len(issuer.asked)
    for n in range(5):
        token = jwt.encode(issuer.claims(), stranger, "RS256", headers={"kid": f"unknown-{n}"})
        assert "kid" in refusal(me(client, token))
    assert len(issuer.asked) == asked
    forged = jwt.encode(issuer.claims(), stranger, "RS256", headers={"kid": "one"})
    assert "ignature" in refusal(me(client, forged))


def test_a_new_key_is_found_and_one_that_is_withdrawn_is_dropped(
    client: FlaskClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_BETWEEN", 0.0)
    first = issuer.token()
    assert me(client, first).status_code == 200
    issuer.keys["two"] = ec.generate_private_key(ec.SECP256R1())
    assert me(client, issuer.token("two", "ES256")).status_code == 200
    old = issuer.token(sub="u2")
    del issuer.keys["one"]
    monkeypatch.setattr(oidc, "_FRESH", 0.0)
    assert "kid" in refusal(me(client, old))
    assert me(client, issuer.token("two", "ES256", sub="u3")).status_code == 200


def test_a_token_without_a_kid_is_checked_with_the_only_key(client: FlaskClient, issuer: Issuer) -> None:
    assert me(client, issuer.token(None)).status_code == 200


def test_an_issuer_that_is_away_is_not_the_callers_mistake(client: FlaskClient, issuer: Issuer) -> None:
    issuer.away = True
    assert "does not answer" in refusal(me(client, issuer.token()), 503)


def test_keys_outlast_their_issuer_for_a_while(
    client: FlaskClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert me(client, issuer.token()).status_code == 200
    issuer.away = True
    monkeypatch.setattr(oidc, "_FRESH", 0.0)
    monkeypatch.setattr(oidc, "_BETWEEN", 0.0)
    assert me(client, issuer.token(sub="u2")).status_code == 200
    monkeypatch.setattr(oidc, "_STALE", 0.0)
    assert me(client, issuer.token(sub="u3")).status_code == 503


def test_an_issuer_that_says_it_is_another_is_not_believed(client: FlaskClient, issuer: Issuer) -> None:
    issuer.says_it_is = "https://elsewhere.example"
    assert me(client, issuer.token()).status_code == 503


@pytest.mark.parametrize("text", ["a.b.c", "..", "eyJhbGciOiJub25lIn0..", "e30.e30.", "\u00e9.\u00e9.\u00e9"])
def test_what_is_no_token_is_refused(client: FlaskClient, text: str) -> None:
    refusal(me(client, text))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (OidcSettings(issuer="http://issuer.example", audience="o"), "https"),
        (OidcSettings(issuer="", audience="o"), "oidc.company.issuer"),
        (OidcSettings(issuer="https://issuer.example"), "oidc.company.audience"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(
    servers: Deployment, settings: OidcSettings, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        create_app(replace(servers.settings, oidc={"company": settings}))
