"""The tasks, thin: what they do stands in runner.py, trial.py, cancelling.py, looking.py and ringing.py."""

from __future__ import annotations

from workers import cancelling, looking, ringing, trial
from workers.app import app
from workers.process import process


@app.task(name="run_steps")
def run_steps(execution_id: str, starts: list[str], rung: list[str] | None = None) -> None:
    """Perform the runs that begin with `starts`. `rung` are steps the canvas itself rings for afterwards.

    It never raises for a step that failed, nor for a claim that somebody else has.
    """
    process().run_steps(execution_id, starts, rung or [])


@app.task(name="test_step")
def test_step(id: str) -> None:
    """Try out the step that a row of the table step_tests asks for."""
    trial.test_step(process(), id)


@app.task(name="cancel_step")
def cancel_step(id: str) -> None:
    """Cancel what a step has begun elsewhere, as a row of the table cancellations says."""
    cancelling.cancel_step(process(), id)


@app.task(name="look")
def look(trigger_id: str) -> None:
    """Look whether the condition of a trigger is true."""
    looking.look(process(), trigger_id)


@app.task(name="ring_triggers")
def ring_triggers() -> None:
    """Fire the triggers that are due by time."""
    ringing.ring_triggers(process())
