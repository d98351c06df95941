"""Answers on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import click

STATUS_COLOURS = {
    "completed": "green",
    "active": "green",
    "failed": "red",
    "cancelled": "red",
    "skipped": "bright_black",
    "running": "cyan",
    "paused": "yellow",
}

Cell = Callable[[Any], object]


class Output:
    """Shows each answer once, as the API gives it or for a person."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def rows(self, items: Iterable[Any], columns: Mapping[str, Cell]) -> None:
        """One line an item, by headings and what stands under them; JSON is an array."""
        found = list(items)
        if self.as_json:
            self.json(found)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for heading in columns:
            table.add_column(heading, no_wrap=True)
        for item in found:
            texts = (_text(cell(item)) for cell in columns.values())
            table.add_row(*(Text(text, style=STATUS_COLOURS.get(text, "")) for text in texts))
        # An id that is cut to the screen's width is of no use.
        console = Console(width=10_000, highlight=False)
        with console.capture() as captured:
            console.print(table)
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def record(self, item: Any, fields: Mapping[str, Cell]) -> None:
        """One line a field; those that are empty are left out."""
        if self.as_json:
            self.json(item)
            return
        shown = {name: _text(cell(item)) for name, cell in fields.items()}
        width = max(map(len, shown))
        for name, text in shown.items():
            if text:
                click.echo(f"{name:<{width}}  {text}")

    def done(self, item: Any, words: str) -> None:
        """What a call has done, in words."""
        if self.as_json:
            self.json(item)
        else:
            click.echo(words)

    def lines(self, items: Iterator[Any], line: Callable[[Any], str]) -> None:
        """Each as it comes; JSON is an object a line."""
        for item in items:
            click.echo(json.dumps(item, ensure_ascii=False) if self.as_json else line(item))

    def json(self, value: Any) -> None:
        click.echo(json.dumps(value, ensure_ascii=False))


def moment(text: str | None) -> str:
    """A time of the API as the clock here shows it, to the second."""
    return "" if text is None else datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}s"


def field(name: str, shown: Cell = lambda value: value) -> Cell:
    return lambda item: shown(item[name])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else " ".join(str(value).split())
