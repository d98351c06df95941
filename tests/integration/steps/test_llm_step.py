"""`llm` through the real openai library, against a server on loopback that speaks the documented wire format
and misbehaves in the ways servers do."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from deployment import SOON, own_port, wait_until
from marshmallow import ValidationError
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from performing import context_of
from pydantic import TypeAdapter

from orchestrator.config import ExecutorSettings, LlmSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from orchestrator.metrics import TOKENS, tally
from workers.secrets import Secrets
from workers.steps.contract import Wait
from workers.steps.llm import MAX_REST, MAX_RESTS, Llm

KEY = "sk-secret-0123456789"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.ended: list[str] = []
        """Names of the answers that ended because the client went away."""
        self.status, self.headers, self.body = 200, dict[str, str](), b""
        """What the path /told answers."""

    def tell(self, body: Any, status: int = 200, **headers: str) -> str:
        """Have /told answer this; the base_url of it."""
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.headers = status, {"Content-Type": "application/json"}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.url("told")

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some of the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        self.name, _, rest = self.path.strip("/").partition("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append({"path": rest, "body": body, "headers": headers, "port": self.client_address[1]})
        getattr(self, "answer_" + self.name.replace("-", "_"))()

    def do_GET(self) -> None:
        self.server.requests.append({"path": self.path})
        self.reply(200, b"{}", {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_told(self) -> None:
        self.reply(self.server.status, self.server.body, self.server.headers)

    def answer_told_and_closed(self) -> None:
        self.answer_told()
        self.close_connection = True

    def answer_silent(self) -> None:
        self.close_connection = True
        self.server.closing.wait(30)

    def answer_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        self.flood(b"x", pause=0.02)

    def answer_drip_body(self) -> None:
        self.begin(200)
        self.flood(b" ", pause=0.02)

    def answer_drip_error(self) -> None:
        self.begin(500)
        self.flood(b" ", pause=0.02)

    def answer_endless(self) -> None:
        self.begin(200)
        self.flood(b" " * 65536, pause=0)

    def answer_endless_error(self) -> None:
        self.begin(500)
        self.flood(b" " * 65536, pause=0)

    def answer_cut(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        self.close_connection = True

    def answer_drop(self) -> None:
        self.close_connection = True

    def begin(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()

    def flood(self, piece: bytes, pause: float) -> None:
        """Send `piece` again and again until the client is gone."""
        self.close_connection = True
        try:
            while not self.server.closing.wait(pause):
                self.wfile.write(piece)
        except OSError:
            self.server.ended.append(self.name)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def completion(content: str | None = "Hello", finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """An answer, checked by the library's own model of one."""
    return ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-4-0613",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "message": {"role": "assistant", "content": content, **message},
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        }
    ).model_dump(mode="json", exclude_unset=True)


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "some_error", "param": None, "code": None, **more}}


def perform(
    base_url: str,
    *,
    api_key: str = KEY,
    model: str = "default-model",
    max_response: int = 10**6,
    secrets: dict[str, str] | None = None,
    deadline: float | None = None,
    state: Any = None,
    lines: list[tuple[str, str]] | None = None,
    **config: Any,
) -> Any:
    settings = Settings(
        executor=ExecutorSettings(max_response=max_response),
        llm=LlmSettings(base_url=base_url, api_key=api_key, model=model),
    )
    if "messages" not in config:
        config = {"prompt": "Hi", **config}
    context = context_of(Llm(), config, settings=settings, secrets=secrets, deadline=deadline, state=state, lines=lines)
    return Llm().perform(context)


def output_of(base_url: str, **options: Any) -> dict[str, Any]:
    output = perform(base_url, **options).output
    assert orjson.loads(orjson.dumps(output)) == output
    assert isinstance(output, dict)
    return output


def failure(base_url: str, **options: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        perform(base_url, **options)
    assert KEY not in str(failed.value)
    return failed.value


# --- what is sent, and what comes of it -----------------------------------------------------------------------


def test_a_prompt_is_answered(server: Server) -> None:
    assert output_of(server.tell(completion()), model="m") == {
        "text": "Hello",
        "finish_reason": "stop",
        "model": "gpt-4-0613",
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        "id": "chatcmpl-1",
    }
    (request,) = server.requests
    assert request["path"] == "v1/chat/completions"
    assert request["body"] == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_every_option_reaches_the_service_under_its_documented_name(server: Server) -> None:
    options = {"max_tokens": 500, "temperature": 0.5, "top_p": 1.0, "stop": ["a", "b"], "seed": -7}
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    output_of(server.tell(completion()), messages=conversation, system="Be brief", model="gpt-4", **options)
    body = server.requests[0]["body"]
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(body)
    assert body == {
        "model": "gpt-4",
        "messages": [{"role": "system", "content": "Be brief"}, *conversation],
        **options,
    }


def test_the_models_of_step_and_settings_are_taken_in_this_order(server: Server) -> None:
    url = server.tell(completion())
    output_of(url, model="default")
    context = context_of(
        Llm(), {"prompt": "Hi", "model": "own"}, settings=Settings(llm=LlmSettings(base_url=url, model="default"))
    )
    Llm().perform(context)
    assert [request["body"]["model"] for request in server.requests] == ["default", "own"]


def test_settings_may_hold_secrets(server: Server) -> None:
    port = server.server_address[1]
    server.tell(completion())
    output_of(
        "http://127.0.0.1:{{ secrets.port }}/told/v1", api_key="{{ secrets.k }}", secrets={"port": str(port), "k": "x"}
    )
    assert server.requests[0]["headers"]["authorization"] == "Bearer x"


def test_a_service_without_a_key_gets_no_authorization(server: Server) -> None:
    output_of(server.tell(completion()), api_key="")
    assert "authorization" not in server.requests[0]["headers"]


def test_the_idempotency_key_is_the_steps_and_the_library_does_not_retry(server: Server) -> None:
    failure(server.tell(error("busy"), 500))
    (request,) = server.requests
    assert request["headers"]["idempotency-key"] == "execution:loop[1].step"


def test_the_environment_lends_neither_proxies_nor_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "from-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer from-the-environment")
    url, unseen = server.tell(completion()), 123_456  # a limit of its own makes connections anew
    output_of(url, api_key="", max_response=unseen)
    output_of(url, max_response=unseen)
    assert "from-the-environment" not in str(server.requests)
    assert [request["headers"].get("authorization") for request in server.requests] == [None, f"Bearer {KEY}"]


def test_connections_are_reused_and_cookies_are_not_kept(server: Server) -> None:
    url = server.tell(completion(), Set_Cookie="a=b")
    output_of(url)
    output_of(url, api_key="another")
    first, second = server.requests
    assert first["port"] == second["port"]
    assert "cookie" not in second["headers"]


def test_a_connection_that_was_closed_while_idle_is_replaced(server: Server) -> None:
    server.tell(completion())
    for _ in range(3):
        output_of(server.url("told-and-closed"))
    assert len({request["port"] for request in server.requests}) == 3


def test_many_threads_share_the_loop(server: Server) -> None:
    url = server.tell(completion())
    outputs: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: outputs.extend(output_of(url) for _ in range(5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output["text"] for output in outputs] == ["Hello"] * 40
    assert len([thread for thread in threading.enumerate() if thread.name == "llm-calls"]) == 1


def test_a_compressed_answer_is_read(server: Server) -> None:
    body = gzip.compress(json.dumps(completion("Grüße")).encode())
    assert output_of(server.tell(body, Content_Encoding="gzip"))["text"] == "Grüße"


def test_an_answer_without_what_services_may_leave_out_is_taken(server: Server) -> None:
    answer = {"choices": [{"message": {"content": "Hello"}}], "usage": {"prompt_tokens": 5}}
    assert output_of(server.tell(answer)) == {
        "text": "Hello",
        "finish_reason": None,
        "model": None,
        "usage": {"prompt_tokens": 5, "completion_tokens": None, "total_tokens": None},
        "id": None,
    }


def test_a_text_that_was_cut_off_says_so_by_its_finish_reason(server: Server) -> None:
    output = output_of(server.tell(completion("Once upon", "length")), max_tokens=2)
    assert (output["text"], output["finish_reason"]) == ("Once upon", "length")


def test_tokens_are_counted_by_the_model_that_was_asked_for(server: Server) -> None:
    tally.take()
    output_of(server.tell(completion()), model="counted-model")
    failure(server.tell(completion(None, refusal="no")), model="counted-model")
    counts = {labels: number for (name, labels), number in tally.take().items() if name == TOKENS.name}
    assert counts == {("counted-model", "prompt"): 18, ("counted-model", "completion"): 6}


def test_tokens_of_a_model_that_a_secret_names_are_counted_without_that(server: Server) -> None:
    tally.take()
    settings = Settings(llm=LlmSettings(base_url=server.tell(completion()), api_key=KEY))
    secrets = Secrets({"model": "s3cret-model"})
    config = {"prompt": "hello", "model": "s3cret-model"}
    Llm().perform(context_of(Llm(), config, settings=settings, mask=secrets.mask))
    assert {labels for name, labels in tally.take() if name == TOKENS.name} == {
        ("***", "prompt"),
        ("***", "completion"),
    }


# --- answers by a schema -------------------------------------------------------------------------------------


def test_a_schema_is_asked_for_strictly_and_the_answer_parsed(server: Server) -> None:
    output = output_of(server.tell(completion('{"name": "Ada", "age": 36}')), response_schema=PERSON)
    assert output["parsed"] == {"name": "Ada", "age": 36}
    assert output["text"] == '{"name": "Ada", "age": 36}'
    body = server.requests[0]["body"]
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(body)
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "response", "schema": PERSON, "strict": True},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ada is 36", "is not JSON"),
        ('{"name": "Ada", "age": "36"}', "$.age"),
        ('{"name": "Ada"}', "'age' is a required property"),
        ("[" * 2000, "is not JSON"),
    ],
)
def test_an_answer_that_does_not_fit_its_schema_fails_with_what_it_was(server: Server, text: str, said: str) -> None:
    failed = failure(server.tell(completion(text)), response_schema=PERSON)
    assert (failed.kind, failed.retryable) == ("output", True)
    assert said in str(failed)
    assert len(str(failed)) < 500
    assert isinstance(failed.output, dict)
    assert failed.output["text"] == text


def test_json_that_was_cut_off_says_to_raise_max_tokens(server: Server) -> None:
    failed = failure(server.tell(completion('{"name": "A', "length")), response_schema=PERSON)
    assert failed.kind == "length"
    assert "max_tokens" in str(failed)


def test_a_schema_fetches_nothing_that_it_refers_to(server: Server) -> None:
    elsewhere = server.url("schema")
    failed = failure(server.tell(completion("1")), response_schema={"$ref": elsewhere})
    assert (failed.kind, failed.retryable) == ("config", False)
    assert elsewhere in str(failed)
    assert len(server.requests) == 1


def test_a_schema_without_an_end_fails_the_step(server: Server) -> None:
    failed = failure(server.tell(completion("1")), response_schema={"$ref": "#"})
    assert failed.kind == "output"
    assert "too deep" in str(failed)


# --- answers that are none -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{oops",
        b"",
        b"\xff\xfe",
        b"null",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -1}}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}}',
        b'{"object": "list", "data": []}',
    ],
)
def test_an_answer_that_is_no_chat_completion_fails(server: Server, body: bytes) -> None:
    failed = failure(server.tell(body))
    assert (failed.kind, failed.retryable) == ("output", True)
    assert f"127.0.0.1:{server.server_address[1]}/told/v1" in str(failed)


def test_what_is_no_completion_is_quoted_up_to_a_length_without_the_key(server: Server) -> None:
    failed = failure(server.tell(error(f"no credit for {KEY} " + "x" * 10**5)))
    assert "no credit for ***" in str(failed)
    assert len(str(failed)) < 500


def test_html_instead_of_json_fails(server: Server) -> None:
    failed = failure(server.tell(b"<html>Welcome</html>", Content_Type="text/html"))
    assert failed.kind == "output"
    assert "<html>Welcome" in str(failed)


def test_a_refusal_is_a_failure_of_its_own(server: Server) -> None:
    failed = failure(server.tell(completion(None, refusal="I cannot help with that")))
    assert failed.kind == "refusal"
    assert str(failed) == "the model refused: I cannot help with that"


def test_a_filtered_answer_is_a_failure_of_its_own(server: Server) -> None:
    failed = failure(server.tell(completion("Well", "content_filter")))
    assert failed.kind == "content_filter"
    assert isinstance(failed.output, dict)
    assert failed.output["text"] == "Well"


def test_an_answer_without_text_fails(server: Server) -> None:
    failed = failure(server.tell(completion(None)))
    assert failed.kind == "output"
    assert "without a text (finish_reason stop)" in str(failed)


# --- statuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, "http_status", False),
        (401, "http_status", False),
        (403, "http_status", False),
        (404, "http_status", False),
        (422, "http_status", False),
        (408, "http_status", True),
        (409, "http_status", True),
        (429, "rate_limited", True),
        (500, "server", True),
        (503, "server", True),
    ],
)
def test_an_error_status_says_what_the_service_said(server: Server, status: int, kind: str, retryable: bool) -> None:
    url = server.tell(error("the reason, at length: " + "x" * 10**5), status)
    failed = failure(url.replace("//", "//user:password@") + "?token=hidden")
    assert (failed.kind, failed.retryable) == (kind, retryable)
    assert str(failed).startswith(f"the model service at {url} answered {status}: the reason, at length: xxx")
    assert len(str(failed)) < 500
    assert "password" not in str(failed)
    assert "hidden" not in str(failed)


def test_a_refused_key_is_not_repeated_and_the_setting_is_named(server: Server) -> None:
    failed = failure(server.tell(error(f"Incorrect API key provided: {KEY}. Find yours at ..."), 401))
    assert "Incorrect API key provided: ***." in str(failed)
    assert "(check llm.api_key)" in str(failed)


def test_a_secret_in_what_the_service_said_is_masked_by_the_runner(server: Server) -> None:
    failed = failure(server.tell(error("no such prompt: tell me of hunter22"), 400), prompt="tell me of hunter22")
    masked = Secrets({"p": "hunter22"}).mask(str(failed))
    assert masked.endswith("answered 400: no such prompt: tell me of ***")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "model not loaded"}', "model not loaded"),
        (b'{"detail": "Not Found"}', '{"detail": "Not Found"}'),
        (b"upstream\0gone", "upstream\N{REPLACEMENT CHARACTER}gone"),
        (b"[1]", "[1]"),
    ],
)
def test_errors_in_other_shapes_are_quoted_too(server: Server, body: bytes, said: str) -> None:
    assert str(failure(server.tell(body, 400))).endswith(f"answered 400: {said}")


def test_an_error_without_a_body_is_its_status(server: Server) -> None:
    assert str(failure(server.tell(b"", 502))).endswith("answered 502")


def test_an_unknown_model_is_named(server: Server) -> None:
    assert "the model, 'gpt-x'" in str(failure(server.tell(error("no"), 404), model="gpt-x"))


def test_a_redirect_is_not_followed(server: Server) -> None:
    failed = failure(server.tell(b"", 307, Location=server.url("silent")))
    assert (failed.kind, failed.retryable) == ("http_status", False)
    assert "set llm.base_url to where it leads" in str(failed)
    assert len(server.requests) == 1


# --- rests that the service asks for -----------------------------------------------------------------------------


def rest(base_url: str, **options: Any) -> tuple[float, Any]:
    """(seconds from now, the state that is left)."""
    waiting = perform(base_url, **options)
    assert isinstance(waiting, Wait)
    return (waiting.until - datetime.now(UTC)).total_seconds(), waiting.state


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "30"}, 30),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "Retry-After": "99"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "7"}, 7),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "1e300"}, MAX_REST),
        ({"Retry-After": "86400"}, MAX_REST),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_REST),
    ],
)
def test_the_step_rests_as_long_as_it_is_asked_to(
    server: Server, status: int, headers: dict[str, str], seconds: float
) -> None:
    delay, state = rest(server.tell(error("slow down"), status, **headers))
    assert seconds - 2 < delay <= seconds
    assert state == {"throttled": 1}


def test_a_rest_until_a_date_lasts_until_then(server: Server) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    delay, _ = rest(server.tell(error("slow down"), 429, Retry_After=date))
    assert 55 < delay <= 60


@pytest.mark.parametrize("value", ["", "nan", "later", "Fri, 99 Foo 2030 00:00:00 GMT"])
def test_a_rest_that_cannot_be_read_is_a_failure(server: Server, value: str) -> None:
    assert failure(server.tell(error("slow down"), 429, Retry_After=value)).kind == "rate_limited"


def test_a_client_error_is_no_rest(server: Server) -> None:
    assert failure(server.tell(error("no"), 403, Retry_After="1")).kind == "http_status"


def test_rests_are_counted_until_they_are_too_many(server: Server) -> None:
    url = server.tell(error("slow down"), 429, Retry_After="1")
    state, lines = None, list[tuple[str, str]]()
    for _ in range(MAX_RESTS):
        _, state = rest(url, state=state, lines=lines)
    assert state == {"throttled": MAX_RESTS}
    assert [level for level, _ in lines] == ["warning"] * MAX_RESTS
    assert lines[1][1].endswith("answered 429: slow down; it asks to come back in 1 s (rest 2 of 5)")
    failed = failure(url, state=state)
    assert (failed.kind, failed.retryable) == ("rate_limited", True)


def test_a_rested_attempt_that_succeeds_is_done(server: Server) -> None:
    assert output_of(server.tell(completion()), state={"throttled": 3})["text"] == "Hello"


# --- bounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["silent", "drip-headers", "drip-body", "drip-error"])
def test_a_service_that_never_ends_its_answer_is_left_in_time(server: Server, name: str) -> None:
    output_of(server.tell(completion()))  # what is imported with the first call is not measured
    started = time.monotonic()
    failed = failure(server.url(name), timeout="1s")
    assert isinstance(failed, StepTimeout)
    assert 1 <= time.monotonic() - started < SOON
    assert str(failed) == f"the model service at {server.url(name)} did not answer within 1 s"
    if name != "silent":
        wait_until(lambda: server.ended == [name])
    assert output_of(server.tell(completion()))["text"] == "Hello"


def test_a_tls_handshake_that_never_comes_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        failed = failure(f"https://127.0.0.1:{mute.getsockname()[1]}/v1", timeout=0.3)
        assert isinstance(failed, StepTimeout)
        assert time.monotonic() - started < SOON


def test_the_steps_deadline_bounds_the_call_too(server: Server) -> None:
    started = time.monotonic()
    failed = failure(server.url("silent"), deadline=started + 0.3, timeout="1h")
    assert isinstance(failed, StepTimeout)
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("name", ["endless", "endless-error"])
def test_an_answer_past_the_limit_fails_for_good(server: Server, name: str) -> None:
    failed = failure(server.url(name), max_response=10**5)
    assert (failed.kind, failed.retryable) == ("response_too_large", False)
    assert "executor.max_response, 100000 bytes" in str(failed)
    wait_until(lambda: server.ended == [name])


def test_the_limit_holds_for_what_a_compressed_answer_unpacks_to(server: Server) -> None:
    body = gzip.compress(b" " * 10**7)
    assert len(body) < 10**5
    failed = failure(server.tell(body, Content_Encoding="gzip"), max_response=10**5)
    assert failed.kind == "response_too_large"


# --- connections and settings ----------------------------------------------------------------------------------------


def test_an_unreachable_service_is_a_connection_failure() -> None:
    with own_port() as port:
        failed = failure(f"http://user:password@127.0.0.1:{port}/v1?token=hidden")
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert str(failed) == f"the model service at http://127.0.0.1:{port}/v1: Connection refused"


@pytest.mark.parametrize("name", ["drop", "cut"])
def test_a_connection_lost_on_the_way_is_a_connection_failure(server: Server, name: str) -> None:
    failed = failure(server.url(name))
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert len(server.requests) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Server) -> None:
    failed = failure(server.url("told").replace("http://", "https://"))
    assert failed.kind == "connection"
    assert server.requests == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_url": ""}, "llm.base_url is not set"),
        ({"base_url": "api.example.com/v1"}, "must be a whole address"),
        ({"base_url": "ftp://example.com"}, "must be a whole address"),
        ({"base_url": "http://example.com:99999/v1"}, "must be a whole address"),
        ({"base_url": "http://exa\x7fmple.com/v1"}, "is not valid"),
        ({"base_url": "http://127.0.0.1:1/v1", "model": ""}, "neither does llm.model"),
        ({"base_url": "http://127.0.0.1:1/v1", "api_key": f"{KEY}\n"}, "llm.api_key has a line break"),
        ({"base_url": "http://127.0.0.1:1/v1", "api_key": f"{KEY}ü"}, "llm.api_key has"),
    ],
)
def test_a_setting_with_a_mistake_is_named(settings: dict[str, str], said: str) -> None:
    failed = failure(**settings)
    assert (failed.kind, failed.retryable) == ("config", False)
    assert said in str(failed)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": {}}, "stop"),
        ({"seed": "a"}, "seed"),
        ({"response_schema": {"type": "person"}}, "response_schema"),
        ({"response_schema": {"pattern": "("}}, "response_schema"),
        ({"response_schema": "person"}, "response_schema"),
        ({"timeout": "soon"}, "timeout"),
        ({"max_token": 5}, "max_token"),
    ],
)
def test_a_config_with_a_mistake_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Llm.Config().load({"prompt": "Hi", **config})
    assert set(refused.value.messages_dict) == {field}


def test_a_step_without_a_question_is_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        Llm.Config().load({"model": "gpt-4"})
    assert set(refused.value.messages_dict) == {"prompt"}


def test_all_mistakes_are_found_at_once() -> None:
    messages = [{"role": "robot", "content": "a"}, {"role": "user"}]
    with pytest.raises(ValidationError) as refused:
        Llm.Config().load({"messages": messages, "temperature": 3, "max_tokens": "many"})
    assert set(refused.value.messages_dict) == {"messages", "temperature", "max_tokens"}
    assert set(refused.value.messages_dict["messages"]) == {0, 1}
