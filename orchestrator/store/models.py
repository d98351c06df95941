"""The tables. Every invariant that matters stands here as a named constraint, with its reason."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, UUID

from orchestrator.access import DEFAULT_PROJECT, ROLES
from orchestrator.lifecycle import (
    EXECUTION_LIVE,
    EXECUTION_TERMINAL,
    STEP_LIVE,
    STEP_TERMINAL,
    ExecutionStatus,
    FireOutcome,
    StepStatus,
    WorkflowStatus,
    sql_words,
)

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

_Id = UUID(as_uuid=False)
_Time = sa.DateTime(timezone=True)
_now = sa.text("now()")
_next_seq = sa.Sequence("feed_seq", metadata=metadata).next_value()
"""Numbers what becomes of executions and steps, and log lines, in one row: see orchestrator/store/feed.py."""


def _known(column: str, statuses: type[StrEnum]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({sql_words(statuses)})", name=f"{column}_known")


def _sound(call: str, **invariants: str) -> sa.CheckConstraint:
    """The invariants of a hot table, in one CHECK that calls a function (its text stands in a migration).

    PostgreSQL parses and plans every CHECK anew in each statement that writes, which would be a tenth of what a
    transition costs; a function's expressions are kept. It names the invariant that is violated, as a CHECK would.
    """
    return sa.CheckConstraint(call, name="sound", info={"invariants": invariants})


projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    comment="What workflows belong to, and roles are held in.",
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, comment="in lower case, as templates name it"),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id", ondelete="CASCADE")),
    sa.Column("workflow_id", _Id, sa.ForeignKey("workflows.id", ondelete="CASCADE")),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("key_id", sa.Text, nullable=False, comment="which key it is encrypted with"),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("updated_at", _Time, nullable=False, server_default=_now),
    # It belongs to everybody, to a project, or to a workflow.
    sa.CheckConstraint("project_id IS NULL OR workflow_id IS NULL", name="one_scope"),
    # One of a name in a scope: a template that names it means that one.
    sa.Index(
        "uq_secrets_global",
        "name",
        unique=True,
        postgresql_where=sa.text("project_id IS NULL AND workflow_id IS NULL"),
    ),
    sa.Index(
        "uq_secrets_project", "project_id", "name", unique=True, postgresql_where=sa.text("project_id IS NOT NULL")
    ),
    sa.Index(
        "uq_secrets_workflow", "workflow_id", "name", unique=True, postgresql_where=sa.text("workflow_id IS NOT NULL")
    ),
    sa.Index("ix_secrets_name_id", "name", "id"),
    comment="Encrypted by orchestrator/vault.py; the key is not in here.",
)

workflows = sa.Table(
    "workflows",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id"), nullable=False, server_default=DEFAULT_PROJECT),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("status", sa.Text, nullable=False, server_default="draft"),
    sa.Column("tags", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("owner_id", _Id),
    sa.Column("is_template", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("run_limit", sa.Integer, comment="as the newest version says, like the two that follow"),
    sa.Column("max_failures", sa.Integer),
    sa.Column("end_date", _Time),
    sa.Column("counts_from", _Id, comment="executions with later ids count for run_limit and max_failures"),
    sa.Column("retention", sa.Double, comment="seconds that its executions, their logs and its fires are kept"),
    sa.Column("status_reason", sa.Text, comment="why it has this status, if nobody asked for it"),
    sa.Column("terms", TSVECTOR, nullable=False, server_default="", comment="what store/search.py finds it by"),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("updated_at", _Time, nullable=False, server_default=_now),
    _known("status", WorkflowStatus),
    sa.Index("ix_workflows_tags", "tags", postgresql_using="gin"),
    sa.Index("ix_workflows_terms", "terms", postgresql_using="gin"),
    # The orders that lists can have.
    sa.Index("ix_workflows_name_id", "name", "id"),
    sa.Index("ix_workflows_updated_at_id", "updated_at", "id"),
    sa.Index("ix_workflows_owner_id_id", "owner_id", "id", postgresql_where=sa.text("owner_id IS NOT NULL")),
    sa.Index("ix_workflows_project_id_id", "project_id", "id"),
    # What reconcile looks through: the workflows that come to an end by themselves.
    sa.Index(
        "ix_workflows_limited",
        "id",
        postgresql_where=sa.text("run_limit IS NOT NULL OR max_failures IS NOT NULL OR end_date IS NOT NULL"),
    ),
)

workflow_versions = sa.Table(
    "workflow_versions",
    metadata,
    sa.Column("workflow_id", _Id, sa.ForeignKey("workflows.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    # JSON, not JSONB: a definition is shown as it was written, with its keys in their order.
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column(
        "resolved",
        sa.JSON(none_as_null=True),
        comment="the definition with its step templates written out; NULL if it uses none",
    ),
    sa.Column("restored_from", sa.Integer, comment="the version that it says again"),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    comment="Immutable: a trigger refuses every UPDATE, since executions are pinned to a version.",
)

step_templates = sa.Table(
    "step_templates",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    # Definitions name it, so that two of one name would make `uses` a matter of luck.
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("parameters", JSONB(none_as_null=True), comment="a JSON Schema"),
    sa.Column("step", sa.JSON, nullable=False),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("updated_at", _Time, nullable=False, server_default=_now),
)

executions = sa.Table(
    "executions",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("workflow_id", _Id, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("input", JSONB, nullable=False),
    sa.Column("output", JSONB),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default="5"),
    sa.Column("trigger_id", _Id),
    sa.Column("trigger_data", JSONB(none_as_null=True), comment="what templates see as trigger, if one started it"),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("timeout", sa.Double, comment="seconds, counted from started_at"),
    sa.Column("deadline", _Time),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("started_at", _Time),
    sa.Column("finished_at", _Time),
    sa.Column("paused_at", _Time),
    sa.Column("paused_with", sa.Text, comment="whose pause it is that it shares: parent, workflow; NULL: its own"),
    sa.Column("retried_at", _Time, comment="when all that had failed of it was last tried again"),
    sa.Column("counted_until", _Time, comment="steps that ended by then are in step_stats"),
    sa.Column("admitted_at", _Time, comment="since when it may run; NULL while it waits for a place"),
    sa.Column("turn", sa.BigInteger, nullable=False, server_default="0", comment="its place among those that wait"),
    sa.Column("held", sa.Boolean, nullable=False, server_default=sa.false(), comment="by a limit of its own"),
    sa.Column("limit_keys", ARRAY(sa.Text), comment="what the limits are counted by that it runs under"),
    sa.Column("limits", ARRAY(sa.Integer), comment="as many may run at a time, for each of limit_keys"),
    sa.Column("rate_key", sa.Text, comment="what its rate limit is counted by: rate_limit in rate_per seconds"),
    sa.Column("rate_limit", sa.Integer),
    sa.Column("rate_per", sa.Double),
    sa.Column("paced", sa.Boolean, nullable=False, server_default=sa.false(), comment="held, and by its rate limit"),
    sa.Column("outcome", sa.Text, comment="what it ends as, once the steps have run that run at its end"),
    sa.Column("parent_step_id", _Id, comment="the step execution that started it"),
    sa.Column("depth", sa.SmallInteger, nullable=False, server_default="0", comment="parents above it"),
    sa.Column("rerun_of", _Id, comment="the execution that it does again; that may have been deleted"),
    sa.Column("seq", sa.BigInteger, nullable=False, server_default=_next_seq, comment="of its last change of status"),
    sa.Column("begun_seq", sa.BigInteger, comment="of its last change to running"),
    sa.ForeignKeyConstraint(
        ["workflow_id", "version"],
        ["workflow_versions.workflow_id", "workflow_versions.version"],
        name="fk_executions_version",
        ondelete="CASCADE",
    ),
    _sound(
        "execution_is_sound(status, outcome, priority, finished_at)",
        # An end that has no time, or a time without an end, would make durations and retention lie.
        terminal_is_finished=f"(status IN ({sql_words(EXECUTION_TERMINAL)})) = (finished_at IS NOT NULL)",
        status_known=f"status IN ({sql_words(ExecutionStatus)})",
        outcome_known=f"outcome IS NULL OR outcome IN ({sql_words(EXECUTION_TERMINAL)})",
        priority_range="priority BETWEEN 0 AND 9",
    ),
    # What makes a repeated POST with the same Idempotency-Key one execution, whatever races.
    sa.UniqueConstraint("workflow_id", "idempotency_key", name="uq_executions_idempotency"),
    # With the time, so that a list by time reads no more than the index; else PostgreSQL goes through the executions of
    # all workflows for it, since those of one stand apart.
    sa.Index("ix_executions_workflow_id_id", "workflow_id", "id", postgresql_include=["created_at"]),
    # Reconcile and /health look at what has not ended: few rows, however many have.
    sa.Index(
        "ix_executions_live",
        "id",
        postgresql_where=sa.text(f"status IN ({sql_words(EXECUTION_LIVE)})"),
    ),
    # What runs, to be counted; and what waits for a place, in its order: to admit one costs the same however many do.
    sa.Index(
        "ix_executions_admitted",
        "id",
        postgresql_where=sa.text("admitted_at IS NOT NULL AND finished_at IS NULL"),
    ),
    sa.Index(
        "ix_executions_backlog",
        sa.text("priority DESC"),
        "turn",
        "id",
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND NOT held"),
    ),
    sa.Index(
        "ix_executions_backlog_of_workflow",
        "workflow_id",
        "turn",
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL"),
    ),
    sa.Index(
        "ix_executions_held",
        "limit_keys",
        postgresql_using="gin",
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND held"),
    ),
    sa.Index(
        "ix_executions_paced",
        "rate_key",
        sa.text("priority DESC"),
        "turn",
        "id",
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND paced"),
    ),
    sa.Index(
        "ix_executions_backlog_of_rate",
        "rate_key",
        postgresql_where=sa.text("status = 'queued' AND admitted_at IS NULL AND NOT held AND rate_key IS NOT NULL"),
    ),
    # What a trigger that must not overlap itself asks.
    sa.Index(
        "ix_executions_trigger_live",
        "trigger_id",
        postgresql_where=sa.text(f"trigger_id IS NOT NULL AND status IN ({sql_words(EXECUTION_LIVE)})"),
    ),
    sa.Index("ix_executions_parent_step_id", "parent_step_id", postgresql_where=sa.text("parent_step_id IS NOT NULL")),
    # Lists of those that ended so or so: an entry an execution, made when it ends.
    sa.Index(
        "ix_executions_ended",
        "status",
        "id",
        postgresql_where=sa.text(f"status IN ({sql_words(EXECUTION_TERMINAL)})"),
    ),
    # The same of one workflow, of which most may have ended in another way.
    sa.Index(
        "ix_executions_ended_of_workflow",
        "workflow_id",
        "status",
        "id",
        postgresql_include=["created_at"],
        postgresql_where=sa.text(f"status IN ({sql_words(EXECUTION_TERMINAL)})"),
    ),
    sa.Index("ix_executions_rerun_of", "rerun_of", postgresql_where=sa.text("rerun_of IS NOT NULL")),
    # What has changed, for live streams. Rows of which there is nothing to tell yet have the number 0.
    sa.Index("ix_executions_seq", "seq", postgresql_where=sa.text("seq > 0")),
)


def _stats(name: str, comment: str, *columns: sa.Column[Any] | sa.Index) -> sa.Table:
    """Counts of what ended in a slot: five minutes, later merged to hours and days. A trigger on executions (migration
    0014) keeps them in the transaction of the end itself, each server process in rows of its own: `shard` is its
    number, and 1 and less where they have been merged (store/stats.py). There is no foreign key, by which an end would
    wait for whoever changes the workflow, and what is merged has rows of each project and of all workflows besides."""
    return sa.Table(
        name,
        metadata,
        sa.Column("workflow_id", _Id, primary_key=True, comment="or a project's id, or 0: of all workflows"),
        sa.Column("slot", _Time, primary_key=True),
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        *columns,
        # What is to be merged when it is old enough.
        sa.Index(f"ix_{name}_shards", "slot", postgresql_where=sa.text("shard > 1")),
        sa.Index(f"ix_{name}_slots", "slot", postgresql_where=sa.text("shard = 1")),
        sa.Index(f"ix_{name}_hours", "slot", postgresql_where=sa.text("shard = 0")),
        comment=comment,
    )


execution_stats = _stats(
    "execution_stats",
    "What became of the executions that ended in a slot; the sum of the shards counts.",
    sa.Column("status", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("durations", sa.Numeric, nullable=False, comment="a histogram, see store/stats.py"),
    sa.Column("waits", sa.Numeric, nullable=False),
)

step_stats = _stats(
    "step_stats",
    "The same of their steps.",
    sa.Column("step_id", sa.Text, primary_key=True),
    sa.Column("error_kind", sa.Text, primary_key=True, comment="empty: none"),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("completed", "failed", "skipped", "cancelled", "retried", "retried_completed")
    ),
    sa.Column("seconds", sa.Double, nullable=False),
    # What failed or was retried is little, and asked for of all workflows together.
    sa.Index("ix_step_stats_trouble", "slot", postgresql_where=sa.text("failed <> 0 OR retried <> 0")),
)

step_executions = sa.Table(
    "step_executions",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("execution_id", _Id, sa.ForeignKey("executions.id", ondelete="CASCADE"), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("step_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("forgiven", sa.Integer, comment="attempts made before it was tried again; NULL if it never was"),
    sa.Column("height", sa.Integer, nullable=False, server_default="0", comment="Graph.heights: the highest first"),
    sa.Column("priority", sa.SmallInteger, comment="of its messages; NULL: the execution's"),
    sa.Column("timeout", sa.Double, comment="seconds that one attempt may take"),
    sa.Column("resumes", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("state", JSONB, comment="what an attempt that rests left for itself"),
    sa.Column("scope", sa.Text, nullable=False, server_default="", comment="what stands before the dot in its path"),
    sa.Column("container", sa.Text, comment="path of the step in whose body it stands"),
    sa.Column("iteration", JSONB, comment="what templates see as loop"),
    sa.Column("awaits", sa.Text, comment="what a waiting step waits for, besides its time"),
    sa.Column("variables", JSONB, comment="what it mapped its output to"),
    sa.Column("input", JSONB),
    sa.Column("output", JSONB),
    sa.Column("error_kind", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("claim_token", _Id),
    sa.Column("worker_id", _Id),
    sa.Column("rung_at", _Time, comment="when a message was last sent for it; NULL if none was needed"),
    sa.Column("next_attempt_at", _Time),
    sa.Column("deadline", _Time),
    sa.Column("started_at", _Time),
    sa.Column("finished_at", _Time),
    sa.Column("seq", sa.BigInteger, nullable=False, server_default="0", comment="of its last change of status"),
    sa.Column("begun_seq", sa.BigInteger, comment="of its last change to running"),
    sa.UniqueConstraint("execution_id", "path", name="uq_step_executions_path"),
    sa.Index("ix_step_executions_seq", "seq", postgresql_where=sa.text("seq > 0")),
    _sound(
        "step_execution_is_sound(status, finished_at, claim_token, next_attempt_at, awaits)",
        status_known=f"status IN ({sql_words(StepStatus)})",
        terminal_is_finished=f"(status IN ({sql_words(STEP_TERMINAL)})) = (finished_at IS NOT NULL)",
        # Whoever writes a result must hold the token of the claim it belongs to; no claim, no token.
        running_is_claimed="(status = 'running') = (claim_token IS NOT NULL)",
        # A timer on a row that is not waiting would fire for nobody.
        timer_is_waiting="next_attempt_at IS NULL OR status = 'waiting'",
        # Who waits for something that will not come would wait for ever.
        waiter_is_waiting="awaits IS NULL OR status = 'waiting'",
    ),
    # The one index reconcile works from: what is queued, running or waiting, never the finished millions.
    sa.Index(
        "ix_step_executions_live",
        "execution_id",
        "path",  # or a plan made while the table was small would look through all that is live of an execution
        postgresql_where=sa.text("status IN ('queued', 'running', 'waiting')"),
    ),
    # What is left to do in a body, in the order of its scopes.
    sa.Index(
        "ix_step_executions_inner",
        "execution_id",
        "container",
        "id",
        postgresql_where=sa.text(f"container IS NOT NULL AND status IN ({sql_words(STEP_LIVE)})"),
    ),
    # Rows are updated three or four times in their life; room on the page keeps the versions together.
    postgresql_with={"fillfactor": "70"},
)

archives = sa.Table(
    "archives",
    metadata,
    sa.Column("number", sa.Integer, sa.Identity(), primary_key=True, comment="of its tables"),
    sa.Column("until", _Time, nullable=False, comment="when all in it had ended"),
    sa.Column("seq", sa.BigInteger, nullable=False, comment="what is in it has no higher number"),
    sa.Column("settled_until", _Time, comment="before that nothing is to be removed from it"),
    sa.Column("heir", sa.Integer, comment="the number of the one that gets what is to be kept for longer"),
    comment="Where executions are that ended a while ago: tables named after the present ones and this number.",
)


def _all(present: sa.Table) -> sa.Table:
    """What `present` and its archives inherit from: it has no rows of its own, and to read from it is to read from them
    all. See store/archives.py."""
    return sa.Table(
        f"all_{present.name}",
        metadata,
        *(
            sa.Column(
                column.name,
                column.type,
                nullable=column.nullable,
                server_default=column.server_default.arg if column.server_default else None,  # type: ignore[attr-defined]
                comment=column.comment,
            )
            for column in present.columns
        ),
    )


all_executions, all_step_executions = _all(executions), _all(step_executions)

rate_uses = sa.Table(
    "rate_uses",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("used_at", _Time, nullable=False),
    sa.Column("expires_at", _Time, nullable=False, index=True),
    comment="What rate limits are counted from: a row a use, until its window is over.",
)

rate_line = sa.Table(
    "rate_line",
    metadata,
    sa.Column("step_execution_id", _Id, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("place", sa.BigInteger, sa.Identity(), nullable=False),
    sa.Column("rate_limit", sa.Integer, nullable=False),
    sa.Column("rate_per", sa.Double, nullable=False),
    sa.Index("ix_rate_line_key_place", "key", "place"),
    # No foreign key: whoever deletes steps would pay for it.
    comment="Steps that wait for the rate limit of a connection, in their order; those that have ended do not count.",
)

rate_looks = sa.Table(
    "rate_looks",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("at", _Time, nullable=False, index=True),
    comment="When to look whether a rate limit lets in the next of those that it holds: a row a key that holds any.",
)

signals = sa.Table(
    "signals",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    # No foreign key, nor in cancellations: it would name one of the tables that an execution may be in. A trigger on
    # each of these (migration 0025) removes the rows of what is deleted.
    sa.Column("execution_id", _Id, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("payload", JSONB),
    sa.Column("sent_at", _Time, nullable=False, server_default=_now),
    sa.Column("taken_by", _Id, comment="the step execution that it woke; NULL until one asks for it"),
    sa.Index("ix_signals_execution_id_name", "execution_id", "name", "taken_by", "id"),
)

cancellations = sa.Table(
    "cancellations",
    metadata,
    sa.Column("id", _Id, primary_key=True, server_default=sa.text("gen_random_uuid()")),
    sa.Column("execution_id", _Id, nullable=False, index=True),
    sa.Column("step_execution_id", _Id, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("state", JSONB, nullable=False, comment="what the attempt left that was ended"),
    sa.Column("iteration", JSONB, comment="what templates see as loop"),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_try_at", _Time, nullable=False, server_default=_now),
    comment="What steps have begun elsewhere that nobody wants any more: a row until it is cancelled there.",
)

untold_ends = sa.Table(
    "untold_ends",
    metadata,
    sa.Column("execution_id", _Id, primary_key=True),
    sa.Column("ended_at", _Time, nullable=False, server_default=_now),
    # No foreign key: of one that has been deleted there is nothing to tell.
    comment="Executions that were ended by somebody who has no plugins to tell: a row until a worker tells its own.",
)

cached_results = sa.Table(
    "cached_results",
    metadata,
    sa.Column("workflow_id", _Id, sa.ForeignKey("workflows.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("step_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True, comment="digest of the rendered key"),
    sa.Column("output", JSONB),
    sa.Column("expires_at", _Time, nullable=False),
    sa.Index("ix_cached_results_expires_at", "expires_at"),
)

# As orchestrator.engine.webhooks.route has them, of a config as it was written.
WEBHOOK_PATH = "regexp_replace(config ->> 'path', '^/?(webhook/)?|/$', '', 'g')"
WEBHOOK_METHOD = "upper(coalesce(config ->> 'method', 'POST'))"
MATCHES_EVENTS = "is_enabled AND type = 'event' AND strpos(config ->> 'type', '*') > 0"
NAMES_EVENT = "is_enabled AND type = 'event' AND strpos(config ->> 'type', '*') = 0"

triggers = sa.Table(
    "triggers",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("workflow_id", _Id, sa.ForeignKey("workflows.id", ondelete="CASCADE"), nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("config", JSONB, nullable=False),
    sa.Column("is_enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("from_definition", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("state", JSONB(none_as_null=True), comment="what its type keeps"),
    sa.Column(
        "next_slot",
        _Time,
        comment="when its next slot is due, jitter included; NULL if time is not what fires it",
    ),
    sa.Column("last_triggered", _Time),
    sa.Column("trigger_count", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("updated_at", _Time, nullable=False, server_default=_now),
    # A definition's triggers are found again by their names when it is saved anew.
    sa.UniqueConstraint("workflow_id", "name", name="uq_triggers_name"),
    sa.Index("ix_triggers_next_slot", "next_slot", postgresql_where=sa.text("is_enabled AND next_slot IS NOT NULL")),
    # A request is for one of them, however their paths are written. See WEBHOOK_PATH.
    sa.Index(
        "uq_triggers_webhook",
        sa.text(WEBHOOK_PATH),
        sa.text(WEBHOOK_METHOD),
        unique=True,
        postgresql_where=sa.text("is_enabled AND type = 'webhook'"),
    ),
    # An event is looked up by its type among those that name one, and tried with the others.
    sa.Index("ix_triggers_event", sa.text("(config ->> 'type')"), postgresql_where=sa.text(NAMES_EVENT)),
    sa.Index("ix_triggers_event_pattern", "id", postgresql_where=sa.text(MATCHES_EVENTS)),
)

trigger_fires = sa.Table(
    "trigger_fires",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    # No foreign key, nor in step_logs: to drop a partition would lock the other table. A trigger on that one (migration
    # 0017; 0025 for executions) removes the rows of what is deleted.
    sa.Column("trigger_id", _Id, nullable=False),
    sa.Column("slot", sa.Text, comment="what it is one of a kind by; NULL if it is not"),
    sa.Column("scheduled_for", _Time),
    sa.Column("payload", JSONB(none_as_null=True), comment="what came"),
    sa.Column("input", JSONB, nullable=False, comment="what the execution gets, or would have got"),
    sa.Column("outcome", sa.Text, nullable=False, server_default="pending"),
    sa.Column("reason", sa.Text),
    sa.Column("execution_id", _Id),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    _known("outcome", FireOutcome),
    sa.CheckConstraint("(outcome = 'started') = (execution_id IS NOT NULL)", name="started_has_execution"),
    sa.Index("ix_trigger_fires_trigger_id_id", "trigger_id", "id"),
    # What reconcile looks at: fires that somebody died over, and those that wait for their turn.
    sa.Index("ix_trigger_fires_unsettled", "created_at", postgresql_where=sa.text("outcome IN ('pending', 'queued')")),
    # queue_one: of what comes while one runs, one waits.
    sa.Index("ix_trigger_fires_queued", "trigger_id", postgresql_where=sa.text("outcome = 'queued'")),
    postgresql_partition_by="RANGE (id)",
)

trigger_slots = sa.Table(
    "trigger_slots",
    metadata,
    sa.Column("trigger_id", _Id, sa.ForeignKey("triggers.id", ondelete="CASCADE"), nullable=False),
    sa.Column("slot", sa.Text, nullable=False),
    sa.Column("fire_id", _Id, nullable=False, index=True),
    # One fire per (trigger, slot), whatever is restarted, doubled or moved.
    sa.PrimaryKeyConstraint("trigger_id", "slot"),
    comment="The fire that has a slot: no index of trigger_fires can say so over all its partitions.",
)

step_logs = sa.Table(
    "step_logs",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("execution_id", _Id, nullable=False),
    sa.Column("step_execution_id", _Id, nullable=False),
    sa.Column("step_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("at", _Time, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False, server_default=_next_seq),
    sa.Index("ix_step_logs_execution_id_seq", "execution_id", "seq"),
    # A step that wrote few of an execution's 100,000 lines: they are found in 0.1 ms, where going through all takes 60
    # to 140. It costs PostgreSQL 2.5 us a line, of 20 where many come at once and of 640 where one comes alone.
    sa.Index("ix_step_logs_execution_id_step_id_seq", "execution_id", "step_id", "seq"),
    # For what follows the lines of all. Each has an attempt; but PostgreSQL uses this for those only who ask for that,
    # and not for the last lines of an execution, where it would look through everybody's lines before or after them.
    sa.Index("ix_step_logs_seq", "seq", postgresql_where=sa.text("attempt >= 0")),
    postgresql_partition_by="RANGE (id)",
)

step_tests = sa.Table(
    "step_tests",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("request", JSONB, nullable=False),
    sa.Column("result", JSONB),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("started_at", _Time),
    sa.Column("finished_at", _Time),
    # Whoever asked looks for a result, and takes its absence for work that is still under way.
    sa.CheckConstraint("(result IS NULL) = (finished_at IS NULL)", name="finished_has_result"),
)

worker_processes = sa.Table(
    "worker_processes",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("node", sa.Text, nullable=False, comment="the Celery node name"),
    sa.Column("host", sa.Text, nullable=False, comment="host and process namespace, within which pid counts"),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("born", sa.Double, nullable=False, comment="start of the process, since pids come again"),
    sa.Column("queues", ARRAY(sa.Text), comment="that it takes steps from; NULL if it has not said so"),
    sa.Column("slots", sa.Integer, comment="tasks that it performs at a time"),
    sa.Column("script_isolation", sa.Text, comment="bubblewrap or limits; NULL if it has not said so"),
    sa.Column("started_at", _Time, nullable=False, server_default=_now),
    sa.Column("seen_at", _Time, nullable=False, server_default=_now),
    comment="A row is a lease: a running step whose worker has no row here has lost its worker.",
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("labels", ARRAY(sa.Text), primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
    comment="What processes have counted, added up; see orchestrator/metrics.py.",
)

duties = sa.Table(
    "duties",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", _Id),
    sa.Column("at", _Time, nullable=False, server_default=sa.text("'-infinity'")),
    comment="What one process at a time does; whoever holds it keeps `at` fresh.",
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False, comment="how the key begins, for people to tell it by"),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True, comment="SHA-256 of the key"),
    sa.Column("rate_limit", sa.Integer, comment="requests a minute, if other than the settings say; 0: no limit"),
    sa.Column("max_body", sa.Integer, comment="bytes, if less than the settings allow"),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.Column("expires_at", _Time),
    sa.Column("revoked_at", _Time),
    sa.Column("last_used_at", _Time, comment="to the minute"),
)

grants = sa.Table(
    "grants",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("key_id", _Id, sa.ForeignKey("api_keys.id", ondelete="CASCADE")),
    sa.Column("subject", sa.Text, comment="ISSUER:SUB of a bearer token, with the issuer's name in the settings"),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id", ondelete="CASCADE"), comment="NULL: all projects"),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created_at", _Time, nullable=False, server_default=_now),
    sa.CheckConstraint(f"role IN ({', '.join(map(repr, ROLES))})", name="role_known"),
    # A grant to nobody, or to two, would be read differently by whoever looks from either side.
    sa.CheckConstraint("(key_id IS NULL) <> (subject IS NULL)", name="one_holder"),
    # One role for each holder in a project, so that to take it away is to take it away.
    sa.UniqueConstraint("key_id", "project_id", name="uq_grants_key_project"),
    sa.UniqueConstraint("subject", "project_id", name="uq_grants_subject_project"),
    sa.Index("uq_grants_key_all", "key_id", unique=True, postgresql_where=sa.text("project_id IS NULL")),
    sa.Index("uq_grants_subject_all", "subject", unique=True, postgresql_where=sa.text("project_id IS NULL")),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("at", _Time, nullable=False, server_default=sa.text("clock_timestamp()")),
    sa.Column("actor_kind", sa.Text, nullable=False),
    sa.Column("actor_id", sa.Text),
    sa.Column("actor_name", sa.Text),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("object_kind", sa.Text),
    sa.Column("object_id", sa.Text),
    # No foreign key: what is written here outlives what it is about.
    sa.Column("project_id", _Id, comment="NULL: what belongs to no project"),
    sa.Column("status", sa.SmallInteger, nullable=False, comment="of the answer, as in HTTP"),
    sa.Column("detail", sa.Text, comment="why it was refused"),
    sa.Column("before", JSONB(none_as_null=True)),
    sa.Column("after", JSONB(none_as_null=True)),
    sa.Column("address", sa.Text),
    sa.Column("user_agent", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Index("ix_audit_log_project_id_id", "project_id", "id"),
    sa.Index("ix_audit_log_object_id_id", "object_id", "id"),
    sa.Index("ix_audit_log_actor_id_id", "actor_id", "id"),
    # Most entries are of executions that somebody started; what is looked for is often something else.
    sa.Index("ix_audit_log_action_id", "action", "id"),
    sa.Index("ix_audit_log_object_kind_id", "object_kind", "id"),
    sa.Index("ix_audit_log_request_id", "request_id"),
    sa.Index("ix_audit_log_denied", "id", postgresql_where=sa.text("status IN (401, 403, 404, 429)")),
    postgresql_partition_by="RANGE (id)",
    comment="Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE.",
)

removals = sa.Table(
    "removals",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    comment="How many of what was removed, because it had been kept long enough.",
)
