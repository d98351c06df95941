"""Keeps the audit log: what a request did, and what it was refused.

An entry is written when the view has done its work and before the caller hears of it: in one statement, whatever number
of transactions the work took. A process that is killed between the two leaves a change without an entry; if only the
entry fails, it is in the process's log. The most frequent of all, that of an execution that somebody starts, is written
in the transaction that starts it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import orjson
from flask import Response, g, request

from api.access import Rule, object_in_url, rule_of_request
from api.service import Service
from orchestrator.access import Principal, Role
from orchestrator.masking import Masker
from orchestrator.store import audit
from orchestrator.store.audit import Entry
from orchestrator.store.session import DatabaseAway

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MOST_ANSWER = 64 * 1024
"""Bytes of an answer that is looked into."""
_TELLING = ("id", "execution_id", "status", "outcome", "matched", "done", "slots", "name")
"""What is kept of an answer, where it has that."""
_DENIED = frozenset((401, 403, 429))


class Recorder:
    def __init__(self, service: Service) -> None:
        self._store = service.store
        fields = [field for type in service.trigger_types.values() for field in type.secret_fields]
        self._mask = Masker(service.settings.secrets(), (field.rpartition(".")[2] for field in fields))
        self._flood = Flood()

    def before(self, rule: Rule) -> None:
        """Keep the state of what is going to change."""
        if rule.changes:
            g.state_before = self._state(*object_in_url())

    def after(self, rule: Rule | None, response: Response) -> None:
        status = response.status_code
        try:
            if status in _DENIED or (status == 404 and g.get("is_foreign")):
                self._write_denied(rule, response)
            elif rule is not None and rule.action and not g.get("is_written") and (status < 400 or g.get("done_in")):
                self._write_done(rule, response)
        except DatabaseAway:
            logger.exception("the audit log has no entry of request %s: the database is away", request_id())

    def _write_done(self, rule: Rule, response: Response) -> None:
        kind, id = object_in_url()
        if "done_in" in g:
            for project_id, done in g.done_in.items():
                self._write(rule.action, kind, id, status=response.status_code, project_id=project_id, after=done)
            return
        before = g.get("state_before")
        project_id = before.get("project_id") if before else None
        if rule.creates:
            kind, id = rule.action.partition(".")[0].replace("_", " "), _created(response)
        after = g.get("came_to") or _told(response) if rule.does else self._state(kind, id)
        self._write(
            rule.action, kind, id, status=response.status_code, project_id=project_id, before=before, after=after
        )

    def _write_denied(self, rule: Rule | None, response: Response) -> None:
        suppressed = self._flood.admit(request.remote_addr or "")
        if suppressed is None:
            return
        kind, id = g.get("object") or object_in_url()
        action = (rule.action if rule else "") or f"{request.method} {request.url_rule or request.path[:200]}"
        said = "it is in a project of others" if response.status_code == 404 else _detail(response)
        more = f" ({suppressed} more refusals before it have no entry)" if suppressed else ""
        self._write(action, kind, id, status=response.status_code, detail=_storable(said + more))

    def _write(self, action: str, kind: str, id: str, *, before: Any = None, after: Any = None, **more: Any) -> None:
        entry = _entry(action, kind, id, before=self._mask(before), after=self._mask(after), **more)
        with self._store.single() as connection:
            audit.write(connection, entry)

    def _state(self, kind: str, id: str) -> Any:
        if not id:
            return None
        with self._store.single() as connection:
            return audit.state(connection, kind, id)


def _entry(action: str, kind: str, id: str, **more: Any) -> Entry:
    """What this request did to an object."""
    principal: Principal | None = g.get("principal")
    return Entry(
        actor_kind=principal.kind if principal else "anonymous",
        actor_id=principal.id if principal else None,
        actor_name=principal.name if principal else None,
        action=_storable(action),
        object_kind=kind or None,
        object_id=id or None,
        address=request.remote_addr,
        user_agent=_storable(request.user_agent.string),
        request_id=request_id(),
        **more,
    )


def entry(status: int) -> Entry:
    """What there will be to say of this request when it has done what it is for, and is answered with `status`. A view
    has it written with what it does, and then says `is_written`."""
    rule = rule_of_request()
    assert rule is not None, "the guard lets nothing pass that has no rule"
    return _entry(rule.action, *object_in_url(), status=status)


def is_written() -> None:
    """This request's entry is in the log already."""
    g.is_written = True


@dataclass(slots=True)
class _Bucket:
    """So many at once, and then one every `every` seconds."""

    left: float
    at: float

    def take(self, most: float, every: float, now: float) -> bool:
        self.left = min(most, self.left + (now - self.at) / every)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class Flood:
    """Refusals cost the caller nothing, so what is kept of them is bounded: for each address a few at once and then
    one every ten seconds, and so many in all. Those left out are counted in the next that is kept."""

    of_address: tuple[float, float] = (10.0, 10.0)
    of_all: tuple[float, float] = (100.0, 1.0)
    _all: _Bucket | None = None
    _addresses: dict[str, _Bucket] = field(default_factory=dict)
    _suppressed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, address: str) -> int | None:
        """How many were left out since the last one; None if this is left out as well."""
        now = time.monotonic()
        with self._lock:
            if len(self._addresses) > 10_000:
                self._addresses.clear()
            if self._all is None:
                self._all = _Bucket(self.of_all[0], now)
            bucket = self._addresses.setdefault(address, _Bucket(self.of_address[0], now))
            if not (bucket.take(*self.of_address, now) and self._all.take(*self.of_all, now)):
                self._suppressed += 1
                return None
            suppressed, self._suppressed = self._suppressed, 0
            return suppressed


def tell(done: Mapping[str, Any]) -> None:
    """What this request has done in each project, by its id, where no one object in the URL says so: the log then has
    an entry for each, also of what was done before the request failed. Nothing, if nothing was done."""
    g.done_in = done


def came_to(what: Mapping[str, Any]) -> None:
    """What came of what this request has done to the object in its URL, where the answer is too long to look into."""
    g.came_to = what


def about(kind: str, id: str) -> None:
    """What this request is about, where its URL does not have the id: a refusal is then kept with it, and so with its
    project."""
    g.object = (kind, id)


def request_id() -> str:
    """The caller's X-Request-ID if it is one that can be kept, else one of our own."""
    if "request_id" not in g:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid4())
    return cast(str, g.request_id)


def is_foreign_to(principal: Principal | None) -> bool:
    """Whether a 404 may be about a key or grant of others, which are not told apart from what is not there."""
    kind, _ = object_in_url()
    return kind in ("key", "grant") and principal is not None and not principal.may(Role.ADMIN, None)


def _created(response: Response) -> str:
    """The id at the end of its address."""
    last = response.headers.get("Location", "").rpartition("/")[2]
    try:
        return str(UUID(last))
    except ValueError:
        return ""


def _told(response: Response) -> Any:
    made = _created(response)
    if made:
        return {"execution_id": made}
    body = _body(response)
    return {name: body[name] for name in _TELLING if name in body}


def _detail(response: Response) -> str:
    return str(_body(response).get("detail", ""))


def _body(response: Response) -> Mapping[str, Any]:
    if response.is_streamed or (response.content_length or 0) > _MOST_ANSWER:
        return {}
    try:
        body = orjson.loads(response.get_data())
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _storable(text: str) -> str:
    """What callers made up, in their headers or the address."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:500]
