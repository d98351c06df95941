"""Every error this project raises on purpose.

OrchestratorError
├── ConfigurationError      the service cannot start with these settings
├── DefinitionError         a workflow definition is not valid; carries every problem found
├── TemplateError           an expression could not be evaluated
├── InputError              a request's data is not acceptable
│   └── PayloadTooLarge     it is larger than the configured limit
├── NotFound                there is no such object
├── Forbidden               the caller may see this, but not do it
├── Conflict                the object's present state does not allow this
├── Outdated                it has changed since the caller saw it
└── StepFailed              a step's attempt failed; its retry policy decides what follows
    ├── StepTimeout         ... because its time was up
    ├── ArtifactGone        ... because an output that it needs is not where it was written
    └── ArtifactsAway       ... because what large outputs are kept in cannot be reached
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OrchestratorError(Exception):
    """The base of all of them."""


class ConfigurationError(OrchestratorError):
    """The service cannot start with these settings; the message says which to change, and where."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `path` as in `steps[2].config.url` ("" for the whole document), and the
    1-based `line` where the text it came from has lines."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = self.path or "definition"
        return f"{where}{f' (line {self.line})' if self.line else ''}: {self.message}"


class DefinitionError(OrchestratorError):
    """A workflow definition is not valid. `problems` has every one found, in document order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class TemplateError(OrchestratorError):
    """An expression could not be evaluated: an unknown name, a wrong type, or a bound exceeded."""


class InputError(OrchestratorError):
    """A request's data is not acceptable. `problems` has every one found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class PayloadTooLarge(InputError):
    """The data is larger than the configured limit; the message names both."""


class NotFound(OrchestratorError):
    """There is no such object, or it is not visible to the caller."""

    def __init__(self, kind: str, identifier: object) -> None:
        super().__init__(f"there is no {kind} {identifier}")
        self.kind = kind


class Forbidden(OrchestratorError):
    """The caller may see this, but not do it; `role` is the least that it takes."""

    def __init__(self, role: str, message: str) -> None:
        super().__init__(message)
        self.role = role


class Conflict(OrchestratorError):
    """The object's present state does not allow this; `state` names that state."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class Outdated(OrchestratorError):
    """The object has changed since the caller saw it, whose change would undo another that they do not know."""


class StepFailed(OrchestratorError):
    """A step's attempt failed.

    `kind` is a short stable word that `retry_policy.retry_on` can name (`http_status`, `connection`,
    `timeout`, `script`, `template`, `lost`, ...). `retryable=False` says that another attempt cannot end
    differently, whatever the policy. `output` is kept with the step even though it failed.
    """

    def __init__(self, message: str, *, kind: str = "error", retryable: bool = True, output: object = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retryable = retryable
        self.output = output


class StepTimeout(StepFailed):
    """A step's time was up."""

    def __init__(self, message: str, *, output: object = None) -> None:
        super().__init__(message, kind="timeout", output=output)


class ArtifactGone(StepFailed):
    """An output that a row refers to is not where it was written, or is not what was written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="artifact", retryable=False)


class ArtifactsAway(StepFailed):
    """What large outputs are kept in cannot be reached, or refuses."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="artifact")
