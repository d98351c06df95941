"""Triggers: what starts a workflow, and what came of each fire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Response, g, jsonify, url_for
from flask.views import MethodView

from api.body import Blueprint
from api.resources.paging import page
from api.schemas import ExecuteHeaders
from api.service import service
from api.trigger_schemas import (
    BackfillIn,
    BackfillOut,
    FireIn,
    FireOut,
    FirePage,
    FireQuery,
    PreviewOut,
    PreviewQuery,
    TriggerChange,
    TriggerIn,
    TriggerOut,
    TriggerPage,
    TriggerQuery,
)
from api.trigger_secrets import masked, masked_fields, refuse_masks, unmasked
from orchestrator.definition import paths
from orchestrator.definition.complaints import Hints
from orchestrator.definition.trigger_checks import check_trigger
from orchestrator.engine import triggers as engine
from orchestrator.engine.start import check_payload
from orchestrator.errors import InputError, Problem
from orchestrator.store import triggers, workflows

blueprint = Blueprint("triggers", __name__, url_prefix="/api/v1", description="Triggers")


@blueprint.route("/workflows/<uuid:workflow_id>/triggers")
class Triggers(MethodView):
    @blueprint.arguments(TriggerQuery(), location="query")
    @blueprint.response(200, TriggerPage)
    def get(self, query: dict[str, Any], workflow_id: UUID) -> Response:
        """List a workflow's triggers, the oldest first."""
        with service().store.single() as connection:
            workflows.current(connection, str(workflow_id))
            return page(
                query,
                triggers.ORDERS,
                lambda window: [masked(row) for row in triggers.listing(connection, window, str(workflow_id))],
            )

    @blueprint.arguments(TriggerIn())
    @blueprint.response(201, TriggerOut)
    def post(self, given: dict[str, Any], workflow_id: UUID) -> Response:
        """Add a trigger. It starts the workflow as soon as that is active."""
        _refuse_masks(given)
        _check(given["type"], given["config"])
        here = service()
        with here.store.transaction() as connection:
            trigger_id = engine.create(
                connection,
                here.trigger_types,
                str(workflow_id),
                type=given["type"],
                name=given.get("name", given["type"]),
                config=given["config"],
                is_enabled=given["is_enabled"],
            )
        response = _shown(trigger_id)
        response.status_code = 201
        response.headers["Location"] = url_for("triggers.Trigger", trigger_id=trigger_id)
        return response


@blueprint.route("/triggers/<uuid:trigger_id>")
class Trigger(MethodView):
    @blueprint.response(200, TriggerOut)
    def get(self, trigger_id: UUID) -> Response:
        """A trigger."""
        return _shown(str(trigger_id))

    @blueprint.arguments(TriggerChange())
    @blueprint.response(200, TriggerOut)
    def put(self, given: dict[str, Any], trigger_id: UUID) -> Response:
        """Change what is given, of the config as well: null takes a key out, what is shown as *** stays. Slots that
        passed while a schedule was disabled are not made up for."""
        here, id = service(), str(trigger_id)
        with here.store.single() as connection:
            before = triggers.find(connection, id)
        changes = dict(given)
        if "config" in changes:
            sent = unmasked({"type": before.type, "config": changes["config"]}, {"config": before.config})
            _refuse_masks(sent)
            changed = {**before.config, **sent["config"]}
            changes["config"] = {key: value for key, value in changed.items() if value is not None}
            _check(before.type, changes["config"])
        with here.store.transaction() as connection:
            engine.change(connection, here.trigger_types, id, changes)
        return _shown(id)

    @blueprint.response(204)
    def delete(self, trigger_id: UUID) -> None:
        """Remove it with the record of its fires; its executions stay. One that is written in the workflow's
        definition comes back when that is saved again."""
        with service().store.single() as connection:
            triggers.delete(connection, str(trigger_id))


@blueprint.route("/triggers/<uuid:trigger_id>/fires")
@blueprint.arguments(FireQuery(), location="query")
@blueprint.response(200, FirePage)
def fires(query: dict[str, Any], trigger_id: UUID) -> Response:
    """What fired it, newest first, and what that started or why it did not."""
    with service().store.single() as connection:
        triggers.find(connection, str(trigger_id))
        return page(query, triggers.FIRE_ORDERS, lambda window: triggers.fires(connection, window, str(trigger_id)))


@blueprint.route("/triggers/<uuid:trigger_id>/fire", methods=["POST"])
@blueprint.arguments(FireIn())
@blueprint.arguments(ExecuteHeaders(), location="headers", unknown="exclude")
@blueprint.response(202, FireOut)
@blueprint.alt_response(200, schema=FireOut, description="Nothing was started by this call; `reason` says why")
def fire(given: dict[str, Any], headers: dict[str, Any], trigger_id: UUID) -> Response:
    """Fire a trigger by hand, whatever its type, and even if it is disabled."""
    here = service()
    with here.store.single() as connection:
        trigger = triggers.find(connection, str(trigger_id))
    key = headers.get("idempotency_key")
    fired = engine.fire(
        here.store,
        here.programs,
        trigger,
        slot=None if key is None else f"by hand: {key}",
        payload=given.get("input"),
        input=given.get("input"),
    )
    _send(fired)
    with here.store.single() as connection:
        response = jsonify({**triggers.get_fire(connection, fired.fire_id), "outcome": fired.outcome})
    response.status_code = 202 if fired.outcome in ("started", "queued") else 200
    return response


@blueprint.route("/triggers/<uuid:trigger_id>/preview")
@blueprint.arguments(PreviewQuery(), location="query")
@blueprint.response(200, PreviewOut)
def preview(query: dict[str, Any], trigger_id: UUID) -> Response:
    """The next slots of a schedule, whether it is enabled or not."""
    here = service()
    with here.store.single() as connection:
        trigger = triggers.find(connection, str(trigger_id))
        start = query.get("start") or triggers.now(connection)
    timetable = engine.timetable_of(here.programs, trigger)
    slots = timetable.first(start, query["count"])
    items = [
        {"slot": slot, "local": timetable.local(slot).isoformat(), "due_at": timetable.due_at(slot)} for slot in slots
    ]
    return jsonify({"items": items})


@blueprint.route("/triggers/<uuid:trigger_id>/backfill", methods=["POST"])
@blueprint.arguments(BackfillIn())
@blueprint.response(200, BackfillOut)
def backfill(given: dict[str, Any], trigger_id: UUID) -> Response:
    """Fire each slot of a past time (1,000 at most) that has started nothing yet. Said twice, it is done once; the
    executions may overlap, whatever the schedule says."""
    here = service()
    with here.store.single() as connection:
        trigger = triggers.find(connection, str(trigger_id))
        now = triggers.now(connection)
    if given["first"] > given["last"]:
        raise InputError([Problem("to", "is before from")])
    if given["last"] > now:
        raise InputError([Problem("to", "is in the future; the schedule will fire then by itself")])
    filled = engine.backfill(here.store, here.programs, trigger, given["first"], given["last"])
    for fired in filled.fired:
        _send(fired)
    with here.store.single() as connection:
        shown = [triggers.get_fire(connection, fired.fire_id) for fired in filled.fired]
    return jsonify({"slots": filled.slots, "fired": shown})


def _send(fired: engine.Fired) -> None:
    for plan in fired.plans:
        service().send(plan)


def _shown(trigger_id: str) -> Response:
    with service().store.single() as connection:
        return jsonify(masked(triggers.get(connection, trigger_id)))


def _refuse_masks(trigger: Mapping[str, Any]) -> None:
    refuse_masks(("config", *keys) for keys in masked_fields(trigger))


def _check(type: str, config: Mapping[str, Any]) -> None:
    """Raises InputError, with the lines of a YAML body; PayloadTooLarge."""
    here = service()
    check_payload(config, here.settings.executor.max_payload, "config")
    problems = [
        Problem(path, message, g.document.line_of(path))
        for keys, message in check_trigger(type, config, (), here.trigger_types, Hints())
        for path in [paths.join_all(keys)]
    ]
    if problems:
        raise InputError(problems)
