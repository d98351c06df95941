"""`orchestrator projects` and `grants`: what workflows belong to, and who may do what there."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from orchestrator.cli.connection import asked_before, at_most, connected, id_argument
from orchestrator.cli.keys import ROLES
from orchestrator.cli.output import Output, field, moment

if TYPE_CHECKING:
    from orchestrator.client import Client

_PROJECT = click.argument("project", metavar="NAME")


@click.group()
def projects() -> None:
    """What workflows and secrets belong to, and roles are held in."""


@projects.command("list")
@at_most
@connected
def list_projects(client: Client, output: Output, limit: int) -> None:
    """List the projects in which you hold a role, by name."""
    output.rows(
        islice(client.projects.list(limit=min(limit, 200)), limit),
        {
            "ID": field("id"),
            "NAME": field("name"),
            "CREATED": field("created_at", moment),
            "DESCRIPTION": field("description"),
        },
    )


@projects.command("create")
@_PROJECT
@click.option("--description", metavar="TEXT", default="", help="What it is for.")
@connected
def create_project(client: Client, output: Output, project: str, description: str) -> None:
    """Create a project."""
    made = client.projects.create(project, description)
    output.done(made, f"project {made['id']} {made['name']!r} is created")


@projects.command("delete")
@_PROJECT
@asked_before("Remove the project, and the roles held in it?")
@connected
def delete_project(client: Client, output: Output, project: str) -> None:
    """Remove a project that has no workflows, and the roles held in it."""
    id = project_id(client, project)
    client.projects.delete(id)
    output.done({"id": id}, f"project {id} is removed")


@click.group()
def grants() -> None:
    """Roles of those who come with a token of an OpenID Connect issuer; a key has its own, see `orchestrator keys`."""


@grants.command("list")
@at_most
@connected
def list_grants(client: Client, output: Output, limit: int) -> None:
    """List who holds which role, newest first."""
    output.rows(
        islice(client.grants.list(limit=min(limit, 200)), limit),
        {
            "ID": field("id"),
            "SUBJECT": field("subject"),
            "ROLE": field("role"),
            "PROJECT": field("project", lambda name: name or "all projects"),
            "CREATED": field("created_at", moment),
        },
    )


@grants.command("create")
@click.argument("subject", metavar="ISSUER:SUB")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What they may do.")
@click.option("--project", metavar="NAME", help="Where.  [default: in all projects]")
@connected
def create_grant(client: Client, output: Output, subject: str, role: str, project: str | None) -> None:
    """Give a role to whom an issuer calls SUB."""
    made = client.grants.create(subject, role, project)
    output.done(made, f"grant {made['id']}: {subject} is {role} in {project or 'all projects'}")


@grants.command("delete")
@id_argument("grant")
@asked_before("Take the role away?")
@connected
def delete_grant(client: Client, output: Output, grant: str) -> None:
    """Take a role away."""
    client.grants.delete(grant)
    output.done({"id": grant}, f"grant {grant} is removed")


def project_id(client: Client, name: str) -> str:
    """Raises NotFound."""
    from orchestrator.errors import NotFound

    for project in client.projects.list():
        if project["name"] == name:
            return project["id"]
    raise NotFound("project named", f"{name!r}; see `orchestrator projects list`")
