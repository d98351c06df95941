"""An agent that speaks A2A (https://a2a-protocol.org, versions 1.x and 0.3, over JSON-RPC or HTTP+JSON), by the
official SDK. Imported when a step needs it: the SDK takes a while.

The task is sent with `return_immediately` and then looked at; an agent that can stream is asked the same way,
since the protocol has every agent answer it, and a stream would keep a worker waiting.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError, AgentCardResolutionError
from a2a.helpers import get_data_parts, new_data_part, new_text_part
from a2a.types.a2a_pb2 import (
    AgentCard,
    CancelTaskRequest,
    GetTaskRequest,
    Message,
    Part,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    StreamResponse,
    Task,
    TaskState,
)
from a2a.utils.errors import (
    A2AError,
    InternalError,
    InvalidAgentResponseError,
    TaskNotCancelableError,
    TaskNotFoundError,
)

from orchestrator.errors import StepFailed
from workers.steps.agent_a2a_parts import outcome, said_in, said_of, state_of
from workers.steps.agent_call import AgentCalls, Finished, Running, quoted
from workers.steps.contract import config_mistake
from workers.steps.http_call import shown

T = TypeVar("T")
U = TypeVar("U")

# They log every url, where there may be secrets, and the agent's whole card.
for _name in ("httpx", "a2a.client.card_resolver"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_BINDINGS = ["JSONRPC", "HTTP+JSON"]
_FAILED = frozenset({TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_REJECTED, TaskState.TASK_STATE_CANCELED})
_ASKING = frozenset({TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED})

_PASSING = (A2AClientError, InternalError, InvalidAgentResponseError)
"""Errors that another try may not meet; the protocol's others are about the request itself."""

_OURS = frozenset({"host", "connection", "content-length", "accept-encoding", "user-agent"})
"""Headers of httpx that are the business of what really sends the request."""


class A2AAgent:
    def __init__(self, calls: AgentCalls) -> None:
        self._calls = calls

    def begin(self) -> Running | Finished:
        configuration = SendMessageConfiguration(return_immediately=True, history_length=0)
        request = SendMessageRequest(message=self._message(), configuration=configuration)

        async def ask(client: Client) -> StreamResponse:
            return await anext(aiter(client.send_message(request)))

        return self._ask(ask, self._answered)

    def look(self, task: Mapping[str, str]) -> Running | Finished:
        request = GetTaskRequest(id=task["task_id"], history_length=0)
        return self._ask(lambda client: client.get_task(request), self._seen)

    def cancel(self, task: Mapping[str, str]) -> None:
        request = CancelTaskRequest(id=task["task_id"])
        self._ask(lambda client: client.cancel_task(request), lambda _task: None)

    def _message(self) -> Message:
        context = self._calls.context
        parts = [new_text_part(context.config["task"])]
        if context.input is not None:
            parts.append(_data_part(context.input))
        # An id of the usual shape, and the same for every attempt.
        key = uuid.uuid5(uuid.NAMESPACE_URL, context.idempotency_key)
        return Message(message_id=str(key), role=Role.ROLE_USER, parts=parts)

    # --- asking ----------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[Client], Coroutine[Any, Any, T]], read: Callable[[T], U]) -> U:
        """What `read` makes of the answer. The SDK does not check all that it gets: whatever it, or `read`,
        stumbles over is a malformed answer."""
        try:
            return read(asyncio.run(self._converse(question)))
        except StepFailed:
            raise
        except TaskNotFoundError:
            raise StepFailed(f"agent {self._calls.agent_id!r} does not know the task any more", kind="agent") from None
        except TaskNotCancelableError:
            raise StepFailed(f"agent {self._calls.agent_id!r} cannot cancel the task any more", kind="agent") from None
        except A2AError as error:
            raise StepFailed(
                f"agent {self._calls.agent_id!r} answered with an error: {quoted(str(error))}",
                kind="agent_protocol",
                retryable=isinstance(error, _PASSING),
            ) from None
        except Exception as error:
            raise self._calls.malformed(f"{type(error).__name__}: {error}") from error

    async def _converse(self, question: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        async with httpx.AsyncClient(transport=_Transport(self._calls), trust_env=False) as http:
            config = ClientConfig(
                streaming=False, polling=True, httpx_client=http, supported_protocol_bindings=_BINDINGS
            )
            factory = ClientFactory(config)
            card = await self._card(http)
            offered = [interface.protocol_binding for interface in card.supported_interfaces]
            if not set(offered) & set(_BINDINGS):
                raise config_mistake(
                    f"agent {self._calls.agent_id!r} speaks neither {' nor '.join(_BINDINGS)}; "
                    f"its card offers: {quoted(', '.join(offered)) or 'nothing'}"
                )
            return await question(factory.create(card))

    async def _card(self, http: httpx.AsyncClient) -> AgentCard:
        url = self._calls.url
        if urlsplit(url).query:
            raise config_mistake(
                f"the url of agent {self._calls.agent_id!r} has a query, which A2A does not know: {shown(url)}"
            )
        try:
            return await A2ACardResolver(http, url).get_agent_card()
        except AgentCardResolutionError as error:  # its own text has the whole url
            raise self._calls.malformed(f"the card at {shown(url)}: {error.__cause__}") from error

    # --- understanding the answers ---------------------------------------------------------------------------

    def _answered(self, answer: StreamResponse) -> Running | Finished:
        return self._seen(answer.task) if answer.HasField("task") else Finished(said_in(answer.message))

    def _seen(self, task: Task) -> Running | Finished:
        found = {"task_id": self._calls.known_id(task.id)}
        if task.context_id:
            found["context_id"] = self._calls.known_id(task.context_id, "context_id")
        agent = f"agent {self._calls.agent_id!r}"
        if task.status.state == TaskState.TASK_STATE_COMPLETED:
            return Finished(outcome(task))
        if task.status.state in _FAILED:
            raise StepFailed(
                f"{agent} ended the task as {state_of(task)}: {said_of(task) or 'it does not say why'}",
                kind="agent",
                output=outcome(task),
            )
        if task.status.state in _ASKING:
            raise StepFailed(
                f"{agent} asks for what a step cannot answer ({state_of(task)}): "
                f"{said_of(task) or 'it does not say what'}; put it into the task, its input or the agent's headers",
                kind="agent_input",
                retryable=False,
                output=outcome(task),
            )
        return Running(found)


class _Transport(httpx.AsyncBaseTransport):
    """httpx's requests as bounded calls. They block the event loop; there is nothing else on it."""

    def __init__(self, calls: AgentCalls) -> None:
        self._calls = calls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name not in _OURS}
        response = self._calls.send(request.method, str(request.url), headers, await request.aread() or None)
        content_type = response.headers.get("content-type", "application/json")
        return httpx.Response(response.status, headers={"content-type": content_type}, content=response.body)


def _data_part(given: Any) -> Part:
    try:
        part = new_data_part(given)
        lost = get_data_parts([part]) != [given]
    except Exception as error:
        raise config_mistake(f"the input cannot be sent by A2A: {error}") from error
    if lost:  # its numbers are doubles, and an id that comes out rounded is another one
        raise config_mistake("the input has a whole number beyond 2^53, which A2A would round; send it as a text")
    return part
