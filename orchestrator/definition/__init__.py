"""Definitions: read from YAML or JSON, validated, and made into the typed model that the engine runs."""

from orchestrator.definition.building import build_definition
from orchestrator.definition.document import Document
from orchestrator.definition.model import Definition, RetryPolicy, Step
from orchestrator.definition.reading import Media, read_definition
from orchestrator.definition.validation import load_definition

__all__ = [
    "Definition",
    "Document",
    "Media",
    "RetryPolicy",
    "Step",
    "build_definition",
    "load_definition",
    "read_definition",
]
