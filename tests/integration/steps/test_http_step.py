"""`http` against a real server on loopback that also misbehaves in the ways servers do."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deployment import SOON, own_port, wait_until
from marshmallow import ValidationError
from performing import context_of

from orchestrator.config import ExecutorSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from workers.steps.http import Http

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.paths: list[str] = []
        self.ended: list[str] = []
        """Paths whose answer ended because the client went away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what half of the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    answered = 0

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.answered += 1

    def answer(self) -> None:
        self.server.paths.append(self.path)
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        self.received = self.rfile.read(length)
        if path.startswith("/status/"):
            self.reply(int(path.removeprefix("/status/")), b"sorry " * 100, "text/plain")
        else:
            getattr(self, "path_" + path.strip("/").replace("-", "_"))()

    do_GET = do_POST = do_HEAD = answer

    def reply(self, status: int, body: bytes, content_type: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def path_echo(self) -> None:
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.received.decode(),
            "port": self.client_address[1],
        }
        self.reply(200, json.dumps(seen).encode(), "application/json", Set_Cookie="a=b", X_Seen="yes")

    def path_text(self) -> None:
        self.reply(200, "héllo".encode("latin-1"), "text/plain; charset=latin-1")

    def path_binary(self) -> None:
        self.reply(200, b"\x89PNG\0\xff", "image/png")

    def path_not_json(self) -> None:
        self.reply(200, b"{oops", "application/json")

    def path_redirect(self) -> None:
        self.reply(302, b"", "text/plain", Location="/echo?x=1")

    def path_loop(self) -> None:
        self.reply(302, b"", "text/plain", Location="/loop")

    def path_huge_redirect(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/echo")
        self.end_headers()
        self.flood(b"x" * 65536, pause=0)

    def path_silent(self) -> None:
        self.server.closing.wait(30)
        self.close_connection = True

    def path_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        self.flood(b"x", pause=0.05)

    def path_drip_body(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.flood(b"x", pause=0.05)

    def path_huge(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.flood(b"x" * 65536, pause=0)

    def path_drop(self) -> None:
        self.close_connection = True

    def path_drop_when_reused(self) -> None:
        if self.answered:
            self.close_connection = True
        else:
            self.path_echo()

    def path_cut(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        self.close_connection = True

    def flood(self, piece: bytes, pause: float) -> None:
        """Send `piece` again and again until the client is gone."""
        self.close_connection = True
        try:
            while not self.server.closing.wait(pause):
                self.wfile.write(piece)
        except OSError:
            self.server.ended.append(self.path)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from running(Server())


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[Server]:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    yield from running(server)


def address(server: Server, path: str, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.server_address[1]}{path}"


def get(url: str, deadline: float | None = None, max_response: int = 10**6, **config: Any) -> dict[str, Any]:
    settings = Settings(executor=ExecutorSettings(max_response=max_response))
    context = context_of(Http(), {"url": url, **config}, settings=settings, deadline=deadline)
    output = Http().perform(context).output
    assert isinstance(output, dict)
    return output


def failure(url: str, **config: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        get(url, **config)
    return failed.value


def test_json_is_parsed_and_header_names_are_lower_case(server: Server) -> None:
    output = get(address(server, "/echo"))
    assert output["status_code"] == 200
    assert output["body"]["method"] == "GET"
    assert output["headers"]["x-seen"] == "yes"
    assert 0 < output["elapsed"] < SOON
    assert "body_encoding" not in output


def test_method_params_headers_and_json_reach_the_server(server: Server) -> None:
    output = get(
        address(server, "/echo"),
        method="post",
        params={"q": "a b", "many": [1, 2]},
        headers={"X-Number": 5, "X-Name": "数据"},
        json={"n": [1, None]},
    )
    seen = output["body"]
    assert (seen["method"], seen["path"]) == ("POST", "/echo?q=a+b&many=1&many=2")
    assert seen["headers"]["content-type"] == "application/json"
    assert seen["headers"]["x-number"] == "5"
    assert seen["headers"]["x-name"].encode("latin-1").decode() == "数据"
    assert json.loads(seen["body"]) == {"n": [1, None]}


def test_a_json_null_is_a_body(server: Server) -> None:
    assert get(address(server, "/echo"), method="POST", json=None)["body"]["body"] == "null"


def test_a_text_body_is_sent_as_it_is(server: Server) -> None:
    seen = get(address(server, "/echo"), method="POST", body="é", headers={"content-type": "text/csv"})["body"]
    assert (seen["body"], seen["headers"]["content-type"]) == ("é", "text/csv")


def test_authentication_is_basic_or_bearer(server: Server) -> None:
    basic = {"type": "basic", "username": "ü", "password": "p:w"}
    header = get(address(server, "/echo"), auth=basic)["body"]["headers"]["authorization"]
    assert base64.b64decode(header.removeprefix("Basic ")).decode() == "ü:p:w"
    bearer = {"type": "bearer", "token": "t0k"}
    assert get(address(server, "/echo"), auth=bearer)["body"]["headers"]["authorization"] == "Bearer t0k"


def test_the_idempotency_key_is_sent_unless_the_user_sets_one(server: Server) -> None:
    headers = get(address(server, "/echo"))["body"]["headers"]
    assert headers["idempotency-key"] == "execution:loop[1].step"
    headers = get(address(server, "/echo"), headers={"idempotency-KEY": "mine"})["body"]["headers"]
    assert headers["idempotency-key"] == "mine"


def test_the_environment_lends_neither_proxies_nor_credentials(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert "authorization" not in get(address(server, "/echo"))["body"]["headers"]


def test_connections_are_reused_and_cookies_are_not_kept(server: Server) -> None:
    first, second = (get(address(server, "/echo"))["body"] for _ in range(2))
    assert first["port"] == second["port"]
    assert "cookie" not in second["headers"]


def test_a_connection_that_was_dropped_while_idle_is_replaced(server: Server) -> None:
    first, second = (get(address(server, "/drop-when-reused"), method="POST", json=1) for _ in range(2))
    assert first["body"]["port"] != second["body"]["port"]
    assert len(server.paths) == 3


def test_a_request_dropped_on_a_new_connection_is_not_repeated(server: Server) -> None:
    failed = failure(address(server, "/drop"))
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert server.paths == ["/drop"]


def test_a_response_cut_short_is_a_connection_failure(server: Server) -> None:
    assert failure(address(server, "/cut")).kind == "connection"


def test_text_is_decoded_by_its_charset(server: Server) -> None:
    assert get(address(server, "/text"))["body"] == "héllo"


def test_bytes_that_are_not_text_come_as_base64(server: Server) -> None:
    output = get(address(server, "/binary"))
    assert output["body_encoding"] == "base64"
    assert base64.b64decode(output["body"]) == b"\x89PNG\0\xff"


def test_a_body_that_is_not_the_json_it_claims_stays_text(server: Server) -> None:
    assert get(address(server, "/not-json"))["body"] == "{oops"


def test_redirects_are_followed_unless_told_otherwise(server: Server) -> None:
    assert get(address(server, "/redirect"))["body"]["path"] == "/echo?x=1"
    assert get(address(server, "/redirect"), allow_redirects=False)["status_code"] == 302


def test_a_redirect_loop_fails_for_good(server: Server) -> None:
    failed = failure(address(server, "/loop"))
    assert (failed.kind, failed.retryable) == ("redirects", False)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(500, True), (503, True), (408, True), (425, True), (429, True), (400, False), (404, False)],
)
def test_an_error_status_fails_and_says_whether_to_retry(server: Server, status: int, retryable: bool) -> None:
    url = address(server, f"/status/{status}").replace("//", "//user:secret@")
    failed = failure(url, params={"token": "secret"})
    assert (failed.kind, failed.retryable) == ("http_status", retryable)
    shown = address(server, f"/status/{status}")
    assert str(failed).startswith(f"GET {shown} answered {status} ")
    assert str(failed).endswith(("sorry " * 100)[:200])
    assert "secret" not in str(failed)
    assert isinstance(failed.output, dict)
    assert failed.output["status_code"] == status


def test_expected_status_decides_what_is_a_success(server: Server) -> None:
    assert get(address(server, "/status/404"), expected_status=404)["status_code"] == 404
    assert get(address(server, "/status/404"), expected_status=["200-299", 404])["status_code"] == 404
    failed = failure(address(server, "/echo"), expected_status=["300-399", 201])
    assert (failed.kind, failed.retryable) == ("http_status", False)


def test_a_response_over_the_limit_fails_for_good(server: Server) -> None:
    failed = failure(address(server, "/huge"), max_response=10**5)
    assert (failed.kind, failed.retryable) == ("response_too_large", False)
    wait_until(lambda: server.ended == ["/huge"])


def test_the_limit_holds_for_the_body_of_a_redirect_too(server: Server) -> None:
    assert failure(address(server, "/huge-redirect"), max_response=10**5).kind == "response_too_large"


@pytest.mark.parametrize("path", ["/silent", "/drip-headers", "/drip-body"])
def test_a_server_that_never_ends_its_answer_is_left_in_time(server: Server, path: str) -> None:
    started = time.monotonic()
    failed = failure(address(server, path), timeout="400ms")
    assert isinstance(failed, StepTimeout)
    assert 0.4 <= time.monotonic() - started < SOON
    wait_until(no_calls_left)


@pytest.mark.parametrize("path", ["/silent", "/drip-headers", "/drip-body"])
def test_the_same_holds_over_tls(tls_server: Server, path: str) -> None:
    started = time.monotonic()
    failed = failure(address(tls_server, path, "https"), timeout="400ms", verify=False)
    assert isinstance(failed, StepTimeout)
    assert time.monotonic() - started < SOON
    wait_until(no_calls_left)


def test_a_tls_handshake_that_never_comes_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        failed = failure(f"https://127.0.0.1:{mute.getsockname()[1]}/", timeout=0.3)
        assert isinstance(failed, StepTimeout)
        assert time.monotonic() - started < SOON
        wait_until(no_calls_left)


def test_the_steps_deadline_bounds_the_call_too(server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(StepTimeout):
        get(address(server, "/silent"), deadline=started + 0.3, timeout="1h")
    assert time.monotonic() - started < SOON


def test_a_timed_out_connection_is_not_used_again(server: Server) -> None:
    failure(address(server, "/drip-body"), timeout=1)
    wait_until(lambda: server.ended == ["/drip-body"])
    assert get(address(server, "/echo"))["status_code"] == 200


def test_certificates_are_verified_unless_told_otherwise(tls_server: Server) -> None:
    failed = failure(address(tls_server, "/echo", "https"))
    assert failed.kind == "connection"
    assert "certificate" in str(failed).lower()
    first, second = (get(address(tls_server, "/echo", "https"), verify=False)["body"] for _ in range(2))
    assert first["port"] == second["port"]


def test_a_refused_connection_says_so_without_the_query() -> None:
    with own_port() as port:
        failed = failure(f"http://127.0.0.1:{port}/a?token=secret")
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert str(failed) == f"GET http://127.0.0.1:{port}/a: Connection refused"


def test_a_request_that_cannot_be_sent_is_a_mistake_in_the_config(server: Server) -> None:
    failed = failure(address(server, "/echo"), headers={"X": "a\r\nb: c"})
    assert (failed.kind, failed.retryable) == ("config", False)


def test_many_threads_share_the_pool(server: Server) -> None:
    outputs: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: outputs.extend(get(address(server, "/echo")) for _ in range(5)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output["status_code"] for output in outputs] == [200] * 40
    assert len({output["body"]["port"] for output in outputs}) <= 8


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"url": "example.com"}, "url"),
        ({"url": "ftp://example.com"}, "url"),
        ({"method": "FETCH"}, "method"),
        ({"json": 1, "body": "a"}, "body"),
        ({"timeout": "soon"}, "timeout"),
        ({"auth": {"type": "basic", "username": "a"}}, "auth"),
        ({"auth": {"type": "digest"}}, "auth"),
        ({"expected_status": "2xx"}, "expected_status"),
        ({"expected_status": [99]}, "expected_status"),
        ({"expected_status": True}, "expected_status"),
        ({"expect": 200}, "expect"),
    ],
)
def test_a_config_with_a_mistake_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Http.Config().load({"url": "http://example.com", **config})
    assert set(refused.value.messages_dict) == {field}


def no_calls_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "http-call"]
