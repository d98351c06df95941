"""`email`: one email, handed to the SMTP server of the settings."""

from __future__ import annotations

import base64
import mimetypes
import re
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email import policy
from email.header import Header
from email.message import EmailMessage
from typing import Any, ClassVar

import orjson
from marshmallow import Schema, ValidationError, fields, validate

from orchestrator.config import EmailSettings
from workers.steps import email_templates
from workers.steps.contract import Done, QueueClass, StepContext, StepType, config_mistake
from workers.steps.email_templates import Texts
from workers.steps.fields import Parsed, Text, validates_whole
from workers.steps.smtp_call import deliver

# Seven bits pass every server; eight would have to be agreed on with it.
_POLICY = policy.SMTP.clone(cte_type="7bit")
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line ends of every kind, and halves of characters."""
_MAILBOX = re.compile(r"(?:(?P<name>[^<>]*?)\s*<(?P<inner>[^<>]*)>|(?P<bare>[^<>]*))")
_ATOM = r"[^\s()<>\[\]:;@\\,.\"]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST = 320  # characters of an address and its name


@dataclass(frozen=True, slots=True)
class Mailbox:
    """`address` is ready for the envelope; its domain is ASCII."""

    name: str
    address: str

    def __str__(self) -> str:
        """As it stands in a header."""
        return f"{_phrase(self.name)} <{self.address}>" if self.name else self.address


class MailboxField(Parsed[Mailbox]):
    """`ana@example.com` or `Ana <ana@example.com>`."""

    def parse(self, value: Any) -> Mailbox:
        return parse_mailbox(value)


class MailboxesField(fields.List[Mailbox]):
    """One mailbox, or a list of them."""

    def __init__(self) -> None:
        shape = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        super().__init__(MailboxField(), load_default=list, metadata=shape)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            return [self.inner.deserialize(value)]
        return super()._deserialize(value, attr, data, **kwargs)


def parse_mailbox(value: object) -> Mailbox:
    """The mailbox in `value`. Raises ValueError with a sentence for the user.

    Stricter than RFC 5322: no comments, groups, quoted local parts or address literals, which are of use to
    hardly anyone but those who want to smuggle something past a check.
    """
    mailbox = _mailbox(value.strip()) if isinstance(value, str) and not _UNSAFE.search(value) else None
    if mailbox is None:
        shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:97]}..."
        raise ValueError(
            f"{shown} is not an address; write ana@example.com or 'Ana <ana@example.com>', and several as a list"
        )
    return mailbox


def _mailbox(text: str) -> Mailbox | None:
    found = _MAILBOX.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    name = found["name"] or ""
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    local, _, domain = (found["bare"] if found["bare"] is not None else found["inner"]).rpartition("@")
    try:
        ascii_domain = domain.encode("idna").decode()
    except UnicodeError:
        return None
    if not _LOCAL_PART.fullmatch(local) or len(local.encode()) > 64:
        return None
    if not _DOMAIN.fullmatch(ascii_domain) or len(ascii_domain) > 253:
        return None
    return Mailbox(name, f"{local}@{ascii_domain}")


def _content_type(value: str) -> None:
    if not re.fullmatch(r"(?!multipart/|message/)[a-z0-9.+-]+/[a-z0-9.+-]+", value, re.IGNORECASE):
        raise ValidationError("must be a type such as text/csv or application/pdf, without parameters")


def _file_name(value: str) -> None:
    if _UNSAFE.search(value) or "/" in value or "\\" in value:
        raise ValidationError("must be a plain file name")


class Attachment(Schema):
    filename = fields.String(required=True, validate=[validate.Length(min=1, max=200), _file_name])
    content = fields.Raw(required=True, allow_none=True)
    encoding = fields.String(load_default="text", validate=validate.OneOf(["text", "base64"]))
    content_type = fields.String(validate=_content_type)

    @validates_whole
    def _decodable(self, data: Mapping[str, Any], written: Set[str]) -> None:  # noqa: ARG002
        if not {"content", "encoding"} <= data.keys():
            return
        try:
            _attached_bytes(data)
        except (TypeError, ValueError):
            known = "base64" if data["encoding"] == "base64" else "text, and cannot be written as JSON"
            raise ValidationError(f"is not {known}", "content") from None


class Email(StepType):
    """Output: `message_id`, `sent_at`, `to` (every address that the server took, those of cc and bcc included),
    `refused` (address to reason).

    Failed attempts are of the kind `smtp` when the server refused the email or every recipient, and `login`,
    `connection` or `timeout`. The Message-ID is the same for every attempt.
    """

    type: ClassVar[str] = "email"
    queue: ClassVar[QueueClass] = "io"

    class Config(Schema):
        to = MailboxesField()
        cc = MailboxesField()
        bcc = MailboxesField()
        sender = MailboxField()
        reply_to = MailboxesField()
        subject = Text()
        text = Text()
        html = Text()
        template = fields.String(validate=validate.Length(min=1))
        attachments = fields.List(fields.Nested(Attachment), load_default=list)

        @validates_whole
        def _complete(self, data: Mapping[str, Any], written: Set[str]) -> None:
            wrong = {}
            if not any(data.get(kind, "what is no address") for kind in ("to", "cc", "bcc")):
                wrong["to"] = "is missing; name an address here, in cc or in bcc"
            has_text = not written.isdisjoint({"text", "html"})
            if "template" in written and has_text:
                wrong["template"] = "write either `template`, or `text` and `html`, not both"
            elif "template" not in written and not has_text:
                wrong["text"] = "is missing; write `text`, `html` or both, or name a `template`"
            if written.isdisjoint({"template", "subject"}):
                wrong["subject"] = "is missing"
            if not all(mailbox.address.isascii() for mailbox in data.get("reply_to", ())):
                # The server is asked whether it takes such addresses for the envelope's sake alone.
                wrong["reply_to"] = "must be ASCII before the @"
            if wrong:
                raise ValidationError({field: [message] for field, message in wrong.items()})

    def perform(self, context: StepContext) -> Done:
        config = context.config
        server = _server(context)
        sender = config.get("sender") or _default_sender(server)
        message = _message(context, sender, _texts(context))
        recipients = list(dict.fromkeys(to.address for kind in ("to", "cc", "bcc") for to in config[kind]))
        refused = deliver(
            server,
            message,
            sender=sender.address,
            recipients=recipients,
            seconds=context.within(server.timeout),
        )
        for address, reason in refused.items():
            context.log(f"the mail server refused {address}: {reason}", "warning")
        return Done(
            {
                "message_id": str(message["Message-ID"]),
                "sent_at": datetime.now(UTC).isoformat(),
                "to": [address for address in recipients if address not in refused],
                "refused": refused,
            }
        )


def _server(context: StepContext) -> EmailSettings:
    server = EmailSettings(**context.reveal(asdict(context.settings.email)))
    if not server.host:
        raise config_mistake("there is no mail server; set email.host (ORCHESTRATOR_EMAIL_HOST)")
    return server


def _default_sender(server: EmailSettings) -> Mailbox:
    if not server.sender:
        raise config_mistake("the email has no sender; write `sender`, or set email.sender")
    try:
        return parse_mailbox(server.sender)
    except ValueError as error:
        raise config_mistake(f"email.sender: {error}") from error


# -- the message ---------------------------------------------------------------------------------------------


def _texts(context: StepContext) -> Texts:
    config = context.config
    if "template" not in config:
        return Texts(config.get("text"), config.get("html"), config["subject"])
    names = {"input": context.input, "execution": {"id": context.execution_id}}
    texts = email_templates.render(config["template"], context.settings.templates_path, names)
    subject = config.get("subject", texts.subject)
    if subject is None:
        raise config_mistake(f"the email has no subject; write `subject`, or a file {config['template']}.subject")
    return Texts(texts.text, texts.html, subject)


def _message(context: StepContext, sender: Mailbox, texts: Texts) -> EmailMessage:
    config = context.config
    message = EmailMessage(policy=_POLICY)
    _, _, domain = sender.address.rpartition("@")
    # The same for each attempt, so that a repeated email can be told from a second one.
    message["Message-ID"] = f"<{uuid.uuid5(uuid.NAMESPACE_URL, context.idempotency_key).hex}@{domain}>"
    message["X-Idempotency-Key"] = _Written("X-Idempotency-Key", _words(context.idempotency_key))
    message["Date"] = datetime.now(UTC)
    # RFC 3834: nobody's absence is to be answered to this.
    message["Auto-Submitted"] = "auto-generated"
    for name, mailboxes in (
        ("From", [sender]),
        ("To", config["to"]),
        ("Cc", config["cc"]),
        ("Reply-To", config["reply_to"]),
    ):
        if mailboxes:
            message[name] = _addresses(name, mailboxes)
    # One line, whatever a template made of it; so no further header can stand in it.
    message["Subject"] = " ".join(_UNSAFE.sub(" ", texts.subject or "").split())
    if texts.text is not None:
        message.set_content(texts.text)
    if texts.html is not None:
        add = message.set_content if texts.text is None else message.add_alternative
        add(texts.html, subtype="html")
    for attachment in config["attachments"]:
        _attach(message, attachment)
    return message


class _Written(str):
    """A header that is sent as it is written.

    The standard library parses and folds headers anew, and loses the quotes around a name on the way when a
    line is full: `"Doe, ann@example.org" <...>` would come out as two addresses.
    """

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, text: str) -> _Written:
        header = super().__new__(cls, text)
        header.name = name
        return header

    def fold(self, *, policy: policy.EmailPolicy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


def _addresses(name: str, mailboxes: Sequence[Mailbox]) -> _Written:
    return _Written(name, ",\r\n ".join(str(mailbox) for mailbox in mailboxes))


def _phrase(name: str) -> str:
    """A display name, as a quoted string or as encoded words (RFC 2047)."""
    if name.isascii():
        return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return _words(name)


def _words(text: str) -> str:
    """`text`; as encoded words if it is not ASCII, or longer than a line may be."""
    if text.isascii() and len(text) <= 900:
        return text
    return Header(text, "utf-8").encode(linesep="\r\n")


def _attach(message: EmailMessage, attachment: Mapping[str, Any]) -> None:
    filename, is_base64 = attachment["filename"], attachment["encoding"] == "base64"
    guessed, compression = mimetypes.guess_type(filename)
    content_type = attachment.get("content_type") or (None if compression else guessed)
    if content_type is None:
        is_text = not is_base64 and isinstance(attachment["content"], str)
        content_type = "text/plain" if is_text else "application/octet-stream" if is_base64 else "application/json"
    maintype, _, subtype = content_type.partition("/")
    params = {"charset": "utf-8"} if maintype.lower() == "text" and not is_base64 else {}
    message.add_attachment(
        _attached_bytes(attachment), maintype=maintype, subtype=subtype, filename=filename, params=params
    )


def _attached_bytes(attachment: Mapping[str, Any]) -> bytes:
    """Raises ValueError (or TypeError) if it is to be base64 and is not."""
    content = attachment["content"]
    if attachment["encoding"] == "base64":
        return base64.b64decode("".join(content.split()) if isinstance(content, str) else content, validate=True)
    return content.encode() if isinstance(content, str) else orjson.dumps(content)
