"""The shapes of versions and of what differs between them."""

from __future__ import annotations

from marshmallow import fields

from api.schemas import Page, PageQuery, Sort, _Out
from orchestrator.definition.changes import Kind
from orchestrator.store import versions


class VersionQuery(PageQuery):
    sort = Sort(versions.ORDERS, default="-version")


class VersionOut(_Out):
    workflow_id = fields.UUID()
    version = fields.Integer()
    restored_from = fields.Integer(allow_none=True, metadata={"description": "the version that it says again"})
    created_at = fields.DateTime()


class VersionDetail(VersionOut):
    definition = fields.Dict()
    resolved = fields.Dict(
        allow_none=True,
        metadata={"description": "the definition with its step templates written out; null if it uses none"},
    )


class VersionPage(Page):
    items = fields.List(fields.Nested(VersionOut))


class ChangeOut(_Out):
    kind = fields.Enum(Kind, by_value=True)
    path = fields.String(
        metadata={
            "description": "a step stands by its id, a trigger by its name",
            "example": "steps.fetch.config.url",
        }
    )
    old = fields.Raw(allow_none=True, metadata={"description": "of what moved: the names in their order"})
    new = fields.Raw(allow_none=True)


class VersionChanges(_Out):
    workflow_id = fields.UUID()
    old = fields.Integer(metadata={"description": "a version"})
    new = fields.Integer(metadata={"description": "the version that it is compared with"})
    changes = fields.List(fields.Nested(ChangeOut), metadata={"description": "in the definition as it was written"})
    resolved = fields.List(
        fields.Nested(ChangeOut), metadata={"description": "what else has changed: in its step templates"}
    )
