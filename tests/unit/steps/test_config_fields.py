"""The fields that step configurations are made of."""

from __future__ import annotations

import pytest
from marshmallow import Schema, ValidationError

from workers.steps import fields


class Sample(Schema):
    wait = fields.Duration()
    limit = fields.Size()
    text = fields.Text()


def test_durations_sizes_and_texts_load_from_what_people_write() -> None:
    loaded = Sample().load({"wait": "1m30s", "limit": "2KB", "text": 5})
    assert loaded == {"wait": 90.0, "limit": 2048, "text": "5"}
    assert Sample().load({"wait": 2, "limit": 10, "text": True}) == {"wait": 2.0, "limit": 10, "text": "true"}


@pytest.mark.parametrize("data", [{"wait": "soon"}, {"limit": "huge"}, {"text": ["a"]}, {"wait": True}])
def test_anything_else_is_refused_with_a_sentence(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sample().load(data)
