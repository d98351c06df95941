"""The shapes of projects, keys, grants and the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import ValidationError, fields, validate

from api.schemas import Moment, Page, PageQuery, Sort, _In, _is_stored_as_text, _Out
from orchestrator.access import ROLES
from orchestrator.store import access, audit

_STORED = _is_stored_as_text
_PROJECT_NAME = validate.Regexp(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z", error="must be letters, digits, _ . and -, 100 at most, no sign first"
)


def _in_future(value: datetime) -> None:
    if value <= datetime.now(UTC):
        raise ValidationError("has passed; a key that never opens anything is no key")


class ProjectIn(_In):
    name = fields.String(
        required=True,
        validate=_PROJECT_NAME,
        metadata={"description": "what it is called, as workflows, grants and secrets name it"},
    )
    description = fields.String(
        load_default="", validate=[validate.Length(max=10_000), _STORED], metadata={"description": "what it is for"}
    )


class ProjectChange(_In):
    name = fields.String(validate=_PROJECT_NAME, metadata={"description": "what it is called"})
    description = fields.String(
        validate=[validate.Length(max=10_000), _STORED], metadata={"description": "what it is for"}
    )


class ProjectQuery(PageQuery):
    sort = Sort(access.PROJECT_ORDERS, default="name")


class ProjectOut(_Out):
    id = fields.UUID()
    name = fields.String()
    description = fields.String()
    created_at = fields.DateTime()


class ProjectPage(Page):
    items = fields.List(fields.Nested(ProjectOut))


class GrantOnKey(_In):
    role = fields.String(
        required=True, validate=validate.OneOf(ROLES), metadata={"description": "the most that may be done"}
    )
    project = fields.String(
        load_default=None, allow_none=True, metadata={"description": "its name; null or left out: all projects"}
    )


class _Distinct(validate.Validator):
    """One role in each project."""

    def __call__(self, value: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if len({grant["project"] for grant in value}) < len(value):
            raise ValidationError("names a project twice; one role in each, since a higher one has what the lower has")
        return value


class KeyChange(_In):
    name = fields.String(validate=[validate.Length(1, 200), _STORED], metadata={"description": "who or what uses it"})
    grants = fields.List(
        fields.Nested(GrantOnKey),
        validate=[validate.Length(1, 100), _Distinct()],
        metadata={"description": "what it opens; takes the place of all before"},
    )
    expires_at = Moment(
        allow_none=True, validate=_in_future, metadata={"description": "when it opens nothing any more; null: never"}
    )
    rate_limit = fields.Integer(
        allow_none=True,
        strict=True,
        validate=validate.Range(0, 1_000_000),
        metadata={"description": "requests a minute; 0: as many as come; null: what the settings say"},
    )
    max_body = fields.Integer(
        allow_none=True,
        strict=True,
        validate=validate.Range(0, 2**31 - 1),
        metadata={"description": "bytes of a request's body; null: what the settings say"},
    )


class KeyIn(KeyChange):
    name = fields.String(
        required=True, validate=[validate.Length(1, 200), _STORED], metadata={"description": "who or what uses it"}
    )
    grants = fields.List(
        fields.Nested(GrantOnKey),
        required=True,
        validate=[validate.Length(1, 100), _Distinct()],
        metadata={"description": "what it opens"},
    )


class KeyQuery(PageQuery):
    sort = Sort(access.KEY_ORDERS, default="-created_at")


class KeyOut(_Out):
    id = fields.UUID()
    name = fields.String()
    prefix = fields.String(metadata={"description": "how the key begins"})
    grants = fields.List(fields.Nested(GrantOnKey))
    rate_limit = fields.Integer(allow_none=True)
    max_body = fields.Integer(allow_none=True)
    created_by = fields.String()
    created_at = fields.DateTime()
    expires_at = fields.DateTime(allow_none=True)
    revoked_at = fields.DateTime(allow_none=True)
    last_used_at = fields.DateTime(allow_none=True, metadata={"description": "to the minute"})


class NewKeyOut(KeyOut):
    key = fields.String(metadata={"description": "the key itself; it is not kept, and shown this once"})


class KeyPage(Page):
    items = fields.List(fields.Nested(KeyOut))


class GrantIn(GrantOnKey):
    subject = fields.String(
        required=True,
        validate=[validate.Regexp(r"[A-Za-z0-9_-]{1,128}:.{1,255}\Z", error="must be ISSUER:SUB"), _STORED],
        metadata={
            "description": "who: the issuer's name in the settings, and the `sub` of its tokens",
            "example": "company:248289761001",
        },
    )


class GrantQuery(PageQuery):
    sort = Sort(access.GRANT_ORDERS, default="-created_at")


class GrantOut(_Out):
    id = fields.UUID()
    subject = fields.String()
    role = fields.String(validate=validate.OneOf(ROLES))
    project = fields.String(allow_none=True, metadata={"description": "null: all projects"})
    created_at = fields.DateTime()


class GrantPage(Page):
    items = fields.List(fields.Nested(GrantOut))


class MeOut(_Out):
    kind = fields.String(validate=validate.OneOf(["admin_key", "key", "subject"]))
    id = fields.String()
    name = fields.String()
    grants = fields.List(fields.Nested(GrantOnKey))


class AuditExportQuery(_In):
    actor_id = fields.String(validate=_STORED, metadata={"description": "a key's id, ISSUER:SUB, or admin"})
    action = fields.String(
        validate=_STORED, metadata={"description": "what was done, or tried", "example": "workflow.update"}
    )
    object_kind = fields.String(
        validate=_STORED, metadata={"description": "what kind of object it was done to", "example": "workflow"}
    )
    object_id = fields.String(validate=_STORED, metadata={"description": "id of the object that it was done to"})
    project = fields.String(validate=_STORED, metadata={"description": "its name"})
    request_id = fields.String(validate=_STORED, metadata={"description": "X-Request-ID of an answer"})
    denied = fields.Boolean(
        truthy={"true", "1"}, falsy={"false", "0"}, metadata={"description": "true: refusals; false: what was done"}
    )
    since = Moment(metadata={"description": "at that moment or later, like 2030-01-01T08:00:00Z"})
    until = Moment(metadata={"description": "before that moment"})


class AuditQuery(AuditExportQuery):
    limit = PageQuery._declared_fields["limit"]
    cursor = PageQuery._declared_fields["cursor"]
    sort = Sort(audit.ORDERS, default="-at")


class AuditEntry(_Out):
    id = fields.UUID()
    at = fields.DateTime()
    actor_kind = fields.String(validate=validate.OneOf(["admin_key", "key", "subject", "anonymous"]))
    actor_id = fields.String(allow_none=True)
    actor_name = fields.String(allow_none=True)
    action = fields.String(metadata={"example": "workflow.update"})
    object_kind = fields.String(allow_none=True)
    object_id = fields.String(allow_none=True)
    project_id = fields.UUID(allow_none=True)
    status = fields.Integer(metadata={"description": "of the answer, as in HTTP"})
    detail = fields.String(allow_none=True, metadata={"description": "why it was refused"})
    before = fields.Raw(allow_none=True, metadata={"description": "the object's state; null if there was none"})
    after = fields.Raw(allow_none=True, metadata={"description": "the object's state, or what came of a call"})
    address = fields.String(allow_none=True)
    user_agent = fields.String(allow_none=True)
    request_id = fields.String(allow_none=True, metadata={"description": "X-Request-ID of the answer"})


class AuditPage(Page):
    items = fields.List(fields.Nested(AuditEntry))
