"""Projects, API keys with their grants, and the audit log"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_DEFAULT_PROJECT = "00000000-0000-7000-8000-000000000000"
_NOW = sa.text("now()")


def _id(name: str, *more: sa.ForeignKey, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.UUID(as_uuid=False), *more, **options)


def _time(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def upgrade() -> None:
    op.create_table(
        "projects",
        _id("id", primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False, server_default=""),
        _time("created_at", nullable=False, server_default=_NOW),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
        comment="What workflows belong to, and roles are held in.",
    )
    op.execute(f"INSERT INTO projects (id, name) VALUES ('{_DEFAULT_PROJECT}', 'default')")
    op.add_column("workflows", _id("project_id", nullable=False, server_default=_DEFAULT_PROJECT))
    op.create_foreign_key(op.f("fk_workflows_project_id"), "workflows", "projects", ["project_id"], ["id"])
    op.create_index("ix_workflows_project_id_id", "workflows", ["project_id", "id"])
    _keys()
    _audit()


def _keys() -> None:
    op.create_table(
        "api_keys",
        _id("id", primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False, comment="how the key begins, for people to tell it by"),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the key"),
        sa.Column("rate_limit", sa.Integer(), comment="requests a minute, if other than the settings say; 0: no limit"),
        sa.Column("max_body", sa.Integer(), comment="bytes, if less than the settings allow"),
        sa.Column("created_by", sa.Text(), nullable=False),
        _time("created_at", nullable=False, server_default=_NOW),
        _time("expires_at"),
        _time("revoked_at"),
        _time("last_used_at", comment="to the minute"),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_table(
        "grants",
        _id("id", primary_key=True),
        _id("key_id", sa.ForeignKey("api_keys.id", ondelete="CASCADE", name=op.f("fk_grants_key_id"))),
        sa.Column("subject", sa.Text(), comment="ISSUER:SUB of a bearer token, with the issuer's name in the settings"),
        _id(
            "project_id",
            sa.ForeignKey("projects.id", ondelete="CASCADE", name=op.f("fk_grants_project_id")),
            comment="NULL: all projects",
        ),
        sa.Column("role", sa.Text(), nullable=False),
        _time("created_at", nullable=False, server_default=_NOW),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'editor', 'admin')", name=op.f("ck_grants_role_known")),
        sa.CheckConstraint("(key_id IS NULL) <> (subject IS NULL)", name=op.f("ck_grants_one_holder")),
    )
    for holder in ("key", "subject"):
        column = "key_id" if holder == "key" else holder
        op.create_unique_constraint(f"uq_grants_{holder}_project", "grants", [column, "project_id"])
        op.create_index(
            f"uq_grants_{holder}_all", "grants", [column], unique=True, postgresql_where=sa.text("project_id IS NULL")
        )


def _audit() -> None:
    op.create_table(
        "audit_log",
        _id("id", primary_key=True),
        _time("at", nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text()),
        sa.Column("actor_name", sa.Text()),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_kind", sa.Text()),
        sa.Column("object_id", sa.Text()),
        _id("project_id", comment="NULL: what belongs to no project"),
        sa.Column("status", sa.SmallInteger(), nullable=False, comment="of the answer, as in HTTP"),
        sa.Column("detail", sa.Text(), comment="why it was refused"),
        sa.Column("before", JSONB()),
        sa.Column("after", JSONB()),
        sa.Column("address", sa.Text()),
        sa.Column("user_agent", sa.Text()),
        sa.Column("request_id", sa.Text()),
        comment="Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE.",
    )
    for column in ("project_id", "object_id", "actor_id"):
        op.create_index(f"ix_audit_log_{column}_id", "audit_log", [column, "id"])
    op.execute(
        """
        CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the audit log is append-only';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
        """
    )
