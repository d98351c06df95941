"""Webhooks: who may start an execution by a request, with what, and how often."""

from __future__ import annotations

import base64
import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest
import standardwebhooks
from deployment import Deployment, deployed, wait_until
from flask.testing import FlaskClient

from orchestrator.config import Settings
from workers.steps.webhook import Webhook as WebhookStep

NOOP = {"steps": [{"id": "only", "type": "noop", "config": {"value": "{{ input }}"}}]}
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


class Hook:
    """An active workflow with one webhook trigger on a path of its own."""

    def __init__(self, deployment: Deployment, definition: dict[str, Any] = NOOP, **config: Any) -> None:
        self.deployment = deployment
        self.workflow_id = deployment.create(definition)
        self.path = config.pop("path", None) or f"/webhook/{uuid4().hex}"
        made = trigger(deployment, self.workflow_id, {"path": self.path, **config})
        assert made.status_code == 201, made.text
        self.trigger_id = made.json["id"]
        activated = deployment.client.post(f"/api/v1/workflows/{self.workflow_id}/activate")
        assert activated.status_code == 200, activated.text

    def send(self, json: Any = None, *, method: str = "POST", at: str = "", **more: Any) -> Any:
        """A request without the API's key."""
        if json is not None:
            more = {"data": orjson.dumps(json), "content_type": "application/json", **more}
        return stranger(self.deployment).open(self.path + at, method=method, **more)

    @property
    def row(self) -> dict[str, Any]:
        found: dict[str, Any] = self.deployment.client.get(f"/api/v1/triggers/{self.trigger_id}").json
        return found

    @property
    def fires(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.deployment.client.get(f"/api/v1/triggers/{self.trigger_id}/fires").json[
            "items"
        ]
        return found

    def executions(self) -> int:
        return int(
            self.deployment.sql("SELECT count(*) FROM executions WHERE trigger_id = %(id)s::uuid", id=self.trigger_id)[
                0
            ][0]
        )


def trigger(deployment: Deployment, workflow_id: str, config: dict[str, Any], **more: Any) -> Any:
    body = {"type": "webhook", "name": uuid4().hex, "config": config, **more}
    return deployment.client.post(f"/api/v1/workflows/{workflow_id}/triggers", json=body)


def stranger(deployment: Deployment) -> FlaskClient:
    """A client without the key."""
    return deployment.client.application.test_client()


def problem(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    return str(answer.json["detail"])


# --- from a request to an execution --------------------------------------------------------------------------


def test_a_request_starts_an_execution_with_its_body_as_the_input(deployment: Deployment) -> None:
    hook = Hook(deployment)
    answer = hook.send({"amount": 3}, headers={"X-Word": "hello", "Authorization": "Bearer theirs"})
    assert answer.status_code == 202
    execution = deployment.ended(answer.json["execution_id"])
    assert (execution["status"], execution["trigger_id"]) == ("completed", hook.trigger_id)
    assert execution["output"] == {"only": {"amount": 3}}
    (fire,) = hook.fires
    assert (fire["id"], fire["execution_id"], fire["outcome"]) == (
        answer.json["fire_id"], answer.json["execution_id"], "started",
    )  # fmt: skip
    assert fire["payload"]["body"] == {"amount": 3}
    assert fire["payload"]["headers"]["x-word"] == "hello"
    assert "authorization" not in fire["payload"]["headers"]
    assert (hook.row["trigger_count"], hook.row["last_triggered"] is not None) == (1, True)


def test_a_webhook_written_in_a_definition_is_there_once_it_is_saved(deployment: Deployment) -> None:
    path = f"/webhook/{uuid4().hex}"
    written = {"type": "webhook", "name": "手动触发", "config": {"path": path, "method": "POST"}}
    workflow_id = deployment.create({**NOOP, "triggers": [written]})
    assert "draft" in problem(stranger(deployment).post(path, json={}), 409)
    deployment.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    assert stranger(deployment).post(path, json={}).status_code == 202


def test_a_mapping_makes_the_input_of_body_headers_query_and_path(deployment: Deployment) -> None:
    mapping = {
        "id": "{{ body.order.id }}",
        "event": "{{ headers['x-event'] }}",
        "page": "{{ query.page }}",
        "at": "{{ path }}",
    }
    hook = Hook(deployment, mapping=mapping, respond="result")
    answer = hook.send({"order": {"id": 7}}, headers={"X-Event": "paid"}, at="?page=2&page=3")
    assert answer.status_code == 200, answer.text
    expected = {"id": 7, "event": "paid", "page": ["2", "3"], "at": hook.path.removeprefix("/webhook/")}
    assert answer.json["output"] == {"only": expected}


def test_templates_of_the_workflow_see_the_trigger_and_what_came(deployment: Deployment) -> None:
    value = "{{ trigger.type }} {{ trigger.payload.query.q }} {{ trigger.slot }}"
    definition = {"steps": [{"id": "only", "type": "noop", "config": {"value": value}}]}
    hook = Hook(deployment, definition, respond="result")
    answer = hook.send({}, at="?q=1", headers={"webhook-id": "msg_7"})
    assert answer.json["output"] == {"only": {"result": "webhook 1 msg_7"}}


def test_the_method_is_the_one_that_the_trigger_names(deployment: Deployment) -> None:
    hook = Hook(deployment, method="put")
    other = trigger(deployment, hook.workflow_id, {"path": hook.path, "method": "GET"})
    assert other.status_code == 201, other.text
    refused = hook.send({})
    assert "takes GET or PUT, not POST" in problem(refused, 405)
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "PUT"}
    assert hook.send({}, method="PUT").status_code == 202
    answer = hook.send(method="GET", at="?a=1")
    assert answer.status_code == 202
    assert deployment.execution(answer.json["execution_id"])["input"] == {"a": "1"}


@pytest.mark.parametrize("path", ["/webhook/nobody-has-this", "/webhook/..%2f", "/webhook/%00", "/webhook/a%20b"])
def test_a_path_that_no_webhook_has_is_not_found(deployment: Deployment, path: str) -> None:
    assert "there is no webhook" in problem(stranger(deployment).post(path), 404)


@pytest.mark.parametrize("written", ["orders", "/orders", "webhook/orders", "/webhook/orders", "/webhook/orders/"])
def test_a_path_may_be_written_with_or_without_its_beginning(deployment: Deployment, written: str) -> None:
    unique = uuid4().hex
    hook = Hook(deployment, path=written.replace("orders", f"{unique}/orders"))
    hook.path = f"/webhook/{unique}/orders"
    assert hook.send({}).status_code == 202


def test_only_webhooks_need_no_key(deployment: Deployment) -> None:
    hook = Hook(deployment)
    for path in ("/api/v1/workflows", f"/api/v1/triggers/{hook.trigger_id}", "/webhooks", "/api/v1/webhook/x"):
        assert stranger(deployment).get(path).status_code in (401, 404)
    assert stranger(deployment).get("/api/v1/workflows").status_code == 401


# --- what is in the way --------------------------------------------------------------------------------------


def test_a_disabled_webhook_is_not_found(deployment: Deployment) -> None:
    hook = Hook(deployment)
    deployment.client.put(f"/api/v1/triggers/{hook.trigger_id}", json={"is_enabled": False})
    problem(hook.send({}), 404)


def test_a_delivery_that_a_paused_workflow_refused_may_be_sent_again(deployment: Deployment) -> None:
    hook = Hook(deployment)
    deployment.client.post(f"/api/v1/workflows/{hook.workflow_id}/pause")
    for _ in range(2):
        assert "paused" in problem(hook.send({}, headers={"webhook-id": "again"}), 409)
    deployment.client.post(f"/api/v1/workflows/{hook.workflow_id}/resume")
    assert hook.send({}, headers={"webhook-id": "again"}).status_code == 202
    assert [fire["outcome"] for fire in hook.fires] == ["started", "skipped", "skipped"]


def test_input_that_does_not_fit_is_refused_with_the_reason(deployment: Deployment) -> None:
    inputs = {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
    hook = Hook(deployment, {**NOOP, "inputs": inputs})
    assert "'lots' is not of type 'integer'" in problem(hook.send({"amount": "lots"}), 422)
    assert [fire["outcome"] for fire in hook.fires] == ["failed"]
    assert hook.send({"amount": 1}).status_code == 202


def test_a_mapping_of_what_did_not_come_is_refused_with_the_reason(deployment: Deployment) -> None:
    hook = Hook(deployment, mapping={"id": "{{ body.order.id }}"})
    assert "body.order" in problem(hook.send({"other": 1}), 422)
    (fire,) = hook.fires
    assert (fire["outcome"], fire["payload"]["body"]) == ("failed", {"other": 1})
    assert hook.row["trigger_count"] == 0


@pytest.mark.parametrize(
    ("body", "content_type", "status", "says"),
    [
        (b"{", "application/json", 400, "the body is not JSON"),
        (b'{"a": "\\ud800"}', "application/json", 400, "the body is not JSON"),
        (b'{"a": "\\u0000"}', "application/json", 422, "the request is not valid"),
        (b"x" * 1_100_000, "text/plain", 413, "payload"),
        (b"x" * 4_400_000, "text/plain", 413, "larger than"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_taken_is_refused(
    deployment: Deployment, body: bytes, content_type: str, status: int, says: str
) -> None:
    hook = Hook(deployment)
    assert says in problem(hook.send(data=body, content_type=content_type), status)
    assert hook.executions() == 0


def test_two_webhooks_with_one_path_and_method_are_a_conflict_however_they_are_written(deployment: Deployment) -> None:
    hook = Hook(deployment)
    other = deployment.create(NOOP)
    for path in (hook.path, hook.path.removeprefix("/webhook/"), hook.path + "/"):
        assert "has this path" in problem(trigger(deployment, other, {"path": path, "method": "post"}), 409)
    off = trigger(deployment, other, {"path": hook.path}, is_enabled=False)
    assert off.status_code == 201
    problem(deployment.client.put(f"/api/v1/triggers/{off.json['id']}", json={"is_enabled": True}), 409)
    deployment.client.delete(f"/api/v1/triggers/{hook.trigger_id}")
    assert deployment.client.put(f"/api/v1/triggers/{off.json['id']}", json={"is_enabled": True}).status_code == 200


def test_of_many_that_ask_for_one_path_at_the_same_time_one_gets_it(deployment: Deployment) -> None:
    workflow_id, path = deployment.create(NOOP), uuid4().hex
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: trigger(deployment, workflow_id, {"path": path}).status_code, range(8)))
    assert statuses == [201] + [409] * 7


# --- signatures ----------------------------------------------------------------------------------------------


def signed(body: bytes, at: datetime | None = None, id: str = "msg_1") -> dict[str, str]:
    at = at or datetime.now(UTC)
    signature = standardwebhooks.Webhook(SECRET).sign(id, at, body.decode())
    return {"webhook-id": id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}


def test_a_signed_message_is_taken_and_no_other(deployment: Deployment) -> None:
    hook = Hook(deployment, secret=SECRET)
    body = b'{"a": 1}'
    old = signed(body, datetime.now(UTC) - timedelta(minutes=6))
    for headers, sent in (
        ({}, body),
        (signed(b"{}"), body),
        (signed(body) | {"webhook-id": "other"}, body),
        (old, body),
    ):
        refused = hook.send(data=sent, content_type="application/json", headers=headers)
        assert "not signed as Standard Webhooks asks" in problem(refused, 401)
        assert SECRET not in refused.text
    assert hook.fires == []
    assert hook.send(data=body, content_type="application/json", headers=signed(body)).status_code == 202


def test_a_message_signed_as_github_does_is_taken_and_known_by_its_delivery(deployment: Deployment) -> None:
    hook = Hook(deployment, secret="it's a secret", scheme="hmac")
    body = b'{"ref": "main"}'
    digest = hmac.new(b"it's a secret", body, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": str(uuid4())}
    first, second = (hook.send(data=body, content_type="application/json", headers=headers) for _ in range(2))
    assert (first.status_code, first.json) == (202, second.json)
    changed = hook.send(data=body + b" ", content_type="application/json", headers=headers)
    assert "is not that of the message" in problem(changed, 401)


def test_the_orchestrator_can_call_itself_with_one_secret_on_both_sides(deployment: Deployment) -> None:
    from performing import context_of

    from workers.steps.webhook import _request

    config = {"url": "http://127.0.0.1/", "payload": {"a": 1}, "event": "done", "secret": "words of any kind"}
    request = _request(context_of(WebhookStep(), config, settings=Settings()), "msg_1", datetime.now(UTC)).prepare()
    hook = Hook(deployment, secret="words of any kind", mapping={"a": "{{ body.data.a }}"})
    answer = hook.send(data=request.body, headers=dict(request.headers))
    assert answer.status_code == 202, answer.text
    assert deployment.execution(answer.json["execution_id"])["input"] == {"a": 1}


def test_a_secret_is_never_shown_and_kept_by_a_change_that_does_not_name_another(deployment: Deployment) -> None:
    hook = Hook(deployment, secret=SECRET)
    assert hook.row["config"]["secret"] == "***"
    config = {**hook.row["config"], "respond": "result", "timeout": 30}
    changed = deployment.client.put(f"/api/v1/triggers/{hook.trigger_id}", json={"config": config})
    assert (changed.status_code, changed.json["config"]["secret"]) == (200, "***")
    listed = deployment.client.get(f"/api/v1/workflows/{hook.workflow_id}/triggers").text
    assert SECRET not in listed + changed.text
    assert hook.send({}).status_code == 401
    assert hook.send(data=b"{}", content_type="application/json", headers=signed(b"{}")).status_code == 200


# --- once ----------------------------------------------------------------------------------------------------


def test_a_hundred_of_the_same_delivery_at_once_are_one_execution(deployment: Deployment) -> None:
    hook = Hook(deployment)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: hook.send({"a": 1}, headers={"webhook-id": "one"}), range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({(answer.json["execution_id"], answer.json["fire_id"]) for answer in answers}) == 1
    assert (hook.executions(), len(hook.fires), hook.row["trigger_count"]) == (1, 1, 1)


@pytest.mark.parametrize("header", ["webhook-id", "X-GitHub-Delivery", "Idempotency-Key", "X-Own"])
def test_a_delivery_is_known_again_by_its_header(deployment: Deployment, header: str) -> None:
    hook = Hook(deployment, **({"delivery_header": "x-own"} if header == "X-Own" else {}))
    first, second, other = (hook.send({}, headers={header: id}) for id in ("a", "a", "b"))
    assert first.json == second.json
    assert first.json["execution_id"] != other.json["execution_id"]
    assert hook.executions() == 2


def test_without_an_id_every_request_is_another(deployment: Deployment) -> None:
    hook = Hook(deployment)
    assert hook.send({}).json["execution_id"] != hook.send({}).json["execution_id"]


def test_one_delivery_id_at_two_webhooks_starts_both(deployment: Deployment) -> None:
    first, second = Hook(deployment), Hook(deployment)
    started = {hook.send({}, headers={"webhook-id": "shared"}).json["execution_id"] for hook in (first, second)}
    assert len(started) == 2


# --- what is answered ----------------------------------------------------------------------------------------


def test_the_result_is_answered_when_it_is_asked_for(deployment: Deployment) -> None:
    hook = Hook(deployment, respond="result")
    answer = hook.send({"a": 1}, headers={"webhook-id": "r"})
    assert answer.status_code == 200
    assert (answer.json["status"], answer.json["output"]) == ("completed", {"only": {"a": 1}})
    assert hook.send({"a": 2}, headers={"webhook-id": "r"}).json == answer.json


def test_the_result_of_a_failed_execution_says_why(deployment: Deployment) -> None:
    failing = {"steps": [{"id": "only", "type": "fail", "config": {"message": "no luck"}}]}
    answer = Hook(deployment, failing, respond="result").send({})
    assert (answer.status_code, answer.json["status"]) == (200, "failed")
    assert "no luck" in answer.json["error_message"]


def test_a_result_that_takes_longer_than_its_time_is_accepted_meanwhile(deployment: Deployment) -> None:
    slow = {"steps": [{"id": "only", "type": "wait", "config": {"duration": "1h"}}]}
    hook = Hook(deployment, slow, respond="result", timeout="200ms")
    answer = hook.send({})
    assert (answer.status_code, answer.json.keys()) == (202, {"fire_id", "execution_id"})
    deployment.client.post(f"/api/v1/executions/{answer.json['execution_id']}/cancel")


def test_a_webhook_that_waits_for_the_one_before_is_accepted_without_an_execution(deployment: Deployment) -> None:
    slow = {"steps": [{"id": "only", "type": "wait", "config": {"duration": "1h"}}]}
    hook = Hook(deployment, slow, overlap="queue_one")
    first = hook.send({}, headers={"webhook-id": "1"}).json
    answers = [hook.send({}, headers={"webhook-id": "2"}) for _ in range(2)]
    assert [(answer.status_code, answer.json["execution_id"]) for answer in answers] == [(202, None)] * 2
    assert answers[0].json == answers[1].json
    deployment.client.post(f"/api/v1/executions/{first['execution_id']}/cancel")
    wait_until(lambda: hook.executions() == 2, what="the one that waited")
    later = hook.send({}, headers={"webhook-id": "2"}).json["execution_id"]
    assert later not in (None, first["execution_id"])
    deployment.client.post(f"/api/v1/executions/{later}/cancel")


def test_a_broker_that_is_away_does_not_keep_a_webhook_from_being_taken(tmp_path: Any) -> None:
    with deployed(tmp_path) as own:
        hook = Hook(own)
        assert own.servers.valkey is not None
        own.servers.valkey.kill()
        assert hook.send({}).status_code == 202
        assert hook.executions() == 1
