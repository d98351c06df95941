"""`email` with real servers on loopback: aiosmtpd for those that behave, sockets for those that do not."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from deployment import SOON, own_port, wait_until
from marshmallow import ValidationError
from performing import context_of

from orchestrator.config import EmailSettings, ExecutorSettings, Settings
from orchestrator.errors import StepFailed, StepTimeout
from workers.secrets import Secrets
from workers.steps.contract import Done
from workers.steps.email import Email

# Real servers take logins over TLS alone; here it is the login that is looked at.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")

BODY = {"subject": "Hello", "text": "Hi\n"}
PASSWORD = "pass-word-9"


class Mailroom:
    """What a well-behaved server keeps, and what it answers."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.logins: list[str] = []
        self.refused: dict[str, str] = {}
        self.sender_reply = "250 OK"
        self.data_reply = "250 taken"
        self.login_reply: str | None = None

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Envelope, address: str, options: Any) -> str:
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return self.sender_reply

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Envelope, address: str, options: Any) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Envelope) -> str:
        envelope.encrypted = session.ssl is not None
        self.envelopes.append(envelope)
        return self.data_reply

    def authenticate(self, server: SMTP, session: Any, envelope: Envelope, mechanism: str, login: Any) -> AuthResult:
        self.logins.append(mechanism)
        right = login == LoginPassword(b"ana", PASSWORD.encode())
        return AuthResult(success=right and not self.login_reply, handled=False, message=self.login_reply)

    def message(self) -> EmailMessage:
        [envelope] = self.envelopes
        return parsed(envelope)


def parsed(envelope: Envelope) -> EmailMessage:
    assert isinstance(envelope.content, bytes)
    message = message_from_bytes(envelope.content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def text_of(part: Any) -> str:
    return str(part.get_content()).replace("\r\n", "\n")


@contextmanager
def serving(mailroom: Mailroom, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[int]:
    """The port of a server that listens for as long as the block runs; `tls` is TLS from the first byte."""
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        def protocol() -> SMTP:
            return SMTP(mailroom, hostname="mail.example", authenticator=mailroom.authenticate, loop=loop, **options)

        return await loop.create_server(protocol, "127.0.0.1", 0, ssl=tls)

    async def stop() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports' own goodbyes

    server = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@pytest.fixture
def mailroom() -> Mailroom:
    return Mailroom()


@pytest.fixture
def port(mailroom: Mailroom) -> Iterator[int]:
    with serving(mailroom) as port:
        yield port


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem"), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem"


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


def settings_of(port: int, templates: Path | None = None, **email: Any) -> Settings:
    given = {"host": "127.0.0.1", "port": port, "security": "none", "sender": "robot@example.org", "timeout": 5.0}
    executor = ExecutorSettings(templates_dir=str(templates)) if templates else ExecutorSettings()
    return Settings(email=EmailSettings(**{**given, **email}), executor=executor)


def post(settings: Settings, config: dict[str, Any], **context: Any) -> dict[str, Any]:
    done = Email().perform(context_of(Email(), config, settings=settings, **context))
    assert isinstance(done, Done)
    assert isinstance(done.output, dict)
    json.dumps(done.output)
    return done.output


def failure(settings: Settings, config: dict[str, Any] | None = None, **context: Any) -> StepFailed:
    with pytest.raises(StepFailed) as failed:
        post(settings, config or {"to": "a@example.com", **BODY}, **context)
    return failed.value


# -- what arrives --------------------------------------------------------------------------------------------


def test_an_email_arrives_with_its_headers_and_text(mailroom: Mailroom, port: int) -> None:
    output = post(
        settings_of(port),
        {
            "to": ["Ana Álvarez <ana@example.com>", "b@example.com"],
            "cc": "c@example.com",
            "bcc": "hidden@example.com",
            "sender": "Reports <reports@example.org>",
            "reply_to": "help@example.org",
            "subject": "数据处理完成 – 100 %",
            "text": "Größe: 5\n.\n..two dots\n",
        },
    )
    message = mailroom.message()
    assert [(a.display_name, a.addr_spec) for a in message["To"].addresses] == [
        ("Ana Álvarez", "ana@example.com"),
        ("", "b@example.com"),
    ]
    assert (message["From"], message["Cc"]) == ("Reports <reports@example.org>", "c@example.com")
    assert (message["Reply-To"], message["Subject"]) == ("help@example.org", "数据处理完成 – 100 %")
    assert message["Auto-Submitted"] == "auto-generated"
    assert text_of(message) == "Größe: 5\n.\n..two dots\n"
    everyone = ["ana@example.com", "b@example.com", "c@example.com", "hidden@example.com"]
    [envelope] = mailroom.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("reports@example.org", everyone)
    assert isinstance(envelope.content, bytes)
    assert b"hidden@" not in envelope.content
    assert envelope.content.isascii()
    assert (output["to"], output["refused"]) == (everyone, {})
    assert output["message_id"] == message["Message-ID"]
    assert datetime.fromisoformat(output["sent_at"]).utcoffset() is not None


def test_two_attempts_have_the_same_message_id_and_key(mailroom: Mailroom, port: int) -> None:
    config = {"to": "a@example.com", **BODY}
    first, second = (post(settings_of(port), config, attempt=attempt) for attempt in (1, 2))
    assert first["message_id"] == second["message_id"]
    assert first["message_id"].endswith("@example.org>")
    assert [parsed(envelope)["X-Idempotency-Key"] for envelope in mailroom.envelopes] == ["execution:loop[1].step"] * 2


def test_text_and_html_are_alternatives(mailroom: Mailroom, port: int) -> None:
    post(settings_of(port), {"to": "a@example.com", "subject": "s", "text": "plain", "html": "<b>é</b>"})
    message = mailroom.message()
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    page = message.get_body(("html",))
    assert page is not None
    assert text_of(page) == "<b>é</b>\n"


def test_attachments_arrive_as_they_are(mailroom: Mailroom, port: int) -> None:
    attachments = [
        {"filename": "zähl.csv", "content": "a,é\r\n1,2\r\n"},
        {"filename": "data.json", "content": {"n": [1, None]}},
        {"filename": "pixel.png", "content": base64.b64encode(b"\x89PNG\0").decode() + "\n", "encoding": "base64"},
        {"filename": "blob", "content": "AA==", "encoding": "base64"},
        {"filename": "notes", "content": "x", "content_type": "text/markdown"},
    ]
    post(settings_of(port), {"to": "a@example.com", **BODY, "attachments": attachments})
    parts = list(mailroom.message().iter_attachments())
    assert [(part.get_filename(), part.get_content_type()) for part in parts] == [
        ("zähl.csv", "text/csv"),
        ("data.json", "application/json"),
        ("pixel.png", "image/png"),
        ("blob", "application/octet-stream"),
        ("notes", "text/markdown"),
    ]
    assert parts[0].get_content() == "a,é\r\n1,2\r\n"
    contents = [part.get_payload(decode=True) for part in parts[1:]]
    assert contents == [b'{"n":[1,null]}', b"\x89PNG\0", b"\0", b"x"]


def test_an_address_named_twice_gets_the_email_once(mailroom: Mailroom, port: int) -> None:
    output = post(settings_of(port), {"to": ["a@example.com", "A <a@example.com>"], "cc": "a@example.com", **BODY})
    assert output["to"] == mailroom.envelopes[0].rcpt_tos == ["a@example.com"]


def test_a_domain_that_is_not_ascii_is_sent_as_dns_has_it(mailroom: Mailroom, port: int) -> None:
    assert post(settings_of(port), {"to": "a@bücher.example", **BODY})["to"] == ["a@xn--bcher-kva.example"]
    assert mailroom.message()["To"] == "a@xn--bcher-kva.example"


def test_an_address_that_is_not_ascii_needs_a_server_that_takes_it(mailroom: Mailroom, port: int) -> None:
    config = {"to": "用户@example.com", **BODY}
    failed = failure(settings_of(port), config)
    assert (failed.kind, failed.retryable) == ("smtp", False)
    assert "SMTPUTF8" in str(failed)
    with serving(mailroom, enable_SMTPUTF8=True) as modern:
        assert post(settings_of(modern), config)["to"] == ["用户@example.com"]
    assert mailroom.envelopes[0].rcpt_tos == ["用户@example.com"]


# -- headers cannot be injected ------------------------------------------------------------------------------


def test_a_subject_with_line_breaks_stays_one_header(mailroom: Mailroom, port: int) -> None:
    for break_ in ("\r\n", "\n", "\r", "\x0b", "\x85", "\u2028"):
        mailroom.envelopes.clear()
        post(settings_of(port), {"to": "a@example.com", "text": "x", "subject": f"Hi{break_}Bcc: evil@example.net"})
        assert mailroom.message()["Subject"] == "Hi Bcc: evil@example.net"
        assert "Bcc" not in mailroom.message()
        assert mailroom.envelopes[0].rcpt_tos == ["a@example.com"]


@pytest.mark.parametrize("length", [1, 5, 25])
def test_a_name_that_looks_like_addresses_stays_a_name(mailroom: Mailroom, port: int, length: int) -> None:
    names = [word * length for word in ("Doe, ", "evil@example.net, ", 'Müller, "x": ;', "back\\slash(")]
    names = [name.strip()[:200] for name in names]
    config = {"to": ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '" <a@example.com>' for name in names]}
    post(settings_of(port), {**config, **BODY})
    [envelope] = mailroom.envelopes
    assert isinstance(envelope.content, bytes)
    # The older parser: the newer one of this Python leaves a space between encoded words.
    found = getaddresses([message_from_bytes(envelope.content)["To"]])
    assert [(str(make_header(decode_header(name))), address) for name, address in found] == [
        (name, "a@example.com") for name in names
    ]
    assert max(map(len, envelope.content.split(b"\r\n"))) < 300


@pytest.mark.parametrize(
    "address",
    [
        "", "a", "a@", "@example.com", "a@b@c", "a b@example.com", "a@exa mple.com", "a@-example.com", "a@example..com",
        "a@example.com, b@example.com", "a@example.com\nBcc: evil@example.net", "a@example.com\r\nDATA", "a@\0b",
        "Ana\n <a@example.com>", "<a@example.com> b", "a@example.com>", "<<a@example.com>>", "team: a@example.com;",
        "a(comment)@example.com", '"a b"@example.com', "a@[127.0.0.1]", ".a@example.com", f"{'a' * 65}@example.com",
        f"a@{'b' * 64}.com", "a@" + "b." * 130 + "com", "(" * 300, "a@example.com\u2028", 5, None, {"a": 1}, True,
    ],
)  # fmt: skip
def test_what_is_not_an_address_is_refused(address: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        Email.Config().load({"to": [address], "cc": "ok@example.com", **BODY})
    assert set(refused.value.messages_dict) == {"to"}


# -- templates -----------------------------------------------------------------------------------------------


def test_a_template_makes_text_html_and_subject(mailroom: Mailroom, port: int, tmp_path: Path) -> None:
    (tmp_path / "process_complete.txt").write_text("{{ input.name }}: {{ input.rows | length }} in {{ execution.id }}")
    (tmp_path / "process_complete.html").write_text(
        "<style>p {#top}</style><p>{{ input.name }}</p>{% if input.name == '<R&D>' %}{{ input.rows }}{% endif %}"
    )
    (tmp_path / "process_complete.subject").write_text("Done:\n {{ input.name }}\n")
    given = {"name": "<R&D>", "rows": [1, 2]}
    config = {"to": "admin@example.com", "template": "process_complete"}
    post(settings_of(port, tmp_path), config, input=given)
    message = mailroom.message()
    assert message["Subject"] == "Done: <R&D>"
    text, page = map(text_of, message.iter_parts())
    assert text == "<R&D>: 2 in execution\n"
    assert page == "<style>p {#top}</style><p>&lt;R&amp;D&gt;</p>[1, 2]\n"


def test_the_configs_subject_comes_before_the_templates(mailroom: Mailroom, port: int, tmp_path: Path) -> None:
    (tmp_path / "process_complete.txt").write_text("{{ input.total }}")
    (tmp_path / "process_complete.subject").write_text("from the file")
    config = {"to": "admin@example.com", "subject": "数据处理完成", "template": "process_complete"}
    post(settings_of(port, tmp_path), config, input={"total": 5})
    assert (mailroom.message()["Subject"], text_of(mailroom.message())) == ("数据处理完成", "5\n")


@pytest.mark.parametrize(
    ("files", "template", "kind", "said"),
    [
        ({}, "nothing", "config", "no template nothing.txt or nothing.html"),
        ({"a.subject": "s"}, "a", "config", "no template a.txt or a.html"),
        ({"a.txt": "x"}, "a", "config", "no subject"),
        ({"a.txt": "{{ input.nope }}"}, "a", "template", "a.txt: 'input.nope' is not defined"),
        ({"a.html": "<p>{{ secrets.key }}"}, "a", "template", "a.html: 'secrets"),
        ({"a.txt": "x\n{{ input. }}"}, "a", "template", "a.txt: line 2: "),
        ({"a.txt": "{% for x in input %}{% endfor %}"}, "a", "template", "a.txt: "),
        ({"a.txt": "{{ 'x' * 10 ** 9 }}"}, "a", "template", "a.txt: "),
        ({"a.txt": "{{ 1 / 0 }}"}, "a", "template", "a.txt: division by zero"),
        ({"a.txt": "x" * 70_000}, "a", "config", "a.txt is longer than 65,536 characters"),
        ({"a.txt": b"\xff\xfe"}, "a", "config", "a.txt cannot be read as UTF-8"),
        ({"../outside.txt": "x"}, "../outside", "config", "is outside"),
        ({"../outside.txt": "x"}, "{folder}/../outside", "config", "is outside"),
        ({}, "a\0b", "config", "no template"),
        ({}, "a" * 5000, "config", "no template"),
    ],
)
def test_a_template_that_cannot_be_used_fails_for_good(
    tmp_path: Path, files: dict[str, str | bytes], template: str, kind: str, said: str
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = {"to": "a@example.com", "template": template.replace("{folder}", str(folder))}
    failed = failure(settings_of(1, folder), config, input={"a": 1})
    assert (failed.kind, failed.retryable) == (kind, False)
    assert said in str(failed)


def test_a_link_or_a_pipe_among_the_templates_leads_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("hidden")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(folder / "pipe.txt")
    outside = failure(settings_of(1, folder), {"to": "a@example.com", "subject": "s", "template": "link"})
    assert "is outside" in str(outside)
    pipe = failure(settings_of(1, folder), {"to": "a@example.com", "subject": "s", "template": "pipe"})
    assert "there is no template" in str(pipe)


# -- encryption and login ------------------------------------------------------------------------------------


def test_starttls_encrypts_and_checks_the_certificate(
    mailroom: Mailroom, server_tls: ssl.SSLContext, certificate: Path
) -> None:
    with serving(mailroom, tls_context=server_tls, require_starttls=True) as port:
        post(settings_of(port, security="starttls", ca_file=str(certificate)), {"to": "a@example.com", **BODY})
        post(settings_of(port, security="starttls", verify=False), {"to": "a@example.com", **BODY})
        failed = failure(settings_of(port, security="starttls"))
    assert [envelope.encrypted for envelope in mailroom.envelopes] == [True, True]
    assert failed.kind == "connection"
    assert "certificate" in str(failed)


def test_tls_from_the_start_encrypts_and_checks_the_certificate(
    mailroom: Mailroom, server_tls: ssl.SSLContext, certificate: Path
) -> None:
    with serving(mailroom, tls=server_tls) as port:
        post(settings_of(port, security="tls", ca_file=str(certificate)), {"to": "a@example.com", **BODY})
        post(settings_of(port, security="tls", verify=False), {"to": "a@example.com", **BODY})
        failed = failure(settings_of(port, security="tls"))
    assert len(mailroom.envelopes) == 2
    assert failed.kind == "connection"
    assert "certificate" in str(failed)


def test_a_server_without_starttls_gets_neither_login_nor_email(mailroom: Mailroom, port: int) -> None:
    failed = failure(settings_of(port, security="starttls", username="ana", password=PASSWORD))
    assert (failed.kind, failed.retryable) == ("smtp", False)
    assert "STARTTLS" in str(failed)
    assert (mailroom.envelopes, mailroom.logins) == ([], [])


@pytest.mark.parametrize(("excluded", "used"), [(["LOGIN"], "PLAIN"), (["PLAIN"], "LOGIN")])
def test_a_login_from_a_secret_is_accepted(mailroom: Mailroom, excluded: list[str], used: str) -> None:
    options = {"auth_required": True, "auth_require_tls": False, "auth_exclude_mechanism": excluded}
    with serving(mailroom, **options) as port:
        settings = settings_of(port, username="ana", password="{{ secrets.smtp }}")
        output = post(settings, {"to": "a@example.com", **BODY}, secrets={"smtp": PASSWORD})
    assert output["to"] == ["a@example.com"]
    assert mailroom.logins == [used]


def test_a_refused_login_is_final_and_shows_nothing_of_it(mailroom: Mailroom) -> None:
    wrong = "wrong-password"
    coded = base64.b64encode(f"\0ana\0{wrong}".encode()).decode()
    mailroom.login_reply = f"535 5.7.8 what is AUTH PLAIN {coded}, that is {wrong}?"
    with serving(mailroom, auth_required=True, auth_require_tls=False) as port:
        failed = failure(settings_of(port, username="ana", password=wrong))
    assert (failed.kind, failed.retryable) == ("login", False)
    server = f"the mail server 127.0.0.1:{port}"
    assert str(failed) == f"{server} refused the login (535); check email.username and email.password"


def test_a_login_that_is_refused_for_now_may_be_tried_again(mailroom: Mailroom) -> None:
    mailroom.login_reply = "454 4.7.0 later"
    with serving(mailroom, auth_required=True, auth_require_tls=False) as port:
        failed = failure(settings_of(port, username="ana", password=PASSWORD))
    assert (failed.kind, failed.retryable) == ("login", True)


def test_a_server_without_logins_is_no_place_for_one(mailroom: Mailroom, port: int) -> None:
    failed = failure(settings_of(port, username="ana", password=PASSWORD))
    assert (failed.kind, failed.retryable) == ("smtp", False)
    assert "AUTH" in str(failed)
    failed = failure(settings_of(port, username="ana", password="geheim-ü"))
    assert (failed.kind, failed.retryable) == ("config", False)
    assert "geheim" not in str(failed)


def test_a_password_that_the_server_repeats_is_masked(mailroom: Mailroom, port: int) -> None:
    settings = settings_of(port, password=PASSWORD)
    mailroom.data_reply = f"554 no: {PASSWORD}"
    failed = failure(settings)
    assert Secrets({}, also=settings.secrets()).mask(str(failed)).endswith("answered 554 no: ***")


# -- refusals ------------------------------------------------------------------------------------------------


def test_refused_recipients_are_listed_and_the_others_get_the_email(mailroom: Mailroom, port: int) -> None:
    mailroom.refused = {"gone@example.com": "550 5.1.1 no such user"}
    lines: list[tuple[str, str]] = []
    output = post(settings_of(port), {"to": ["gone@example.com", "a@example.com"], **BODY}, lines=lines)
    assert output["to"] == ["a@example.com"]
    assert output["refused"] == {"gone@example.com": "550 5.1.1 no such user"}
    assert lines == [("warning", "the mail server refused gone@example.com: 550 5.1.1 no such user")]


@pytest.mark.parametrize(("second", "retryable"), [("550 gone too", False), ("450 4.7.1 greylisted", True)])
def test_if_every_recipient_is_refused_the_step_fails(
    mailroom: Mailroom, port: int, second: str, retryable: bool
) -> None:
    mailroom.refused = {"a@example.com": "550 gone", "b@example.com": second}
    failed = failure(settings_of(port), {"to": ["a@example.com", "b@example.com"], **BODY})
    assert (failed.kind, failed.retryable) == ("smtp", retryable)
    assert failed.output == {"to": [], "refused": mailroom.refused}
    assert mailroom.envelopes == []


@pytest.mark.parametrize(("reply", "retryable"), [("451 4.3.0 later", True), ("554 5.7.1 never", False)])
def test_a_refused_message_or_sender_says_whether_to_retry(
    mailroom: Mailroom, port: int, reply: str, retryable: bool
) -> None:
    mailroom.data_reply = reply
    message = failure(settings_of(port))
    mailroom.sender_reply = reply
    sender = failure(settings_of(port))
    for failed in (message, sender):
        assert (failed.kind, failed.retryable) == ("smtp", retryable)
        assert str(failed) == f"the mail server 127.0.0.1:{port} answered {reply}"


def test_an_unreachable_server_is_a_connection_failure() -> None:
    with own_port() as port:
        failed = failure(settings_of(port))
    assert (failed.kind, failed.retryable) == ("connection", True)
    assert str(failed) == f"the mail server 127.0.0.1:{port}: Connection refused"


# -- servers that misbehave ----------------------------------------------------------------------------------


class Crooked(socketserver.StreamRequestHandler):
    server: CrookedServer

    def handle(self) -> None:
        with suppress(OSError):
            self.server.behave(self)

    def say(self, text: str) -> None:
        self.wfile.write(text.encode())

    def hear(self) -> str:
        return self.rfile.readline().decode()

    def flood(self, piece: str, pause: float) -> None:
        try:
            while not self.server.closing.wait(pause):
                self.say(piece)
        except OSError:
            self.server.left = True

    def converse(self) -> None:
        """All of it as it should be, until the message is to be answered."""
        self.say("220 hello\r\n")
        for reply in ("250 hi", "250 ok", "250 ok", "354 go"):
            self.hear()
            self.say(f"{reply}\r\n")
        while self.hear() != ".\r\n":
            pass


class CrookedServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, behave: Callable[[Crooked], None]) -> None:
        super().__init__(("127.0.0.1", 0), Crooked)
        self.behave = behave
        self.closing = threading.Event()
        self.left = False
        """The client went away in the middle of a flood."""

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextmanager
def crooked(behave: Callable[[Crooked], None]) -> Iterator[CrookedServer]:
    with CrookedServer(behave) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


def silent(client: Crooked) -> None:
    client.server.closing.wait(30)


def drips_its_greeting(client: Crooked) -> None:
    client.flood("2", pause=0.05)


def drips_lines(client: Crooked) -> None:
    client.say("220 hello\r\n")
    client.hear()
    client.flood("250-more\r\n", pause=0.05)


def drips_after_the_message(client: Crooked) -> None:
    client.converse()
    client.flood("2", pause=0.05)


def never_answers_the_message(client: Crooked) -> None:
    client.converse()
    client.server.closing.wait(30)


def no_deliveries_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "smtp-call"]


@pytest.mark.parametrize(
    "behave", [silent, drips_its_greeting, drips_lines, drips_after_the_message, never_answers_the_message]
)
def test_a_server_that_never_ends_its_answer_is_left_in_time(behave: Callable[[Crooked], None]) -> None:
    with crooked(behave) as server:
        started = time.monotonic()
        failed = failure(settings_of(server.port, timeout=0.4))
        assert isinstance(failed, StepTimeout)
        assert 0.4 <= time.monotonic() - started < SOON
        wait_until(no_deliveries_left)


@pytest.mark.parametrize("security", ["tls", "starttls"])
def test_a_tls_handshake_that_never_comes_is_left_in_time(security: str) -> None:
    def behave(client: Crooked) -> None:
        if security == "starttls":
            client.say("220 hello\r\n")
            client.hear()
            client.say("250-hi\r\n250 STARTTLS\r\n")
            client.hear()
            client.say("220 go\r\n")
        silent(client)

    with crooked(behave) as server:
        started = time.monotonic()
        assert isinstance(failure(settings_of(server.port, security=security, timeout=0.3)), StepTimeout)
        assert time.monotonic() - started < SOON
        wait_until(no_deliveries_left)


def test_the_steps_deadline_bounds_the_delivery_too() -> None:
    with crooked(silent) as server:
        started = time.monotonic()
        assert isinstance(failure(settings_of(server.port), deadline=started + 0.3), StepTimeout)
        assert time.monotonic() - started < SOON


def test_an_endless_reply_is_not_read_for_ever() -> None:
    def behave(client: Crooked) -> None:
        client.say("220 hello\r\n")
        client.hear()
        client.flood("250-more\r\n" * 1000, pause=0)

    with crooked(behave) as server:
        failed = failure(settings_of(server.port))
        assert (failed.kind, failed.retryable) == ("response_too_large", False)
        wait_until(lambda: server.left)


def test_what_is_not_smtp_is_an_answer_that_may_get_better() -> None:
    with crooked(lambda client: client.say("HTTP/1.1 400 Bad Request\r\n")) as server:
        failed = failure(settings_of(server.port))
    assert (failed.kind, failed.retryable) == ("smtp", True)
    assert "not SMTP" in str(failed)


def test_a_server_that_hangs_up_is_a_connection_failure() -> None:
    with crooked(lambda client: client.say("220 hello\r\n")) as server:
        failed = failure(settings_of(server.port))
    assert (failed.kind, failed.retryable) == ("connection", True)


def test_once_the_message_is_taken_the_farewell_cannot_fail_the_step() -> None:
    def behave(client: Crooked) -> None:
        client.converse()
        client.say("250 taken\r\n")
        silent(client)

    with crooked(behave) as server:
        started = time.monotonic()
        assert post(settings_of(server.port), {"to": "a@example.com", **BODY})["to"] == ["a@example.com"]
        assert time.monotonic() - started < SOON


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": ""}, "set email.host"),
        ({"sender": ""}, "email.sender"),
        ({"sender": "nobody"}, "email.sender: 'nobody' is not an address"),
        ({"security": "starttls", "ca_file": "/nowhere.pem"}, "email.ca_file"),
        ({"host": "a" * 70 + ".example"}, "email.host"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(settings: dict[str, Any], said: str) -> None:
    failed = failure(settings_of(1, **settings))
    assert (failed.kind, failed.retryable) == ("config", False)
    assert said in str(failed)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"to": []}, "to"),
        ({"sender": ["a@example.com"]}, "sender"),
        ({"reply_to": "用户@example.com"}, "reply_to"),
        ({"template": "t"}, "template"),
        ({"attachments": {"filename": "a"}}, "attachments"),
        ({"attachments": [{"filename": "a"}]}, "attachments"),
        ({"attachments": [{"filename": "../a", "content": ""}]}, "attachments"),
        ({"attachments": [{"filename": "a\r\nb", "content": ""}]}, "attachments"),
        ({"attachments": [{"filename": "a", "content": "???", "encoding": "base64"}]}, "attachments"),
        ({"attachments": [{"filename": "a", "content": {}, "encoding": "base64"}]}, "attachments"),
        ({"attachments": [{"filename": "a", "content": 2**70}]}, "attachments"),
        ({"attachments": [{"filename": "a", "content": "", "content_type": "multipart/mixed"}]}, "attachments"),
        ({"attachments": [{"filename": "a", "content": "", "content_type": "a/b\r\nX: y"}]}, "attachments"),
        ({"body": "x"}, "body"),
    ],
)
def test_a_config_with_a_mistake_is_refused_at_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Email.Config().load({"to": "a@example.com", **BODY, **config})
    assert set(refused.value.messages_dict) == {field}


def test_all_mistakes_are_found_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        Email.Config().load({})
    assert set(refused.value.messages_dict) == {"to", "text", "subject"}
    with pytest.raises(ValidationError) as refused:
        Email.Config().load({"to": ["a@example.com", "b"], "cc": "c", "more": 1})
    assert refused.value.messages_dict["to"].keys() == {1}
    assert refused.value.messages_dict.keys() == {"to", "cc", "more", "text", "subject"}
