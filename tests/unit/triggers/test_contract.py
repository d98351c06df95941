"""What the contract of a trigger type demands when the type is written."""

from __future__ import annotations

import pytest
from marshmallow import Schema

from beat.triggers.contract import TriggerType


def test_a_type_that_says_it_looks_has_to_have_a_look():
    body = {"type": "watch", "Config": Schema, "looks": True}
    with pytest.raises(TypeError, match=r"Watch: .* needs a look\(\) of its own"):
        type("Watch", (TriggerType,), dict(body))
    type("Watch", (TriggerType,), body | {"look": lambda *_: None})
