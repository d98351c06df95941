"""Step types and hooks of a third party, for Orchestrator."""
