"""JSON values as YAML that `read_yaml` reads as the same values, and that people like to read.

A text stands in quotes unless it cannot be taken for anything else, by this version of YAML or that; one of several
lines is a block.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_PLAIN = re.compile(r"[^\W\d_][\w/.-]*( [\w/.-]+)*")
_RESERVED = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))
_WIDTH = 110


def write_yaml(value: Any) -> str:
    """`value` is made of dicts with texts as keys, lists, texts, numbers, booleans and None."""
    written: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=False
    )
    return written


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (what is equal is written out each time)
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style: str | None = '"'
    if "\n" in text and not dumper.simple_key_context:
        style = "|"  # written in quotes all the same if a block cannot hold it
    elif _PLAIN.fullmatch(text) and text.casefold() not in _RESERVED:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
