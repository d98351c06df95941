"""One call of the API: its body and query as text, its answer as JSON or as an error, and whether it is tried again."""

from __future__ import annotations

import http
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, TimeoutError
from urllib3.util import Retry, Timeout

from orchestrator.client.errors import Unreachable, refusal
from orchestrator.client.events import Event, read_events

T = TypeVar("T")

_CONNECTS_WITHIN = 10.0
_KEPT = 8
"""Connections that are kept, for as many threads."""
_CHUNK = 65536
"""Bytes of a stream that are taken at once, if there are as many."""
_PAUSE = 0.5
"""Seconds before a stream that has ended is taken up again, and as many more for each that brought nothing."""
_COMES_BACK = frozenset((502, 503, 504))
"""Answers of a service that starts, or of a proxy before it."""


class Transport:
    """Connections to one service, which threads may share.

    What reads is tried again after a connection that broke and after 502, 503 and 504, and so is what may be `repeated`
    because the service does it once. Anything else is tried again only if there was no connection at all.
    """

    def __init__(self, url: str | None, key: str | None, timeout: float, retries: int) -> None:
        self.url = (url or os.environ.get("ORCHESTRATOR_URL") or "http://127.0.0.1:8084").rstrip("/")
        self._timeout = timeout
        self._retries = retries
        key = key or os.environ.get("ORCHESTRATOR_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = urllib3.PoolManager(maxsize=_KEPT, headers={"User-Agent": "orchestrator-client", **headers})

    def get(self, shape: type[T], path: str, **query: Any) -> T:
        return _shaped(shape, self.send("GET", path, query=query, repeated=True))

    def post(self, shape: type[T], path: str, body: Any = None, *, repeated: bool = False, **query: Any) -> T:
        return _shaped(shape, self.send("POST", path, body, query=query, repeated=repeated))

    def start(self, shape: type[T], path: str, body: Any, idempotency_key: str | None) -> T:
        """POST what starts something, under a key by which the service knows the call when it comes again."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        return _shaped(shape, self.send("POST", path, body, headers=headers, repeated=True))

    def put(self, shape: type[T], path: str, body: Any, headers: Mapping[str, str] | None = None) -> T:
        return _shaped(shape, self.send("PUT", path, body, headers=headers))

    def delete(self, path: str) -> None:
        self.send("DELETE", path)

    def items(self, shape: type[T], path: str, **query: Any) -> Iterator[T]:  # noqa: ARG002  (it says what T is)
        """What a list has, asked for page by page as it is taken."""
        while True:
            page = self.get(dict[str, Any], path, **query)
            yield from page["items"]
            if page["next"] is None:
                return
            query["cursor"] = page["next"]

    def events(self, path: str, *, after: str | None = None, **query: Any) -> Iterator[Event]:
        """Server-sent events until the service says that there are no more. Where a stream ends too early, the next
        goes on after its last event. Raises Unreachable if as many in a row as `retries` bring nothing."""
        failures = 0
        while failures <= self._retries:
            answer = self._listen(path, query, after, repeated=True)
            with answer, suppress(HTTPError):
                if answer.status == http.HTTPStatus.NO_CONTENT:
                    return
                for event in chain.from_iterable(_told(answer)):
                    failures, after = -1, event.id or after
                    if event.kind:
                        yield event
                    if event.kind == "end":
                        return
            failures += 1
            time.sleep(_PAUSE * failures)
        raise Unreachable(f"{self.url}{path} ends again and again without a word; try later")

    def stream(self, path: str, *, after: str | None, quiet: float, **query: Any) -> Iterator[list[Event]]:
        """The events of one stream as far as it goes, by the pieces that it comes in. Raises ClientError if it cannot
        be had, breaks, or says nothing for `quiet` seconds."""
        try:
            with self._listen(path, query, after, within=quiet) as answer:
                yield from _told(answer)
        except HTTPError as error:
            raise Unreachable(self._why(error)) from error

    def _listen(self, path: str, query: Mapping[str, Any], after: str | None, **options: Any) -> BaseHTTPResponse:
        headers = {"Last-Event-ID": after} if after else None
        return self._open("GET", path, query=query, headers=headers, preload_content=False, **options)

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> bytes:
        """The content of an answer; options are those of _open(). Raises ClientError."""
        return self._open(method, path, body, **options).data

    def _open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeated: bool = False,
        accepted: Collection[int] = range(200, 300),
        preload_content: bool = True,
        within: float | None = None,
    ) -> BaseHTTPResponse:
        """An answer with an `accepted` status, each part of it `within` so many seconds. `body` is sent as JSON, a text
        as YAML. Raises ClientError."""
        content, media = _encoded(body)
        try:
            answer = self._pool.request(
                method,
                f"{self.url}{path}{_query(query or {})}",
                body=content,
                headers={**self._pool.headers, **media, **(headers or {})},
                retries=self._retry(repeated, accepted),
                redirect=False,
                preload_content=preload_content,
                timeout=Timeout(connect=min(self._timeout, _CONNECTS_WITHIN), read=within or self._timeout),
            )
        except HTTPError as error:
            raise Unreachable(self._why(error)) from error
        if answer.status in accepted:
            return answer
        raise refusal(f"{method} {self.url}{path}", answer.status, answer.data, answer.headers)

    def _retry(self, repeated: bool, accepted: Collection[int]) -> Retry:
        return Retry(
            total=self._retries,
            read=None if repeated else False,
            status_forcelist=_COMES_BACK.difference(accepted) if repeated else (),
            allowed_methods=None,
            backoff_factor=0.2,
            raise_on_status=False,
            respect_retry_after_header=False,
        )

    def _why(self, error: HTTPError) -> str:
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if isinstance(cause, TimeoutError) and not isinstance(cause, NewConnectionError):  # which is one to urllib3
            return (
                f"the service at {self.url} did not answer within {self._timeout:g} s; try again, or give it more time"
            )
        return (
            f"cannot reach the service at {self.url}: {_in_the_systems_words(cause)}. Check the address, and that "
            "`orchestrator up` runs there."
        )


def _told(answer: BaseHTTPResponse) -> Iterator[list[Event]]:
    return read_events(iter(partial(answer.read1, _CHUNK), b""))


def at(root: str, *parts: object) -> str:
    """The path below `root`; an id is one part of it, whatever is in it."""
    return "/".join((root, *(quote(str(part), safe="") for part in parts)))


def _shaped(_: type[T], content: bytes) -> T:
    """What the service answers has the shape that its document says."""
    return cast(T, json.loads(content))


def _encoded(body: Any) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {}
    if isinstance(body, str):
        return body.encode(), {"Content-Type": "application/yaml"}
    return json.dumps(body, default=_plain).encode(), {"Content-Type": "application/json"}


def _query(given: Mapping[str, Any]) -> str:
    """`?name=value`, of what is not None."""
    texts = {
        name: value if isinstance(value, str) else _word(value) for name, value in given.items() if value is not None
    }
    return f"?{urlencode(texts)}" if texts else ""


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(_plain(value))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID | int | float):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _in_the_systems_words(error: BaseException) -> str:
    """From below the layers of exceptions that the HTTP library puts around them."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = (
            found.__cause__
            or found.__context__
            or next((one for one in found.args if isinstance(one, Exception)), None)
        )
    return str(error)
