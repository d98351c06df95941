"""Step types: the contract, and one file for each. What an author of step types needs is here."""

from orchestrator.errors import StepFailed
from workers.steps.contract import Done, StepContext, StepType, Wait
from workers.steps.function import step

__all__ = ["Done", "StepContext", "StepFailed", "StepType", "Wait", "step"]
