"""Requests over kept connections, timed one by one, by a client that costs as little as it can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    method: str = "GET"
    body: bytes | None = None
    headers: Mapping[str, str] | None = None


class Connection:
    """Raises SystemExit for an answer that is no success: what fails is quickly done."""

    def __init__(self, url: str, key: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def seconds(self, request: Request) -> float:
        began = time.perf_counter()
        self._connection.request(
            request.method, request.path, request.body, {**self._headers, **(request.headers or {})}
        )
        answer = self._connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - began
        if answer.status >= 300:
            raise SystemExit(f"{request.method} {request.path}: {answer.status} {body[:500].decode()}")
        return took

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Load:
    """`latencies` in seconds, sorted."""

    latencies: Sequence[float]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def milliseconds(self, share: float) -> float:
        return 1000 * self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def one_by_one(connection: Connection, requests: Sequence[Request]) -> Load:
    began = time.perf_counter()
    latencies = sorted(map(connection.seconds, requests))
    return Load(latencies, time.perf_counter() - began)


def at_once(url: str, key: str, connections: int, each: int, *, request: Callable[[int], Request]) -> Load:
    """`each` requests over each of the connections; `request` is asked for the one with a number, from 0."""
    done: list[Load] = []

    def send(first: int) -> None:
        connection = Connection(url, key)
        done.append(one_by_one(connection, [request(first + number) for number in range(each)]))
        connection.close()

    threads = [threading.Thread(target=send, args=(number * each,)) for number in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if len(done) < connections:
        raise SystemExit("some requests failed")
    return Load(sorted(latency for load in done for latency in load.latencies), seconds)
