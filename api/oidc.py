"""Bearer tokens of OpenID Connect issuers: whose they are, and which roles they say.

An issuer is asked for its keys when one is needed and then every five minutes; a token signed with a key that it has
not shown yet makes us ask again, at most once in ten seconds, since anybody can write such a token. While it is away,
its keys are good for an hour more.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import orjson
import requests
from werkzeug.exceptions import ServiceUnavailable, Unauthorized

from orchestrator.access import Principal, Role
from orchestrator.config import OidcSettings
from orchestrator.errors import ConfigurationError
from orchestrator.store import Store, access

logger = logging.getLogger(__name__)

_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""By the kind of the key, all with a public one: with HMAC, whoever can check a token can make one, and the text of a
public key would do for it."""
_FRESH, _STALE, _BETWEEN = 300.0, 3600.0, 10.0
_TIMEOUT = 5.0
_MOST = 1024**2
_LEEWAY = 30.0
"""Seconds that the issuer's clock may be off."""


@dataclass(frozen=True, slots=True)
class Key:
    public: Any
    algorithms: tuple[str, ...]


class Issuer:
    """Raises ConfigurationError for settings that nothing can come of."""

    def __init__(self, name: str, settings: OidcSettings) -> None:
        address = urlsplit(settings.issuer)
        loopback = address.hostname in ("localhost", "127.0.0.1", "::1")
        if not address.hostname or not (address.scheme == "https" or (address.scheme == "http" and loopback)):
            raise ConfigurationError(
                f"oidc.{name}.issuer must be an https address, not '{settings.issuer}': who can change its answers can "
                "be anybody here"
            )
        if not settings.audience:
            raise ConfigurationError(
                f"oidc.{name}.audience is not set; without it, tokens that {settings.issuer} made for other services "
                "would be taken"
            )
        self.name = name
        self.settings = settings
        self._keys: dict[str | None, Key] = {}
        self._fetched_at = self._asked_at = float("-inf")
        self._lock = threading.Lock()

    def claims(self, token: str, kid: str | None) -> Mapping[str, Any]:
        """What the token says, once it has been found to be this issuer's, for us, and still good. Raises
        Unauthorized, ServiceUnavailable."""
        key = self._key(kid)
        try:
            return jwt.decode(
                token,
                key.public,
                algorithms=key.algorithms,
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthorized(f"the token is not good: {error}") from None

    def _key(self, kid: str | None) -> Key:
        with self._lock:
            age = time.monotonic() - self._fetched_at
            if (age > _FRESH or kid not in self._keys) and time.monotonic() - self._asked_at > _BETWEEN:
                self._ask()
            if time.monotonic() - self._fetched_at > _STALE:
                raise ServiceUnavailable(f"the issuer {self.settings.issuer} does not answer; try again")
            key = self._keys.get(kid)
        if key is None:
            raise Unauthorized("the token is not good: its issuer has no key of this kid")
        return key

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        try:
            issuer = self.settings.issuer
            about = _fetch(issuer.rstrip("/") + "/.well-known/openid-configuration")
            if about.get("issuer") != issuer:
                raise ValueError(f"it says that it is {about.get('issuer')!r}")
            self._keys = _usable(_fetch(str(about["jwks_uri"])).get("keys") or ())
        except (requests.RequestException, ValueError, KeyError) as error:
            logger.warning("the keys of %s cannot be fetched: %s", self.settings.issuer, error)
        else:
            self._fetched_at = time.monotonic()


class Issuers:
    """All that the settings name; a token is for the one in its `iss`."""

    def __init__(self, settings: Mapping[str, OidcSettings], store: Store) -> None:
        self._by_address = {one.issuer: Issuer(name, one) for name, one in settings.items()}
        self._store = store

    def prove(self, token: str) -> tuple[Principal, float]:
        """(whose it is, until when in seconds since the epoch). Raises Unauthorized, ServiceUnavailable."""
        try:
            said = jwt.decode_complete(token, options={"verify_signature": False})
        except jwt.PyJWTError as error:
            raise Unauthorized(f"the token cannot be read: {error}") from None
        issuer = self._by_address.get(str(said["payload"].get("iss")))
        if issuer is None:
            raise Unauthorized("the token is not good: it is of no issuer that the settings name")
        claims = issuer.claims(token, said["header"].get("kid"))
        return self._principal(issuer, claims), float(claims["exp"]) + _LEEWAY

    def _principal(self, issuer: Issuer, claims: Mapping[str, Any]) -> Principal:
        subject = str(claims["sub"])
        if not 0 < len(subject) <= 255 or not subject.isprintable():
            raise Unauthorized("the token is not good: its sub is no text that can be kept")
        id = f"{issuer.name}:{subject}"
        said = list(_said(claims, issuer.settings))
        with self._store.single() as connection:
            everywhere, projects = access.held_by_subject(connection, id)
            ids = access.project_ids(connection, [project for _, project in said if project])
        for role, project in said:
            if project is None:
                everywhere = max(role, everywhere or role)
            elif project in ids:
                projects[ids[project]] = max(role, projects.get(ids[project], role))
        return Principal(
            "subject", id, _name(claims, subject), everywhere, projects, _owner(issuer.settings.issuer, subject)
        )


def _name(claims: Mapping[str, Any], subject: str) -> str:
    """What people call it, which some issuers let everybody choose: as far as that is a text that can be kept."""
    words = (claims.get(name) for name in ("preferred_username", "email"))
    return next((word for word in words if isinstance(word, str) and word and word.isprintable()), subject)[:200]


def _said(claims: Mapping[str, Any], settings: OidcSettings) -> Iterable[tuple[Role, str | None]]:
    """(role, project's name or None for all) for each value of the roles claim that the settings know."""
    value: Any = claims
    for part in settings.roles_claim.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    for word in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        meant = (settings.roles or {}).get(str(word))
        if meant is not None:
            role, _, project = meant.partition("@")
            yield Role.of(role), project or None


def _owner(issuer: str, subject: str) -> str:
    """An owner_id is a UUID; a subject that is none gets one of its own."""
    try:
        return str(uuid.UUID(subject))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{issuer} {subject}"))


def _usable(written: Iterable[Any]) -> dict[str | None, Key]:
    """By kid; a token without one is checked with the only key there is."""
    keys: dict[str | None, Key] = {}
    for one in written:
        if not isinstance(one, dict) or one.get("kty") not in _ALGORITHMS or one.get("use", "sig") != "sig":
            continue
        known = _ALGORITHMS[one["kty"]]
        try:
            public = jwt.PyJWK.from_dict(one).key
        except jwt.PyJWTError:
            continue  # of a curve that we do not know
        named = one.get("alg")
        keys[one.get("kid")] = Key(public, known if named is None else tuple(a for a in known if a == named))
    if len(keys) == 1:
        keys[None] = next(iter(keys.values()))
    return keys


def _fetch(address: str) -> Mapping[str, Any]:
    # Redirects are not followed: what the settings name is what is trusted.
    with requests.get(address, timeout=_TIMEOUT, stream=True, allow_redirects=False) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{address} answered {answer.status_code}")
        body = answer.raw.read(_MOST + 1, decode_content=True)
    document = orjson.loads(body) if len(body) <= _MOST else None
    if not isinstance(document, dict):
        raise ValueError(f"{address} is no JSON object of at most {_MOST:,} bytes")
    return document
