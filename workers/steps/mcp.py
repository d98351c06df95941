"""`mcp`: one call of a tool of an MCP server (https://modelcontextprotocol.io)."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from marshmallow import INCLUDE, Schema, ValidationError, fields, post_load, validate

from orchestrator.config import McpServerSettings, McpSettings, Settings
from orchestrator.errors import StepFailed
from workers.steps.contract import Done, QueueClass, Rate, StepContext, StepType, config_mistake
from workers.steps.fields import Duration, Text, validates_whole

if TYPE_CHECKING:
    from mcp_types import CallToolResult

    from workers.steps.mcp_transports import Server

_SAID = 1000
"""Characters of a tool's own message that the step's error repeats."""


class Mcp(StepType):
    """Calls the tool `action` of `server` with `arguments`, and with every key of the config that is not a field.

    Output: `content` (the result's blocks as MCP writes them), `text` (its text blocks, a line break between
    two), `structured` (its structured content, null if it has none). A tool that reports an error fails the
    attempt with kind `tool` and this output; `mcp` is an error of the protocol, such as a tool that is not
    there, `connection` a server that cannot be reached or went away. What the server logs, and how far it
    says it is, become log lines.

    Each call has a connection of its own. That costs 15 ms on loopback (three requests; five with a server of
    the protocol's older versions). A server that is a program is started and ended for each call, in an empty
    folder with an environment of its own.
    """

    type: ClassVar[str] = "mcp"
    queue: ClassVar[QueueClass] = "io"
    extra: ClassVar[str] = "mcp"
    modules: ClassVar[tuple[str, ...]] = ("mcp",)

    class Config(Schema):
        class Meta:
            unknown = INCLUDE

        server = Text(validate=validate.Length(min=1))
        action = fields.String(required=True, validate=validate.Length(min=1))
        arguments = fields.Dict(keys=fields.String(), values=fields.Raw(allow_none=True), load_default=dict)
        timeout = Duration(load_default=60.0)

        @validates_whole
        def _one_value_each(self, data: Mapping[str, Any], written: Set[str]) -> None:
            twice = sorted(data.get("arguments", {}).keys() & (written - self.fields.keys()))
            if twice:
                raise ValidationError({name: ["is in `arguments` as well; write it once"] for name in twice})

        @post_load
        def _gather(self, data: Mapping[str, Any], **_: object) -> dict[str, Any]:
            known = {name: value for name, value in data.items() if name in self.fields}
            more = {name: value for name, value in data.items() if name not in self.fields}
            return known | {"arguments": {**data["arguments"], **more}}

    def rate(self, config: Mapping[str, Any], settings: Settings) -> Rate | None:
        try:
            name, server = _chosen(config, settings.mcp)
        except StepFailed:
            return None  # that is for `perform` to say
        return Rate.of(f"mcp.servers.{name}", server.rate_limit)

    def perform(self, context: StepContext) -> Done:
        # The SDK takes most of a second to import, and is an extra.
        from workers.steps.mcp_call import call_tool

        server = _server(context)
        result = call_tool(server, context)
        output = _output(result)
        if result.is_error:
            raise StepFailed(
                f"the tool {context.config['action']!r} of {server.shown} failed: "
                f"{output['text'][:_SAID] or 'it does not say why'}",
                kind="tool",
                output=output,
            )
        return Done(output)


def _server(context: StepContext) -> Server:
    """The server that the step means, not yet connected. Raises StepFailed of kind `config`."""
    from workers.steps.mcp_stdio import StdioServer
    from workers.steps.mcp_transports import HttpServer

    name, settings = _chosen(context.config, context.settings.mcp)
    if settings.url and not settings.command:
        headers = context.reveal(dict(settings.headers or {}))
        return HttpServer(name, context.reveal(settings.url), headers, context.settings.egress.rules)
    if settings.command and not settings.url:
        command = context.reveal(list(settings.command))
        return StdioServer(name, command, context.reveal(dict(settings.env or {})), context)
    raise config_mistake(f"the MCP server {name!r} needs either a url or a command (mcp.servers.{name})")


def _chosen(config: Mapping[str, Any], settings: McpSettings) -> tuple[str, McpServerSettings]:
    known = ", ".join(sorted(settings.servers))
    if not known:
        raise config_mistake("no MCP server is configured; add one to mcp.servers")
    name = config.get("server") or settings.default_server
    if not name:
        if len(settings.servers) > 1:
            raise config_mistake(f"which MCP server? Name it as `server`, or set mcp.default_server; there are {known}")
        (name,) = settings.servers
    if name not in settings.servers:
        raise config_mistake(f"there is no MCP server {name!r} in mcp.servers; there are {known}")
    return name, settings.servers[name]


def _output(result: CallToolResult) -> dict[str, Any]:
    content = [orjson.loads(block.model_dump_json(by_alias=True, exclude_none=True)) for block in result.content]
    return {
        "content": content,
        "text": "\n".join(block["text"] for block in content if block["type"] == "text"),
        "structured": result.structured_content,
    }
