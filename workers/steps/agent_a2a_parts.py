"""What A2A's tasks and messages hold, as the output of a step and as words for its messages."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from a2a.helpers import get_data_parts, get_text_parts
from a2a.types.a2a_pb2 import Artifact, Message, Part, Task, TaskState

from workers.steps.agent_call import output, parsed, quoted


def said_in(message: Message) -> dict[str, Any]:
    """The output of a task that was answered at once, by a message."""
    return _output(message.parts, message.task_id or None, "completed")


def outcome(task: Task) -> dict[str, Any]:
    """What the task left, else what the agent says about its end."""
    artifacts = [_artifact(artifact) for artifact in task.artifacts]
    parts = [part for artifact in task.artifacts for part in artifact.parts] or task.status.message.parts
    return _output(parts, task.id, state_of(task)) | {"artifacts": artifacts}


def state_of(task: Task) -> str:
    """`completed`, `input_required`, ..."""
    return str(TaskState.Name(task.status.state)).removeprefix("TASK_STATE_").lower()


def said_of(task: Task) -> str:
    """What the agent says about the state of the task; "" if nothing."""
    parts = task.status.message.parts
    return quoted("\n".join(part.text if part.HasField("text") else quoted(_part(part)) for part in parts))


def _output(parts: Sequence[Part], task_id: str | None, state: str) -> dict[str, Any]:
    """The result is the data, a list if there are several pieces of it; without data, what the text says."""
    text = "\n".join(get_text_parts(parts))
    data = _whole(get_data_parts(parts))
    result = parsed(text) if not data else data[0] if len(data) == 1 else data
    return output(result, text=text, task_id=task_id, state=state)


def _artifact(artifact: Artifact) -> dict[str, Any]:
    return {
        "artifact_id": artifact.artifact_id,
        "name": artifact.name,
        "description": artifact.description,
        "parts": [_part(part) for part in artifact.parts],
    }


def _part(part: Part) -> dict[str, Any]:
    """`text`, `data`, `url` or `base64`, with `filename` and `media_type` where it has them."""
    content: dict[str, Any]
    match part.WhichOneof("content"):
        case "text":
            content = {"text": part.text}
        case "data":
            content = {"data": _whole(get_data_parts([part])[0])}
        case "url":
            content = {"url": part.url}
        case _:
            content = {"base64": base64.b64encode(part.raw).decode("ascii")}
    named = {"filename": part.filename, "media_type": part.media_type}
    return content | {name: value for name, value in named.items() if value}


def _whole(value: Any) -> Any:
    """`value` with its whole numbers as such; Protocol Buffers' JSON has nothing but doubles."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value
