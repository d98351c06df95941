"""What the commands that call a service have in common: where it is, and how its answers are shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from orchestrator.cli.output import Output

Function = Callable[..., None]


def connected(command: Function) -> Function:
    """Options for the service and for --json; `command` gets a Client and an Output before its own parameters."""

    @click.option(
        "--server",
        envvar="ORCHESTRATOR_URL",
        metavar="URL",
        help="The service to use.  [default: the data folder's]",
    )
    @click.option("--data-dir", type=click.Path(file_okay=False), help="Data folder.  [default: ~/.orchestrator]")
    @click.option("--json", "as_json", is_flag=True, help="Print what the API answers.")
    @functools.wraps(command)
    def called(*, server: str | None, data_dir: str | None, as_json: bool, **arguments: Any) -> None:
        from orchestrator.cli.service import connect

        command(connect(server, data_dir), Output(as_json), **arguments)

    return called


def id_argument(name: str) -> Callable[[Function], Function]:
    """What is named by its id alone."""
    return click.argument(name, metavar="ID", type=click.UUID, callback=lambda _, __, value: str(value))


def id_of(given: str, what: str, find: Callable[[str], Any], *, listed_by: str) -> str:
    """The id of what has this id, or this name, by which `find` finds it. Raises NotFound."""
    from uuid import UUID

    from orchestrator.errors import NotFound

    try:
        return str(UUID(given))
    except ValueError:
        found = find(given)
    if found is None:
        raise NotFound(f"{what} named", f"{given!r}; see `orchestrator {listed_by} list`")
    id: str = found["id"]
    return id


def at_most(command: Function) -> Function:
    """--limit, for lists."""
    option = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Items at most.")
    return option(command)


def asked_before(what: str) -> Callable[[Function], Function]:
    """--yes, without which the user is asked whether they mean it."""
    return click.confirmation_option("-y", "--yes", prompt=what, help="Do not ask.")
