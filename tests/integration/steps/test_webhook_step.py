"""`webhook` against a receiver on loopback that checks signatures with the reference library."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import standardwebhooks
from deployment import SOON
from marshmallow import ValidationError
from performing import context_of

from orchestrator.config import ExecutorSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from workers.secrets import Secrets
from workers.steps.webhook import Webhook

KEY = b"\x01\xff" * 12
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers = {"/huge": b"x" * 20_000}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some of the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers, body))
        path = self.path.partition("?")[0]
        if path == "/silent":
            self.server.closing.wait(30)
            self.close_connection = True
            return
        status = int(path.removeprefix("/status/")) if path.startswith("/status/") else 200
        answer = self.server.answers.get(path, b'{"taken": true}')
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_GET = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def post(url: str, given: Any = None, deadline: float | None = None, attempt: int = 1, **config: Any) -> dict[str, Any]:
    settings = Settings(executor=ExecutorSettings(max_response=10_000))
    context = context_of(
        Webhook(), {"url": url, **config}, settings=settings, input=given, deadline=deadline, attempt=attempt
    )
    output = Webhook().perform(context).output
    assert isinstance(output, dict)
    return output


def failure(url: str, **config: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        post(url, **config)
    return failed.value


def test_the_reference_library_accepts_the_signature_and_refuses_a_tampered_body(receiver: Receiver) -> None:
    output = post(receiver.url, payload={"total": 5, "name": "数据"}, secret=SECRET)
    [(method, _, headers, body)] = receiver.seen
    assert method == "POST"
    assert headers["content-type"] == "application/json"
    assert standardwebhooks.Webhook(SECRET).verify(body, headers) == {"total": 5, "name": "数据"}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body.replace(b"5", b"6"), headers)
    assert (output["status_code"], output["body"]) == (200, {"taken": True})
    assert output["webhook_id"] == headers["webhook-id"]
    assert set(output) == {"status_code", "headers", "body", "elapsed", "webhook_id"}


def test_a_secret_may_be_any_text(receiver: Receiver) -> None:
    post(receiver.url, payload=[1], secret="not base64, ü")
    [(_, _, headers, body)] = receiver.seen
    assert standardwebhooks.Webhook("not base64, ü".encode()).verify(body, headers) == [1]


def test_a_secret_without_padding_is_the_same_secret(receiver: Receiver) -> None:
    padded = "whsec_" + base64.b64encode(b"1234").decode()
    assert padded.endswith("==")
    post(receiver.url, payload=1, secret=padded.rstrip("="))
    [(_, _, headers, body)] = receiver.seen
    assert standardwebhooks.Webhook(padded).verify(body, headers) == 1


def test_two_attempts_have_the_same_id(receiver: Receiver) -> None:
    ids = {post(receiver.url, attempt=attempt, secret=SECRET)["webhook_id"] for attempt in (1, 2)}
    assert len(ids) == 1
    assert {headers["webhook-id"] for _, _, headers, _ in receiver.seen} == ids
    assert "." not in ids.pop()
    assert {headers["idempotency-key"] for _, _, headers, _ in receiver.seen} == {"execution:loop[1].step"}


def test_without_a_secret_there_is_no_signature(receiver: Receiver) -> None:
    post(receiver.url, payload=None)
    [(_, _, headers, body)] = receiver.seen
    assert "webhook-signature" not in headers
    assert int(headers["webhook-timestamp"]) == pytest.approx(time.time(), abs=5)
    assert body == b"null"


def test_the_payload_is_the_steps_input_unless_written(receiver: Receiver) -> None:
    post(receiver.url, given={"a": [1]})
    post(receiver.url, given={"a": [1]}, payload="other")
    assert [json.loads(body) for _, _, _, body in receiver.seen] == [{"a": [1]}, "other"]


def test_an_event_wraps_the_payload_with_its_type_and_time(receiver: Receiver) -> None:
    post(receiver.url, given={"id": 7}, event="order.paid", secret=SECRET)
    [(_, _, headers, body)] = receiver.seen
    message = standardwebhooks.Webhook(SECRET).verify(body, headers)
    assert (message["type"], message["data"]) == ("order.paid", {"id": 7})
    assert int(datetime.fromisoformat(message["timestamp"]).timestamp()) == int(headers["webhook-timestamp"])


def test_method_and_headers_are_the_users(receiver: Receiver) -> None:
    post(receiver.url + "/a?b=1", method="put", headers={"X-Tenant": 5, "content-type": "application/cloudevents+json"})
    [(method, path, headers, _)] = receiver.seen
    assert (method, path) == ("PUT", "/a?b=1")
    assert (headers["x-tenant"], headers["content-type"]) == ("5", "application/cloudevents+json")


@pytest.mark.parametrize(("status", "retryable"), [(500, True), (503, True), (429, True), (400, False), (410, False)])
def test_an_error_status_fails_and_says_whether_to_retry(receiver: Receiver, status: int, retryable: bool) -> None:
    failed = failure(f"{receiver.url}/status/{status}?token=hidden", secret=SECRET)
    assert (failed.kind, failed.retryable) == ("http_status", retryable)
    assert str(failed).startswith(f"POST {receiver.url}/status/{status} answered {status} ")
    assert isinstance(failed.output, dict)
    assert failed.output["status_code"] == status


def test_a_redirect_is_a_failure_and_not_followed(receiver: Receiver) -> None:
    failed = failure(f"{receiver.url}/status/302", secret=SECRET)
    assert (failed.kind, failed.retryable) == ("http_status", False)
    assert [path for _, path, _, _ in receiver.seen] == ["/status/302"]


def test_expected_status_decides_what_is_a_success(receiver: Receiver) -> None:
    assert post(f"{receiver.url}/status/409", expected_status=["200-299", 409])["status_code"] == 409


def test_neither_the_secret_nor_the_query_is_in_a_message(receiver: Receiver) -> None:
    url = receiver.url.replace("//", "//user:hidden-password@") + "/silent?token=hidden-token"
    failed = failure(url, secret=SECRET, timeout=0.2)
    assert "hidden" not in str(failed)
    assert SECRET not in str(failed)
    assert KEY.decode("latin-1") not in str(failed)


def test_a_secret_that_the_receiver_repeats_is_masked_as_any_other(receiver: Receiver) -> None:
    receiver.answers["/status/401"] = f"wrong secret {SECRET}".encode()
    failed = failure(f"{receiver.url}/status/401", secret=SECRET)
    secrets = Secrets({"hook": SECRET})
    assert secrets.mask(str(failed)).endswith("wrong secret ***")
    assert secrets.mask(failed.output)["body"] == "wrong secret ***"


def test_a_receiver_that_never_answers_is_left_in_time(receiver: Receiver) -> None:
    started = time.monotonic()
    assert isinstance(failure(f"{receiver.url}/silent", timeout="300ms"), StepTimeout)
    assert isinstance(failure(f"{receiver.url}/silent", deadline=time.monotonic() + 0.3), StepTimeout)
    assert time.monotonic() - started < SOON


def test_an_answer_past_the_limit_fails_the_step(receiver: Receiver) -> None:
    failed = failure(f"{receiver.url}/huge")
    assert (failed.kind, failed.retryable) == ("response_too_large", False)


def test_an_unreachable_receiver_is_a_connection_failure(receiver: Receiver) -> None:
    receiver.shutdown()
    receiver.server_close()
    failed = failure(receiver.url)
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert str(failed) == f"POST {receiver.url}: Connection refused"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"url": "example.com"}, "url"),
        ({"method": "GET"}, "method"),
        ({"method": "POST\n"}, "method"),
        ({"secret": "whsec_n%t base64"}, "secret"),
        ({"secret": "whsec_"}, "secret"),
        ({"secret": ""}, "secret"),
        ({"headers": {"Webhook-ID": "mine"}}, "headers"),
        ({"event": ""}, "event"),
        ({"expected_status": "2xx"}, "expected_status"),
        ({"allow_redirects": True}, "allow_redirects"),
    ],
)
def test_a_config_with_a_mistake_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Webhook.Config().load({"url": "http://example.com", **config})
    assert set(refused.value.messages_dict) == {field}


def test_all_mistakes_are_found_at_once_and_none_shows_the_secret() -> None:
    with pytest.raises(ValidationError) as refused:
        Webhook.Config().load({"secret": "whsec_h%dden", "timeout": "soon", "headers": {"a": []}, "more": 1})
    assert set(refused.value.messages_dict) == {"url", "secret", "timeout", "headers", "more"}
    assert "h%dden" not in str(refused.value)
