"""An agent that speaks plain JSON over HTTP, for agents too small for A2A. The contract:

`POST <url>` with `{"agent_id", "task", "input", "idempotency_key"}` and the header `Idempotency-Key`, both the
same for every attempt, answers
    200 `{"result": ...}`                           the task is done
    202 `{"task_id": "...", "poll_url"?: "..."}`    it goes on

`GET <poll_url>`, else `GET <url>/<task_id>`, answers 200 with
    `{"status": "running"}`, `{"status": "completed", "result": ...}` or `{"status": "failed", "error": ...}`
and 404 if there is no such task. `poll_url` may be relative to the url, and is at the same server if the settings
have headers for it. `DELETE` of the same address says that nobody waits for the task any more; what it answers
does not matter. Any other status of 300 and above is a failed exchange; redirects are not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import orjson

from orchestrator.errors import StepFailed
from workers.steps.agent_call import AgentCalls, Finished, Running, output, quoted
from workers.steps.http_call import Response

_JSON = {"Accept": "application/json", "Content-Type": "application/json"}


class HttpAgent:
    def __init__(self, calls: AgentCalls) -> None:
        self._calls = calls

    def begin(self) -> Running | Finished:
        context = self._calls.context
        key = context.idempotency_key
        body = {
            "agent_id": self._calls.agent_id,
            "task": context.config["task"],
            "input": context.input,
            "idempotency_key": key,
        }
        response = self._calls.send("POST", self._calls.url, _JSON | {"Idempotency-Key": key}, orjson.dumps(body))
        answer = self._read(response)
        if response.status == 200:
            return self._finished(answer, None)
        if response.status != 202:
            raise self._calls.malformed(f"a task is answered by 200 or 202, not {response.status}")
        task = {"task_id": self._calls.known_id(answer.get("task_id"))}
        if answer.get("poll_url") is not None:
            task["poll_url"] = self._calls.known_id(answer["poll_url"], "poll_url")
        return Running(task)

    def look(self, task: Mapping[str, str]) -> Running | Finished:
        answer = self._read(self._calls.send("GET", self._address(task), _JSON))
        match answer.get("status"):
            case "running":
                return Running(task)
            case "completed":
                return self._finished(answer, task["task_id"])
            case "failed":
                raise StepFailed(
                    f"agent {self._calls.agent_id!r} failed: {quoted(answer.get('error') or 'it does not say why')}",
                    kind="agent",
                    output=output(answer.get("result"), task_id=task["task_id"], state="failed"),
                )
        raise self._calls.malformed("status must be running, completed or failed")

    def cancel(self, task: Mapping[str, str]) -> None:
        self._calls.send("DELETE", self._address(task), _JSON)

    def _address(self, task: Mapping[str, str]) -> str:
        try:
            if "poll_url" in task:
                return urljoin(self._calls.url, task["poll_url"])
            parts = urlsplit(self._calls.url)
            path = f"{parts.path.rstrip('/')}/{quote(task['task_id'], safe='')}"
            return urlunsplit(parts._replace(path=path, fragment=""))
        except ValueError:
            raise self._calls.malformed("poll_url is not an address") from None

    def _read(self, response: Response) -> dict[str, Any]:
        try:
            answer = orjson.loads(response.body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise self._calls.malformed("it is not a JSON object")
        return answer

    def _finished(self, answer: Mapping[str, Any], task_id: str | None) -> Finished:
        if "result" not in answer:
            raise self._calls.malformed("there is no result in it")
        result = answer["result"]
        text = result if isinstance(result, str) else ""
        return Finished(output(result, text=text, task_id=task_id, state="completed"))
