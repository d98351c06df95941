"""Who calls: the admin key of the settings, an API key, or a token of an OpenID Connect issuer, as a request's bearer.

What a bearer was found to be is believed by each process for the time that api/believed.py says, so that a request
costs a hash and a look into a dict; a key that is revoked, or whose grants change, is what it was for as long.
"""

from __future__ import annotations

import hmac
import math
import re
import time
from dataclasses import dataclass

from werkzeug.exceptions import Unauthorized

from api.believed import Believed
from api.oidc import Issuers
from orchestrator.access import Principal, Role
from orchestrator.config import Settings
from orchestrator.datafolder import DataFolder
from orchestrator.errors import ConfigurationError
from orchestrator.store import Store, access

_KEY = re.compile(re.escape(access.KEY_PREFIX) + r"[A-Za-z0-9_-]{43}")

ADMIN = Principal("admin_key", "admin", "the admin key", everywhere=Role.ADMIN)


@dataclass(frozen=True, slots=True)
class Proof:
    """Who the bearer is, and until when, in seconds since the epoch; None: for as long as it is asked again."""

    principal: Principal
    good_until: float | None = None


class Authenticator:
    """Raises ConfigurationError if no admin key is configured or generated."""

    def __init__(self, settings: Settings, store: Store) -> None:
        key = DataFolder(settings.data_path).admin_key(settings.admin_key)
        if not key:
            raise ConfigurationError("there is no API key; set ORCHESTRATOR_ADMIN_KEY, or start with `orchestrator up`")
        self._admin = access.digest(key)
        self._store = store
        self._issuers = Issuers(settings.oidc, store) if settings.oidc else None
        self._known: Believed[bytes, Principal] = Believed()

    def __call__(self, authorization: str) -> Principal:
        """Whose `Authorization` header this is. Raises Unauthorized."""
        scheme, _, given = authorization.partition(" ")
        token = given.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("send the header 'Authorization: Bearer KEY' with an API key")
        # Of a header's bytes WSGI makes Latin-1; what is no ASCII is no key.
        digest = access.digest(token)
        if hmac.compare_digest(digest, self._admin):
            return ADMIN
        return self._known.get(digest) or self._remember(digest, self._prove(token, digest))

    def _prove(self, token: str, digest: bytes) -> Proof:
        if self._issuers is not None and token.count(".") == 2:
            return Proof(*self._issuers.prove(token))
        if not _KEY.fullmatch(token):
            raise Unauthorized("this is no API key; send the header 'Authorization: Bearer KEY' with one")
        with self._store.single() as connection:
            found = access.find_key(connection, digest)
        if found is None:
            raise Unauthorized("there is no such API key")
        if found.revoked:
            raise Unauthorized(f"the API key '{found.principal.name}' has been revoked")
        if found.expired:
            raise Unauthorized(f"the API key '{found.principal.name}' has expired")
        return Proof(found.principal, None if found.expires_at is None else found.expires_at.timestamp())

    def _remember(self, digest: bytes, proof: Proof) -> Principal:
        seconds = math.inf if proof.good_until is None else proof.good_until - time.time()
        self._known.keep(digest, proof.principal, at_most=seconds)
        return proof.principal
