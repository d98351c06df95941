"""Two step types: a class, which a hook registers, and a function, for which the decorator is enough."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import ClassVar

from marshmallow import Schema, fields, validate

from orchestrator.plugins import StepTypeInfo, hookimpl
from workers.steps import Done, StepContext, StepFailed, StepType, step
from workers.steps.contract import QueueClass

GREETINGS = {"en": "Hello", "fr": "Bonjour", "de": "Guten Tag"}


class Greet(StepType):
    """Greets `name` in a `language`. Output: `text`."""

    type: ClassVar[str] = "acme_greet"
    queue: ClassVar[QueueClass] = "io"

    class Config(Schema):
        name = fields.String(required=True, validate=validate.Length(min=1))
        language = fields.String(load_default="en", validate=validate.OneOf(sorted(GREETINGS)))

    def perform(self, context: StepContext) -> Done:
        name = context.config["name"].strip()
        if not name:
            raise StepFailed("name is blank; nobody is there to be greeted", kind="nobody", retryable=False)
        context.log(f"greeting {name}", "info")
        return Done({"text": f"{GREETINGS[context.config['language']]}, {name}!"})


@step("acme_slugify", queue="cpu")
def slugify(text: str, separator: str = "-") -> str:
    """The text as a part of an address: small letters, digits, and separators between them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return separator.join(re.findall(r"[a-z0-9]+", plain))


@hookimpl
def orchestrator_step_types() -> Iterable[StepTypeInfo]:
    return [Greet()]
