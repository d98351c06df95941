"""Everything dies at random while executions of every shape run: each ends right, each result is recorded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import deployed
from faults import FAULTS
from soak import Soak
from soak_checks import check_all, complete, keep_account
from soak_work import Load, shapes
from stack import Stack, stacked

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
"""Longer than a soak of thousands; what it waits for has limits of its own."""

A_ROUND = 50
"""Executions during which each fault happens once."""
GAP = 1.5
"""Seconds between faults."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    # More often than a step may be lost by default: a hundred that are hit at random have one that is hit three times.
    with deployed(tmp_path, lease=4.0, max_concurrent=15, max_losses=6) as deployment, stacked(deployment) as stack:
        stack.start()
        yield stack


def test_a_soak_ends_as_if_nothing_had_happened(
    stack: Stack, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    total, seed = request.config.getoption("--soak"), request.config.getoption("--soak-seed")
    marks, rounds = tmp_path / "marks", max(1, total // A_ROUND)
    keep_account(stack)
    known = shapes(marks)
    workflows = {name: stack.deployment.create(shape.definition, name) for name, shape in known.items()}
    trigger_id = fire_every_second(stack, marks)
    load = Load(stack, workflows, known, total, seconds=GAP * rounds * len(FAULTS))
    soak = Soak(stack, load, FAULTS, seed=seed, rounds=rounds, gap=GAP)
    try:
        soak.break_things()
        stop_firing(soak)
        soak.wait_for_the_end()
        complete(soak.figures, stack)
        check_all(stack, load, marks, trigger_id, soak.samples)
    finally:
        load.stop()
        with capsys.disabled():
            print(f"\n{soak.figures}")


def fire_every_second(stack: Stack, marks: Path) -> str:
    """The id of a trigger that starts an execution each second, and makes up for what it missed."""
    step = {"id": "tick", "type": "mark", "config": {"file": str(marks)}}
    workflow_id = stack.deployment.create({"steps": [step]}, "ticks")
    path = f"/api/v1/workflows/{workflow_id}"
    assert stack.deployment.client.post(f"{path}/activate").status_code == 200
    trigger = {"type": "schedule", "name": "ticks", "config": {"interval": "1s", "missed": "run_all"}}
    answer = stack.deployment.client.post(f"{path}/triggers", json=trigger)
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def stop_firing(soak: Soak) -> None:
    """Once nothing that is due is left to be fired."""
    stop = (
        "UPDATE triggers SET is_enabled = false, updated_at = now() WHERE is_enabled AND next_slot > now() RETURNING id"
    )
    soak.until(lambda: bool(soak.stack.sql(stop)), "the schedule to be up to date")
